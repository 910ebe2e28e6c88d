"""What one clip, one camera or one document may not do to all others: the disk or the store refuses it, the rest goes on."""

from __future__ import annotations

import dataclasses
import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import ingest.spool
from infra import durable, keys
from infra.clock import FakeClock
from infra.errors import QuotaSpent, StoreError, StoreForbidden
from infra.objects import Capabilities, ResumeLog, Stat, file_sha256
from infra.records import Sidecar
from infra.store import MemoryStore
from ingest.schedule import UploadSettings
from ingest.spool import Spool
from ingest.transfer import Retry
from ingest.uplink import read_uplink
from ingest.uploader import Uploader, upload, watch

MakeClip = Callable[[int], tuple[Path, Sidecar]]
ONE = UploadSettings(connections=1)


def fill(spool: Spool, make_clip: MakeClip, n: int) -> list[Sidecar]:
    """Adopt clips and return their sidecars."""
    made = [make_clip(number) for number in range(n)]
    for path, sidecar in made:
        spool.adopt(path, sidecar)
    return [sidecar for _, sidecar in made]


class Choosy(MemoryStore):
    """A store that answers some clips with an error of their own, by clip id; `asked` are all clips in order."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals: dict[str, StoreError] = {}
        self.asked: list[str] = []

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        clip_id = Path(key).stem
        if key.startswith("clips/") and key.endswith(".json"):
            self.asked.append(clip_id)
        if clip_id in self.refusals:
            raise self.refusals[clip_id]
        return super().put_if_absent(key, data)


class TestUnreadable:
    def test_the_oldest_clip(self, spool: Spool, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
        """A clip that the disk does not give back is put aside with its entry; all behind it are delivered."""
        sidecars = fill(spool, make_clip, 6)

        def read(path: Path) -> str:
            if path.stem == sidecars[0].clip_id:
                raise OSError(errno.EIO, "Input/output error", str(path))
            return file_sha256(path)

        monkeypatch.setattr(ingest.spool, "file_sha256", read)
        result = upload(spool, MemoryStore(), settings=ONE, retry=Retry(clock=FakeClock()))
        assert (result.n_clips, result.n_quarantined) == (5, 1)
        assert "Input/output error" in (spool.quarantined / f"{sidecars[0].clip_id}.reason.txt").read_text()
        assert [entry.clip_id for entry in spool.ledger.entries() if entry.kind == "quarantined"] == [sidecars[0].clip_id]

    def test_a_sidecar(self, spool: Spool, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
        """So is a clip whose sidecar the disk does not give back."""
        sidecars, read_bytes = fill(spool, make_clip, 3), Path.read_bytes

        def read(path: Path) -> bytes:
            if path.name == f"{sidecars[0].clip_id}.json":
                raise OSError(errno.EIO, "Input/output error", str(path))
            return read_bytes(path)

        monkeypatch.setattr(Path, "read_bytes", read)
        result = upload(spool, MemoryStore(), settings=ONE, retry=Retry(clock=FakeClock()))
        assert (result.n_clips, result.n_quarantined) == (2, 1)
        assert [entry.clip_id for entry in spool.ledger.entries() if entry.kind == "quarantined"] == [sidecars[0].clip_id]

    def test_a_disk_that_takes_nothing(self, spool: Spool, make_clip: MakeClip) -> None:
        """A note that cannot be written on a full disk is no fault of the clip: it waits."""

        class Noting(MemoryStore):
            def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
                raise OSError(errno.ENOSPC, "No space left on device")

        fill(spool, make_clip, 1)
        with pytest.raises(StoreError, match=r"No space left on device; 0 clips delivered, 1 wait"):
            upload(spool, Noting(), retry=Retry(max_tries=1, clock=FakeClock()))
        assert spool.counts() == {"pending": 1}

    def test_metered_on_a_full_disk(self, spool: Spool, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a day has cost cannot be written on a full disk: the clips go all the same."""
        fill(spool, make_clip, 2)
        write = durable.write

        def full(path: Path, data: bytes) -> None:
            if path.name == "metered.json":
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, data)

        monkeypatch.setattr(durable, "write", full)
        settings = UploadSettings(metered_bytes_per_day=10**9)
        assert upload(spool, MemoryStore(), settings=settings, retry=Retry(clock=FakeClock())).n_clips == 2


class TestForbidden:
    def test_forty_before_ten(self, spool: Spool, make_clip: MakeClip) -> None:
        """Clips that may not go are asked about once each and do not hold up those that may; a run tells of them at its end."""
        store, clock = Choosy(), FakeClock()
        sidecars = fill(spool, make_clip, 50)
        store.refusals = {sidecar.clip_id: StoreForbidden("not_yours: no camera of this host") for sidecar in sidecars[:40]}
        with pytest.raises(StoreError, match=r"not_yours.*; 10 clips delivered, 40 wait"):
            upload(spool, store, settings=ONE, retry=Retry(clock=clock))
        assert store.asked == [sidecar.clip_id for sidecar in sidecars] and clock.mono_ns() == 0
        assert spool.counts() == {"pending": 40, "done": 10}

    def test_watch_does_not_rest(self, spool: Spool, make_clip: MakeClip) -> None:
        """A forbidden clip neither rests the uploader nor is asked about again within the hour; the agent hears of it."""
        store, stop, passes = Choosy(), threading.Event(), list[int]()
        sidecars = fill(spool, make_clip, 3)
        store.refusals = {sidecars[0].clip_id: StoreForbidden("too_large: 5 bytes")}

        def between() -> None:
            passes.append(len(store.asked))
            if len(passes) == 3:
                stop.set()

        clock = FakeClock()
        result = watch(
            spool, store, settings=ONE, host_id="pi", stop=stop, retry=Retry(clock=clock), poll_s=0.001, between=between
        )
        assert passes == [3, 3, 3] and result.n_clips == 2
        clock.advance_s(3601)
        with pytest.raises(StoreError, match="too_large"):
            upload(spool, store, settings=ONE, retry=Retry(clock=clock))

    def test_a_host_without_rights(self, spool: Spool, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where nothing may go, a pass ends after a bounded number of refusals; the next one asks about others."""
        monkeypatch.setattr("ingest.uploader.FORBIDDEN_END_A_PASS", 3)
        store = Choosy()
        sidecars = fill(spool, make_clip, 8)
        store.refusals = {sidecar.clip_id: StoreForbidden("AccessDenied") for sidecar in sidecars[:7]}
        uploader = Uploader(spool, store, ONE, retry=Retry(clock=FakeClock()))
        for n_asked in (3, 6):
            with pytest.raises(StoreForbidden, match="AccessDenied"):
                uploader.one_pass()
            assert len(store.asked) == n_asked
        uploader.one_pass()
        uploader.close()
        assert uploader.result.n_clips == 1
        uplink = read_uplink(spool.folder)
        assert uplink is not None


def test_stopped_before_its_first_turn(spool: Spool) -> None:
    """An uploader whose first question waits for its turn hears a stop meanwhile."""
    stop, asked, turn = threading.Event(), threading.Event(), threading.Event()

    class Busy(MemoryStore):
        def capabilities(self) -> Capabilities:
            asked.set()
            turn.wait(30)
            return super().capabilities()

    def run() -> None:
        with Spool(spool.folder) as other:
            watch(other, Busy(), settings=ONE, host_id="pi", stop=stop)

    thread = threading.Thread(target=run)
    thread.start()
    assert asked.wait(10)
    stop.set()
    thread.join(5)
    has_ended = not thread.is_alive()
    turn.set()
    thread.join(30)
    assert has_ended


class TestQuota:
    def test_the_other_camera(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A camera that has used up its quota waits, with all of its clips, until the store named; another camera goes on."""
        store, clock = Choosy(), FakeClock()
        with Spool(tmp_path / "spool") as spool:
            for number in range(6):
                path, sidecar = make_clip(number)
                spool.adopt(path, dataclasses.replace(sidecar, camera_id=("greedy", "modest")[number % 2]))
            greedy = [candidate.clip_id for candidate in spool.waiting() if candidate.camera_id == "greedy"]
            store.refusals = dict.fromkeys(greedy, QuotaSpent("quota: camera greedy", 1800.0))
            uploader = Uploader(spool, store, ONE, retry=Retry(clock=clock))
            uploader.one_pass()
            assert uploader.result.n_clips == 3 and clock.mono_ns() == 0
            assert [clip_id for clip_id in store.asked if clip_id in greedy] == greedy[:1]
            store.refusals = {}
            clock.advance_s(1799)
            uploader.one_pass()
            assert uploader.result.n_clips == 3
            clock.advance_s(2)
            uploader.one_pass()
            uploader.close()
            assert uploader.result.n_clips == 6


class TestDocuments:
    def test_one_that_is_refused(self, spool: Spool, make_clip: MakeClip) -> None:
        """A document that the store does not take holds up neither clips nor other documents."""

        class Small(MemoryStore):
            def put_if_absent(self, key: str, data: bytes) -> Stat:
                if key.startswith("ledger/"):
                    raise StoreForbidden("too_large: 5000000 bytes")
                return super().put_if_absent(key, data)

        spool.forfeit("cam1", "boot", spool.reserve("cam1", "boot"), "the disk was full")
        (spool.folder / "health" / "boot").mkdir(parents=True)
        (spool.folder / "health" / "boot" / "00000007.json").write_bytes(b'{"n": 7}')
        fill(spool, make_clip, 2)
        store = Small()
        result = upload(spool, store, host_id="pi", retry=Retry(clock=FakeClock()))
        assert (result.n_clips, result.n_documents) == (2, 1)
        assert store.get(keys.health_key("pi", "boot", 7)) == b'{"n": 7}'
