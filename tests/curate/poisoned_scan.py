"""A scan whose clips may be poison: the first bytes of a file say what it does to its decoder, and where tries are counted."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.decode import Decode
from curate.scan import Part, scan_clip
from infra.decoder import DecoderPool

MARK = b"POISON "
KINDS = ("segfault", "abort", "hang", "8 GB", "endless")
LIMIT_S = 2.0


def poison(kind: str, tries: Path, number: int) -> bytes:
    """Return the bytes of a poisoned clip that counts its tries in a file."""
    return MARK + f"{kind}|{tries}|{number}|".encode() + bytes(200)


def scan(path: Path | str, **how: Any) -> Iterator[Part]:
    """Scan a clip, or do what a poisoned one does."""
    head = Path(path).read_bytes()[:400]
    if not head.startswith(MARK):
        yield from scan_clip(path, **how)
        return
    kind, tries = head.removeprefix(MARK).decode(errors="replace").split("|")[:2]
    with Path(tries).open("a") as file:
        file.write(".")
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "abort":
        os.abort()
    elif kind == "hang":
        time.sleep(3600)
    elif kind == "8 GB":
        bytearray(8 << 30)
    while True:  # endless
        pass


class _Pool(DecoderPool):
    def stream(self, target: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return super().stream("tests.curate.poisoned_scan:scan", *args, **kwargs)


class PoisonedDecode(Decode):
    """The decoder stage with that scan and short limits."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._pool = _Pool(cpu_s=LIMIT_S, wall_s=LIMIT_S)
