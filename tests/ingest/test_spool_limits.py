"""A full spool: what goes, in what order, and never silently."""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import durable
from infra.errors import DeviceError
from infra.records import Sidecar
from infra.sequence import LedgerPage, audit, numbered
from ingest.policy import Policy, SpoolLimits
from ingest.room import BALLAST_BYTES
from ingest.spool import Spool
from tests.faults.disk import CountingDisk, PowerCut, in_memory

MakeClip = Callable[..., tuple[Path, Sidecar]]
ROOMY = (10**12, 10**12)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with in_memory(tmp_path) as made:
        yield made


def limits(policy: Policy = "value", max_bytes: int | None = 65_000, **more: Any) -> SpoolLimits:
    """Return limits that hold three clips of 20 kB."""
    return SpoolLimits(max_bytes=max_bytes, policy=policy, **{"keep_free_bytes": 0, **more})


def opened(folder: Path, policy: Policy = "value", **more: Any) -> Spool:
    """Open a spool with these limits on a disk with plenty of room."""
    return Spool(folder, limits=limits(policy, **more), disk=lambda folder: ROOMY)


def film(spool: Spool, make_clip: MakeClip, number: int, value: float | None = None) -> Sidecar | None:
    """Reserve and adopt one clip, in an hour of its own; None if it was refused."""
    path, sidecar = make_clip(number)
    seq = spool.reserve("cam1", "boot")
    sidecar = dataclasses.replace(sidecar, seq=seq, start_mono_ns=number * 3_600_000_000_000)
    return sidecar if spool.adopt(path, sidecar, value=value) else None


def waiting(spool: Spool) -> list[int]:
    """Return the numbers that wait."""
    return [clip.sidecar.seq for clip in spool.pending()]


def gone(spool: Spool) -> list[tuple[int, str, int]]:
    """Return the numbers in the ledger, with their reasons and bytes."""
    return [(entry.seq, entry.reason, entry.n_bytes) for entry in spool.ledger.entries()]


class TestPolicies:
    def test_value(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """The least valuable clip goes, also when it is the one that came; its entry has number, bytes and reason."""
        with opened(tmp_path / "spool") as spool:
            for number, value in enumerate([0.9, 0.2, 0.8, 0.7, 0.1]):
                film(spool, make_clip, number, value)
            assert waiting(spool) == [0, 2, 3]
            reason = "the spool is full; policy value"
            assert [(seq, why) for seq, why, _ in gone(spool)] == [(1, reason), (4, reason)]
            assert all(n_bytes > 20_000 for *_, n_bytes in gone(spool))
            assert spool.counts() == {"evicted": 2, "pending": 3}
            assert len(list(spool.clips.iterdir())) == 6

    def test_oldest(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """By age alone."""
        with opened(tmp_path / "spool", "oldest") as spool:
            for number, value in enumerate([0.9, 0.2, 0.8, 0.7, 0.1]):
                film(spool, make_clip, number, value)
            assert waiting(spool) == [2, 3, 4]

    def test_newest(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """What comes now is refused and in the ledger, its file gone; what waits stays."""
        with opened(tmp_path / "spool", "newest") as spool:
            assert [film(spool, make_clip, number) is None for number in range(5)] == [False] * 3 + [True] * 2
            assert waiting(spool) == [0, 1, 2] and [seq for seq, *_ in gone(spool)] == [3, 4]
            assert not list((tmp_path / "incoming").iterdir())
            spool.done(spool.pending()[0])
            assert film(spool, make_clip, 9) is not None

    def test_stop(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """Nothing goes; whoever asks for room gets one line with the ways out."""
        with opened(tmp_path / "spool", "stop") as spool:
            for number in range(3):
                film(spool, make_clip, number)
            told = r"is full: 1[\d,]+ bytes are missing and policy 'stop' gives up no more"
            with pytest.raises(DeviceError, match=told) as found:
                spool.make_room(20_000)
            assert "\n" not in str(found.value) and waiting(spool) == [0, 1, 2]
            spool.done(spool.pending()[0])
            assert spool.make_room(20_000) == []

    def test_value_from_the_sidecar(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """Without a value of its own a clip is worth what its sidecar says, also after the database was lost."""
        folder = tmp_path / "spool"
        with opened(folder) as spool:
            for number, label in enumerate(["wave", None, "wave"]):
                path, sidecar = make_clip(number)
                spool.adopt(path, dataclasses.replace(sidecar, label=label, start_mono_ns=number * 10**13))
        for path in folder.glob("spool.sqlite*"):
            path.unlink()
        with opened(folder) as spool:
            spool.make_room(20_000)
            assert waiting(spool) == [0, 2]


class TestRoom:
    def test_share_and_free_bytes(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A share of the disk and the least free bytes are limits like the bytes."""
        for number, (more, disk) in enumerate(
            [({"max_share_of_disk": 0.5}, (90_000, 10**9)), ({"keep_free_bytes": 30_000}, (10**9, 9_000))]
        ):
            folder = tmp_path / str(number)
            with Spool(folder) as spool:
                for clip in range(3):
                    film(spool, make_clip, clip)
            state = {"free": disk[1]}
            held = limits(max_bytes=None, **more)
            with Spool(folder, limits=held, disk=lambda folder, disk=disk, state=state: (disk[0], state["free"])) as spool:
                entries = spool.make_room()
                assert len(entries) == (1 if number == 0 else 2) and waiting(spool) == [0, 1, 2][len(entries) :]

    def test_what_is_being_sent_stays(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A clip that the uploader holds is passed over; one that went is told to it."""
        with opened(tmp_path / "spool", "oldest") as spool:
            for number in range(3):
                film(spool, make_clip, number)
            first, second, _ = spool.pending()
            with spool.sending(first) as there:
                assert there
                film(spool, make_clip, 3)
            assert waiting(spool) == [0, 2, 3]
            with spool.sending(second) as there:
                assert not there
            spool.done(second)  # it had been sent before it went
            assert spool.state(second.sidecar.clip_id) == "done"

    def test_quarantine_goes_first(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """What cannot be sent makes room before what can; its reason stays."""
        with opened(tmp_path / "spool") as spool:
            for number in range(3):
                film(spool, make_clip, number)
            spool.quarantine(spool.pending()[0], "rotten")
            film(spool, make_clip, 3)
            assert waiting(spool) == [1, 2, 3]
            assert [path.name for path in spool.quarantined.iterdir() if path.suffix != ".json"] == [
                f"{make_clip(0)[1].clip_id}.reason.txt"
            ]
        with opened(tmp_path / "spool") as spool:
            assert spool.counts() == {"pending": 3, "quarantined": 1}

    def test_unfinished_files_count(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """The segment being filmed is among the bytes."""
        with opened(tmp_path / "spool") as spool:
            for number in range(3):
                film(spool, make_clip, number)
            (spool.recording / ".tmp-cam1-x.mp4").write_bytes(b"x" * 30_000)
            assert len(spool.make_room()) == 2

    def test_ballast(self, tmp_path: Path) -> None:
        """A spool keeps a MiB for its own rows and entries, and gives it back when the disk is full."""
        state = {"free": 10**9}
        with Spool(tmp_path / "spool", limits=limits(), disk=lambda folder: (10**12, state["free"])):
            ballast = tmp_path / "spool" / ".ballast"
            assert ballast.stat().st_size == BALLAST_BYTES
        state["free"] = 5000
        with Spool(tmp_path / "spool", limits=limits(), disk=lambda folder: (10**12, state["free"])):
            assert not ballast.exists()
            state["free"] = 10**9
        with Spool(tmp_path / "spool", limits=limits(), disk=lambda folder: (10**12, state["free"])):
            assert ballast.exists()


class TestCrashes:
    @pytest.mark.parametrize("policy", ["value", "newest"])
    def test_every_primitive(self, tmp_path: Path, make_clip: MakeClip, policy: Policy) -> None:
        """A power cut at each primitive of an adoption that gives clips up: no number without clip or entry, no half clip."""
        number = 0
        while True:
            number += 1
            folder = tmp_path / str(number)
            with opened(folder, policy, max_bytes=22_000) as spool:
                made = [film(spool, make_clip, 0)]
                path, sidecar = make_clip(1, f"{number}-in")
                seq = spool.reserve("cam1", "boot")
                filmed = dataclasses.replace(sidecar, seq=seq, start_mono_ns=10**15, label="worth more")
                moved = spool.recording / ".tmp-cam1-x.mp4"
                path.rename(moved)
                durable.disk = disk = CountingDisk(number)
                try:
                    spool.adopt(moved, filmed)
                    cut = False
                except PowerCut:
                    cut = True
                durable.disk = durable.Disk()
            with opened(folder, policy, max_bytes=22_000) as spool:
                if moved.exists():  # what the next recorder does
                    spool.adopt(moved, filmed)
                spool.make_room()
                pages = [LedgerPage.from_json(page.path.read_bytes()) for page in spool.ledger_pages()]
                found = audit([], pages, waiting=[numbered(clip.sidecar) for clip in spool.pending()])
                assert found.n_missing == 0 and found.rows[0].n_waiting == 1 and found.rows[0].n_expected == 2
                assert waiting(spool) == ([1] if policy == "value" else [0])
                names = sorted(path.name for path in spool.clips.iterdir())
                assert len(names) == 2 and made[0] is not None
                assert not any(moved.parent.iterdir())
            if not cut:
                break
        assert disk.n_calls > 5
        print(f"{number - 1} crash points, policy {policy}")


class TestManyAtOnce:
    def test_few_descriptors(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """Room for 150 small clips is made on a host that lets a process open few files."""
        with opened(tmp_path / "spool", max_bytes=10**6) as spool:
            for number in range(150):
                path, sidecar = make_clip(number, n_bytes=100)
                spool.adopt(path, dataclasses.replace(sidecar, seq=spool.reserve("cam1", "boot")))
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
            few = next(n for n in itertools.count() if n - sum(fd < n for fd in used) == 160)
            resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
            try:
                assert len(spool.make_room(10**6)) == 150
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert waiting(spool) == [] and spool.counts() == {"evicted": 150}

    def test_newest_has_room_for_a_start(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """With policy newest a full spool stops nobody from beginning: what is finished then is refused."""
        with opened(tmp_path / "spool", "newest") as spool:
            for number in range(3):
                film(spool, make_clip, number)
            assert spool.make_room(20_000) == [] and waiting(spool) == [0, 1, 2]


class TestBallast:
    def test_a_disk_that_refuses_it(self, tmp_path: Path, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that refuses the ballast after a change does not make the change look failed."""
        with opened(tmp_path / "spool") as spool:
            (spool.folder / ".ballast").unlink()
            monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            assert film(spool, make_clip, 0) is not None

    def test_an_empty_one_is_filled(self, tmp_path: Path) -> None:
        """What a crash left empty is reserved by the next change."""
        with opened(tmp_path / "spool") as spool:
            (spool.folder / ".ballast").write_bytes(b"")
            spool.reserve("cam1", "boot")
            assert (spool.folder / ".ballast").stat().st_size == BALLAST_BYTES
