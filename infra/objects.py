"""The Store protocol: what every store offers, in the words that commands and tests use. See `infra/store.py`.

A key that is written is plain (`keys.check_key`); a key that is read may be free-form, because `ingest --in-place`
registers objects under the names that people gave them, but it stays inside the store. Keys are listed in byte order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from infra.errors import StoreIncapable, UsageError
from infra.keys import MAX_KEY_BYTES

Capability = Literal["put_if_absent", "put_if_match", "multipart_if_absent", "checksum_verified", "presign"]
PresignMethod = Literal["get", "put"]


@dataclass(frozen=True, slots=True)
class Stat:
    """One stored object: its version (`etag`, opaque), size in bytes and UTC nanoseconds of its last change."""

    key: str
    n_bytes: int
    etag: str
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store was seen to do, not what it claims (RELIABILITY.md, findings 3 and 7)."""

    put_if_absent: bool
    put_if_match: bool
    multipart_if_absent: bool
    checksum_verified: bool
    presign: bool


class Store(Protocol):
    """Objects under keys. Every method raises StoreError when the store cannot be reached or refuses."""

    url: str

    def get(self, key: str) -> bytes:
        """Return the bytes; ObjectMissing if there is no such object."""
        ...

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop), fewer at the end of the object; ObjectMissing."""
        ...

    def put(self, key: str, data: bytes) -> Stat:
        """Write or replace an object, whole or not at all."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        """Write an object that must not exist: one caller wins, the others get ObjectExists."""
        ...

    def put_file_if_absent(self, key: str, path: Path, *, sha256: str) -> Stat:
        """Write a file's bytes, which must hash to `sha256` (64 hex digits), without holding them all; ObjectExists."""
        ...

    def put_if_match(self, key: str, data: bytes, etag: str) -> Stat:
        """Replace the version named by `etag`; ObjectChanged if it is another one or gone."""
        ...

    def head(self, key: str) -> Stat | None:
        """Return what is known about an object, None if there is none."""
        ...

    def holds_file(self, key: str, path: Path, *, sha256: str) -> bool:
        """Say whether the object's bytes are those of the file with that SHA-256, by the store's own checksum if it has one."""
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

    def capabilities(self) -> Capabilities:
        """Return what the store can do, found by trying it once per store object."""
        ...

    def table_uri(self, prefix: str) -> str:
        """Return the address of a table for delta; StoreIncapable where tables cannot lie."""
        ...

    def delta_options(self) -> dict[str, str]:
        """Return the storage options for delta: address and credentials as they are valid now."""
        ...


def require(store: Store, *needed: Capability) -> None:
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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, reading it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
