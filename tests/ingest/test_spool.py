"""The spool: crash points, rebuilding, order, locks."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import durable
from infra.artefacts import Outbox
from infra.errors import ArtefactError, DeviceError
from infra.records import Sidecar
from ingest.spool import Spool, is_intact
from tests.faults.disk import CountingDisk, PowerCut, in_memory

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
MakeClip = Callable[..., tuple[Path, Sidecar]]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with in_memory(tmp_path) as made:
        yield made


def ids(spool: Spool) -> list[str]:
    """Return the ids of what waits."""
    return [clip.sidecar.clip_id for clip in spool.pending()]


class TestLife:
    def test_adopt_pending_done(self, spool: Spool, make_clip: MakeClip) -> None:
        """A clip is moved in, waits in the order of its number, and leaves no file when it is done."""
        made = [make_clip(number) for number in (0, 1, 2)]
        for path, sidecar in (made[2], made[0], made[1]):
            assert spool.adopt(path, sidecar)
            assert not path.exists()
        assert ids(spool) == [sidecar.clip_id for _, sidecar in made]
        first = spool.pending()[0]
        assert first.sidecar == made[0][1]
        assert is_intact(first)
        spool.done(first)
        assert not first.path.exists()
        assert spool.counts() == {"done": 1, "pending": 2}

    def test_adopting_again(self, spool: Spool, make_clip: MakeClip) -> None:
        """The same clip twice is one; after delivery its file is only removed."""
        spool.adopt(*make_clip(1))
        spool.adopt(*make_clip(1))
        assert len(spool.pending()) == 1
        spool.done(spool.pending()[0])
        path, sidecar = make_clip(1)
        assert not spool.adopt(path, sidecar)
        assert not path.exists()
        assert spool.pending() == []

    def test_wrong_size_is_refused(self, spool: Spool, make_clip: MakeClip) -> None:
        """A file that is still growing is not adopted and not touched."""
        path, sidecar = make_clip(1)
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(ArtefactError, match="20001 bytes, its sidecar says 20000"):
            spool.adopt(path, sidecar)
        assert path.exists()

    def test_quarantine(self, spool: Spool, make_clip: MakeClip) -> None:
        """A clip that must not be sent lies aside with its sidecar and the reason; a good copy may come again."""
        spool.adopt(*make_clip(1))
        where = spool.quarantine(spool.pending()[0], "rotten")
        assert where.exists() and where.with_suffix(".json").exists()
        assert where.with_suffix(".reason.txt").read_text() == "rotten\n"
        assert spool.pending() == [] and spool.counts() == {"quarantined": 1}
        spool.adopt(*make_clip(1))
        with Spool(spool.folder) as again:
            assert len(again.pending()) == 1

    def test_outbox(self, spool: Spool, make_clip: MakeClip, tmp_path: Path) -> None:
        """Finished clips of an outbox come in, in order of recording; unfinished ones stay."""
        outbox = Outbox(tmp_path / "outbox")
        for number in (1, 0):
            path, sidecar = make_clip(number)
            outbox.put(path.read_bytes(), sidecar)
        (tmp_path / "outbox" / "unfinished.mp4").write_bytes(b"x")
        assert spool.adopt_outbox(tmp_path / "outbox") == 2
        assert [clip.sidecar.seq for clip in spool.pending()] == [0, 1]
        assert [path.name for path in (tmp_path / "outbox").iterdir()] == ["unfinished.mp4"]
        assert spool.adopt_outbox(tmp_path / "nowhere") == 0

    def test_a_broken_clip_holds_up_no_other(self, spool: Spool, make_clip: MakeClip, tmp_path: Path) -> None:
        """A damaged sidecar and a clip of the wrong size are set aside with their reasons; the sound one comes in."""
        outbox = Outbox(tmp_path / "outbox")
        ids = []
        for number in range(3):
            path, sidecar = make_clip(number)
            outbox.put(path.read_bytes(), sidecar)
            ids.append(sidecar.clip_id)
        (outbox.folder / f"{ids[0]}.json").write_bytes(b"{")
        (outbox.folder / f"{ids[1]}.mp4").write_bytes(b"short")
        assert spool.adopt_outbox(outbox.folder) == 1
        assert [clip.sidecar.clip_id for clip in spool.pending()] == [ids[2]]
        broken = {path.name for path in (outbox.folder / "broken").iterdir()}
        assert {f"{ids[0]}.reason.txt", f"{ids[1]}.reason.txt", f"{ids[0]}.mp4", f"{ids[1]}.json"} <= broken
        assert spool.adopt_outbox(outbox.folder) == 0


class TestLocks:
    def test_one_uploader(self, spool: Spool) -> None:
        """The lock is refused to the second, also from another Spool on the folder, and free after."""
        other = Spool(spool.folder)
        refused = pytest.raises(DeviceError, match="another process is at work")
        with spool.locked("upload"), refused, other.locked("upload"):
            raise AssertionError("both hold it")
        other.close()
        with spool.locked("upload"):
            pass


class TestCrashes:
    @pytest.mark.parametrize("act", ["adopt", "done", "quarantine"])
    def test_every_primitive(self, tmp_path: Path, make_clip: MakeClip, act: str) -> None:
        """A power cut at each primitive: the clip is whole somewhere, and opening the spool again finishes the work."""

        def run(folder: Path, disk: durable.Disk) -> None:
            spool = Spool(folder)
            path, sidecar = make_clip(1, str(folder.name) + "-in")
            other = make_clip(2, str(folder.name) + "-in")
            spool.adopt(*other)
            if act != "adopt":
                spool.adopt(path, sidecar)
            durable.disk = disk
            clip = next((clip for clip in spool.pending() if clip.sidecar.clip_id == sidecar.clip_id), None)
            try:
                if act == "adopt":
                    spool.adopt(path, sidecar)
                elif act == "done":
                    assert clip is not None
                    spool.done(clip)
                else:
                    assert clip is not None
                    spool.quarantine(clip, "because")
            finally:
                durable.disk = durable.Disk()
                spool.close()

        counting = CountingDisk()
        run(tmp_path / "0", counting)
        assert counting.n_calls >= 3
        for number in range(1, counting.n_calls + 1):
            folder = tmp_path / str(number)
            with pytest.raises(PowerCut):
                run(folder, CountingDisk(number))
            _, sidecar = make_clip(1, "reference")
            with Spool(folder) as spool:
                state = spool.state(sidecar.clip_id)
                files = sorted(path.name for path in (folder / "clips").iterdir() if not durable.is_temporary(path.name))
                if act == "adopt":
                    waits = sidecar.clip_id in ids(spool)
                    assert waits or (tmp_path / f"{number}-in" / "made-1.mp4").exists()
                elif act == "done":
                    assert state == "done" and not any(sidecar.clip_id in name for name in files)
                else:
                    assert state in ("pending", "quarantined")
                    where = folder / ("clips" if state == "pending" else "quarantine")
                    assert (where / f"{sidecar.clip_id}.mp4").exists() and (where / f"{sidecar.clip_id}.json").exists()
                assert len(ids(spool)) >= 1
                assert "lost" not in spool.counts()

    def test_full_disk_while_adopting(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """ENOSPC at each primitive is one DeviceError; the clip is not lost and goes in when there is room."""
        import errno

        for number in range(1, 12):
            with Spool(tmp_path / str(number)) as spool:
                path, sidecar = make_clip(1)
                durable.disk = CountingDisk(number, OSError(errno.ENOSPC, "No space left on device"))
                try:
                    with pytest.raises(DeviceError, match=r"No space left on device; free space on it, or `camloop upload`"):
                        spool.adopt(path, sidecar)
                except pytest.fail.Exception:
                    assert number > 5  # past the last primitive
                    break
                finally:
                    durable.disk = durable.Disk()
                if path.exists():
                    spool.adopt(path, sidecar)
            with Spool(tmp_path / str(number)) as spool:
                assert ids(spool) == [sidecar.clip_id]

    def test_a_lost_file_is_told(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A clip whose file somebody deleted is counted as lost, not forgotten."""
        with Spool(tmp_path / "spool") as spool:
            spool.adopt(*make_clip(1))
            spool.pending()[0].path.unlink()
        with Spool(tmp_path / "spool") as spool:
            assert spool.counts() == {"lost": 1}


class TestRebuilding:
    def test_database_deleted(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """Without its database the spool finds all clips again, in order of recording."""
        with Spool(tmp_path / "spool") as spool:
            for number in (3, 1, 2):
                spool.adopt(*make_clip(number))
        for path in (tmp_path / "spool").glob("spool.sqlite*"):
            path.unlink()
        with Spool(tmp_path / "spool") as spool:
            assert [clip.sidecar.seq for clip in spool.pending()] == [1, 2, 3]

    def test_database_damaged(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """Whatever byte of the database is flipped, or cut off, all clips are still there."""
        with Spool(tmp_path / "spool") as spool:
            for number in range(4):
                spool.adopt(*make_clip(number))
            expected = sorted(ids(spool))
        good = (tmp_path / "spool" / "spool.sqlite").read_bytes()
        rng = random.Random(7)
        damages = [good[:100], b"", b"\0" * len(good), good[: len(good) // 2], b"this is no database" * 100]
        for _ in range(20 * COUNT):
            at = rng.choice([rng.randrange(len(good)), rng.randrange(120)])
            damages.append(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        for number, damage in enumerate(damages):
            folder = tmp_path / f"spool-{number}"
            shutil.copytree(tmp_path / "spool", folder)
            (folder / "spool.sqlite").write_bytes(damage)
            with Spool(folder) as spool:
                assert sorted(ids(spool)) == expected, f"damage {number}"
                for clip in spool.pending():
                    spool.done(clip)
            with Spool(folder) as spool:
                assert spool.pending() == []
            shutil.rmtree(folder)

    def test_a_wrong_call_is_no_damage(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A closed connection condemns no database; of those that were damaged the newest two are kept."""
        folder = tmp_path / "spool"
        with Spool(folder) as spool:
            spool.adopt(*make_clip(1))
            spool.database.close()
            with pytest.raises(DeviceError, match="closed database"):
                spool.reserve("cam1", "boot")
        assert not list(folder.glob("spool.sqlite.damaged-*"))
        for number in range(4):
            (folder / "spool.sqlite").write_bytes(b"this is no database %d" % number * 100)
            with Spool(folder) as spool:
                assert len(spool.pending()) == 1
        kept = sorted(folder.glob("spool.sqlite.damaged-*"))
        assert [path.read_bytes()[20:21] for path in kept] == [b"2", b"3"]

    def test_sidecar_damaged(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A clip whose sidecar cannot be read is put aside with the reason; the others go on."""
        with Spool(tmp_path / "spool") as spool:
            spool.adopt(*make_clip(1))
            spool.adopt(*make_clip(2))
            first = spool.pending()[0].sidecar.clip_id
        (tmp_path / "spool" / "clips" / f"{first}.json").write_bytes(b"{}")
        with Spool(tmp_path / "spool") as spool:
            assert len(spool.pending()) == 1
            assert spool.state(first) == "quarantined"
            assert "sidecar" in (tmp_path / "spool" / "quarantine" / f"{first}.reason.txt").read_text()
            assert (tmp_path / "spool" / "quarantine" / f"{first}.mp4").exists()
