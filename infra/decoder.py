"""Decoders that may crash: long-lived child processes with limits, one clip at a time, replaced after a fault.

    with DecoderPool(n=2) as pool:
        truth = pool.run("infra.video:probe", path)
        for part in pool.stream("curate.scan:scan_clip", path, index=truth.index, every_s=1.0, sizes_px={"detect_rgb": 640}):
            ...

A hostile or broken clip can make a decoder crash, abort, hang or fill the memory. Here that costs a child: it is replaced and
the clip tried once more; a clip that does it twice is a `MediaError` with the reason, and the next clip goes on. An error
that the function itself raised is passed on at once. A stream that is tried again leaves out the items already handed over.

Limits per clip: address space (`RLIMIT_AS`, on top of what the child has mapped when it begins), CPU seconds (`RLIMIT_CPU`)
and wall seconds (only while the caller waits, and not while a new child imports what it needs). Arrays come back through
shared memory without a name, so that nothing is left behind whoever dies; a child ends when its parent does, however that
ends. What comes back is read by a reader that makes numbers, texts, containers, arrays and our own records, nothing else: a
decoder that was taken over cannot run code here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from multiprocessing.connection import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from infra import errors
from infra.errors import CamloopError, MediaError, UsageError

TRIES: Final = 2
MEMORY_BYTES: Final = 1_500_000_000
START_S: Final = 120.0  # until a child has imported the function; a busy machine is no clip's fault
CALLS_PER_CHILD: Final = 500  # then it is replaced, so that a slow leak of a decoder stays small
_START: Final = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from infra.decoder_child import main; main(*map(int, sys.argv[2:]))"
)
_NUMPY: Final = frozenset({"ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar"})


class DecoderPool:
    """Runs functions on untrusted clips in child processes. Threads may share it: each call takes a child of its own.

    Args:
        n: children at most; they start when they are needed.
        memory_bytes: address space that one call may add.
        cpu_s: CPU seconds of one call.
        wall_s: seconds that the caller waits for one call, in all.

    Raises:
        UsageError: a limit that is not positive.
    """

    def __init__(self, n: int = 1, *, memory_bytes: int = MEMORY_BYTES, cpu_s: float = 120.0, wall_s: float = 120.0) -> None:
        if n < 1 or memory_bytes <= 0 or cpu_s <= 0 or wall_s <= 0:
            raise UsageError(f"decoder pool: n {n}, {memory_bytes} bytes, {cpu_s} s CPU, {wall_s} s; legal: all above 0")
        self._limits = (memory_bytes, cpu_s, wall_s)
        self._free: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(n):
            self._free.put(None)
        self._n = n
        weakref.finalize(self, _end, self._free)  # whoever forgets to close it

    def run(self, target: str, *args: Any, **kwargs: Any) -> Any:
        """Return what the function gives for these arguments.

        Args:
            target: "module:function"; imported in the child.
            args: anything that can be pickled; a path among them names the clip in messages.
            kwargs: the same.

        Raises:
            MediaError: it crashed, hung or passed a limit twice, or raised something that is not ours.
            CamloopError: what the function raised.
        """
        (result,) = self._items(target, args, kwargs, is_stream=False)
        return result

    def stream(self, target: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Yield what the generator function yields, as it comes; it must yield the same again when it is tried again.

        Args and errors are those of `run`. The child works one item ahead, no more.
        """
        return self._items(target, args, kwargs, is_stream=True)

    def close(self) -> None:
        """End all children; calls under way are left to finish with an error of their own."""
        for _ in range(self._n):
            try:
                child = self._free.get_nowait()
            except queue.Empty:
                break
            if child is not None:
                child.kill()
            self._free.put_nowait(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _items(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_stream: bool) -> Iterator[Any]:
        what = next((Path(a).name for a in args if isinstance(a, (str, Path))), target)
        call = pickle.dumps((target, args, kwargs, is_stream, *self._limits[:2]))
        n_given, reason = 0, ""
        for _ in range(TRIES):
            child = self._free.get()
            try:
                if child is None:
                    child = _Child()
                for number, item in enumerate(child.items(call, self._limits)):
                    if number >= n_given:
                        n_given += 1
                        yield item
                return
            except _FaultError as fault:
                reason = str(fault)
            finally:
                if child is not None and not child.is_idle:
                    child.kill()
                    child = None
                self._free.put(child)
        raise MediaError(f"{what}: {reason}, {TRIES} times; the clip is left out")


def _end(free: queue.LifoQueue[_Child | None]) -> None:
    """End the children that nobody uses."""
    with contextlib.suppress(queue.Empty):
        while True:
            if (child := free.get_nowait()) is not None:
                child.kill()


class _FaultError(Exception):
    """A child did not come back; the message says why."""


class _Child:
    """One child process and the shared memory through which its arrays come."""

    def __init__(self) -> None:
        self._connection, far = Pipe()
        lifeline, self._lifeline = os.pipe()
        self._memory = _nameless_file()
        fds = (far.fileno(), lifeline, self._memory)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, fds)],
            pass_fds=fds,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        far.close()
        os.close(lifeline)
        self._n_calls = 0
        self.is_idle = True

    def items(self, call: bytes, limits: tuple[int, float, float]) -> Iterator[Any]:
        """Yield the items of one call.

        Raises:
            _FaultError: the child crashed, hung or passed a limit.
            CamloopError: what the function raised.
        """
        self.is_idle = False
        limit_s = left_s = START_S
        try:
            self._connection.send_bytes(call)
            while True:
                began = time.monotonic()
                if not self._connection.poll(max(0.0, left_s)):
                    raise _FaultError(f"decoder over {limit_s:g} s")
                kind, *rest = json.loads(self._connection.recv_bytes())
                left_s -= time.monotonic() - began
                if kind == "ready":
                    limit_s = left_s = limits[2]
                    continue
                if kind != "item":
                    break
                item = self._load(*rest)
                self._connection.send_bytes(b"taken")
                yield item
        except (EOFError, OSError) as error:
            raise _FaultError(self._death(limits)) from error
        if kind == "error" and rest[0] == "MemoryError":
            raise _FaultError(f"decoder over {limits[0] / 1e6:.0f} MB")
        self._n_calls += 1
        self.is_idle = self._n_calls < CALLS_PER_CHILD
        if kind == "error":
            raise _error(*rest)

    def _load(self, n_body: int, sizes: list[int]) -> Any:
        """Return the item that lies in the shared memory: the pickled body, then the arrays' bytes, copied out of it."""
        n_bytes = n_body + sum(sizes)
        if n_bytes > os.fstat(self._memory).st_size:
            raise _FaultError("decoder named more than it gave")
        with mmap.mmap(self._memory, n_bytes, access=mmap.ACCESS_READ) as shared:
            body, buffers, at = shared[:n_body], [], n_body
            for size in sizes:
                buffers.append(bytearray(memoryview(shared)[at : at + size]))
                at += size
        try:
            return _Reader(io.BytesIO(body), buffers=buffers).load()
        except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError, IndexError, ImportError) as error:
            raise _FaultError(f"decoder gave what cannot be read: {error}") from error

    def _death(self, limits: tuple[int, float, float]) -> str:
        """Return how the child ended, in words."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "decoder closed its connection"
        if code == -signal.SIGXCPU:
            return f"decoder over {limits[1]:g} s of CPU time"
        return f"decoder killed by {signal.Signals(-code).name}" if code < 0 else f"decoder exited with {code}"

    def kill(self) -> None:
        """End the child and what it started."""
        with contextlib.suppress(ProcessLookupError):  # it is gone already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        os.close(self._lifeline)
        os.close(self._memory)


class _Reader(pickle.Unpickler):
    """Makes arrays, fractions and our own records; refuses every other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy") and name in _NUMPY:
            return super().find_class(module, name)
        if (module, name) == ("fractions", "Fraction"):
            return super().find_class(module, name)
        if module.split(".")[0] in ("infra", "curate") and "." not in name:
            found = getattr(importlib.import_module(module), name)
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} may not come out of a decoder")


def _error(name: str, message: str) -> CamloopError:
    """Return the error of a child: ours under its own class, any other as a MediaError."""
    ours = getattr(errors, name, None)
    if isinstance(ours, type) and issubclass(ours, CamloopError):
        return ours(message)
    return MediaError(f"{name}: {message}")


def _nameless_file() -> int:
    """Return a file descriptor of shared memory that no path names."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("camloop-decoder")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
