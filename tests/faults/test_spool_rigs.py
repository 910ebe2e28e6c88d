"""The spool on real media and under real kills: power cuts, kill -9 in a loop, a full and a read-only disk.

The power-cut rig is that of `test_power_cut.py`: ext4 in a file on btrfs, whose reflink copy is the disk as the plug was
pulled. A child films clips (numbers, drafts, adoption), an uploader in the same child delivers them to a folder store OUTSIDE
the disk that is cut, which so has what a real store would have had at that moment or later.

    CAMLOOP_TEST_COUNT=200 pytest -m slow tests/faults/test_spool_rigs.py     cuts and kills, 60 and 20 by default
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import durable, keys
from infra.errors import DeviceError
from infra.records import Sidecar
from infra.sequence import audit, delivered_in, pages_in
from infra.store import DirStore
from ingest.policy import SpoolLimits
from ingest.recorder import Recorder
from ingest.schedule import UploadSettings
from ingest.spool import Spool
from ingest.uploader import upload
from tests.faults.test_camera_path import Film
from tests.faults.test_power_cut import mounted, sh

ROOT = Path(__file__).resolve().parents[2]
COUNT = os.environ.get("CAMLOOP_TEST_COUNT")


def film_for_ever(folder: Path, store: Path, boot_id: str, *, forced: bool = True) -> None:
    """The child: film and deliver without end, and say each clip when its adoption has returned."""
    if not forced:
        durable.Disk.fsync = lambda self, path: None  # type: ignore[method-assign]
    life = len(list(folder.glob("life-*"))) if folder.is_dir() else 0
    limits = SpoolLimits(max_bytes=200_000, keep_free_bytes=0, policy="value")
    with Spool(folder, limits=limits, host_id="pi") as spool:
        durable.write(folder / f"life-{life}", b"")
        number = life * 100_000
        target = DirStore(store)
        while True:
            source = Film(number, 12, seed=number)
            source.boot_id = boot_id
            recorder = Recorder(source, spool, segment_s=0.4, gop_s=0.4)
            recorder.record(on_clip=lambda sidecar: print(sidecar.clip_id, flush=True))
            number += 20
            if number % 60 == 0:
                upload(spool, target, settings=UploadSettings(connections=1))


def child(folder: Path, store: Path, boot_id: str, *, forced: bool = True) -> subprocess.Popen[str]:
    """Start the child."""
    call = f"film_for_ever(pathlib.Path({str(folder)!r}), pathlib.Path({str(store)!r}), {boot_id!r}, forced={forced})"
    code = f"import pathlib; from tests.faults.test_spool_rigs import film_for_ever; {call}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


class Listener:
    """Collects what a child acknowledges."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.acked: list[str] = []
        assert process.stdout is not None
        self._lines = process.stdout
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for line in self._lines:
            if keys.is_clip_id(line.strip()):  # a kill may tear the last one
                self.acked.append(line.strip())

    def end(self) -> list[str]:
        """Return all that was acknowledged once the child is dead."""
        self._thread.join()
        self._lines.close()
        return self.acked


def judge(folder: Path, store_folder: Path, acked: list[str], boot_id: str) -> Counter[str]:
    """Mend, deliver, and say what became of the clips; assert the verdict."""
    store = DirStore(store_folder)
    with Spool(folder, host_id="pi") as spool:
        source = Film(10**7, 4, seed=1)
        source.boot_id = boot_id
        Recorder(source, spool, segment_s=0.4, gop_s=0.4).record()  # salvages what was left
        for _ in range(3):
            upload(spool, store, settings=UploadSettings(connections=1))
        assert spool.pending() == [] and not any(spool.recording.iterdir())
    clips = {clip.clip_id for clip in delivered_in(store)}
    filmed = Counter[int]()
    for clip_id in clips:
        key = keys.clip_key("cam1", clip_id, "mp4")
        sidecar = Sidecar.from_json(store.get(keys.sidecar_key(key)))
        assert keys.sha256_hex(store.get(key)) == sidecar.sha256, "a torn clip was served"
        filmed.update(round(at_ns / 10_000_000) for at_ns in sidecar.sensor_ns)
    assert max(filmed.values()) == 1, "a picture is in two clips"
    given_up = {entry.clip_id for page in pages_in(store) for entry in page.entries if entry.kind == "evicted"}
    lost = set(acked) - clips - given_up
    assert not lost, f"{len(lost)} of {len(acked)} acknowledged clips are lost"
    found = audit(delivered_in(store), pages_in(store))
    assert found.n_missing == 0 and not any(row.duplicates for row in found.rows), found
    outcome = Counter[str](delivered=len(clips))
    for row in found.rows:
        outcome.update(dict(row.explained))
    return outcome


@pytest.mark.slow
def test_kill_9_in_a_loop(tmp_path: Path) -> None:
    """A host killed again and again at random moments of filming and delivering: nothing lost, doubled or unexplained."""
    rng, acked, kills = random.Random(7), list[str](), int(COUNT or 20)
    for number in range(kills):
        process = child(tmp_path / "spool", tmp_path / "store", "boot")
        listener = Listener(process)
        deadline = time.monotonic() + 60
        while not listener.acked and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        acked += listener.end()
        assert acked, f"kill {number}: it never began"
    outcome = judge(tmp_path / "spool", tmp_path / "store", acked, "boot")
    print(f"{kills} kills, {len(acked)} clips acknowledged: {dict(outcome)}")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Path]:
    """A folder on btrfs with `dev.img`, an empty ext4 of 64 MB."""
    missing = [tool for tool in ("mkfs.btrfs", "mkfs.ext4", "mount") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"the power-cut rig needs {', '.join(missing) or 'root'}")
    with (tmp_path / "outer.img").open("wb") as file:
        file.truncate(4 << 30)
    with contextlib.ExitStack() as stack:
        try:
            sh("mkfs.btrfs", "-q", tmp_path / "outer.img")
            stack.enter_context(mounted(tmp_path / "outer.img", tmp_path / "outer", "loop,nodatasum"))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"the power-cut rig cannot be mounted here: {error.stderr.strip()[:120]}")
        with (tmp_path / "outer" / "dev.img").open("wb") as file:
            file.truncate(64 << 20)
        sh("mkfs.ext4", "-q", "-F", tmp_path / "outer" / "dev.img")
        yield tmp_path


def cut(rig: Path, n_cuts: int, *, forced: bool = True) -> list[tuple[Path, Path, list[str]]]:
    """Run the child and cut its power `n_cuts` times; return (disk, store, acknowledged before) of each cut."""
    rng, cuts = random.Random(1), []
    (rig / "outer" / "store").mkdir()
    with mounted(rig / "outer" / "dev.img", rig / "inner"):
        process = child(rig / "inner" / "spool", rig / "outer" / "store", "boot", forced=forced)
        listener = Listener(process)
        try:
            deadline = time.monotonic() + 60
            while len(listener.acked) < 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            for number in range(n_cuts):
                time.sleep(rng.uniform(0.01, 0.3))
                os.kill(process.pid, signal.SIGSTOP)  # disk and store are of one moment
                acked, disk = list(listener.acked), rig / "outer" / f"cut{number}.img"
                sh("cp", "--reflink=always", rig / "outer" / "dev.img", disk)
                store = rig / "outer" / f"store{number}"
                shutil.copytree(rig / "outer" / "store", store, ignore=shutil.ignore_patterns(".tmp-*"))
                os.kill(process.pid, signal.SIGCONT)
                cuts.append((disk, store, acked))
            assert process.poll() is None, "the child died"
        finally:
            process.kill()
            process.wait()
            listener.end()
    return cuts


@pytest.mark.slow
def test_power_cuts(rig: Path) -> None:
    """After a cut at a random moment the spool opens; every acknowledged clip reaches the store once, or its reason does."""
    outcome = Counter[str]()
    cuts = cut(rig, int(COUNT or 60))
    for number, (disk, store, acked) in enumerate(cuts):
        with mounted(disk, rig / "check"):
            try:
                outcome += judge(rig / "check" / "spool", store, acked, "boot")
            except (AssertionError, DeviceError) as error:
                raise AssertionError(f"cut {number}: {error}") from error
        disk.unlink()
        shutil.rmtree(store)
    print(f"{len(cuts)} power cuts, {len(cuts[-1][2])} clips acknowledged before the last: {dict(outcome)}")


@pytest.mark.slow
def test_the_rig_sees_what_is_not_forced(rig: Path) -> None:
    """Without fsync the same cuts lose acknowledged clips, tear them, or break the spool: the rig can tell."""
    n_bad = 0
    for disk, store, acked in cut(rig, 8, forced=False):
        with mounted(disk, rig / "check"):
            try:
                judge(rig / "check" / "spool", store, acked, "boot")
            except (AssertionError, DeviceError, OSError, KeyError):
                n_bad += 1
    assert n_bad > 0
    print(f"without fsync {n_bad} of 8 cuts are seen")


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Mount a tmpfs; skip where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()[:100]}")
    try:
        yield
    finally:
        sh("umount", folder)


def fill(spool: Spool, n: int, n_bytes: int = 100_000) -> None:
    """Adopt `n` clips of noise."""
    for number in range(n):
        data = random.Random(number).randbytes(n_bytes)
        sha256 = hashlib.sha256(data).hexdigest()
        seq = spool.reserve("cam1", "boot")
        path = spool.recording / f".tmp-cam1-{number:012x}.mp4"
        path.write_bytes(data)
        sidecar = Sidecar(
            clip_id=keys.clip_id(sha256), camera_id="cam1", host_id="pi", boot_id="boot", recording_id="r", seq=seq,
            sha256=sha256, n_bytes=n_bytes, container="mp4", start_ns=None, start_mono_ns=number * 10**9, clock="unknown",
        )  # fmt: skip
        spool.adopt(path, sidecar)


def test_a_full_disk(tmp_path: Path) -> None:
    """On a small disk the policy keeps filming going; when others fill it up to the last byte the spool still opens."""
    with small_disk(tmp_path / "disk", 10):
        limits = SpoolLimits(max_share_of_disk=0.2, keep_free_bytes=500_000, policy="oldest")
        folder = tmp_path / "disk" / "spool"
        with Spool(folder, limits=limits) as spool:
            fill(spool, 40)
            assert spool.counts()["evicted"] + spool.counts()["pending"] == 40
            assert len(list(spool.ledger.entries())) == spool.counts()["evicted"]
        other = tmp_path / "disk" / "other"
        with contextlib.suppress(OSError), other.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        with Spool(folder, limits=limits) as spool:
            assert spool.make_room() == [] or spool.counts()["pending"] < 40
            n_pending = spool.counts().get("pending", 0)
            assert len(spool.pending()) == n_pending
            assert {entry.kind for entry in spool.ledger.entries()} == {"evicted"}


def test_a_full_disk_without_limits(tmp_path: Path) -> None:
    """Without limits a full disk is one line; what was adopted is safe, and delivering makes room."""
    with small_disk(tmp_path / "disk", 8):
        folder = tmp_path / "disk" / "spool"
        with Spool(folder) as spool:
            with pytest.raises((DeviceError, OSError), match=r"No space left on device|is full") as found:
                fill(spool, 200)
            assert "\n" not in str(found.value)
        with contextlib.suppress(OSError), (tmp_path / "disk" / "other").open("wb", buffering=0) as file:
            while file.write(b"x" * 512):
                pass
        with Spool(folder) as spool:
            before = len(spool.pending())
            assert before > 40
            for clip in spool.pending():
                spool.done(clip)
            assert spool.counts()["done"] == before


def test_a_read_only_disk(tmp_path: Path) -> None:
    """A card that turned read-only is one line, for a new spool and for an open one."""
    with small_disk(tmp_path / "disk", 4):
        folder = tmp_path / "disk" / "spool"
        with Spool(folder) as spool:
            fill(spool, 2)
        sh("mount", "-o", "remount,ro", tmp_path / "disk")
        with pytest.raises(DeviceError, match=r"[Rr]ead-?only.*check the disk and its rights") as found, Spool(folder):
            raise AssertionError("it opened")
        assert "\n" not in str(found.value)
