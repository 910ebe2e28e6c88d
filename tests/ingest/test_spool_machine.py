"""The spool against a model of it: any order of filming, dying, delivering, damage and restarts ends without a hole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infra import keys
from infra.clock import FakeClock
from infra.records import Sidecar
from infra.sequence import LedgerPage, Numbered, audit, numbered
from ingest.policy import SpoolLimits
from ingest.spool import Spool

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
CAMERAS = st.sampled_from(["cam1", "cam2"])
RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Machine(RuleBasedStateMachine):
    """One host with two cameras. The model: what was acknowledged, what the store has, which numbers are being filmed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=RAM, prefix="camloop-test-"))
        self.clock = FakeClock()
        self.boot, self.n, self.rebuilt = 0, 0, False
        self.acked: dict[str, Numbered] = {}
        self.store: dict[str, Numbered] = {}
        self.pages: dict[str, bytes] = {}
        self.filming: dict[str, int] = {}
        self.given: set[tuple[str, str, int]] = set()
        self.locks: dict[str, contextlib.ExitStack] = {}
        self.spool = self.open()

    def open(self) -> Spool:
        limits = SpoolLimits(max_bytes=4000, keep_free_bytes=0, policy="value")
        return Spool(self.folder, self.clock, limits=limits, host_id="pi", disk=lambda folder: (10**12, 10**12))

    @property
    def boot_id(self) -> str:
        return f"boot-{keys.derived_id(self.boot)[:6]}"

    @rule(camera=CAMERAS)
    def begin(self, camera: str) -> None:
        """Reserve a number; none is given twice."""
        if camera not in self.filming:
            held = self.locks.setdefault(camera, contextlib.ExitStack())
            held.enter_context(self.spool.locked(f"record-{camera}"))
            seq = self.spool.reserve(camera, self.boot_id)
            assert (camera, self.boot_id, seq) not in self.given
            self.given.add((camera, self.boot_id, seq))
            self.filming[camera] = seq

    @precondition(lambda self: self.filming)
    @rule(data=st.data(), again=st.booleans(), labelled=st.booleans())
    def finish(self, data: st.DataObject, again: bool, labelled: bool) -> None:
        """Adopt what was filmed, now and then the same bytes as before."""
        camera = data.draw(st.sampled_from(sorted(self.filming)))
        seq = self.filming.pop(camera)
        self.n += 0 if again else 1
        content = random.Random(f"{camera}{self.n}").randbytes(600)
        path = self.spool.recording / f".tmp-{camera}-{seq:012x}.mp4"
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.clock.advance_s(600)
        sidecar = Sidecar(
            clip_id=keys.clip_id(sha256), camera_id=camera, host_id="pi", boot_id=self.boot_id, recording_id="r", seq=seq,
            sha256=sha256, n_bytes=600, container="mp4", start_ns=None, start_mono_ns=self.clock.mono_ns(), clock="unknown",
            label="wave" if labelled else None,
        )  # fmt: skip
        if self.spool.adopt(path, sidecar):
            self.acked[sidecar.clip_id] = numbered(sidecar)
        self.locks.pop(camera).close()

    @precondition(lambda self: self.filming)
    @rule(said=st.booleans())
    def die(self, said: bool) -> None:
        """A recorder ends without a clip, with or without a word."""
        camera, seq = self.filming.popitem()
        if said:
            self.spool.forfeit(camera, self.boot_id, seq, "nothing came")
        self.locks.pop(camera).close()

    @rule(n=st.integers(1, 3))
    def deliver(self, n: int) -> None:
        """Some clips and all pages reach the store."""
        for clip in self.spool.pending(limit=n):
            self.store.setdefault(clip.sidecar.clip_id, numbered(clip.sidecar))
            self.spool.done(clip)
        for page in self.spool.ledger_pages():
            assert self.pages.setdefault(page.key, page.path.read_bytes()) == page.path.read_bytes()
            self.spool.ledger_delivered(page)

    @rule(reboot=st.booleans(), jump_s=st.sampled_from([0, 86_400, -86_400, 3600]))
    def restart(self, reboot: bool, jump_s: int) -> None:
        """The process ends and starts again, perhaps with the machine, perhaps at another date."""
        self.end()
        if reboot:
            self.boot += 1
        self.clock.jump_to_ns(max(0, self.clock.now_ns() + jump_s * 10**9))
        self.spool = self.open()

    @rule(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), gone=st.booleans())
    def damage(self, at: float, bit: int, gone: bool) -> None:
        """The database loses a bit, or is deleted."""
        self.end()
        path = self.folder / "spool.sqlite"
        if gone:
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[int(at * len(content))] ^= 1 << bit
            path.write_bytes(content)
        self.spool = self.open()

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every acknowledged clip waits, is in the store, or was given up with its entry."""
        waiting = {candidate.clip_id for candidate in self.spool.waiting()}
        pages = [LedgerPage.from_json(content) for content in self.pages.values()]
        entries = [entry for page in pages for entry in page.entries] + list(self.spool.ledger.entries())
        given_up = {entry.clip_id for entry in entries if entry.kind == "evicted"}
        assert set(self.acked) <= waiting | set(self.store) | given_up

    def end(self) -> None:
        """End the process: recorders die without a word."""
        for held in self.locks.values():
            held.close()
        self.locks.clear()
        self.filming.clear()
        self.spool.close()

    def teardown(self) -> None:
        """Mend, deliver everything, and audit what the store has."""
        self.end()
        self.spool = self.open()
        for _ in range(2):
            self.deliver(100)
        found = audit(self.store.values(), [LedgerPage.from_json(content) for content in self.pages.values()])
        try:
            assert found.n_missing == 0 and not found.missing_pages and not found.broken_pages, found
            assert not any(row.duplicates for row in found.rows)
            known = {(clip.camera_id, clip.boot_id) for clip in self.store.values()}
            named = {(row.camera_id, row.boot_id) for row in found.rows}
            assert {(camera, boot) for camera, boot, _ in self.given} | known == named
        finally:
            self.spool.close()
            shutil.rmtree(self.folder)


Machine.TestCase.settings = settings(
    max_examples=4 * COUNT, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase
