"""Is a file cut off? Read from the outermost structure of its container, without FFmpeg, which says so only sometimes.

mp4 (ISO 14496-12): a row of boxes, each with its length. mkv (EBML, RFC 8794): the segment's length. avi: the RIFF length.
A length of zero or "unknown" is how a live recording looks and says nothing. ts has no outer structure.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def complete_bytes(path: Path) -> int:
    """Return how many bytes of an mp4 form whole fragments: what to keep of a fragmented recording after a power cut.

    A box that begins but does not end in the file is not counted, nor a `moof` whose `mdat` is not whole.
    """
    kept, n_bytes = 0, path.stat().st_size
    with path.open("rb") as file:
        for kind, end in top_boxes(file):
            if end > n_bytes:
                break
            kept = end if kind != b"moof" else kept
    return kept


def missing_bytes(path: Path) -> int:
    """Return how many bytes the file's outermost structure promises beyond its end; 0 when whole or when it does not say."""
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[:4] == b"RIFF":
            return max(0, int.from_bytes(head[4:8], "little") + 8 - n_bytes)
        if head[:4] == _EBML:
            return max(0, _mkv_end(file) - n_bytes)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return max(0, max((end for _, end in top_boxes(file)), default=0) - n_bytes)
    return 0


def top_boxes(file: BinaryIO) -> list[tuple[bytes, int]]:
    """Return (type, end offset) of the top-level boxes; the last end may lie beyond the file."""
    found, start = [], 0
    while len(head := file.read(16)) >= 8:
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size < 8:  # 0: to the end of the file
            break
        start += size
        found.append((kind, start))
        file.seek(start)
    return found


def _mkv_end(file: BinaryIO) -> int:
    """Return the offset at which the first segment ends, 0 when its length is unknown."""
    position = 0
    for _ in range(8):  # EBML header, perhaps Void, then the segment
        file.seek(position)
        kind, head = file.read(4), file.read(8)
        if len(head) < 8:
            return 0
        n_length = 9 - head[0].bit_length() if head[0] else 8
        size = int.from_bytes(head[:n_length], "big") & ((1 << 7 * n_length) - 1)
        is_unknown = size == (1 << 7 * n_length) - 1
        if kind == _SEGMENT:
            return 0 if is_unknown else position + 4 + n_length + size
        position += 4 + n_length + size
    return 0
