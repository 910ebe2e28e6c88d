"""Object stores behind one protocol: memory, a folder, and S3 (`infra/s3.py`). All pass tests/contract/test_store.py.

`open_store(url)` makes one: a folder (`./camloop-data`, `file:///srv/farm`), `s3://bucket/prefix`, or `memory://`.
What a store can really do is what its `capabilities()` found out by trying; a command that needs more calls `require`.

The folder: every write goes through `durable`. `put_if_absent` is a hard link, which the kernel gives to one caller only.
`put_if_match` compares and replaces under an exclusive file lock that `put` and `delete` take shared. An etag is inode,
size and mtime, not a hash: listing 10 000 videos must not read them; `put_if_match` makes mtime grow strictly, so that an
etag never comes back within one clock tick. Unfinished writes are skipped by `list`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from infra import durable, selftest
from infra.errors import ObjectChanged, ObjectExists, ObjectMissing, SettingsError, StoreError, StoreIncapable, UsageError
from infra.keys import check_key
from infra.objects import (
    Capabilities,
    Capability,
    PresignMethod,
    ResumeLog,
    Stat,
    Store,
    Unfinished,
    check_range,
    check_readable,
    file_sha256,
    require,
)
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = [
    "Capabilities", "Capability", "DirStore", "MemoryStore", "PresignMethod", "Stat", "Store",
    "arrow_filesystem", "file_sha256", "open_store", "require",
]  # fmt: skip

LEGAL_URLS = "a folder, file:///folder, s3://bucket/prefix, memory://"
_LOCK = ".camloop.lock"


def open_store(url: str, settings: Settings | None = None) -> Store:
    """Return the store that `url` names. Nothing is reached or made yet.

    Raises:
        SettingsError: `url` is none of a folder, file:///folder, s3://bucket/prefix, memory://.
    """
    scheme, is_url, rest = url.partition("://")
    if not is_url and url:
        return DirStore(Path(url).expanduser())
    if scheme == "file" and rest.startswith("/"):
        return DirStore(Path(rest))
    if scheme == "memory":
        return MemoryStore()
    if scheme == "s3" and rest.split("/")[0]:
        from infra.s3 import S3Store

        return S3Store(url, (settings or load_settings()).s3)
    raise SettingsError(f"store {url!r} is not understood; legal: {LEGAL_URLS}")


def arrow_filesystem(store: Store) -> pyarrow.fs.FileSystem:
    """Return an Arrow file system whose root is the store's root; needs the extra [cloud]; StoreIncapable for memory."""
    import pyarrow.fs as arrow

    root = store.table_uri("")
    if isinstance(store, DirStore):
        return arrow.SubTreeFileSystem(root, arrow.LocalFileSystem())
    options = store.delta_options()
    scheme, _, endpoint = options.get("AWS_ENDPOINT_URL", "").rpartition("://")
    named: dict[str, Any] = {"endpoint_override": endpoint, "scheme": scheme} if endpoint else {}
    remote = arrow.S3FileSystem(
        access_key=options["AWS_ACCESS_KEY_ID"], secret_key=options["AWS_SECRET_ACCESS_KEY"],
        session_token=options.get("AWS_SESSION_TOKEN"), region=options["AWS_REGION"],
        force_virtual_addressing=options["AWS_VIRTUAL_HOSTED_STYLE_REQUEST"] == "true", **named,
    )  # fmt: skip
    return arrow.SubTreeFileSystem(root.removeprefix("s3://").rstrip("/"), remote)


class MemoryStore:
    """A store in this process's memory, for tests and examples. Tables cannot lie in it."""

    clock_offset_s: float | None = None

    def __init__(self) -> None:
        self.url = "memory://"
        self._objects: dict[str, tuple[bytes, Stat]] = {}
        self._version = 0
        self._lock = threading.RLock()

    def _write(self, key: str, data: bytes) -> Stat:
        self._version += 1
        stat = Stat(check_key(key), len(data), f"v{self._version}", time.time_ns())
        self._objects[key] = (bytes(data), stat)
        return stat

    def get(self, key: str) -> bytes:
        with self._lock:
            if check_readable(key) not in self._objects:
                raise ObjectMissing(f"no object {key!r} in {self.url}")
            return self._objects[key][0]

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(start, stop)
        return self.get(key)[start:stop]

    def put(self, key: str, data: bytes) -> Stat:
        with self._lock:
            return self._write(key, data)

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        with self._lock:
            if key in self._objects:
                raise ObjectExists(f"object {key!r} exists in {self.url}")
            return self._write(key, data)

    def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"{path}: its bytes do not hash to {sha256}; nothing was stored")
        if resume is not None and resume.on_bytes is not None:
            resume.on_bytes(len(data))
        made = self.put_if_absent(key, data)
        if resume is not None:
            resume.stored(len(data))
        return made

    def put_if_match(self, key: str, data: bytes, etag: str) -> Stat:
        with self._lock:
            found = self.head(key)
            if found is None or found.etag != etag:
                raise ObjectChanged(f"object {key!r} in {self.url} is no longer version {etag}")
            return self._write(key, data)

    def head(self, key: str) -> Stat | None:
        with self._lock:
            return self._objects[key][1] if check_readable(key) in self._objects else None

    def holds_file(self, key: str, path: Path, *, sha256: str) -> bool:
        return self.head(key) is not None and hashlib.sha256(self.get(key)).hexdigest() == sha256

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        return iter(())

    def abandon(self, key: str, upload_id: str) -> None:
        return None

    def list(self, prefix: str = "") -> Iterator[Stat]:
        with self._lock:
            found = [stat for key, (_, stat) in self._objects.items() if key.startswith(prefix)]
        yield from sorted(found, key=lambda stat: stat.key.encode())

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_readable(key), None)

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:
        data = self.get(key)
        with tempfile.TemporaryDirectory(prefix="camloop-") as folder:
            path = Path(folder) / f"object{PurePosixPath(key).suffix}"
            path.write_bytes(data)
            yield path

    def presign(
        self, key: str, *, method: PresignMethod, expires_s: int, n_bytes: int | None = None, sha256: str | None = None
    ) -> str:
        raise StoreIncapable(f"store {self.url} cannot sign addresses; use s3://bucket/prefix")

    def capabilities(self) -> Capabilities:
        return Capabilities(
            put_if_absent=True, put_if_match=True, multipart_if_absent=True, checksum_verified=True, presign=False
        )

    def table_uri(self, prefix: str) -> str:
        raise StoreIncapable("store memory:// cannot hold tables; use a folder or s3://bucket/prefix")

    def delta_options(self) -> dict[str, str]:
        return {}


class DirStore:
    """A store in a folder of this machine, safe against power cuts; several processes may use it at once.

    Args:
        path: the folder; it is made by the first write.
    """

    clock_offset_s: float | None = None

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.url = str(self.path)
        self._found: Capabilities | None = None

    def __repr__(self) -> str:
        return f"DirStore({self.url!r})"

    def _file(self, key: str) -> Path:
        path = self.path / check_readable(key)
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise UsageError(f"object key {key[:120]!r} leads out of {self.path} through a symbolic link")
        return path

    def _target(self, key: str) -> Path:
        return self._file(check_key(key))

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ObjectMissing(f"no object {what!r} in {self.path}") from error
        except OSError as error:
            raise StoreError(f"store {self.path}: {what}: {error.strerror}; check the folder's disk and rights") from error

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        durable.make_dirs(self.path)
        fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)

    def _stat(self, key: str, path: Path) -> Stat:
        info = path.stat()
        return Stat(key, info.st_size, f"{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}", info.st_mtime_ns)

    def get(self, key: str) -> bytes:
        with self._explained(key):
            return self._file(key).read_bytes()

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(start, stop)
        with self._explained(key), self._file(key).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def put(self, key: str, data: bytes) -> Stat:
        path = self._target(key)
        with self._explained(key), self._locked(fcntl.LOCK_SH):
            durable.write(path, data)
            return self._stat(key, path)

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        path = self._target(key)
        with self._explained(key), self._created(key):
            durable.create(path, data)
            return self._stat(key, path)

    def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
        target = self._target(key)
        if not path.is_file():
            raise StoreError(f"{path}: no such file to store")
        with self._explained(key), self._created(key):
            try:
                durable.create_copy(target, path, sha256)
            except ValueError as error:
                raise StoreError(f"{path}: {error}; nothing was stored") from error
            if resume is not None:
                resume.stored(path.stat().st_size)
            return self._stat(key, target)

    @contextlib.contextmanager
    def _created(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise ObjectExists(f"object {key!r} exists in {self.path}") from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise
            raise StoreIncapable(f"store {self.path}: its file system has no hard links; use ext4, xfs or btrfs") from error

    def put_if_match(self, key: str, data: bytes, etag: str) -> Stat:
        path = self._target(key)
        with self._explained(key), self._locked(fcntl.LOCK_EX):
            before = self.head(key)
            if before is None or before.etag != etag:
                raise ObjectChanged(f"object {key!r} in {self.path} is no longer version {etag}")
            durable.write(path, data)
            if path.stat().st_mtime_ns <= before.modified_ns:
                os.utime(path, ns=(before.modified_ns + 1, before.modified_ns + 1))
            return self._stat(key, path)

    def head(self, key: str) -> Stat | None:
        path = self._file(key)
        return self._stat(key, path) if path.is_file() else None

    def holds_file(self, key: str, path: Path, *, sha256: str) -> bool:
        if self.head(key) is None:
            return False
        with self._explained(key), self._file(key).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the medium, not from memory
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """Yield the temporary files that a kill left: `upload_id` is the file's name."""
        for path in sorted((self.path / prefix.rpartition("/")[0]).rglob("*")):
            if durable.is_temporary(path.name):
                with contextlib.suppress(FileNotFoundError):
                    yield Unfinished(path.relative_to(self.path).as_posix(), path.name, path.stat().st_mtime_ns)

    def abandon(self, key: str, upload_id: str) -> None:
        path = self._file(key)
        if durable.is_temporary(path.name) and path.name == upload_id:
            with self._explained(key):
                durable.remove(path)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        folder = self.path / check_readable(top) if (top := prefix.rpartition("/")[0]) else self.path
        found: list[tuple[bytes, str]] = []
        for parent, _, names in os.walk(folder):
            base = Path(parent).relative_to(self.path).as_posix()
            for name in names:
                key = name if base == "." else f"{base}/{name}"
                if key.startswith(prefix) and not durable.is_temporary(name) and key != _LOCK:
                    found.append((key.encode(errors="surrogateescape"), key))
        for _, key in sorted(found):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was seen
                yield self._stat(key, self.path / key)

    def delete(self, key: str) -> None:
        path = self._file(key)
        with self._explained(key), self._locked(fcntl.LOCK_SH), contextlib.suppress(NotADirectoryError):
            if path.parent.is_dir():
                durable.remove(path)

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:
        path = self._file(key)
        if not path.is_file():
            raise ObjectMissing(f"no object {key!r} in {self.path}")
        yield path

    def presign(
        self, key: str, *, method: PresignMethod, expires_s: int, n_bytes: int | None = None, sha256: str | None = None
    ) -> str:
        raise StoreIncapable(f"store {self.path} is a folder and cannot sign addresses; use s3://bucket/prefix")

    def capabilities(self) -> Capabilities:
        if self._found is None:
            absent, match = selftest.put_if_absent(self), selftest.put_if_match(self)
            self._found = Capabilities(
                put_if_absent=absent, put_if_match=match, multipart_if_absent=absent, checksum_verified=True, presign=False
            )
        return self._found

    def table_uri(self, prefix: str) -> str:
        return str(self.path / prefix)

    def delta_options(self) -> dict[str, str]:
        return {}
