"""Numbers without holes: reserving, forfeiting, dead recorders, lost databases, wrong clocks."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra import durable, keys
from infra.clock import FakeClock
from infra.errors import DeviceError, UsageError
from infra.records import Sidecar
from infra.sequence import Audit, LedgerEntry, LedgerPage, audit, numbered
from ingest.marks import STRIDE
from ingest.repair import DATABASE_LOST, DIED
from ingest.spool import Spool, is_intact
from tests.faults.disk import CountingDisk, PowerCut, in_memory

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
MakeClip = Callable[..., tuple[Path, Sidecar]]
DAY_NS = 86_400_000_000_000


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with in_memory(tmp_path) as made:
        yield made


def film(spool: Spool, make_clip: MakeClip, number: int, camera_id: str = "cam1", boot_id: str = "boot") -> Sidecar:
    """Reserve a number and adopt a clip of it."""
    path, sidecar = make_clip(number)
    seq = spool.reserve(camera_id, boot_id)
    sidecar = dataclasses.replace(sidecar, camera_id=camera_id, boot_id=boot_id, seq=seq)
    spool.adopt(path, sidecar)
    return sidecar


def entries(spool: Spool) -> list[LedgerEntry]:
    """Return what is in the ledger, wherever it lies."""
    return list(spool.ledger.entries())


def judged(spool: Spool, delivered: list[Sidecar]) -> Audit:
    """Return the audit of what was delivered, what waits here and this spool's pages."""
    pages = [LedgerPage.from_json(page.path.read_bytes()) for page in spool.ledger_pages()]
    waiting = [numbered(clip.sidecar) for clip in spool.pending()]
    return audit([numbered(sidecar) for sidecar in delivered], pages, waiting=waiting)


class TestReserving:
    def test_one_after_the_other(self, tmp_path: Path) -> None:
        """0, 1, 2 ... for each camera and boot, also through a second spool on the folder and after a restart."""
        with Spool(tmp_path / "spool") as spool, Spool(tmp_path / "spool") as other:
            found = [spool.reserve("cam1", "boot"), other.reserve("cam1", "boot"), spool.reserve("cam1", "boot")]
            assert found == [0, 1, 2]
            assert (spool.reserve("cam2", "boot"), spool.reserve("cam1", "later")) == (0, 0)
        with Spool(tmp_path / "spool") as spool:
            assert spool.reserve("cam1", "boot") == 3

    def test_names_that_cannot_stand_in_a_key(self, spool: Spool) -> None:
        """A camera with slashes or two thousand characters is refused in one line and gets no number."""
        for name in ("a/b", "x" * 2000, "..", ""):
            with pytest.raises(UsageError, match="cannot stand in an object key") as found:
                spool.reserve(name, "boot")
            assert len(str(found.value)) < 300

    def test_forfeited(self, spool: Spool) -> None:
        """A forfeited number has one entry, however often it is said."""
        seq = spool.reserve("cam1", "boot")
        for _ in range(2):
            spool.forfeit("cam1", "boot", seq, "the disk was full")
        (entry,) = entries(spool)
        assert (entry.seq, entry.kind, entry.reason) == (0, "forfeited", "the disk was full")
        assert judged(spool, []).n_missing == 0

    def test_a_clip_that_came_before(self, spool: Spool, make_clip: MakeClip) -> None:
        """The same bytes under a new number are no second clip: the number says which clip it doubles."""
        first = film(spool, make_clip, 1)
        film(spool, make_clip, 1)
        assert [clip.sidecar for clip in spool.pending()] == [first]
        spool.done(spool.pending()[0])
        film(spool, make_clip, 1)
        assert [(entry.seq, entry.reason) for entry in entries(spool)] == [
            (1, f"duplicate of {first.clip_id}"), (2, f"duplicate of {first.clip_id}"),
        ]  # fmt: skip
        assert judged(spool, [first]).n_missing == 0

    def test_every_primitive(self, tmp_path: Path) -> None:
        """A power cut at each primitive of the first reservation: the next number is 0 or, if it was open, has its reason."""
        for number in range(1, 30):
            folder = tmp_path / str(number)
            spool = Spool(folder)
            durable.disk = CountingDisk(number)
            try:
                spool.reserve("cam1", "boot")
                cut = False
            except PowerCut:
                cut = True
            durable.disk = durable.Disk()
            spool.close()
            with Spool(folder) as again:
                assert again.reserve("cam1", "boot") == (0 if cut else 1)
                assert len(entries(again)) == (0 if cut else 1)
            if not cut:
                assert number > 4
                return
        raise AssertionError("it never ended")


class TestDeadRecorders:
    def test_without_a_file(self, tmp_path: Path) -> None:
        """A number whose recorder died before its first byte is forfeited at the next start, not while it is alive."""
        with Spool(tmp_path / "spool") as spool, spool.locked("record-cam1"):
            spool.reserve("cam1", "boot")
            with Spool(tmp_path / "spool") as other:
                assert entries(other) == []
        with Spool(tmp_path / "spool") as spool:
            assert [(entry.seq, entry.reason) for entry in entries(spool)] == [(0, DIED)]

    def test_with_a_file(self, tmp_path: Path) -> None:
        """Where an unfinished file lies, the next recorder decides: salvage first, then it forfeits the rest."""
        with Spool(tmp_path / "spool") as spool:
            spool.reserve("cam1", "boot")
            (spool.recording / ".tmp-cam1-x.mp4").write_bytes(b"x")
        with Spool(tmp_path / "spool") as spool:
            assert entries(spool) == []
            assert spool.forfeit_open("cam1", "nothing of it could be read") == 1
            assert spool.forfeit_open("cam1", "again") == 0
            assert [(entry.seq, entry.kind) for entry in entries(spool)] == [(0, "forfeited")]


def test_what_a_crash_had_begun(tmp_path: Path) -> None:
    """Temporary files of a dead process go at the next start, those of a live one stay."""
    with Spool(tmp_path / "spool") as spool:
        folders = [spool.clips, spool.quarantined, *(spool.folder / name / "boot" for name in ("ledger", "sequence"))]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".tmp-4194305-0123456789ab").write_bytes(b"half")
        for pid in (4_194_305, os.getpid()):  # above any pid that Linux gives
            (spool.recording / f".tmp-{pid}-0123456789ab").write_bytes(b"half")
    with Spool(tmp_path / "spool") as spool:
        assert not any(path.name.startswith(".tmp") for folder in folders for path in folder.iterdir())
        assert [path.name for path in spool.recording.iterdir()] == [f".tmp-{os.getpid()}-0123456789ab"]


def test_the_database_stays_small(spool: Spool, make_clip: MakeClip) -> None:
    """Rows of clips that are long gone are dropped; what waits and the numbers stay."""
    for number in range(5):
        film(spool, make_clip, number)
    for clip in spool.pending()[1:4]:
        spool.done(clip)
    spool.database.commit([spool.database.forget(remembered=2)])
    assert spool.counts() == {"done": 1, "pending": 2}
    with Spool(spool.folder) as again:
        assert [clip.sidecar.seq for clip in again.pending()] == [0, 4] and again.reserve("cam1", "boot") == 5


class TestLostDatabase:
    def lose(self, folder: Path) -> None:
        """Delete the database."""
        for path in folder.glob("spool.sqlite*"):
            path.unlink()

    def test_numbers_go_on(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """After its database was deleted a spool gives no number twice and leaves none without a word."""
        delivered = []
        with Spool(tmp_path / "spool") as spool:
            made = [film(spool, make_clip, number) for number in range(6)]
            for clip in spool.pending()[:3]:
                spool.done(clip)
                delivered.append(clip.sidecar)
            spool.reserve("cam1", "boot")
        self.lose(tmp_path / "spool")
        with Spool(tmp_path / "spool") as spool:
            assert [clip.sidecar for clip in spool.pending()] == made[3:]
            assert spool.reserve("cam1", "boot") == STRIDE
            spool.forfeit_open("cam1", "over")
            found = judged(spool, delivered)
            (row,) = found.rows
            assert found.n_missing == 0 and row.duplicates == ()
            assert (row.n_delivered, row.n_waiting) == (3, 3)
            assert row.explained == {"unknown": STRIDE - 6, "forfeited": 1}
            assert {entry.reason for entry in entries(spool)} == {DATABASE_LOST, "over"}
            assert all(sidecar.seq < STRIDE for sidecar in made)

    def test_under_a_running_recorder(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A database that is deleted while a recorder runs is made again by it: no number twice."""
        with Spool(tmp_path / "spool") as spool, spool.locked("record-cam1"):
            film(spool, make_clip, 0)
            self.lose(tmp_path / "spool")
            with Spool(tmp_path / "spool") as other:
                assert len(other.pending()) == 1
            assert film(spool, make_clip, 1).seq == STRIDE
            with Spool(tmp_path / "spool") as other:
                assert len(other.pending()) == 2

    def test_boots_keep_their_order(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """The order of the boots is in the files: a later boot's clips come later, whatever its name."""
        with Spool(tmp_path / "spool") as spool:
            for number, boot_id in enumerate(["zz", "mm", "aa"]):
                film(spool, make_clip, number, boot_id=boot_id)
        self.lose(tmp_path / "spool")
        with Spool(tmp_path / "spool") as spool:
            assert [clip.sidecar.boot_id for clip in spool.pending()] == ["zz", "mm", "aa"]

    def test_damage_everywhere(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """Bits flipped anywhere in the database: every clip is there, the numbers go on, the audit finds no hole."""
        delivered = []
        with Spool(tmp_path / "spool") as spool:
            for number in range(8):
                film(spool, make_clip, number)
            for clip in spool.pending()[:4]:
                spool.done(clip)
                delivered.append(clip.sidecar)
            spool.reserve("cam2", "boot")
            (spool.recording / ".tmp-cam2-x.mp4").write_bytes(b"x")
        good, rng = (tmp_path / "spool" / "spool.sqlite").read_bytes(), random.Random(7)
        used = [at for at in range(len(good)) if good[at]]  # the rest is free space
        for number in range(10 * COUNT):
            folder = tmp_path / f"spool-{number}"
            shutil.copytree(tmp_path / "spool", folder)
            at = rng.choice([rng.choice(used), rng.randrange(len(good))])
            damaged = good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :]
            (folder / "spool.sqlite").write_bytes(damaged)
            with Spool(folder) as spool:
                assert len(spool.pending()) >= 4, f"byte {at}"
                assert film(spool, make_clip, 100).seq >= 8, f"byte {at}"
                found = judged(spool, delivered)
                assert found.n_missing == 0 and not any(row.duplicates for row in found.rows), f"byte {at}"
            shutil.rmtree(folder)
        print(f"{10 * COUNT} flipped bits")

    def test_an_older_spool(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A database of camloop 0.1 is taken over: what was delivered stays delivered, what waits waits."""
        with Spool(tmp_path / "spool") as spool:
            spool.adopt(*make_clip(1))
            waiting = spool.pending()[0].sidecar.clip_id
        self.lose(tmp_path / "spool")
        database = sqlite3.connect(tmp_path / "spool" / "spool.sqlite")
        database.execute(
            "CREATE TABLE clips (number INTEGER PRIMARY KEY AUTOINCREMENT, clip_id TEXT NOT NULL UNIQUE, state TEXT NOT NULL "
            "CHECK (state IN ('pending', 'done', 'quarantined', 'lost')), added_ns INTEGER NOT NULL, reason TEXT)"
        )
        database.execute("INSERT INTO clips (clip_id, state, added_ns) VALUES (?, 'pending', 5), ('f', 'done', 5)", (waiting,))
        database.commit()
        database.close()
        with Spool(tmp_path / "spool") as spool:
            assert spool.counts() == {"done": 1, "pending": 1}
            assert spool.waiting()[0].seq == 1 and spool.reserve("cam1", "boot") == 2


class TestOrder:
    @settings(max_examples=3 * COUNT, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_wrong_clocks(self, tmp_path: Path, make_clip: MakeClip, data: st.DataObject) -> None:
        """1970, jumps of a day in both directions, an hour back in autumn: the order is that of filming, keys stay apart."""
        jumps = st.sampled_from([None, 0, DAY_NS, -DAY_NS, 3_600_000_000_000, -3_600_000_000_000, 86_400 * 365 * 30 * 10**9])
        clock = FakeClock(now_ns=data.draw(st.sampled_from([0, 1_700_000_000_000_000_000])))
        folder = tmp_path / keys.new_id()
        made: list[Sidecar] = []
        boots = [f"{keys.derived_id(number)[:8]}" for number in range(3)]
        spool = Spool(folder, clock)
        for number in range(12):
            if (jump := data.draw(jumps)) is not None:
                clock.jump_to_ns(max(0, clock.now_ns() + jump) if jump else 0)
            if data.draw(st.booleans()):
                clock.advance_s(60)
            boot_id = boots[number // 4]
            path, sidecar = make_clip(number, "in", 50)
            seq = spool.reserve("cam1", boot_id)
            filmed = dataclasses.replace(
                sidecar, boot_id=boot_id, seq=seq, start_mono_ns=(number % 4) * 10**9, start_ns=clock.now_ns(), clock="unknown"
            )
            spool.adopt(path, filmed)
            made.append(filmed)
            if data.draw(st.integers(0, 5)) == 0:
                spool.close()
                spool = Spool(folder, clock)
        with spool:
            assert [clip.sidecar for clip in spool.pending()] == made
            assert [clip.sidecar for clip in spool.pending("fresh", limit=3)] == made[::-1][:3]
            assert len({sidecar.clip_id for sidecar in made}) == 12 and judged(spool, []).n_missing == 0

    def test_several_cameras(self, spool: Spool, make_clip: MakeClip) -> None:
        """Between cameras the monotonic time decides, within one its number, even where its sensor's clock went back."""
        expected = []
        for number, (camera_id, mono_s) in enumerate([("b", 5), ("a", 9), ("b", 7), ("b", 6), ("b", 12), ("a", 15)]):
            path, sidecar = make_clip(number)
            seq = spool.reserve(camera_id, "boot")
            mono_ns = mono_s * 10**9
            filmed = dataclasses.replace(sidecar, camera_id=camera_id, seq=seq, start_mono_ns=mono_ns)
            spool.adopt(path, filmed)
            expected.append((camera_id, mono_s))
        found = [(clip.sidecar.camera_id, clip.sidecar.start_mono_ns // 10**9) for clip in spool.pending()]
        assert found == [("b", 5), ("b", 7), ("b", 6), ("a", 9), ("b", 12), ("a", 15)]


class TestRot:
    def test_a_rotten_clip_has_its_entry(self, spool: Spool, make_clip: MakeClip) -> None:
        """A clip put aside, one whose file is gone and one whose sidecar rotted are in the ledger with their numbers."""
        for number in range(3):
            film(spool, make_clip, number)
        first, second, third = spool.pending()
        spool.quarantine(first, "its bytes rotted")
        second.path.unlink()
        (spool.clips / f"{third.sidecar.clip_id}.json").write_bytes(b"{")
        assert [clip.sidecar.seq for clip in spool.pending()] == []
        with Spool(spool.folder) as again:
            told = {(entry.seq, entry.kind) for entry in entries(again)}
            assert told == {(0, "quarantined"), (1, "lost"), (2, "quarantined")}
            assert judged(again, []).n_missing == 0

    def test_every_flipped_bit_is_caught(self, spool: Spool, make_clip: MakeClip) -> None:
        """A clip in the spool with any one bit flipped, cut short or grown is not intact."""
        film(spool, make_clip, 1)
        (clip,) = spool.pending()
        good, rng = clip.path.read_bytes(), random.Random(7)
        assert is_intact(clip)
        for _ in range(50 * COUNT):
            at = rng.randrange(len(good))
            clip.path.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
            assert not is_intact(clip)
        for damaged in (good[:-1], good + b"x", b""):
            clip.path.write_bytes(damaged)
            assert not is_intact(clip)
        print(f"{50 * COUNT} flipped bits")

    def test_a_second_agent(self, spool: Spool) -> None:
        """A second recorder of the same camera on the same spool is one line."""
        refused = pytest.raises(DeviceError, match=r"another process is at work \(record-cam1\); wait for it or end it")
        with Spool(spool.folder) as other, spool.locked("record-cam1"), refused, other.locked("record-cam1"):
            raise AssertionError("both hold it")
