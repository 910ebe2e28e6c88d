"""The Store protocol: what every store offers, in the words that commands and tests use. See `infra/store.py`.

A key that is written is plain (`keys.check_key`); a key that is read may be free-form, because `ingest --in-place`
registers objects under the names that people gave them, but it stays inside the store. Keys are listed in byte order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from infra import durable
from infra.errors import StoreIncapable, UsageError
from infra.keys import MAX_KEY_BYTES

_PIECE_BYTES = 1 << 20
MAX_PARTS = 10_000  # S3's limit
MIN_PART_BYTES = 5 << 20  # S3's least size of a part that is not the last (EntityTooSmall below it)

Capability = Literal["put_if_absent", "put_if_match", "multipart_if_absent", "checksum_verified", "presign"]
PresignMethod = Literal["get", "put"]


@dataclass(frozen=True, slots=True)
class Stat:
    """One stored object: its version (`etag`, opaque), size in bytes and UTC nanoseconds of its last change.

    `checked` names by what the store's own answer to a put proved that it holds the very bytes (`sha256`, `md5`);
    empty where that was not asked or not answered: then `holds_file` looks.
    """

    key: str
    n_bytes: int
    etag: str
    modified_ns: int
    checked: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadNote:
    """An upload in parts that is not complete, as its host remembers it. What has arrived only the store can say."""

    url: str
    key: str
    upload_id: str
    token: str
    sha256: str
    n_bytes: int
    part_bytes: int


@dataclass(frozen=True, slots=True)
class ResumeLog:
    """How a file is sent so that a cut costs little: where the note of its upload lies, how big its parts are.

    `on_bytes(n)` is called before n bytes of the body go out: it may wait (a rate limit), count, or raise to stop.
    `on_stored(n)` is called when the store has acknowledged n bytes of a part, or of a file that went in one piece.
    `is_fresh` and `n_waiting` are for a broker that plans who comes when: made just now, or waited; how many more wait.

    Raises:
        UsageError: parts smaller than S3 takes.
    """

    path: Path
    part_bytes: int = MIN_PART_BYTES
    on_bytes: Callable[[int], None] | None = None
    on_stored: Callable[[int], None] | None = None
    is_fresh: bool = False
    n_waiting: int = 1

    def __post_init__(self) -> None:
        if self.part_bytes < MIN_PART_BYTES:
            raise UsageError(f"part_bytes {self.part_bytes}; legal: {MIN_PART_BYTES} (5 MiB, S3's least) or more")

    def load(self) -> UploadNote | None:
        """Return the note, None if there is none or it is not one (it is only a hint: the upload then starts anew)."""
        try:
            return UploadNote(**json.loads(self.path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def save(self, note: UploadNote) -> None:
        """Remember an upload durably, before its first part is sent."""
        durable.write(self.path, json.dumps(dataclasses.asdict(note), sort_keys=True).encode())

    def clear(self) -> None:
        """Forget it: it was completed, or it is gone."""
        durable.remove(self.path)

    def stored(self, n_bytes: int) -> None:
        """Tell that n bytes arrived."""
        if self.on_stored is not None:
            self.on_stored(n_bytes)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload in parts that nobody has completed yet: it costs money until it is given up."""

    key: str
    upload_id: str
    started_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store was seen to do, not what it claims (RELIABILITY.md, findings 3 and 7)."""

    put_if_absent: bool
    put_if_match: bool
    multipart_if_absent: bool
    checksum_verified: bool
    presign: bool


class Destination(Protocol):
    """What a camera host needs of a store: to put what is not there, to look, and to give up what it began.

    `clock_offset_s` is how far this machine's clock is behind the store's, None while nothing told: a store that signs
    with the server's time says so here.
    """

    url: str

    @property
    def clock_offset_s(self) -> float | None: ...

    def capabilities(self) -> Capabilities:
        """Return what the store can do, found by trying it once per store object."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        """Write an object that must not exist: one caller wins, the others get ObjectExists."""
        ...

    def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
        """Write a file's bytes, which must hash to `sha256` (64 hex digits), without holding them all; ObjectExists.

        With `resume`, an upload that was cut goes on with the parts that the store says it lacks; a cut leaves it there.
        """
        ...

    def holds_file(self, key: str, path: Path, *, sha256: str) -> bool:
        """Say whether the object's bytes are those of the file with that SHA-256, by the store's own checksum if it has one."""
        ...

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """Yield the uploads in parts under keys that start with `prefix` and were not completed; none where there are none."""
        ...

    def abandon(self, key: str, upload_id: str) -> None:
        """Give up an upload in parts and its parts; fine if it is gone."""
        ...


class Store(Destination, Protocol):
    """Objects under keys. Every method raises StoreError when the store cannot be reached or refuses."""

    def get(self, key: str) -> bytes:
        """Return the bytes; ObjectMissing if there is no such object."""
        ...

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop), fewer at the end of the object; ObjectMissing."""
        ...

    def put(self, key: str, data: bytes) -> Stat:
        """Write or replace an object, whole or not at all."""
        ...

    def put_if_match(self, key: str, data: bytes, etag: str) -> Stat:
        """Replace the version named by `etag`; ObjectChanged if it is another one or gone."""
        ...

    def head(self, key: str) -> Stat | None:
        """Return what is known about an object, None if there is none."""
        ...

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """Yield the objects whose key starts with `prefix` (plain text, no folder), sorted by key in byte order."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; fine if it is gone."""
        ...

    def local(self, key: str) -> AbstractContextManager[Path]:
        """Give a readable file with the object's bytes, valid inside the `with`; ObjectMissing."""
        ...

    def presign(
        self, key: str, *, method: PresignMethod, expires_s: int, n_bytes: int | None = None, sha256: str | None = None
    ) -> str:
        """Return a URL that lets a stranger get, or put once with the signed length and checksum; StoreIncapable on folders."""
        ...

    def table_uri(self, prefix: str) -> str:
        """Return the address of a table for delta; StoreIncapable where tables cannot lie."""
        ...

    def delta_options(self) -> dict[str, str]:
        """Return the storage options for delta: address and credentials as they are valid now."""
        ...


def require(store: Destination, *needed: Capability) -> None:
    """Refuse to go on with a store whose self-test did not show what is needed.

    Raises:
        StoreIncapable: names the store, what it lacks and what to do.
    """
    found = store.capabilities()
    lacking = [name for name in needed if not getattr(found, name)]
    if lacking:
        raise StoreIncapable(
            f"store {store.url} does not honour {', '.join(lacking)}: two writers could overwrite each other unseen; "
            "use a store with conditional writes (AWS S3, a current MinIO or Ceph, a folder), or turn bucket versioning off"
        )


def part_bytes_for(n_bytes: int, wanted: int = MIN_PART_BYTES) -> int:
    """Return a legal part size: what is wanted, more where a file would need over 10,000 parts, never under 5 MiB."""
    made = max(wanted, -(-n_bytes // MAX_PARTS))
    assert made >= MIN_PART_BYTES, f"parts of {made} bytes are refused by S3"
    return made


def check_readable(key: str) -> str:
    """Return a key that may be free-form, if it stays inside a store.

    Raises:
        UsageError: it is empty, absolute, too long, or has a part `..`, `.`, an empty part or a NUL.
    """
    bad_part = any(part in ("", ".", "..") for part in key.split("/"))
    if bad_part or "\0" in key or len(key.encode(errors="surrogateescape")) > MAX_KEY_BYTES:
        raise UsageError(f"object key {key[:120]!r} could leave the store: no '..', '.', empty part or NUL, 1 to 1024 bytes")
    return key


def check_range(start: int, stop: int) -> None:
    """Refuse a byte range that is not half-open and forward; UsageError."""
    if not 0 <= start <= stop:
        raise UsageError(f"byte range [{start}, {stop}) is not one: 0 <= start <= stop")


def file_sha256(path: Path, busy: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file as 64 hex digits, reading it in pieces; `busy` is called after each."""
    digest, piece = hashlib.sha256(), bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while n_bytes := file.readinto(piece):
            digest.update(memoryview(piece)[:n_bytes])
            busy()
    return digest.hexdigest()
