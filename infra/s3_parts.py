"""Files in parts, resumed: what is there is asked from the store, never believed from a note on this machine.

An upload is created, its id remembered durably (`ResumeLog`), its parts are sent, it is completed if the key is absent.
After a cut, a kill or a reboot: ListParts says which parts the store has; each is compared with the file by number, size and
checksum; what is missing or different is sent, the rest is not. An id that the store no longer knows (a lifecycle rule, an
operator, our own completion whose answer was lost) means *look*, then start anew. An upload whose id was never written
down (a kill between the two) costs nothing but storage: `Store.unfinished` finds it, the uploader and the bucket's
lifecycle rule give it up.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError

from infra.errors import ObjectExists, StoreError, StoreForbidden
from infra.keys import new_id
from infra.log import Log
from infra.objects import ResumeLog, Stat, UploadNote
from infra.s3_errors import FORBIDDEN, code_of

TOKEN = "camloop-put"
PART_SIZE = "camloop-part-bytes"
GONE = frozenset({"NoSuchUpload", "404"})
_PIECE_BYTES = 1 << 18
_log = Log("infra.s3")


def b64(digest: bytes) -> str:
    """Return base64 as S3's checksum headers want it."""
    return base64.b64encode(digest).decode()


class Body:
    """The bytes [start, start + n_bytes) of a file as a request's body: read in pieces, and again from the start on a retry.

    Args:
        path: the file; it is opened here and closed by the `with`.
        start: first byte.
        n_bytes: how many.
        sha256: hex digest of exactly these bytes; the request is signed with it.
        on_bytes: told before n bytes are handed out.
    """

    def __init__(self, path: Path, start: int, n_bytes: int, sha256: str, on_bytes: Callable[[int], None] | None) -> None:
        self._file: IO[bytes] = path.open("rb", buffering=0)
        self._start, self._n_bytes, self._at = start, n_bytes, 0
        self.sha256 = sha256
        self._on_bytes = on_bytes

    def __enter__(self) -> Body:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._n_bytes

    def tell(self) -> int:
        """Return the place in these bytes."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in these bytes."""
        self._at = offset + (0, self._at, self._n_bytes)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        left = self._n_bytes - self._at
        size = left if size is None or size < 0 else min(size, left)
        if size <= 0:
            return b""
        if self._on_bytes is not None:
            self._on_bytes(size)
        self._file.seek(self._start + self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a file: its number from 1, where it lies, and the digests of its bytes."""

    number: int
    start: int
    n_bytes: int
    sha256: str
    md5: bytes


@dataclass(frozen=True, slots=True)
class Digests:
    """What one reading of a file gives: the SHA-256 and MD5 of all of it, and of each part."""

    n_bytes: int
    sha256: str
    md5: str
    parts: tuple[Part, ...]

    @property
    def composite_sha256(self) -> str:
        """What S3 keeps as the SHA-256 of an object in parts."""
        whole = hashlib.sha256(b"".join(bytes.fromhex(part.sha256) for part in self.parts)).digest()
        return f"{b64(whole)}-{len(self.parts)}"

    @property
    def composite_md5(self) -> str:
        """What S3 keeps as the ETag of an object in parts."""
        return f"{hashlib.md5(b''.join(part.md5 for part in self.parts)).hexdigest()}-{len(self.parts)}"


def digests(path: Path, part_bytes: int, *, md5: bool = True) -> Digests:
    """Read a file once and hash it and its parts; without `md5` its MD5 digests are empty.

    Remembered for the next try while the file's size and time stay: on a link that drops, hashing a gigabyte anew took longer
    than sending a part. Should the disk give other bytes meanwhile, the store refuses them: they are signed with these digests.
    """
    found = path.stat()
    return _hashed(path, part_bytes, md5, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _hashed(path: Path, part_bytes: int, md5: bool, n_bytes: int, changed_ns: int) -> Digests:
    whole, whole_md5, start = hashlib.sha256(), hashlib.md5(), 0
    parts: list[Part] = []
    piece = memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while True:
            part, part_md5, length = hashlib.sha256(), hashlib.md5(), 0
            while length < part_bytes and (n_read := file.readinto(piece[: part_bytes - length])):
                length += n_read
                for digest in (whole, part, whole_md5, part_md5) if md5 else (whole, part):
                    digest.update(piece[:n_read])
            if length:
                parts.append(Part(len(parts) + 1, start, length, part.hexdigest(), part_md5.digest()))
                start += length
            if length < part_bytes:
                return Digests(start, whole.hexdigest(), whole_md5.hexdigest(), tuple(parts))


@dataclass(frozen=True, slots=True)
class Parts:
    """The uploads in parts of one store.

    Args:
        client: boto3's.
        url: the store's, so that a note of another store is not followed.
        at: {Bucket, Key} of a key.
        explained: turns botocore's errors into camloop's.
        checks_sha256: whether the store refuses wrong SHA-256 checksums.
        settle: sends a conditional request until its outcome is known (`S3Store`).
        mine: the object under a key, if it carries the token of this very upload.
        exists: says whether a key holds anything at all.
    """

    client: Any
    url: str
    at: Callable[[str], dict[str, str]]
    explained: Callable[[str], contextlib.AbstractContextManager[None]]
    checks_sha256: bool
    settle: Callable[[str, int, str, Callable[[], Any]], Stat]
    mine: Callable[[str, str, int], Stat | None]
    exists: Callable[[str], bool]

    def put(self, key: str, path: Path, found: Digests, resume: ResumeLog | None, part_bytes: int) -> Stat:
        """Bring a file in, going on with what an earlier try left; ObjectExists if the key is taken."""
        note = self._remembered(key, found, resume)
        there: dict[int, str] = {}
        if note is not None:
            listed = self._there(note, found)
            if listed is None:  # our own completion, whose answer was lost, or somebody gave it up
                _log.info("upload_gone", key=key, upload_id=note.upload_id)
                if resume is not None:
                    resume.clear()
                if mine := self.mine(key, note.token, found.n_bytes):
                    return mine
                note = None
            else:
                there = listed
        with contextlib.suppress(StoreForbidden):  # missing, to who may not list
            if self.exists(key):  # spare the upload; the completion below is what decides
                self._forget(key, note, resume)
                raise ObjectExists(f"object {key!r} exists in {self.url}")
        if note is None:
            note = self._begin(key, found, resume, part_bytes)
        with contextlib.ExitStack() as undo:
            if resume is None:  # nobody would ever go on with it
                undo.callback(self.abandon, key, note.upload_id)
            try:
                made = self._finish(note, path, found, there, resume)
            except ObjectExists:
                undo.pop_all()
                self._forget(key, note, resume)
                raise
            undo.pop_all()
        return made

    def _remembered(self, key: str, found: Digests, resume: ResumeLog | None) -> UploadNote | None:
        note = None if resume is None else resume.load()
        if note is None or (note.url, note.key, note.sha256, note.n_bytes) == (self.url, key, found.sha256, found.n_bytes):
            return note
        return None

    def _begin(self, key: str, found: Digests, resume: ResumeLog | None, part_bytes: int) -> UploadNote:
        token = new_id()
        kind = {"ChecksumAlgorithm": "SHA256"} if self.checks_sha256 else {}
        kept = {TOKEN: token, PART_SIZE: str(part_bytes)}
        with self.explained(key):
            upload_id = self.client.create_multipart_upload(**self.at(key), Metadata=kept, **kind)["UploadId"]
        note = UploadNote(
            url=self.url, key=key, upload_id=upload_id, token=token, sha256=found.sha256, n_bytes=found.n_bytes,
            part_bytes=part_bytes,
        )  # fmt: skip
        if resume is not None:
            resume.save(note)
        return note

    def _there(self, note: UploadNote, found: Digests) -> dict[int, str] | None:
        """Return the ETags of the parts that the store holds and that are the file's, by number; None if the upload is gone."""
        expected = {part.number: part for part in found.parts}
        made = {}
        try:
            with self.explained(note.key):
                for listed in self._listed(note):
                    part = expected.get(listed["PartNumber"])
                    if part is not None and listed["Size"] == part.n_bytes and _same(listed, part):
                        made[part.number] = str(listed["ETag"])
        except StoreError as error:
            if isinstance(error.__cause__, ClientError) and code_of(error.__cause__) in GONE | FORBIDDEN:
                return None  # who may not ask begins anew
            raise
        return made

    def _listed(self, note: UploadNote) -> Iterator[dict[str, Any]]:
        marker: dict[str, int] = {}
        while True:
            page = self.client.list_parts(**self.at(note.key), UploadId=note.upload_id, **marker)
            page["UploadId"]  # a login page of the network has none; it is not to be taken for an empty list
            yield from page.get("Parts", ())
            if not page.get("IsTruncated"):
                return
            marker = {"PartNumberMarker": int(page["NextPartNumberMarker"])}

    def _finish(self, note: UploadNote, path: Path, found: Digests, there: dict[int, str], resume: ResumeLog | None) -> Stat:
        listed: list[dict[str, Any]] = []
        for part in found.parts:
            checksum = {"ChecksumSHA256": b64(bytes.fromhex(part.sha256))} if self.checks_sha256 else {}
            etag = there.get(part.number) or self._send(note, path, part, checksum, resume)
            listed.append({"ETag": etag, "PartNumber": part.number, **checksum})

        def complete() -> Any:
            return self.client.complete_multipart_upload(
                **self.at(note.key), UploadId=note.upload_id, MultipartUpload={"Parts": listed}, IfNoneMatch="*"
            )

        try:
            made = self.settle(note.key, found.n_bytes, note.token, complete)
        except StoreError as error:
            if not (isinstance(error.__cause__, ClientError) and code_of(error.__cause__) in GONE):
                raise
            if resume is not None:
                resume.clear()  # the next try begins a new one
            mine = self.mine(note.key, note.token, found.n_bytes)  # completed by a try whose answer was lost?
            if mine is None:
                raise
            return mine
        if resume is not None:
            resume.clear()
        return made

    def proof(self, key: str, found: Digests) -> str:
        """Look at what the store keeps as the digest of an object in parts: by what it was proven, empty if by nothing."""
        with self.explained(key):
            kept = self.client.head_object(**self.at(key), ChecksumMode="ENABLED")
        if self.checks_sha256 and kept.get("ChecksumSHA256") == found.composite_sha256:
            return "composite sha256"
        return "composite md5" if kept["ETag"].strip('"') == found.composite_md5 else ""

    def _send(self, note: UploadNote, path: Path, part: Part, checksum: dict[str, str], resume: ResumeLog | None) -> str:
        kind = {"ChecksumAlgorithm": "SHA256"} if checksum else {}
        on_bytes = None if resume is None else resume.on_bytes
        with self.explained(note.key), Body(path, part.start, part.n_bytes, part.sha256, on_bytes) as body:
            answer = self.client.upload_part(
                **self.at(note.key), UploadId=note.upload_id, PartNumber=part.number, Body=body, **kind, **checksum
            )
        if resume is not None:
            resume.stored(part.n_bytes)
        return str(answer["ETag"])

    def _forget(self, key: str, note: UploadNote | None, resume: ResumeLog | None) -> None:
        if note is not None:
            self.abandon(key, note.upload_id)
        if resume is not None:
            resume.clear()

    def abandon(self, key: str, upload_id: str) -> None:
        """Give an upload up; what cannot be reached now the lifecycle rule removes."""
        with contextlib.suppress(ClientError, BotoCoreError):
            self.client.abort_multipart_upload(**self.at(key), UploadId=upload_id)


def _same(listed: dict[str, Any], part: Part) -> bool:
    if checksum := listed.get("ChecksumSHA256"):
        return bool(checksum == b64(bytes.fromhex(part.sha256)))
    return str(listed["ETag"]).strip('"') == part.md5.hex()
