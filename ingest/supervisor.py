"""Keeps the children of a camera host alive: a recorder per camera and an uploader, each in a process group of its own.

One loop, one thread: it reads the recorders' heartbeats and everybody's standard error, takes leave of those that ended,
kills (-9, the whole group) whoever stalled, and starts whoever is due; `Watch` says when. Nothing here waits for a child:
one that hangs in the kernel is left to itself while the others go on. Children die with the supervisor (PR_SET_PDEATHSIG).

The standard library only: neither numpy nor av.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from infra.clock import Clock
from infra.log import Log, mask
from ingest.watchdog import Repeats, Watch, read_beats

TICK_S = 0.5
MAX_LINE_BYTES = 2000
KEPT_LINES = 20
HEARTBEAT = "{heartbeat_fd}"
AFTER_DISK_WAIT_NS = 2_000_000_000
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_READ_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1
_log = Log("ingest.agent")


@dataclass(slots=True, kw_only=True)
class Child:
    """One process that is to run for ever.

    Args:
        name: of the camera, or `uploader`.
        argv: its command; the argument `{heartbeat_fd}` becomes the number of the pipe's writing end.
        watch: when it is killed and started.
        ends: its exit code 0 means that the source has no more frames; else it is started again.
        lines_per_minute: what of its standard error is passed on.
        environment: None: this process's own.
        niceness: how far it gives way to the others.
    """

    name: str
    argv: Sequence[str]
    watch: Watch
    environment: Mapping[str, str] | None = None
    niceness: int = 0
    ends: bool = False
    lines_per_minute: int = 20
    process: subprocess.Popen[bytes] | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    n_lines_hidden: int = 0
    _pipe: int | None = None
    _disk_wait_ns: int | None = None
    _beats: bytes = b""
    _text: bytes = b""
    _minute: int = -1
    _n_in_minute: int = 0
    _repeats: Repeats = field(init=False)

    def __post_init__(self) -> None:
        self._repeats = Repeats(self.watch.clock)


def is_in_disk_wait(pid: int) -> bool:
    """Say whether a process sleeps uninterruptibly (state D)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "D"
    except (OSError, IndexError):
        return False


def _before_exec(parent: int, niceness: int) -> None:
    """In the child: when the supervisor dies, however it dies, so does the child; and who can wait gives way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.nice(niceness)


class Supervisor:
    """Runs children until it is told to stop.

    Args:
        children: started at once, in this order.
        clock: the monotonic one counts.
        out: where the children's lines go (standard error of the agent).
        on_tick: called in each turn of the loop.
    """

    def __init__(
        self, children: Sequence[Child], clock: Clock, *, out: IO[str] | None = None, on_tick: Callable[[], None] = lambda: None
    ) -> None:
        self.children = tuple(children)
        self._clock, self._out, self._on_tick = clock, out or sys.stderr, on_tick
        self._selector = selectors.DefaultSelector()
        self._stop = False

    def run(self, stop_s: float = 20.0) -> None:
        """Keep the children running until SIGTERM or SIGINT; then let them end, and kill what has not after `stop_s`."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._told_to_stop) for number in STOP_SIGNALS}
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)  # wakes the loop, no more
        self._selector.register(reading, selectors.EVENT_READ, lambda: bool(os.read(reading, _READ_BYTES)))
        try:
            while not self._stop:
                self.turn()
                self._on_tick()
            self._end_children(stop_s)
        finally:
            for child in self.children:
                self._kill(child)
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._selector.close()
            os.close(reading)
            os.close(writing)

    def stop(self) -> None:
        """Let `run` end in its next turn."""
        self._stop = True

    def _told_to_stop(self, number: int, frame: object) -> None:
        self.stop()

    def turn(self, wait_s: float = TICK_S) -> None:
        """One turn: start who is due, read what came, bury who ended, kill who stalled."""
        for child in self.children:
            if child.process is None and child.watch.may_start():
                self._start(child)
        for key, _ in self._selector.select(wait_s):
            key.data()
        for child in self.children:
            self._bury(child)
            if child.process is not None and child.watch.is_stalled() and not self._waits_for_disk(child):
                child.watch.stalled()
                if child._repeats.is_news(f"stalled: {child.watch.last_error}"):
                    what = "camera_stalled" if child.watch.films else "child_stalled"
                    _log.warning(what, name=child.name, reason=child.watch.last_error, pid=child.process.pid)
                self._kill(child)

    def _waits_for_disk(self, child: Child) -> bool:
        """Say whether a child is, or was until just now, stuck in the kernel: a card that takes its time is no stalled camera.

        A process in that state cannot be killed anyway.
        """
        assert child.process is not None
        now_ns = self._clock.mono_ns()
        if is_in_disk_wait(child.process.pid):
            child._disk_wait_ns = now_ns
        return child._disk_wait_ns is not None and now_ns - child._disk_wait_ns < AFTER_DISK_WAIT_NS

    def _start(self, child: Child) -> None:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        argv = [argument.replace(HEARTBEAT, str(writing)) for argument in child.argv]
        try:
            child.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(writing,),
                start_new_session=True, env=child.environment, preexec_fn=partial(_before_exec, os.getpid(), child.niceness),
            )  # fmt: skip
        except OSError as error:  # no memory, no process: a failure like any other
            os.close(reading)
            child.watch.started()
            child.watch.exited(False, f"{argv[0]}: {error.strerror}")
            return
        finally:
            os.close(writing)
        with contextlib.suppress(OSError):  # when memory runs out, a camera goes before its supervisor
            Path(f"/proc/{child.process.pid}/oom_score_adj").write_text("300")
        child.watch.started()
        child._pipe, child._beats, child._text = reading, b"", b""
        self._selector.register(reading, selectors.EVENT_READ, lambda: self._read_beats(child))
        assert child.process.stderr is not None
        os.set_blocking(child.process.stderr.fileno(), False)
        self._selector.register(child.process.stderr, selectors.EVENT_READ, lambda: self._read_lines(child))

    def _read_beats(self, child: Child) -> None:
        if child._pipe is None:
            return
        try:
            data = os.read(child._pipe, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:  # the writing end is closed; who closed it is buried or found stalled
            self._selector.unregister(child._pipe)
            os.close(child._pipe)
            child._pipe = None
            return
        beats, child._beats = read_beats(child._beats + data)
        was = child.watch.state
        child.watch.beats(beats)
        if was == "starting" and child.watch.state == "running" and child._repeats.is_news("recording"):
            _log.info("camera_recording", name=child.name, n_restarts=child.watch.n_restarts)

    def _read_lines(self, child: Child) -> None:
        assert child.process is not None and child.process.stderr is not None
        try:
            data = os.read(child.process.stderr.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(child.process.stderr)
            return
        *lines, rest = (child._text + data).split(b"\n")
        child._text = rest[-MAX_LINE_BYTES:]
        for line in lines:
            self._pass_on(child, mask(line[:MAX_LINE_BYTES].decode(errors="replace")))

    def _pass_on(self, child: Child, line: str) -> None:
        """Write a child's line to the log; repeats, and what is too much for a minute, are counted only: a card wears out."""
        child.lines.append(line)
        minute = self._clock.mono_ns() // 60_000_000_000
        if minute != child._minute:
            child._minute, child._n_in_minute = minute, 0
        if child._n_in_minute >= child.lines_per_minute or not child._repeats.is_news(line):
            child.n_lines_hidden += 1
            return
        child._n_in_minute += 1
        self._out.write(f"{child.name}: {line}\n")
        self._out.flush()

    def _bury(self, child: Child) -> None:
        process = child.process
        if process is None or os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        self._signal(child, signal.SIGKILL)  # what it left in its group, while the group's number is still taken
        process.wait()
        self._read_beats(child)
        if process.stderr is not None and process.stderr.fileno() in self._selector.get_map():
            self._read_lines(child)
        if process.stderr is not None:
            if process.stderr.fileno() in self._selector.get_map():
                self._selector.unregister(process.stderr)
            process.stderr.close()
        if child._pipe is not None:
            self._selector.unregister(child._pipe)
            os.close(child._pipe)
            child._pipe = None
        if child._text:
            self._pass_on(child, mask(child._text.decode(errors="replace")))
        code, child.process = process.returncode, None
        reason = child.lines[-1] if child.lines and code else None
        if reason is None:
            reason = "the stream ended" if code == 0 else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        stopping = child.watch.state == "stopping"
        child.watch.exited(child.ends and code == 0, reason)
        if not stopping and child._repeats.is_news(f"ended: {reason}"):
            told = _log.info if child.watch.state == "ended" else _log.warning
            told("child_ended", name=child.name, reason=reason, exit_code=code)

    def _signal(self, child: Child, number: int) -> None:
        if child.process is None:
            return
        try:
            os.killpg(child.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # nobody is left in its group

    def _kill(self, child: Child) -> None:
        self._signal(child, signal.SIGKILL)

    def _end_children(self, stop_s: float) -> None:
        """SIGTERM to all at once; the loop goes on reading and burying; SIGKILL to who is left."""
        for child in self.children:
            child.watch.stopping()
            if child.process is not None:
                self._signal(child, signal.SIGTERM)
        deadline_ns = self._clock.mono_ns() + round(stop_s * 1e9)
        while any(child.process is not None for child in self.children) and self._clock.mono_ns() < deadline_ns:
            self.turn(0.1)
            self._on_tick()
        for child in self.children:
            if child.process is not None:
                _log.warning("killed", name=child.name, reason=f"it did not end within {stop_s:g} s")
                self._kill(child)
        last_ns = self._clock.mono_ns() + 1_000_000_000
        while any(child.process is not None for child in self.children) and self._clock.mono_ns() < last_ns:
            self.turn(0.05)
