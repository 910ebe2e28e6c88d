"""Functions that do what hostile clips make decoders do; run in children of a DecoderPool by test_decoder.py."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import MediaError


def double(array: np.ndarray) -> dict[str, Any]:
    return {"twice": array * 2, "pid": os.getpid(), "text": "ok"}


def crash(path: str) -> None:
    ctypes.string_at(0)


def abort(path: str) -> None:
    os.abort()


def leave(path: str) -> None:
    os._exit(7)


def hang(path: str) -> None:
    time.sleep(3600)


def spin(path: str) -> None:
    while True:
        pass


def hog(path: str) -> int:
    return len(bytearray(8 << 30))


def raise_ours(path: str) -> None:
    raise MediaError(f"{path}: is no clip")


def raise_other(path: str) -> None:
    raise KeyError("frame")


def count(n: int, size: int) -> Iterator[dict[str, Any]]:
    for number in range(n):
        yield {"number": number, "rgb": np.full((size, size, 3), number, np.uint8)}


def count_and_crash_once(n: int, marker: str) -> Iterator[int]:
    for number in range(n):
        if number == 3 and not Path(marker).exists():
            Path(marker).touch()
            ctypes.string_at(0)
        yield number


def count_and_crash(n: int) -> Iterator[int]:
    yield from range(n)
    ctypes.string_at(0)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def evil() -> Evil:
    return Evil()
