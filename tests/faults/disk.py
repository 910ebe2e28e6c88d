"""A disk that counts its primitives and fails before a given one: SQLite's method of walking through all crash points."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from infra import durable


@contextlib.contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """Give a folder in memory where there is one, else `folder`: for tests of an order of steps, not of a medium."""
    if not os.access("/dev/shm", os.W_OK):
        yield folder
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="camloop-test-") as name:
        yield Path(name)


class PowerCut(BaseException):
    """The plug was pulled."""


class CountingDisk(durable.Disk):
    """Counts primitives and fails before number `fail_at`; a torn write leaves half of its bytes."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.n_calls = 0
        self.fail_at = fail_at
        self.error = error or PowerCut()

    def _step(self) -> bool:
        self.n_calls += 1
        return self.n_calls == self.fail_at

    def write(self, path: Path, data: bytes) -> None:
        if self._step():
            super().write(path, data[: len(data) // 2])
            raise self.error
        super().write(path, data)

    def append(self, path: Path, data: bytes) -> None:
        if self._step():
            super().append(path, data[: len(data) // 2])
            raise self.error
        super().append(path, data)


def _failing(name: str) -> Callable[..., None]:
    def call(self: CountingDisk, *args: object) -> None:
        if self._step():
            raise self.error
        getattr(durable.Disk, name)(self, *args)

    return call


for _name in ("fsync", "rename", "link", "symlink", "truncate", "unlink", "mkdir"):
    setattr(CountingDisk, _name, _failing(_name))
