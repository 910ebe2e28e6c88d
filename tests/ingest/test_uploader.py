"""The uploader: exactly once through kills, lost answers, rot, liars and a second uploader."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import durable, keys
from infra.clock import FakeClock
from infra.errors import DeviceError, ObjectExists, StoreError, StoreIncapable
from infra.objects import ResumeLog, Stat
from infra.records import Sidecar
from infra.s3 import S3Store
from infra.store import DirStore, MemoryStore, Store
from ingest.schedule import UploadSettings
from ingest.spool import Spool
from ingest.transfer import Retry
from ingest.uploader import upload
from tests.faults.disk import CountingDisk, PowerCut
from tests.faults.proxy import proxy
from tests.ministack_server import Ministack, free_port, ministack

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
N_CUT_CLIPS = 1 if COUNT == 1 else 2
MakeClip = Callable[..., tuple[Path, Sidecar]]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Ministack]:
    """An S3 server."""
    with ministack() as server:
        yield server


def key_of(sidecar: Sidecar) -> str:
    """Return where a clip belongs."""
    return keys.clip_key(sidecar.camera_id, sidecar.clip_id, sidecar.container)


def check_delivered(store: Store, sidecars: list[Sidecar]) -> None:
    """Assert that the store holds exactly these clips, whole, each with its sidecar."""
    expected = {key_of(sidecar) for sidecar in sidecars} | {keys.sidecar_key(key_of(sidecar)) for sidecar in sidecars}
    assert {stat.key for stat in store.list("clips/")} == expected
    for sidecar in sidecars:
        assert keys.sha256_hex(store.get(key_of(sidecar))) == sidecar.sha256
        assert Sidecar.from_json(store.get(keys.sidecar_key(key_of(sidecar)))) == sidecar


def fill(spool: Spool, make_clip: MakeClip, n: int) -> list[Sidecar]:
    """Adopt n clips and return their sidecars."""
    made = [make_clip(number) for number in range(n)]
    for path, sidecar in made:
        spool.adopt(path, sidecar)
    return [sidecar for _, sidecar in made]


class TestDelivery:
    def test_all_arrive_and_leave(self, spool: Spool, make_clip: MakeClip) -> None:
        """Clips and sidecars arrive under their keys, the sidecar first; the spool is empty afterwards; again is a no-op."""
        store, order = MemoryStore(), []
        sidecars = fill(spool, make_clip, 3)
        result = upload(spool, store, on_clip=lambda clip: order.append(clip.sidecar.seq))
        check_delivered(store, sidecars)
        assert (result.n_clips, result.n_bytes, result.n_quarantined) == (3, 60_000, 0)
        assert sorted(order) == [0, 1, 2]
        assert list((spool.folder / "clips").iterdir()) == []
        clip, beside = (store.head(key) for key in (key_of(sidecars[0]), keys.sidecar_key(key_of(sidecars[0]))))
        assert clip is not None and beside is not None and beside.modified_ns <= clip.modified_ns
        assert upload(spool, store).n_clips == 0

    def test_rot_is_caught(self, spool: Spool, make_clip: MakeClip) -> None:
        """A clip with one flipped bit is put aside with the reason and never sent; the others are."""
        store = MemoryStore()
        sidecars = fill(spool, make_clip, 3)
        path = spool.pending()[1].path
        data = bytearray(path.read_bytes())
        data[777] ^= 4
        path.write_bytes(data)
        result = upload(spool, store)
        assert (result.n_clips, result.n_quarantined) == (2, 1)
        check_delivered(store, [sidecars[0], sidecars[2]])
        assert "SHA-256" in (spool.folder / "quarantine" / f"{sidecars[1].clip_id}.reason.txt").read_text()

    def test_sent_before(self, spool: Spool, make_clip: MakeClip) -> None:
        """A clip that is in the store already, from a kill before it was marked, is looked at and done."""
        store = MemoryStore()
        (sidecar,) = fill(spool, make_clip, 1)
        store.put(key_of(sidecar), spool.pending()[0].path.read_bytes())
        store.put(keys.sidecar_key(key_of(sidecar)), sidecar.to_json())
        assert upload(spool, store).n_clips == 1
        check_delivered(store, [sidecar])

    def test_other_bytes_under_the_key(self, spool: Spool, make_clip: MakeClip) -> None:
        """A store that holds other bytes under a content hash is not believed; nothing is overwritten, the clip is kept."""
        store = MemoryStore()
        (sidecar,) = fill(spool, make_clip, 1)
        store.put(key_of(sidecar), b"trailer written into the file")
        assert upload(spool, store).n_quarantined == 1
        assert store.get(key_of(sidecar)) == b"trailer written into the file"
        assert (spool.folder / "quarantine" / f"{sidecar.clip_id}.mp4").exists()


class Failing(MemoryStore):
    """A store whose requests fail at given calls; every second failure happens after the object was stored."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.left = failures

    def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
        if self.left:
            self.left -= 1
            if self.left % 2:
                super().put_file_if_absent(key, path, sha256=sha256)
            raise StoreError("store memory:// cannot be reached at nowhere")
        return super().put_file_if_absent(key, path, sha256=sha256)


class TestFailures:
    def test_retries_are_bounded_and_jittered(self, spool: Spool, make_clip: MakeClip) -> None:
        """Pauses grow, are jittered and end; what was not delivered waits, and the same command goes on."""
        pauses: list[float] = []

        class Watch(FakeClock):
            def sleep_s(self, seconds: float) -> None:
                pauses.append(seconds)
                super().sleep_s(seconds)

        sidecars = fill(spool, make_clip, 2)
        retry = Retry(max_tries=4, clock=Watch(), rng=random.Random(7))
        store = Failing(99)
        store.put_file_if_absent = lambda key, path, *, sha256, resume=None: _refuse()  # type: ignore[method-assign]
        with pytest.raises(StoreError, match=r"cannot be reached.*; 0 clips delivered, 2 wait in .*; run it again"):
            upload(spool, store, retry=retry, settings=UploadSettings(connections=1))
        assert len(pauses) == 6  # one clip may be at fault: a second is tried before the pass ends
        assert all(base * 0.5 <= pause < base * 1.5 for base, pause in zip((0.5, 1, 2) * 2, pauses, strict=True))
        fine = MemoryStore()
        upload(spool, fine)
        check_delivered(fine, sidecars)

    def test_a_store_that_comes_back(self, spool: Spool, make_clip: MakeClip) -> None:
        """Failures before and after the object was stored end in exactly one object each."""
        store, sidecars = Failing(3), fill(spool, make_clip, 2)
        assert upload(spool, store, retry=Retry(clock=FakeClock())).n_clips == 2
        check_delivered(store, sidecars)

    def test_incapable_store(self, spool: Spool, make_clip: MakeClip) -> None:
        """A store that ignores put-if-absent gets nothing."""
        store = MemoryStore()
        found = dataclasses.replace(store.capabilities(), put_if_absent=False)
        store.capabilities = lambda: found  # type: ignore[method-assign]
        fill(spool, make_clip, 1)
        with pytest.raises(StoreIncapable, match="put_if_absent"):
            upload(spool, store)
        assert list(store.list()) == [] and len(spool.pending()) == 1

    def test_two_uploaders(self, spool: Spool, make_clip: MakeClip) -> None:
        """While one uploads, a second on the same spool is refused."""
        fill(spool, make_clip, 2)
        refused: list[str] = []

        def second(_: object) -> None:
            with Spool(spool.folder) as other:
                try:
                    upload(other, MemoryStore())
                except DeviceError as error:
                    refused.append(str(error))

        store = MemoryStore()
        upload(spool, store, on_clip=second)
        assert len(refused) == 2 and "another process is at work (upload)" in refused[0]

    def test_every_primitive(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """A power cut at each durable primitive of an upload into a folder: run again, it ends with each clip once."""
        number = 0
        while True:
            number += 1
            store = DirStore(tmp_path / f"store-{number}")
            store.capabilities()
            with Spool(tmp_path / f"spool-{number}") as spool:
                sidecars = fill(spool, make_clip, N_CUT_CLIPS)
                durable.disk = counting = CountingDisk(number)
                cut = False
                try:
                    upload(spool, store)
                except PowerCut:
                    cut = True
                finally:
                    durable.disk = durable.Disk()
            if not cut:
                assert counting.n_calls > 10
                return
            with Spool(tmp_path / f"spool-{number}") as spool:
                upload(spool, store)
                assert spool.counts() == {"done": N_CUT_CLIPS}
            check_delivered(store, sidecars)


def _refuse() -> Stat:
    raise StoreError("store memory:// cannot be reached at nowhere")


class TestS3:
    def test_lost_answers(self, spool: Spool, make_clip: MakeClip, s3_server: Ministack) -> None:
        """With one answer in three lost on the way, every clip arrives once and nothing is stuck."""
        with proxy(s3_server.port) as between:
            settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url)
            store = S3Store(f"s3://{s3_server.new_bucket()}/fleet", settings)
            store.capabilities()
            sidecars = fill(spool, make_clip, 8 * COUNT)
            rng = random.Random(7)
            between.cut = lambda line: line.startswith("PUT") and rng.random() < 0.33
            assert upload(spool, store, retry=Retry(clock=FakeClock())).n_clips == 8 * COUNT
            between.cut = lambda line: False
            assert len(between.lost) >= 3
            check_delivered(store, sidecars)

    def test_unreachable(self, spool: Spool, make_clip: MakeClip, s3_server: Ministack) -> None:
        """A store that is not there is one line that names it and what waits."""
        fill(spool, make_clip, 1)
        settings = dataclasses.replace(s3_server.s3, endpoint_url=f"http://127.0.0.1:{free_port()}", max_attempts=1)
        with pytest.raises(StoreError, match=r"cannot be reached at http://127\.0\.0\.1") as found:
            upload(spool, S3Store("s3://farm", settings), retry=Retry(max_tries=1))
        assert "\n" not in str(found.value)
        assert len(spool.pending()) == 1


CHILD = """
import sys
from pathlib import Path
from infra.store import DirStore
from ingest.schedule import UploadSettings
from ingest.spool import Spool
from ingest.uploader import upload
with Spool(Path(sys.argv[1])) as spool:
    print("ready", flush=True)
    upload(spool, DirStore(Path(sys.argv[2])))
"""


def test_kill_9_in_a_loop(tmp_path: Path, make_clip: MakeClip) -> None:
    """Killed again and again at random moments, the uploader delivers every clip once and loses none."""
    rng = random.Random(7)
    store = DirStore(tmp_path / "store")
    with Spool(tmp_path / "spool") as spool:
        sidecars = fill(spool, make_clip, 30)
    kills = 0
    for _ in range(6 * COUNT):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "spool"), str(tmp_path / "store")], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.2))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
        child.stdout.close()
    assert kills >= 1
    with Spool(tmp_path / "spool") as spool:
        upload(spool, store)
        assert spool.counts() == {"done": 30}
    for stat in store.list("selftest-"):  # what a kill in the self-test left
        store.delete(stat.key)
    check_delivered(store, sidecars)


def test_light(tmp_path: Path) -> None:
    """The uploader needs no decoder and no numpy."""
    code = "import sys, ingest.uploader; print(sorted({'av', 'numpy', 'pyarrow', 'boto3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exists_is_an_answer() -> None:
    """A condition that did not hold is not tried again."""
    calls: list[int] = []

    def act() -> None:
        calls.append(1)
        raise ObjectExists("there")

    with pytest.raises(ObjectExists):
        Retry(clock=FakeClock())(act, "clip")
    assert len(calls) == 1


def test_damaged_in_the_middle(spool: Spool, make_clip: MakeClip) -> None:
    """A sidecar that rots in the middle of the backlog is put aside and counted, also when a stick is filled."""
    sidecars = [make_clip(number)[1] for number in range(3)]
    for number in range(3):
        spool.adopt(*make_clip(number))
    (spool.clips / f"{sidecars[1].clip_id}.json").write_bytes(bytes(200))
    store = MemoryStore()
    result = upload(spool, store, keep=True, settings=UploadSettings(connections=1))
    assert (result.n_clips, result.n_quarantined) == (2, 1)
    assert spool.counts() == {"pending": 2, "quarantined": 1}
    assert [entry.clip_id for entry in spool.ledger.entries() if entry.kind == "quarantined"] == [sidecars[1].clip_id]
