"""Clips and spools for the tests of a camera host."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import durable, keys
from infra.records import Sidecar
from ingest.spool import Spool

MakeClip = Callable[[int], tuple[Path, Sidecar]]


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """Return a maker of finished clips: random bytes and a sidecar, number 0, 1, 2 ... of one recording."""

    def make(number: int, folder: str = "incoming", n_bytes: int = 20_000) -> tuple[Path, Sidecar]:
        data = random.Random(number).randbytes(n_bytes)
        sha256 = hashlib.sha256(data).hexdigest()
        path = tmp_path / folder / f"made-{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sidecar = Sidecar(
            clip_id=keys.clip_id(sha256), camera_id="cam1", host_id="pi", boot_id="boot", recording_id="rec", seq=number,
            sha256=sha256, n_bytes=n_bytes, container="mp4", start_ns=None, start_mono_ns=number * 10**9, clock="unknown",
            sensor_ns=(number * 10**9, number * 10**9 + 5),
        )  # fmt: skip
        return path, sidecar

    return make


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool."""
    with Spool(tmp_path / "spool") as made:
        yield made


@pytest.fixture(autouse=True)
def real_disk() -> Iterator[None]:
    """Put the real disk back after a test that put a counting or crashing one in its place."""
    before = durable.disk
    yield
    durable.disk = before
