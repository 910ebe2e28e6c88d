"""Uploads in parts that are cut: resumed from what the store says it has, whatever the note on this machine says."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.clock import FakeClock
from infra.errors import ObjectExists, StoreBusy, StoreError, UsageError
from infra.objects import MIN_PART_BYTES, ResumeLog, part_bytes_for
from infra.s3 import S3Store
from infra.s3_clock import ServerClock
from tests.faults.proxy import Proxy, proxy
from tests.ministack_server import Ministack

KEY = "clips/cam1/0123.mp4"
N_BYTES = 2 * MIN_PART_BYTES + 1000  # three parts


@pytest.fixture
def between(s3_server: Ministack) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with proxy(s3_server.port) as made:
        yield made


@pytest.fixture
def store(s3_server: Ministack, between: Proxy) -> S3Store:
    """An S3 store behind the proxy that gives up at once."""
    settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url, max_attempts=1)
    made = S3Store(f"s3://{s3_server.new_bucket()}/farm", settings)
    made.capabilities()
    return made


@pytest.fixture
def clip(tmp_path: Path) -> tuple[Path, str]:
    """A file of three parts and its SHA-256."""
    data = random.Random(7).randbytes(N_BYTES)
    (tmp_path / "clip.mp4").write_bytes(data)
    return tmp_path / "clip.mp4", hashlib.sha256(data).hexdigest()


@pytest.fixture
def sent(between: Proxy) -> list[str]:
    """The parts that travelled, by the number in their request line."""
    lines: list[str] = []

    def note(head: bytes) -> bytes:
        line = head.split(b"\r\n")[0].decode()
        if line.startswith("PUT") and "partNumber=" in line:
            lines.append(line.split("partNumber=")[1][:1])
        return head

    between.mutate = note
    return lines


def cut_at(between: Proxy, part: str) -> None:
    """Refuse one part, and everything after it."""
    between.refuse = lambda head: (500, "InternalError") if part.encode() in head.split(b"\r\n")[0] else None


def pending(store: S3Store) -> int:
    """Return how many uploads are unfinished."""
    return len(list(store.unfinished("clips/")))


class TestResume:
    def test_goes_on(self, store: S3Store, between: Proxy, clip: tuple[Path, str], sent: list[str], tmp_path: Path) -> None:
        """After a cut only what the store lacks is sent; the note is gone at the end, and so is the upload."""
        path, sha256 = clip
        resume = ResumeLog(tmp_path / "uploads" / "a.json")
        cut_at(between, "partNumber=3")
        with pytest.raises(StoreError, match="InternalError"):
            store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        assert pending(store) == 1 and resume.load() is not None
        between.refuse = lambda head: None
        store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        assert sent == ["1", "2", "3"]
        assert store.holds_file(KEY, path, sha256=sha256) and hashlib.sha256(store.get(KEY)).hexdigest() == sha256
        assert pending(store) == 0 and resume.load() is None

    def test_what_the_store_has_is_compared(
        self, store: S3Store, between: Proxy, clip: tuple[Path, str], sent: list[str], tmp_path: Path
    ) -> None:
        """A part that holds other bytes, put there by whoever, is sent again."""
        path, sha256 = clip
        resume = ResumeLog(tmp_path / "uploads" / "a.json")
        cut_at(between, "partNumber=3")
        with pytest.raises(StoreError):
            store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        between.refuse = lambda head: None
        note = resume.load()
        assert note is not None
        at = store._at(KEY)
        store._s3.upload_part(**at, UploadId=note.upload_id, PartNumber=2, Body=b"x" * MIN_PART_BYTES)
        sent.clear()
        store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        assert sent == ["2", "3"]
        assert hashlib.sha256(store.get(KEY)).hexdigest() == sha256

    def test_vanished(self, store: S3Store, between: Proxy, clip: tuple[Path, str], sent: list[str], tmp_path: Path) -> None:
        """An upload that the bucket's lifecycle gave up is begun anew."""
        path, sha256 = clip
        resume = ResumeLog(tmp_path / "uploads" / "a.json")
        cut_at(between, "partNumber=2")
        with pytest.raises(StoreError):
            store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        between.refuse = lambda head: None
        for found in store.unfinished():
            store.abandon(found.key, found.upload_id)
        store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        assert sent == ["1", "1", "2", "3"]
        assert store.holds_file(KEY, path, sha256=sha256) and pending(store) == 0

    def test_completed_but_nobody_heard(
        self, store: S3Store, between: Proxy, clip: tuple[Path, str], sent: list[str], tmp_path: Path
    ) -> None:
        """Killed between the completion and its answer: the next try finds the upload gone, looks, and sends nothing."""
        path, sha256 = clip
        resume = ResumeLog(tmp_path / "uploads" / "a.json")
        between.refuse = lambda head: (500, "InternalError") if head.startswith(b"POST") and b"uploadId=" in head else None
        with pytest.raises(StoreError):
            store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        note = resume.load()
        assert note is not None
        parts = store._s3.list_parts(**store._at(KEY), UploadId=note.upload_id)["Parts"]
        listed = [{"ETag": part["ETag"], "PartNumber": part["PartNumber"]} for part in parts]
        between.refuse = lambda head: None
        store._s3.complete_multipart_upload(**store._at(KEY), UploadId=note.upload_id, MultipartUpload={"Parts": listed})
        sent.clear()
        assert store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume).n_bytes == N_BYTES
        assert sent == [] and resume.load() is None

    def test_a_note_of_something_else(self, store: S3Store, clip: tuple[Path, str], tmp_path: Path) -> None:
        """A torn note, or one of another store or clip, is not followed."""
        path, sha256 = clip
        resume = ResumeLog(tmp_path / "uploads" / "a.json")
        resume.path.parent.mkdir()
        for text in ("", "{", "[]", '{"url": "x"}', "null"):
            resume.path.write_text(text)
            assert resume.load() is None
        store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        assert store.holds_file(KEY, path, sha256=sha256)

    def test_somebody_was_faster(self, store: S3Store, between: Proxy, clip: tuple[Path, str], tmp_path: Path) -> None:
        """When the key is taken meanwhile, nothing is overwritten and the half upload is given up."""
        path, sha256 = clip
        resume = ResumeLog(tmp_path / "uploads" / "a.json")
        cut_at(between, "partNumber=3")
        with pytest.raises(StoreError):
            store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        between.refuse = lambda head: None
        store.put(KEY, b"other")
        with pytest.raises(ObjectExists):
            store.put_file_if_absent(KEY, path, sha256=sha256, resume=resume)
        assert store.get(KEY) == b"other" and pending(store) == 0 and resume.load() is None

    def test_part_sizes(self, tmp_path: Path) -> None:
        """No part is under 5 MiB, no file has over 10,000 of them."""
        assert part_bytes_for(100, MIN_PART_BYTES) == MIN_PART_BYTES
        assert -(-(200 << 30) // part_bytes_for(200 << 30, MIN_PART_BYTES)) <= 10_000
        with pytest.raises(UsageError, match="5 MiB"):
            ResumeLog(tmp_path / "a", part_bytes=MIN_PART_BYTES - 1)
        with pytest.raises(AssertionError):
            part_bytes_for(100, 1 << 20)


class TestSingle:
    def test_bytes_are_counted(self, store: S3Store, tmp_path: Path) -> None:
        """A rate limit hears of every byte before it goes; the answer to the put proves what is stored."""
        data, heard = random.Random(1).randbytes(300_000), list[int]()
        path = tmp_path / "clip.mp4"
        path.write_bytes(data)
        resume = ResumeLog(tmp_path / "a", on_bytes=heard.append)
        made = store.put_file_if_absent(KEY, path, sha256=hashlib.sha256(data).hexdigest(), resume=resume)
        assert sum(heard) == 300_000 and max(heard) <= 1 << 20
        assert made.checked == "sha256"

    def test_retry_after_is_told(self, store: S3Store, between: Proxy) -> None:
        """A busy store's wish is in the error; a wait too long for one request is the caller's."""
        between.refuse = lambda head: (503, "SlowDown")
        between.refusal_headers = {"Retry-After": "120"}
        with pytest.raises(StoreBusy) as found:
            store.get(KEY)
        assert found.value.retry_after_s == 120


class TestClock:
    def test_wrong_clock(self, s3_server: Ministack, between: Proxy) -> None:
        """A machine in 1970 signs with the store's time after one refusal; a clock that is set later harms nothing."""
        clock, dates = FakeClock(now_ns=0), list[bytes]()

        def refuse(head: bytes) -> tuple[int, str] | None:
            stamp = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"x-amz-date")).split(b":")[1].strip()
            dates.append(stamp)
            return (403, "RequestTimeTooSkewed") if stamp.startswith((b"1970", b"2199")) else None

        between.refuse = refuse
        settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url)
        store = S3Store(f"s3://{s3_server.new_bucket()}", settings, clock)
        assert store.clock_offset_s is None
        store.put("a", b"1")
        offset_s = store.clock_offset_s
        assert offset_s is not None and offset_s > 50 * 365 * 86400
        n_refused = sum(date.startswith(b"1970") for date in dates)
        assert n_refused == 1
        clock.jump_to_ns(7_234_567_890_000_000_000)  # the wall clock moves: what was learned stands on the monotonic one
        assert store.head("a") is not None
        assert sum(date.startswith((b"1970", b"2199")) for date in dates) == 1

    def test_head_has_no_code(self, s3_server: Ministack, between: Proxy) -> None:
        """A HEAD is refused without a word; the Date of the answer is enough. A 403 about rights is not repeated."""
        between.refuse = lambda head: (403, "RequestTimeTooSkewed") if b"\r\nX-Amz-Date: 1970" in head else None
        settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url)
        store = S3Store(f"s3://{s3_server.new_bucket()}", settings, FakeClock(now_ns=0))
        assert store.head("a") is None and store.clock_offset_s is not None

    def test_a_date_that_is_none(self) -> None:
        """Garbage and small differences teach nothing."""
        clock = ServerClock(FakeClock())
        for date in ("", "yesterday", "Tue, 14 Nov 2023 22:13:30 GMT", "Fri, 99 Zzz 99999 99:99:99 GMT"):
            assert not clock.learn(date)
        assert clock.offset_s() is None
