"""Retries, proofs, and what a store that misbehaves gets: bounded, never a storm, never a lost clip."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import keys
from infra.clock import FakeClock
from infra.errors import StoreBusy, StoreError, StoreIncapable
from infra.objects import ResumeLog, Stat
from infra.records import Sidecar
from infra.s3 import S3Store
from infra.s3_parts import digests
from infra.store import MemoryStore
from ingest.schedule import UploadSettings
from ingest.spool import Spool
from ingest.transfer import Retry, deliver, resume_path
from ingest.uploader import upload
from tests.faults.proxy import Proxy, proxy
from tests.ministack_server import Ministack, ministack
from tests.radosgw_server import needs_radosgw, radosgw

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
MakeClip = Callable[..., tuple[Path, Sidecar]]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Ministack]:
    """An S3 server."""
    with ministack() as server:
        yield server


@pytest.fixture
def between(s3_server: Ministack) -> Iterator[Proxy]:
    """A proxy in front of it."""
    with proxy(s3_server.port) as made:
        yield made


def fill(spool: Spool, make_clip: MakeClip, n: int, n_bytes: int = 20_000) -> list[Sidecar]:
    """Adopt n clips."""
    made = [make_clip(number, n_bytes=n_bytes) for number in range(n)]
    for path, sidecar in made:
        spool.adopt(path, sidecar)
    return [sidecar for _, sidecar in made]


def check_all(store: S3Store, sidecars: list[Sidecar]) -> None:
    """Assert that the store holds exactly these clips, whole."""
    found = [stat.key for stat in store.list("clips/") if not stat.key.endswith(".json")]
    expected = {keys.clip_key(s.camera_id, s.clip_id, s.container): s.sha256 for s in sidecars}
    assert found == sorted(expected)
    assert all(keys.sha256_hex(store.get(key)) == expected[key] for key in found)


def test_digests_are_remembered_while_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second try hashes nothing again; a file of another time, size or part size is hashed anew."""
    path, n_opened, opened = tmp_path / "a.mp4", [0], Path.open

    def count(self: Path, *args: Any, **more: Any) -> Any:
        n_opened[0] += self == path
        return opened(self, *args, **more)

    path.write_bytes(b"a" * 100)
    monkeypatch.setattr(Path, "open", count)
    first = digests(path, 64)
    assert digests(path, 64) is first and n_opened[0] == 1 and [part.n_bytes for part in first.parts] == [64, 36]
    assert len(digests(path, 10).parts) == 10 and n_opened[0] == 2
    path.write_bytes(b"b" * 100)
    assert digests(path, 64).sha256 == keys.sha256_hex(b"b" * 100) != first.sha256


class TestRetry:
    def test_retry_after(self) -> None:
        """A store's wish is honoured when it is longer than our own pause, up to ten minutes."""
        pauses: list[float] = []

        class Watch(FakeClock):
            def sleep_s(self, seconds: float) -> None:
                pauses.append(seconds)

        wishes = [0.0, 30.0, 99_999.0]

        def act() -> None:
            raise StoreBusy("busy", wishes[min(len(pauses), 2)])

        with pytest.raises(StoreBusy):
            Retry(max_tries=4, clock=Watch(), rng=random.Random(1))(act, "clip")
        assert pauses[0] < 1 and 30 <= pauses[1] < 46 and 600 <= pauses[2] <= 900

    def test_stop_ends_a_pause(self) -> None:
        """A stop is heard while waiting."""

        class Stop(BaseException):
            pass

        def check() -> None:
            raise Stop

        def act() -> None:
            raise StoreError("gone")

        with pytest.raises(Stop):
            Retry(clock=FakeClock(), check=check)(act, "clip")


class TestStoresThatMisbehave:
    def test_ten_percent_errors(self, spool: Spool, make_clip: MakeClip, s3_server: Ministack, between: Proxy) -> None:
        """With one request in ten refused (500, 503, 429) everything arrives, with at most 1.3 requests for each needed."""
        settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url)
        store = S3Store(f"s3://{s3_server.new_bucket()}", settings)
        store.capabilities()
        n = 20 * COUNT
        sidecars = fill(spool, make_clip, n)
        rng, n_puts = random.Random(3), [0]

        def refuse(head: bytes) -> tuple[int, str] | None:
            n_puts[0] += head.startswith(b"PUT")
            if rng.random() < 0.10:
                return rng.choice([(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")])
            return None

        between.refuse = refuse
        assert upload(spool, store, retry=Retry(clock=FakeClock())).n_clips == n
        between.refuse = lambda head: None
        check_all(store, sidecars)
        assert n_puts[0] <= 1.3 * 2 * n

    def test_the_store_alters_bytes(self, spool: Spool, make_clip: MakeClip) -> None:
        """An endpoint that keeps other bytes than it was sent is found out by reading back; the clip stays, no more is sent."""

        class Trailer(MemoryStore):
            def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
                return self.put_if_absent(key, path.read_bytes() + b"\r\nx-amz-checksum-crc32:abcd")

        store = Trailer()
        fill(spool, make_clip, 3)
        with pytest.raises(StoreIncapable, match="altered the bytes"):
            upload(spool, store, retry=Retry(clock=FakeClock()), settings=UploadSettings(connections=1))
        assert len(spool.pending()) == 3
        assert len([stat for stat in store.list() if stat.key.endswith(".mp4")]) == 1

    def test_body_altered_on_the_way(self, spool: Spool, make_clip: MakeClip, s3_server: Ministack, between: Proxy) -> None:
        """A proxy that flips bits in bodies gets nothing stored: what was signed is not what came."""
        settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url, max_attempts=1)
        store = S3Store(f"s3://{s3_server.new_bucket()}", settings)
        store.capabilities()
        sidecars = fill(spool, make_clip, 2)
        between.alter = lambda head, body: body[:-1] + bytes([body[-1] ^ 1]) if b".mp4" in head and body else body
        with pytest.raises(StoreError):
            upload(spool, store, retry=Retry(max_tries=2, clock=FakeClock()))
        assert [stat.key for stat in store.list("clips/") if stat.key.endswith(".mp4")] == []
        between.alter = lambda head, body: body
        upload(spool, store)
        check_all(store, sidecars)

    @pytest.mark.parametrize("fault", ["truncated", "a login page", "no XML", "307", "error in a 200"])
    def test_answers_that_make_no_sense(
        self, spool: Spool, make_clip: MakeClip, s3_server: Ministack, between: Proxy, fault: str
    ) -> None:
        """A third of the answers is cut short, a stranger's page, no XML, an error or a redirect: a big clip arrives once."""
        settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url)
        store = S3Store(f"s3://{s3_server.new_bucket()}", settings)
        store.capabilities()
        sidecars = fill(spool, make_clip, 2)
        path, big = make_clip(9, n_bytes=11 << 20)
        spool.adopt(path, big)
        others = {
            "a login page": b"<html>sign in to the hotel's network</html>", "no XML": b"<html><p>sign in</html>",
            "error in a 200": b"<Error><Code>InternalError</Code></Error>",
        }  # fmt: skip
        rng, spoiled = random.Random(7), list[str]()

        def spoil(line: str, reply: bytes, body: bytes) -> tuple[bytes, bytes]:
            if not body or fault == "307" or rng.random() > 0.34:
                return reply, body
            spoiled.append(line)
            other = others.get(fault, body)
            head = re.sub(rb"(?im)^content-length:.*$", b"Content-Length: %d\r" % len(other), reply)
            return head, other[: len(other) // 2] if fault == "truncated" else other

        def refuse(head: bytes) -> tuple[int, str] | None:
            if fault != "307" or rng.random() > 0.34:
                return None
            spoiled.append(head.split(b"\r\n")[0].decode())
            return 307, "TemporaryRedirect"

        between.refusal_headers = {"Location": s3_server.s3.endpoint_url or ""}
        between.spoil, between.refuse = spoil, refuse
        for _ in range(20):
            with contextlib.suppress(StoreError):
                upload(spool, store, retry=Retry(clock=FakeClock()))
            if not spool.pending():
                break
        between.spoil, between.refuse = Proxy(0).spoil, lambda head: None
        assert spoiled
        check_all(store, [*sidecars, big])
        n_begun = sum("?uploads" in line for line in spoiled)  # begun there, and nobody here heard its id: the sweep finds it
        assert len(list(store.unfinished())) <= n_begun

    def test_a_login_page_is_no_empty_store(self, s3_server: Ministack, between: Proxy) -> None:
        """What a hotel's network answers in the store's place is an error that says so, never an empty list."""
        store = S3Store(f"s3://{s3_server.new_bucket()}", dataclasses.replace(s3_server.s3, endpoint_url=between.url))
        page = b"<html>sign in</html>"
        between.spoil = lambda line, reply, body: (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page), page)
        for ask in (lambda: list(store.list("clips/")), lambda: list(store.unfinished()), lambda: store.put("a", b"1")):
            with pytest.raises(StoreError, match=r"is no S3 server .* login page"):
                ask()

    def test_big_clip_through_cuts(self, tmp_path: Path, make_clip: MakeClip, s3_server: Ministack, between: Proxy) -> None:
        """An uploader whose line is cut in one request of three and that starts again each time sends each part about once."""
        n_bytes = 16 << 20
        store = S3Store(
            f"s3://{s3_server.new_bucket()}", dataclasses.replace(s3_server.s3, endpoint_url=between.url, max_attempts=1)
        )
        store.capabilities()
        with Spool(tmp_path / "spool") as spool:
            (sidecar,) = fill(spool, make_clip, 1, n_bytes=n_bytes)
        rng, sent = random.Random(5), [0]

        def mutate(head: bytes) -> bytes:
            sent[0] += head.startswith(b"PUT") and b"partNumber" in head
            return head

        between.mutate = mutate
        between.cut = lambda line: rng.random() < 0.33
        for _ in range(30):
            with Spool(tmp_path / "spool") as spool:
                try:
                    upload(spool, store, retry=Retry(max_tries=1, clock=FakeClock()))
                    break
                except StoreError:
                    assert spool.counts() == {"pending": 1}
        between.cut = lambda line: False
        check_all(store, [sidecar])
        assert sent[0] <= 6  # four parts; a part whose answer was lost is in ListParts
        assert list(store.unfinished()) == [] and not resume_path(tmp_path / "spool", sidecar.clip_id).exists()


@pytest.mark.slow
@needs_radosgw
class TestRadosGateway:
    def test_proof_and_wrong_clock(self, spool: Spool, make_clip: MakeClip) -> None:
        """A real gateway that keeps no SHA-256: MD5 proves a clip, big ones go in one put, and 1970 is corrected."""
        with radosgw() as server:
            store = S3Store(f"s3://{server.new_bucket()}", server.s3, FakeClock(now_ns=0))
            sidecars = fill(spool, make_clip, 3)
            path, big = make_clip(9, n_bytes=11 << 20)
            spool.adopt(path, big)
            clip = spool.pending()[0]
            key = keys.clip_key("cam1", clip.sidecar.clip_id, "mp4")
            assert not store.capabilities().multipart_if_absent
            made = store.put_file_if_absent(key, clip.path, sha256=clip.sidecar.sha256)
            assert made.checked == "md5"
            assert upload(spool, store).n_clips == 4
            check_all(store, [*sidecars, big])
            assert store.clock_offset_s is not None and store.clock_offset_s > 50 * 365 * 86400


def test_proof_without_a_second_request(spool: Spool, make_clip: MakeClip, s3_server: Ministack, between: Proxy) -> None:
    """Where the store checks SHA-256, a small clip costs two requests: its sidecar and itself."""
    store = S3Store(f"s3://{s3_server.new_bucket()}", dataclasses.replace(s3_server.s3, endpoint_url=between.url))
    store.capabilities()
    fill(spool, make_clip, 1)
    clip, lines = spool.pending()[0], list[bytes]()
    between.mutate = lambda head: lines.append(head.split(b" ")[0]) or head  # type: ignore[func-returns-value]
    assert deliver(clip, store, Retry(), ResumeLog(resume_path(spool.folder, "x"))) is None
    assert lines == [b"PUT", b"PUT"]
