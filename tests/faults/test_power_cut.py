"""Power cuts for real: ext4 in a file on btrfs; a reflink copy of the file, made while a writer commits, is the disk
as it was when the plug was pulled (RELIABILITY.md, finding 9). Needs root, loop devices, mkfs.btrfs and mkfs.ext4.

    CAMLOOP_TEST_COUNT=2000 pytest tests/faults/test_power_cut.py     cuts, 60 by default
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import durable, maintain
from infra.catalog import Catalog, Done, open_catalog
from infra.errors import CatalogError
from infra.store import DirStore

ROOT = Path(__file__).resolve().parents[2]
N_FRAMES = 3


def clip_id(number: int) -> str:
    return f"{number:032x}"


def commit(catalog: Catalog, number: int) -> None:
    """Commit one batch of two data tables and `done`."""
    made = {
        "frames": [{"clip_id": clip_id(number), "pts": pts, "p_keep": 1.0} for pts in range(N_FRAMES)],
        "gops": [{"clip_id": clip_id(number), "gop_index": 0}],
    }
    catalog.commit(made, [Done("clip", clip_id(number), "scan", "f", N_FRAMES, N_FRAMES)])


def write_for_ever(folder: Path, *, forced: bool) -> None:
    """The child: commit batch after batch and say each number when its commit has returned."""
    if not forced:
        durable.Disk.fsync = lambda self, path: None  # type: ignore[method-assign]
    catalog = open_catalog(DirStore(folder))
    number = 0
    while True:
        commit(catalog, number)
        print(number, flush=True)
        number += 1


def sh(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def mounted(image: Path, folder: Path, options: str = "loop") -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    sh("mount", "-o", options, image, folder)
    try:
        yield
    finally:
        sh("umount", folder)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Path]:
    """A folder on btrfs with `dev.img`, an empty ext4 of 128 MB."""
    missing = [tool for tool in ("mkfs.btrfs", "mkfs.ext4", "mount") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"the power-cut rig needs {', '.join(missing) or 'root'}")
    with (tmp_path / "outer.img").open("wb") as file:
        file.truncate(4 << 30)
    try:
        sh("mkfs.btrfs", "-q", tmp_path / "outer.img")
        stack = contextlib.ExitStack()
        stack.enter_context(mounted(tmp_path / "outer.img", tmp_path / "outer", "loop,nodatasum"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the power-cut rig cannot be mounted here: {error.stderr.strip()[:120]}")
    with stack:
        with (tmp_path / "outer" / "dev.img").open("wb") as file:
            file.truncate(128 << 20)
        sh("mkfs.ext4", "-q", "-F", tmp_path / "outer" / "dev.img")
        yield tmp_path


def cut(rig: Path, n_cuts: int, *, forced: bool = True) -> list[tuple[Path, int]]:
    """Run the writer and copy its disk `n_cuts` times; return (copy, last batch that was acknowledged before)."""
    rng, acked, copies = random.Random(1), [-1], []
    inner = rig / "inner"
    with mounted(rig / "outer" / "dev.img", inner):
        call = f"write_for_ever(pathlib.Path({str(inner / 'store')!r}), forced={forced})"
        code = f"import pathlib; from tests.faults.test_power_cut import write_for_ever; {call}"
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert writer.stdout is not None
        lines = writer.stdout

        def listen() -> None:
            for line in lines:
                acked[0] = int(line)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            deadline = time.monotonic() + 60
            while acked[0] < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            for number in range(n_cuts):
                time.sleep(rng.uniform(0.01, 0.15))
                last, copy = acked[0], rig / "outer" / f"cut{number}.img"
                sh("cp", "--reflink=always", rig / "outer" / "dev.img", copy)
                copies.append((copy, last))
            assert writer.poll() is None, "the writer died"
        finally:
            writer.kill()
            writer.wait()
            listener.join()
    return copies


@pytest.mark.slow
def test_power_cuts(rig: Path) -> None:
    """After a power cut every acknowledged batch is there whole, any other whole or not at all, and writing goes on."""
    copies = cut(rig, int(os.environ.get("CAMLOOP_TEST_COUNT", "60")))
    outcomes = collections.Counter[str]()
    for copy, acked in copies:
        with mounted(copy, rig / "check"):
            catalog = open_catalog(DirStore(rig / "check" / "store"), create=False)
            try:
                done = catalog.done("scan")
                catalog.snapshot()
            except CatalogError:
                assert maintain.repair(catalog)
                outcomes["repaired"] += 1
                done = catalog.done("scan")
            lost = {clip_id(number) for number in range(acked + 1)} - done
            assert not lost, f"{len(lost)} of {acked + 1} acknowledged batches lost"
            counts = dict(catalog.scan("frames").group_by("clip_id").len().collect().rows())
            assert counts == dict.fromkeys(done, N_FRAMES)
            assert catalog.scan("gops").collect().height == len(done)
            assert maintain.check(catalog) == []
            outcomes["one more than acknowledged" if len(done) > acked + 1 else "as acknowledged"] += 1
            commit(catalog, 10**6)
            assert len(catalog.done("scan")) == len(done) + 1
        copy.unlink()
    print(f"{len(copies)} power cuts, {copies[-1][1] + 1} batches acknowledged: {dict(outcomes)}")


@pytest.mark.slow
def test_the_rig_sees_what_is_not_forced(rig: Path) -> None:
    """Without fsync the same cuts lose acknowledged batches or leave a torn store: the rig can tell."""
    n_bad = 0
    for copy, acked in cut(rig, 10, forced=False):
        with mounted(copy, rig / "check"):
            try:
                catalog = open_catalog(DirStore(rig / "check" / "store"), create=False)
                n_bad += not {clip_id(number) for number in range(acked + 1)} <= catalog.done("scan") or bool(
                    maintain.check(catalog)
                )
            except CatalogError:
                n_bad += 1
        copy.unlink()
    assert n_bad > 0
    print(f"{n_bad} of 10 cuts without fsync lost something")
