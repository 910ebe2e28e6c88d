"""What a recorder that died leaves behind: files without an end, each with the draft of its sidecar beside it.

    recording/.tmp-<camera>-<hex>.mp4          as far as it was written
    recording/.tmp-<camera>-<hex>.start.json   the sidecar as it was known when the segment began

`salvage` cuts the file to its readable part and moves it into the spool as a clip whose sidecar says `salvaged`: its sensor
times come from the file, to one tick of it. What cannot be read is removed, and its sequence number gets the reason.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from infra import durable, keys
from infra.errors import ArtefactError, DeviceError, MediaError
from infra.log import Log
from infra.objects import file_sha256
from infra.records import Gap, Sidecar
from ingest.segments import CONTAINERS
from ingest.source import SALVAGED
from ingest.spool import Spool

FULL_BYTES = 1 << 16  # a disk with less is full
_DRAFT = ".start.json"
_SUFFIX = re.compile(r"(?<=[0-9a-f])\.[a-z0-9.]+$")  # of `.tmp-<camera>-<hex>.<suffix>`
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of a decoder that could not open a file: says nothing about it
_log = Log("ingest.salvage")


def draft_path(path: Path) -> Path:
    """Return where the draft of a segment's sidecar lies."""
    return path.with_name(_SUFFIX.sub(_DRAFT, path.name))


def unfinished(spool: Spool, camera_id: str) -> list[Path]:
    """Return the segments of a camera that nobody finished (also of those of which only the draft is left), sorted."""
    mine = re.compile(rf"(\.tmp-{re.escape(camera_id)}-[0-9a-f]+)\.([a-z0-9.]+)")
    found: dict[str, Path] = {}
    for path in sorted(spool.recording.iterdir()):
        match = mine.fullmatch(path.name)
        if match and (match[1] not in found or match[2] != _DRAFT[1:]):
            found[match[1]] = path
    return list(found.values())


def salvage(
    spool: Spool, path: Path, value: Callable[[Sidecar], float] | None = None, busy: Callable[[], None] = lambda: None
) -> Sidecar | None:
    """Make a clip of what can be read of an unfinished segment.

    Args:
        spool: where it lies and goes.
        path: the file under its temporary name, or its draft if that is all there is.
        value: what the clip is worth to the spool.
        busy: called often, while the file is read.

    Returns:
        The sidecar, or None when there was nothing to read or the spool refused it; then the file is gone and its sequence
        number has its reason.

    Raises:
        DeviceError: the disk is full or broken; the file stays.
    """
    try:
        draft = Sidecar.from_json(draft_path(path).read_bytes())
        if path.name.endswith(_DRAFT):
            raise MediaError("its file was not begun")
        times = CONTAINERS[draft.container].salvage(path, busy)
        sha256, n_bytes = file_sha256(path, busy), path.stat().st_size
    except (ArtefactError, MediaError, FileNotFoundError, KeyError) as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _PASSING:
            raise DeviceError(f"{path}: {error}; it stays for the next recorder") from error
        discard(spool, path, f"{SALVAGED}: {error}")
        return None
    except OSError as error:
        raise DeviceError(f"{path.parent}: {error.strerror}; free space on it, or check the disk and its rights") from error
    sidecar = replace(
        draft, clip_id=keys.clip_id(sha256), sha256=sha256, n_bytes=n_bytes, salvaged=True,
        sensor_ns=tuple(draft.start_mono_ns + after_ns for after_ns in times),
        gaps=(*draft.gaps, Gap(before_frame=len(times), n_missing=0, duration_ns=0, cause=SALVAGED)),
    )  # fmt: skip
    is_taken = spool.adopt(path, sidecar, value=None if value is None else value(sidecar))
    durable.remove(draft_path(path))
    if not is_taken:
        return None
    _log.warning("salvaged", clip_id=sidecar.clip_id, camera_id=sidecar.camera_id, n_frames=len(times), n_bytes=n_bytes)
    return sidecar


def discard(spool: Spool, path: Path, reason: str) -> None:
    """Remove an unfinished segment; its sequence number gets the reason.

    Where only the draft is left, the file was moved into the spool already, or was never begun: then the number is closed, or
    still open, which `Spool.forfeit_open` and the spool's own repair see to.
    """
    draft = draft_path(path)
    if path != draft and path.exists():
        _log.warning("unfinished_segment_removed", path=path, reason=reason)
        durable.remove(path)  # first, for it may be what fills the disk
        with suppress(ArtefactError, FileNotFoundError):
            begun = Sidecar.from_json(draft.read_bytes())
            spool.forfeit(begun.camera_id, begun.boot_id, begun.seq, reason)
    durable.remove(draft)


def is_full_disk(error: BaseException | None, folder: Path) -> bool:
    """Say whether a disk failed because it is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__
    with suppress(OSError):
        disk = os.statvfs(folder)
        return disk.f_bavail * disk.f_frsize < FULL_BYTES
    return False
