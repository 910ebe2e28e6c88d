"""Where a broker lets the bytes of cameras arrive: the seam between deciding (`broker`) and storing.

`S3Receiver` (infra/s3_receiver.py) signs addresses of the bucket itself: bytes never pass through the broker. `FolderReceiver`
is for a hobbyist's laptop: the broker's own web server takes the bytes. Its addresses are grants, `/v1/objects/<grant>`, which
hold key, length, checksum and expiry under the broker's own MAC; whoever has one can put these very bytes under this very key,
once, and nothing else. A path that a stranger wrote is never looked at. One PUT of an object, or of one part of it, runs at a
time; what all of them announced must fit on the disk, above `FREE_BYTES`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from infra import durable, keys
from infra.clock import Clock
from infra.errors import ObjectMissing, StoreError, StoreForbidden, UsageError
from infra.protocol import Address, Look, Part, n_parts, part_span
from infra.store import DirStore, Store, file_sha256

OBJECTS: Final = "/v1/objects/"
INCOMING: Final = "incoming"  # below the store's folder; every file in it has a temporary name, which readers skip
STALE_S: Final = 7 * 86_400.0  # parts of an object that nobody completed by then are removed
N_LOOKED: Final = 1_000
CAMERA_BYTES: Final = (
    256 << 20
)  # announced by the running PUTs of one camera (or one host's documents); a single one may be more
COMPLETION: Final = 0  # where a part's number stands
FREE_BYTES: Final = 1 << 30  # the store's disk keeps this much
_PART: Final = ".tmp-part-"
_PIECE_BYTES: Final = 1 << 20


class Taken(StoreError):
    """These very bytes are on their way already, over another line."""


class Receiver(Protocol):
    """What takes the bytes. Every method raises StoreError when the store cannot be reached or refuses."""

    store: Store

    def put_address(self, key: str, *, n_bytes: int, sha256: str, expires_s: int) -> Address:
        """Return where exactly these bytes may be put under `key`, if nothing lies there."""
        ...

    def create(self, key: str, *, n_bytes: int, sha256: str) -> str:
        """Return the id of an unfinished object of parts for `key`: one that was begun, else a new one."""
        ...

    def part_address(self, key: str, upload: str, number: int, *, n_bytes: int, sha256: str, expires_s: int) -> Address:
        """Return where exactly this part may be put."""
        ...

    def parts(self, key: str, upload: str) -> list[Part]:
        """Return the parts that the store has, by number; ObjectMissing when the upload is gone."""
        ...

    def complete(self, key: str, upload: str, parts: list[Part], *, sha256: str) -> None:
        """Make the object of its parts, if nothing lies there; ObjectExists."""
        ...

    def abort(self, key: str, upload: str) -> None:
        """Forget an unfinished object; fine if it is gone."""
        ...

    def look(self, key: str) -> Look | None:
        """Return size and checksum of an object, None if there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an address of a folder's broker allows: one object, or one part of it, of this length and SHA-256."""

    key: str
    n_bytes: int
    sha256: str
    expires_ns: int
    upload: str | None = None
    part: int | None = None


class FolderReceiver:
    """Receives into a folder store; the web app hands it the bytes.

    Args:
        store: a folder.
        clock: for the expiry of grants.
    """

    def __init__(self, store: DirStore, clock: Clock) -> None:
        self.store: Store = store
        self._folder = store.path / INCOMING
        self._clock = clock
        self._secret = secrets.token_bytes(32)  # grants end with the process that gave them
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, int | None], int] = {}  # (key, part) -> announced bytes
        self._looked: dict[str, Look] = {}  # hashed once, however often a host asks

    def put_address(self, key: str, *, n_bytes: int, sha256: str, expires_s: int) -> Address:
        return self._address(Grant(key=key, n_bytes=n_bytes, sha256=sha256, expires_ns=self._until(expires_s)))

    def create(self, key: str, *, n_bytes: int, sha256: str) -> str:
        upload = _upload_of(key)
        with self._explained():
            durable.make_dirs(self._folder / upload)
        return upload

    def part_address(self, key: str, upload: str, number: int, *, n_bytes: int, sha256: str, expires_s: int) -> Address:
        self._parts_folder(key, upload)
        grant = Grant(
            key=key, n_bytes=n_bytes, sha256=sha256, expires_ns=self._until(expires_s), upload=upload, part=number
        )  # fmt: skip
        return self._address(grant)

    def parts(self, key: str, upload: str) -> list[Part]:
        folder = self._parts_folder(key, upload)
        found = []
        for path in sorted(folder.glob(f"{_PART}*")):
            number, _, sha256 = path.name.removeprefix(_PART).partition("-")
            found.append(Part(int(number), path.stat().st_size, sha256[:32], sha256))
        return found

    def complete(self, key: str, upload: str, parts: list[Part], *, sha256: str) -> None:
        folder = self._parts_folder(key, upload)
        whole = self._temporary()
        try:
            with self._explained(), self._claimed((key, COMPLETION), 2 * sum(part.n_bytes for part in parts)):
                found, rotten = _join(folder, parts, whole)
                durable.remove_all(rotten)
                if found != sha256:
                    raise UsageError(f"{len(rotten)} parts rotted; not the announced bytes: create it again, send what lacks")
                self.store.put_file_if_absent(key, whole, sha256=sha256)
        finally:
            whole.unlink(missing_ok=True)
        self.abort(key, upload)

    def abort(self, key: str, upload: str) -> None:
        with contextlib.suppress(ObjectMissing):
            shutil.rmtree(self._parts_folder(key, upload), ignore_errors=True)

    def look(self, key: str) -> Look | None:
        found = self.store.head(key)
        if found is None:
            return None
        known = self._looked.get(key)
        if known is None or known.etag != found.etag:
            with self.store.local(key) as path:
                checksum = base64.b64encode(bytes.fromhex(file_sha256(path))).decode()
            known = self._looked[key] = Look(found.n_bytes, checksum, found.etag)
            if len(self._looked) > N_LOOKED:
                del self._looked[next(iter(self._looked))]
        return known

    def begin(self, grant: str, n_bytes: int | None) -> Incoming:
        """Start to take the bytes of one PUT.

        Args:
            grant: the last part of the address.
            n_bytes: what the request's Content-Length says, None where it says nothing.

        Raises:
            StoreForbidden: the grant is not ours, has expired, or is for another length.
        """
        allowed = self._opened(grant)
        if allowed is None or allowed.expires_ns <= self._clock.now_ns():
            raise StoreForbidden("this address is not good, or no longer: ask the broker for another")
        if n_bytes != allowed.n_bytes:
            raise StoreForbidden(f"this address is for {allowed.n_bytes} bytes, not {n_bytes}")
        with self._explained():
            durable.make_dirs(self._folder)
            self._claim((allowed.key, allowed.part), allowed.n_bytes)
            try:
                return Incoming(self, allowed, self._temporary())
            except OSError:
                self.release(allowed)
                raise

    def release(self, grant: Grant) -> None:
        """Say that the PUT of this grant is over."""
        with self._lock:
            self._under_way.pop((grant.key, grant.part), None)

    def _claim(self, name: tuple[str, int | None], n_bytes: int) -> None:
        camera = "/".join(name[0].split("/")[:2]) + "/"
        with self._lock:
            if name in self._under_way:
                raise Taken("this very object is being sent already; wait for it")
            mine = [n for (key, part), n in self._under_way.items() if key.startswith(camera) and part != COMPLETION]
            if mine and name[1] != COMPLETION and sum(mine) + n_bytes > CAMERA_BYTES:
                raise StoreError(f"{camera} has {sum(mine)} bytes under way; {n_bytes} more come later")
            free = shutil.disk_usage(self._folder).free - sum(self._under_way.values())
            if free - n_bytes < FREE_BYTES:
                raise StoreError(f"store {self.store.url}: {free} bytes free, {FREE_BYTES} are kept; free space on its disk")
            self._under_way[name] = n_bytes

    @contextlib.contextmanager
    def _claimed(self, name: tuple[str, int | None], n_bytes: int) -> Iterator[None]:
        self._claim(name, n_bytes)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.pop(name, None)

    def store_incoming(self, grant: Grant, path: Path) -> None:
        """Give received bytes their place: the object, or a part of it; ObjectExists."""
        if grant.upload is None or grant.part is None:
            self.store.put_file_if_absent(grant.key, path, sha256=grant.sha256)
            return
        folder = self._parts_folder(grant.key, grant.upload)
        with self._explained():
            for before in folder.glob(f"{_PART}{grant.part:05d}-*"):
                durable.remove(before)
            durable.adopt(path, folder / f"{_PART}{grant.part:05d}-{grant.sha256}")

    def sweep(self) -> int:
        """Remove what was begun and left for `STALE_S`; return how many folders and files went."""
        n_removed = 0
        limit_s = self._clock.now_ns() / 1e9 - STALE_S
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.stat().st_mtime < limit_s:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                n_removed += 1
        return n_removed

    def _until(self, expires_s: int) -> int:
        return self._clock.now_ns() + expires_s * 1_000_000_000

    def _temporary(self) -> Path:
        return self._folder / f".tmp-{secrets.token_hex(12)}"

    def _parts_folder(self, key: str, upload: str) -> Path:
        folder = self._folder / _upload_of(key)
        if upload != folder.name or not folder.is_dir():  # the folder is the key's: another's upload id opens nothing
            raise ObjectMissing(f"no upload {upload[:40]!r}; create it again")
        return folder

    def _address(self, grant: Grant) -> Address:
        document = {name: value for name in Grant.__slots__ if (value := getattr(grant, name)) is not None}
        body = json.dumps(document, separators=(",", ":")).encode()
        return Address(OBJECTS + _text(body) + "." + _text(self._mac(body)), {"Content-Length": str(grant.n_bytes)})

    def _opened(self, text: str) -> Grant | None:
        body, _, mac = text.partition(".")
        try:
            data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            given = base64.urlsafe_b64decode(mac + "=" * (-len(mac) % 4))
        except ValueError:
            return None
        return Grant(**json.loads(data)) if hmac.compare_digest(self._mac(data), given) else None

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, body, "sha256")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"store {self.store.url}: {error.strerror}; check the folder's disk and rights") from error


def _join(folder: Path, parts: list[Part], whole: Path) -> tuple[str, list[Path]]:
    """Append the parts to `whole`; return its SHA-256, and the parts whose bytes are no more those of their names."""
    digest, rotten = hashlib.sha256(), []
    for part in parts:
        path, of_part = folder / f"{_PART}{part.number:05d}-{part.sha256}", hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                of_part.update(piece)
                durable.disk.append(whole, piece)
        if of_part.hexdigest() != part.sha256:
            rotten.append(path)
    return digest.hexdigest(), rotten


def _upload_of(key: str) -> str:
    return keys.derived_id("upload", key)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Incoming:
    """The bytes of one PUT on their way to the disk; more than the grant allows is refused at once."""

    def __init__(self, receiver: FolderReceiver, grant: Grant, path: Path) -> None:
        self._receiver = receiver
        self._grant = grant
        self._path = path
        self._digest = hashlib.sha256()
        self._n_bytes = 0
        self._over = False
        self._file: IO[bytes] = path.open("xb")

    def write(self, piece: bytes) -> None:
        """Take the next bytes; StoreForbidden when there are too many, StoreError when the disk fails."""
        self._n_bytes += len(piece)
        if self._n_bytes > self._grant.n_bytes:
            raise StoreForbidden(f"more than the {self._grant.n_bytes} bytes that were announced")
        self._digest.update(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}; free space on the store's disk") from error

    @property
    def checksum(self) -> str:
        """The SHA-256 of what came, in base64."""
        return base64.b64encode(self._digest.digest()).decode()

    def finish(self) -> None:
        """Store what came, if it is what the grant is for.

        Raises:
            StoreForbidden: other bytes came.
            ObjectExists: an object lies there already.
        """
        try:
            self._file.close()
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}; free space on the store's disk") from error
        if self._n_bytes != self._grant.n_bytes or self._digest.hexdigest() != self._grant.sha256:
            raise StoreForbidden(f"{self._n_bytes} bytes of another SHA-256 came than this address is for")
        self._receiver.store_incoming(self._grant, self._path)

    def abandon(self) -> None:
        """Remove what came; fine after `finish`."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)
        if not self._over:
            self._over = True
            self._receiver.release(self._grant)


def expected_parts(n_bytes: int) -> list[tuple[int, int]]:
    """Return (number, length in bytes) of each part of an object."""
    spans = ((number, part_span(n_bytes, number)) for number in range(1, n_parts(n_bytes) + 1))
    return [(number, stop - start) for number, (start, stop) in spans]


def check_complete(parts: list[Part], n_bytes: int) -> None:
    """Refuse to complete an object of which parts are missing or have another length.

    Raises:
        UsageError: names the first part that is wrong.
    """
    have = {part.number: part.n_bytes for part in parts}
    for number, length in expected_parts(n_bytes):
        if have.get(number) != length:
            raise UsageError(f"part {number} has {have.get(number, 0)} of {length} bytes; send it again, then complete")
    if len(have) != n_parts(n_bytes):
        raise UsageError(f"{len(have)} parts for {n_bytes} bytes; abort and create it again")
