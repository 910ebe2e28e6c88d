"""What runs in a child of `DecoderPool`: one call after the other, under limits. Started by `decoder.py` only."""

from __future__ import annotations

import importlib
import json
import mmap
import os
import pickle
import resource
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from infra.errors import CamloopError


def main(connection_fd: int, lifeline_fd: int, memory_fd: int) -> None:
    """Serve calls until the parent closes the connection or dies."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_die_with_parent, args=(lifeline_fd,), daemon=True).start()
    connection = Connection(connection_fd)
    while True:
        try:
            target, args, kwargs, is_stream, memory_bytes, cpu_s = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            _limit(None, None)
            module, _, name = target.partition(":")
            function = getattr(importlib.import_module(module), name)
            connection.send_bytes(b'["ready"]')
            _limit(memory_bytes, cpu_s)
            _send_all(connection, memory_fd, function(*args, **kwargs) if is_stream else iter([function(*args, **kwargs)]))
            message = ["end"]
        except CamloopError as error:
            message = ["error", type(error).__name__, str(error)]
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises is this clip's fault, and must reach the parent
            message = ["error", "MemoryError" if isinstance(error, MemoryError) else type(error).__name__, str(error)]
        connection.send_bytes(json.dumps(message).encode())


def _send_all(connection: Connection, memory_fd: int, items: Iterator[Any]) -> None:
    """Hand over the items, each through the shared memory; the next one is made while the parent works on the last."""
    is_first = True
    for item in items:
        buffers: list[pickle.PickleBuffer] = []
        body = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        if not is_first:
            connection.recv_bytes()
        is_first = False
        n_bytes = len(body) + sum(part.nbytes for part in raw)
        if os.fstat(memory_fd).st_size < n_bytes:
            os.ftruncate(memory_fd, n_bytes)
        with mmap.mmap(memory_fd, n_bytes) as shared:
            at = 0
            for part in (memoryview(body), *raw):
                shared[at : at + part.nbytes] = part
                at += part.nbytes
        connection.send_bytes(json.dumps(["item", len(body), [part.nbytes for part in raw]]).encode())
    if not is_first:
        connection.recv_bytes()


def _limit(memory_bytes: int | None, cpu_s: float | None) -> None:
    """Set the limits of one call, counted from what the process uses now; None takes them off."""
    free = resource.RLIM_INFINITY
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if memory_bytes else 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent_s = used.ru_utime + used.ru_stime
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes if memory_bytes else free, free))
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent_s + cpu_s) + 1 if cpu_s else free, free))


def _die_with_parent(lifeline_fd: int) -> None:
    """Wait for the end of the parent, which holds the other end of this pipe, and end too."""
    os.read(lifeline_fd, 1)
    os._exit(1)
