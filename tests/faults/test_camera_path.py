"""record -> spool -> upload -> delete, with every step numbered and each failed once.

A step is a write, fsync, rename or unlink of `durable`, a commit of the spool's database, or a request to the store. At step
i the host loses its power before or after it, or the step answers EIO or "no space", or its answer is lost. Then the host
starts again with everything mended, films a little more, and uploads. Always the same verdict (`check`): nothing that was
acknowledged is lost, nothing doubled, nothing torn served, the spool opens, no number without its clip or its reason.

    CAMLOOP_TEST_COUNT=2 pytest -m slow tests/faults/test_camera_path.py       all steps, twice with other footage
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from infra import durable, keys
from infra.clock import FakeClock
from infra.errors import DeviceError, StoreError
from infra.objects import ResumeLog, Stat
from infra.records import ClockQuality, Sidecar
from infra.sequence import Audit, audit, delivered_in, pages_in
from infra.store import MemoryStore
from ingest.policy import SpoolLimits
from ingest.recorder import Recorder
from ingest.schedule import UploadSettings
from ingest.source import SourceFrame
from ingest.spool import Spool
from ingest.spool_database import SpoolDatabase
from ingest.transfer import Retry
from ingest.uploader import upload
from tests.faults.disk import PowerCut, in_memory

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
HOWS = ("crash before", "crash after", "EIO", "ENOSPC", "lost answer")
_T = TypeVar("_T")


class Steps:
    """Counts the steps and fails number `at`; after a crash nothing succeeds any more."""

    def __init__(self, at: int | None = None, how: str = "") -> None:
        self.n, self.at, self.how, self.dead = 0, at, how, False
        self.kinds: list[str] = []

    def step(self, kind: str, act: Callable[[], _T], torn: Callable[[], None] = lambda: None) -> _T:
        """Do one step, or fail it."""
        if self.dead:
            raise PowerCut
        self.n += 1
        self.kinds.append(kind)
        if self.n != self.at:
            return act()
        if self.how in ("crash after", "lost answer"):
            act()
        elif kind in ("write", "append"):
            torn()
        if self.how.startswith("crash"):
            self.dead = True
            raise PowerCut
        if kind == "request":
            raise StoreError(f"store memory://: {self.how}")
        if kind == "commit":
            error = sqlite3.OperationalError("database or disk is full" if self.how == "ENOSPC" else "disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL if self.how == "ENOSPC" else sqlite3.SQLITE_IOERR
            raise error
        raise OSError(28, "No space left on device") if self.how == "ENOSPC" else OSError(5, "Input/output error")


class SteppedDisk(durable.Disk):
    """A disk whose primitives are steps."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def write(self, path: Path, data: bytes) -> None:
        plain = super()
        self.steps.step("write", lambda: plain.write(path, data), lambda: plain.write(path, data[: len(data) // 2]))

    def append(self, path: Path, data: bytes) -> None:
        plain = super()
        self.steps.step("append", lambda: plain.append(path, data), lambda: plain.append(path, data[: len(data) // 2]))


def _stepped(name: str) -> Callable[..., None]:
    def call(self: SteppedDisk, *args: Any) -> None:
        self.steps.step(name, lambda: getattr(durable.Disk, name)(self, *args))

    return call


for _name in ("fsync", "rename", "link", "symlink", "unlink", "mkdir"):
    setattr(SteppedDisk, _name, _stepped(_name))


class SteppedStore(MemoryStore):
    """A store whose requests are steps."""

    steps = Steps()

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        plain = super()
        return self.steps.step("request", lambda: plain.put_if_absent(key, data))

    def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
        plain = super()
        return self.steps.step("request", lambda: plain.put_file_if_absent(key, path, sha256=sha256, resume=resume))

    def holds_file(self, key: str, path: Path, *, sha256: str) -> bool:
        plain = super()
        return self.steps.step("request", lambda: plain.holds_file(key, path, sha256=sha256))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: what is tested is the order of steps, and no disk is slower than none."""
    with in_memory(tmp_path) as made:
        yield made


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Steps, SteppedStore], None]:
    """Put the steps in place of disk, database and network."""
    commit = SpoolDatabase.commit

    def put(steps: Steps, store: SteppedStore) -> None:
        def counted(self: SpoolDatabase, statements: Any) -> None:
            steps.step("commit", lambda: commit(self, statements))

        monkeypatch.setattr(SpoolDatabase, "commit", counted)
        monkeypatch.setattr(durable, "disk", SteppedDisk(steps))
        store.steps = steps

    return put


class Film:
    """A camera that films `n` pictures of noise, ten a second, from `first` on."""

    camera_id, host_id, boot_id = "cam1", "pi", "boot"
    site: str | None = None
    width_px, height_px = 64, 48
    clock: ClockQuality = "ntp"

    def __init__(self, first: int, n: int, seed: int) -> None:
        self.recording_id = f"rec{first}"
        self._numbers, self._rng = range(first, first + n), np.random.default_rng(seed + first)

    def utc_ns(self, sensor_ns: int) -> int | None:
        return None

    def __iter__(self) -> Iterator[SourceFrame]:
        for number in self._numbers:
            yield SourceFrame(self._rng.integers(0, 256, (48, 64, 3), np.uint8), number * 100_000_000, number)


def live(folder: Path, store: SteppedStore, acked: list[str], first: int, seed: int, limits: SpoolLimits | None) -> None:
    """One life of a camera host: film three clips, deliver what waits; end as the fault ends it."""
    spool: Spool | None = None
    settings = UploadSettings(connections=1)
    with contextlib.suppress(PowerCut, DeviceError, StoreError):
        try:
            spool = Spool(folder, limits=limits, host_id="pi", disk=lambda folder: (10**12, 10**12))
            recorder = Recorder(Film(first, 12, seed), spool, segment_s=0.4, gop_s=0.4)
            recorder.record(on_clip=lambda sidecar: acked.append(sidecar.clip_id))
            for _ in range(2):  # the second brings the word that the first has delivered everything
                upload(spool, store, settings=settings, retry=Retry(max_tries=2, clock=FakeClock()))
        finally:
            if spool is not None:
                spool.close()


def check(folder: Path, store: SteppedStore, acked: list[str]) -> Audit:
    """The verdict."""
    clips: dict[str, Sidecar] = {}
    for stat in store.list(keys.CLIPS):
        if not stat.key.endswith(".json"):
            sidecar = Sidecar.from_json(store.get(keys.sidecar_key(stat.key)))
            assert keys.sha256_hex(store.get(stat.key)) == sidecar.sha256, "a torn clip was served"
            clips[sidecar.clip_id] = sidecar
    filmed = Counter(round(at_ns / 10_000_000) for sidecar in clips.values() for at_ns in sidecar.sensor_ns)
    assert max(filmed.values()) == 1, "a picture is in two clips"
    given_up = {entry.clip_id for page in pages_in(store) for entry in page.entries if entry.kind == "evicted"}
    lost = set(acked) - set(clips) - given_up
    assert not lost, f"acknowledged clips lost: {lost}"
    with Spool(folder) as spool:
        ours = re.compile(rf"\.tmp-{os.getpid()}-[0-9a-f]{{12}}")  # begun by this process: they stay as long as it lives
        assert all(ours.fullmatch(path.name) for path in spool.recording.iterdir())
        assert spool.pending() == []
        assert [path.name for path in spool.clips.iterdir()] == []
    found = audit(delivered_in(store), pages_in(store))
    assert found.n_missing == 0 and not any(row.duplicates for row in found.rows), found
    assert not found.missing_pages and not found.broken_pages
    return found


def walk(base: Path, use: Any, hows: tuple[str, ...], limits: SpoolLimits | None, n_points: int | None, seed: int) -> None:
    """Fail `n_points` of the steps (None: all) in each way, and judge each."""
    steps, store = Steps(), SteppedStore()
    use(steps, store)
    live(base / "whole", store, [], 0, seed, limits)
    n_steps, kinds = steps.n, Counter(steps.kinds)
    assert n_steps > 60 and {"write", "append", "fsync", "rename", "unlink", "commit", "request"} <= {*kinds, "append"}
    rng, n_judged, outcomes = random.Random(seed), 0, Counter[str]()
    for how in hows:
        points = range(1, n_steps + 1) if n_points is None else sorted(rng.sample(range(1, n_steps + 1), n_points))
        for at in points:
            folder, acked, store = base / f"{how}-{at}", list[str](), SteppedStore()
            steps = Steps(at, how)
            use(steps, store)
            live(folder, store, acked, 0, seed, limits)
            use(Steps(), store)
            live(folder, store, acked, 100, seed, limits)
            use(Steps(), store)
            live(folder, store, acked, 200, seed, limits)  # what the first two brought into the ledger is told by now
            try:
                found = check(folder, store, acked)
            except (AssertionError, KeyError, ValueError) as error:
                raise AssertionError(f"{how} at step {at} ({steps.kinds[-1]}): {error}") from error
            n_judged += 1
            shutil.rmtree(folder)
            for row in found.rows:
                outcomes["delivered"] += row.n_delivered
                outcomes.update(dict(row.explained))
    print(f"{n_steps} steps {dict(kinds)}; {n_judged} faults judged: {dict(outcomes)}")


FULL = SpoolLimits(max_bytes=30_000, keep_free_bytes=0, policy="oldest")


@pytest.mark.parametrize("how", HOWS)
def test_some_steps(folder: Path, use: Any, how: str) -> None:
    """A sample of the steps, each way of failing."""
    walk(folder, use, (how,), None, 3 * COUNT, seed=COUNT)


@pytest.mark.parametrize("how", ["crash before", "ENOSPC"])
def test_some_steps_in_a_full_spool(folder: Path, use: Any, how: str) -> None:
    """The same where each clip pushes another out."""
    walk(folder, use, (how,), FULL, 3 * COUNT, seed=COUNT)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [None, FULL], ids=["roomy", "full"])
def test_all_steps(folder: Path, use: Any, limits: SpoolLimits | None) -> None:
    """Every step, each way of failing."""
    walk(folder, use, HOWS, limits, None, seed=7)
