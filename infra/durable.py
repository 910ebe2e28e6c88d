"""Writing to a disk so that it is still there after the plug is pulled.

The only place in camloop that writes, fsyncs, renames, links and unlinks files of value. The order is always:

1. write a temporary file beside the target, 2. fsync the file, 3. rename or link it to its name, 4. fsync the directory.

An operation that raised did not happen as far as the caller is concerned; a failed fsync is never tried again as if
it might still succeed (the kernel may have dropped the pages: RELIABILITY.md row 4). Every primitive goes through
`disk`, so that a test can put a counting, crashing `Disk` in its place and walk through all crash points.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

from infra.errors import UsageError


class Disk:
    """The primitives, one system call each. Tests subclass it and fail call number i."""

    def write(self, path: Path, data: bytes) -> None:
        """Create `path` (it must not exist) and write `data`; not yet safe."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    def append(self, path: Path, data: bytes) -> None:
        """Append `data` to `path`, creating it; not yet safe."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    def fsync(self, path: Path) -> None:
        """Force a file's or directory's content to the medium."""
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename atomically, replacing `target`."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; raises FileExistsError when `target` exists: the put-if-absent of a folder.

        Where there are no hard links (FAT and exFAT, what memory cards and sticks come with) it is renamed, if that is free.
        """
        try:
            target.hardlink_to(source)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise
            _rename_if_free(source, target, error)

    def symlink(self, points_to: str, path: Path) -> None:
        """Create a symbolic link."""
        path.symlink_to(points_to)

    def truncate(self, path: Path, n_bytes: int) -> None:
        """Cut a file to its first `n_bytes`; not yet safe."""
        os.truncate(path, n_bytes)

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Create one directory; fine if it exists."""
        path.mkdir(exist_ok=True)


def _rename_if_free(source: Path, target: Path, otherwise: OSError) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE of linux/fs.h
    if libc.renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), no_replace) == 0:
        return
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    raise otherwise


disk = Disk()
_TEMPORARY = ".tmp-"
_PIECE_BYTES = 4 << 20


def is_temporary(name: str) -> bool:
    """Say whether a file name is one of an unfinished write: readers skip it, anybody may remove it when old."""
    return name.startswith(_TEMPORARY)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}")


def make_dirs(path: Path) -> None:
    """Create a directory and its missing parents, each made safe in its own parent."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        disk.mkdir(directory)
        disk.fsync(directory.parent)


def write(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`: afterwards, and after any crash, it is the old or the new, whole."""
    make_dirs(path.parent)
    temporary = _temporary(path)
    try:
        disk.write(temporary, data)
        disk.fsync(temporary)
        disk.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    disk.fsync(path.parent)


def create(path: Path, data: bytes) -> None:
    """Write `data` to `path` unless it exists.

    Raises:
        FileExistsError: `path` exists; it was not touched.
    """
    make_dirs(path.parent)
    temporary = _temporary(path)
    try:
        disk.write(temporary, data)
        disk.fsync(temporary)
        disk.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    disk.fsync(path.parent)


def create_copy(target: Path, source: Path, sha256: str) -> None:
    """Copy the file `source` to `target` unless that exists, in pieces, and only if its bytes hash to `sha256`.

    Raises:
        FileExistsError: `target` exists; it was not touched.
        ValueError: the bytes read hash to something else; nothing was made.
    """
    make_dirs(target.parent)
    temporary = _temporary(target)
    digest = hashlib.sha256()
    try:
        with source.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                disk.append(temporary, piece)
        if digest.hexdigest() != sha256:
            raise ValueError(f"its bytes hash to {digest.hexdigest()}, not {sha256}")
        disk.append(temporary, b"")  # an empty file has no piece
        disk.fsync(temporary)
        disk.link(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    disk.fsync(target.parent)


def adopt(source: Path, target: Path) -> None:
    """Move a file that something else wrote (a recorder, a muxer) to its final name on the same file system.

    The content is fsynced before it gets its name.
    """
    make_dirs(target.parent)
    disk.fsync(source)
    disk.rename(source, target)
    disk.fsync(target.parent)
    if source.parent != target.parent:
        disk.fsync(source.parent)


def append(path: Path, data: bytes) -> None:
    """Append a record to a log and make it safe; a crash may leave a torn last record, which readers must expect."""
    existed = path.exists()
    make_dirs(path.parent)
    disk.append(path, data)
    disk.fsync(path)
    if not existed:
        disk.fsync(path.parent)


def extend(path: Path, data: bytes) -> None:
    """Append to a file that is still being made; not yet safe: `sync` it now and then, `adopt` it at the end."""
    disk.append(path, data)


def cut(path: Path, n_bytes: int) -> None:
    """Cut a file that a crash left unfinished to its first `n_bytes`, its readable part."""
    disk.truncate(path, n_bytes)
    disk.fsync(path)


def remove(path: Path) -> None:
    """Remove a file and make the removal safe; fine if it is gone already."""
    try:
        disk.unlink(path)
    except FileNotFoundError:
        return
    disk.fsync(path.parent)


def remove_all(paths: Iterable[Path]) -> None:
    """Remove files and make the removals safe, with one fsync for each directory; fine if some are gone already."""
    parents = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(path)
            parents.add(path.parent)
    for parent in sorted(parents):
        disk.fsync(parent)


def point(link: Path, points_to: str) -> None:
    """Make the symbolic link `link` point to `points_to`, atomically: the switch of an A/B installation."""
    make_dirs(link.parent)
    temporary = _temporary(link)
    disk.symlink(points_to, temporary)
    disk.rename(temporary, link)
    disk.fsync(link.parent)


def sync(*paths: Path) -> None:
    """Force files or directories that somebody else wrote to the medium, in the given order."""
    for path in paths:
        disk.fsync(path)


def check_writable(path: Path, name: str, *, in_place: bool = False) -> None:
    """Refuse a file that could not be written, before work is done for it; nothing is changed or left behind.

    Args:
        path: what is to be written.
        name: what the message calls it, such as `--page run.html`.
        in_place: it will be opened and filled, so that a device will do too; otherwise `write` puts a new file in its place.

    Raises:
        UsageError: a folder, a file in a folder that is not there, or a place where nothing can be written.
    """
    try:
        if not path.parent.is_dir():
            raise UsageError(f"{name}: there is no folder {path.parent}")
        if in_place:
            _check_opens(path)
            return
        if path.exists() and not path.is_file():
            raise UsageError(f"{name}: not a file; name one, such as page.html")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{name}: it cannot be written ({error.strerror}); name a file") from error


def _check_opens(path: Path) -> None:
    """Raise OSError where a file could not be opened to be written; what a link points to is tried, the link stays.

    A device or a pipe is only asked for its permissions: opening it would wait for a reader, or do something.
    """
    if path.is_file() or path.is_dir():
        path.open("ab").close()
    elif path.exists():
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    else:
        target = Path(os.path.realpath(path))
        target.open("xb").close()
        target.unlink()
