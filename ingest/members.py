"""A recorder's tar: members are appended one by one, each whole on the disk before the next one comes (ADR 0014).

The first member is `camloop.json`; all others are named by their time (`infra/images.py` reads them). A member reaches the
file by one append of header, data and padding; the recorder forces the file to the medium every few seconds. A tar needs no
closing index: what a crash leaves is readable up to its last whole member, and `salvage` cuts off the rest.

Whole means: its bytes are all there, and they say so themselves. A file that a power cut ended may be long enough and yet
hold zeros: a PNG must end with its last chunk, a JPEG with its end marker, an array must have the CRC-32 of its name.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from infra import durable
from infra.arrays import RAW_SUFFIX, is_intact
from infra.errors import MediaError
from infra.images import INDEX_NAME, MAX_IMAGE_BYTES, NAMES, VERSION_NAMES
from infra.video import recorded_pts

_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = b"\0" * 2 * _BLOCK
_PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG: Final = (b"\xff\xd8", b"\xff\xd9")


@dataclass(frozen=True, slots=True)
class NameClock:
    """Names are UTC nanoseconds where the camera knew UTC when the file began, else those of its sensor.

    Either way they differ by sensor time, exactly: a clock that is set midway changes nothing.
    """

    first_sensor_ns: int
    start_ns: int | None

    def name_ns(self, sensor_ns: int) -> int:
        """Return the nanoseconds that name a frame."""
        return sensor_ns if self.start_ns is None else self.start_ns + sensor_ns - self.first_sensor_ns


class MemberFile:
    """A tar that grows.

    Args:
        path: the file to make.
        clock: how members are named.
        head: what `camloop.json` says beside version and times: `kind` and what belongs to it.

    Raises:
        OSError: the disk refused.
    """

    def __init__(self, path: Path, clock: NameClock, head: Mapping[str, Any]) -> None:
        self._path, self._is_open = path, True
        names = "sensor" if clock.start_ns is None else "utc"
        document = {**head, "version": VERSION_NAMES, "pts_ns": NAMES, "clock": names, "start_ns": clock.start_ns}
        data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        durable.extend(path, member_bytes(INDEX_NAME, data))

    def add(self, name: str, data: bytes) -> None:
        """Append one member; when this returns it survives the death of this process.

        Raises:
            OSError: the disk refused; a torn member may stand at the end, and nothing more is appended.
        """
        self._is_open = False
        durable.extend(self._path, member_bytes(name, data))
        self._is_open = True

    def close(self) -> None:
        """Append the end mark of a tar; nothing if a member is torn or it is closed already. The caller makes it durable."""
        if self._is_open:
            self._is_open = False
            durable.extend(self._path, _END)


def member_bytes(name: str, data: bytes) -> bytes:
    """Return one member of a tar as it stands in the file, without owner, date or mode of this machine."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % _BLOCK)


def readable(path: Path, busy: Callable[[], None] = lambda: None) -> tuple[int, list[str]]:
    """Return (how many bytes of a cut file are whole members, the names of those that hold what was recorded)."""
    n_bytes, names = 0, []
    with path.open("rb") as file:
        for name, data, end in _members(file):
            busy()
            if name == INDEX_NAME:
                n_bytes = end
            elif n_bytes and _is_whole(name, data):
                n_bytes = end
                names.append(name)
            else:
                break
    return n_bytes, names


def salvage(path: Path, busy: Callable[[], None] = lambda: None) -> tuple[int, ...]:
    """Cut a file that a crash left unfinished to its whole members; `busy` is called for each.

    Returns:
        The times of what was recorded (frames, or vectors of features), nanoseconds from the segment's first frame.

    Raises:
        MediaError: nothing was recorded whole.
        OSError: the disk refused; it can be tried again.
    """
    n_bytes, names = readable(path, busy)
    if not names:
        raise MediaError(f"{path.name}: nothing of it was written whole")
    if n_bytes != path.stat().st_size:
        durable.cut(path, n_bytes)
    times = recorded_pts(path, busy)
    if not times:
        raise MediaError(f"{path.name}: holds a thumbnail and no vector yet")
    return tuple(times)


def count(path: Path, busy: Callable[[], None] = lambda: None) -> int:
    """Return how many frames, or vectors of features, a file holds; `busy` is called for each member.

    Raises:
        MediaError: it cannot be read.
    """
    return len(recorded_pts(path, busy))


def _members(file: BinaryIO) -> Iterator[tuple[str, bytes, int]]:
    """Yield (name, data, offset of the end) of each member whose header is sound and whose bytes are all there."""
    end = 0
    while len(block := file.read(_BLOCK)) == _BLOCK:
        try:
            member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError):
            return
        if not 0 <= member.size <= MAX_IMAGE_BYTES:
            return
        data = file.read(member.size)
        padding = -member.size % _BLOCK
        if len(data) != member.size or len(file.read(padding)) != padding:
            return
        end += _BLOCK + member.size + padding
        yield member.name, data, end


def _is_whole(name: str, data: bytes) -> bool:
    if name.endswith(RAW_SUFFIX):
        return is_intact(name, data)
    if name.endswith(".png"):
        return data.endswith(_PNG_END)
    return data.startswith(_JPEG[0]) and data.rstrip(b"\0").endswith(_JPEG[1])
