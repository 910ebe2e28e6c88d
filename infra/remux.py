"""The muxer: frames that a camera encoded become a fragmented mp4, their bytes kept as they came. av only, no numpy.

H.264 and HEVC come as Annex B (start codes), as every camera and RTSP server sends them; an mp4 holds the same units behind
their lengths. Each fragment holds at most `FRAGMENT_S` and is readable as soon as it is written, also after a power cut:
`readable_bytes` says how much of a cut file is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av

from infra.boxes import complete_bytes, top_boxes
from infra.errors import MediaError, UsageError
from infra.reader import opened
from infra.writer import FRAGMENTED

FRAGMENT_S: Final = 2.0
CODECS: Final = ("h264", "hevc", "mjpeg")
_PARAMETER_SETS: Final = {"h264": (0x1F, 0, 7), "hevc": (0x7E, 1, 33)}
"""Codec -> (mask, shift, type) of the sequence parameter set in the first byte of a unit (H.264 7.3.1, H.265 7.3.1.2)."""


class PacketWriter:
    """Writes one mp4 of packets.

    Args:
        path: the file to write; an existing one is replaced.
        codec: "h264", "hevc" or "mjpeg".
        width_px: stored size.
        height_px: stored size.
        time_base: seconds per tick of the times given to `add`; 1/N, kept by the file.
        extradata: parameter sets as Annex B, put before the first packet if that has none of its own.
        comment: stands in the file, for whoever reads it and so that two files of the same packets differ.

    Raises:
        UsageError: another codec.
    """

    def __init__(
        self, path: Path | str, codec: str, width_px: int, height_px: int, time_base: Fraction, *, extradata: bytes = b"",
        comment: str = "",
    ) -> None:
        if codec not in CODECS:
            raise UsageError(f"codec {codec!r} cannot be kept as it comes; legal: {', '.join(CODECS)}")
        muxer = {
            "movflags": FRAGMENTED, "frag_duration": str(round(FRAGMENT_S * 1e6)), "flush_packets": "1", "fflags": "+bitexact",
            "video_track_timescale": str(time_base.denominator),
        }  # fmt: skip
        self._container = av.open(f"file:{path}", "w", format="mp4", options=muxer)
        if comment:
            self._container.metadata["comment"] = comment
        self._stream: Any = self._container.add_mux_stream(codec, width=width_px, height=height_px, time_base=time_base)
        self._codec, self._time_base, self._extradata = codec, time_base, extradata
        self._last_dts: int | None = None
        self._duration = 1

    def add(self, data: bytes, pts: int, *, is_keyframe: bool, dts: int | None = None) -> None:
        """Add one packet, in the order of decoding.

        Args:
            data: the packet; the first one must be a keyframe.
            pts: when it is shown, in ticks.
            is_keyframe: whether it can be decoded alone.
            dts: when it is decoded, in ticks, at most `pts`; None: when it is shown.
        """
        if self._last_dts is None and not _has_parameter_sets(data, self._codec):
            data = self._extradata + data
        dts = pts if dts is None else min(dts, pts)
        if self._last_dts is not None:
            dts = max(dts, self._last_dts + 1)
            self._duration = dts - self._last_dts
        packet: Any = av.Packet(data)
        packet.stream, packet.time_base = self._stream, self._time_base
        packet.pts, packet.dts, packet.duration = max(pts, dts), dts, self._duration
        packet.is_keyframe = is_keyframe
        self._last_dts = dts
        self._container.mux(packet)

    def close(self) -> None:
        """Finish the file. Calling it again does nothing."""
        if self._stream is not None:
            self._stream = None
            self._container.close()


def readable_bytes(path: Path, busy: Callable[[], None] = lambda: None) -> tuple[int, list[int]]:
    """Return (how many bytes of a cut mp4 to keep, the pts of the frames in them, in order).

    Whole fragments are kept up to the first that holds a frame which is not a row of whole units: a file that was cut by a
    power cut may be long enough and yet hold zeros.

    Raises:
        MediaError: nothing of it can be read.
    """
    n_bytes = complete_bytes(path)
    if not n_bytes:
        raise MediaError(f"{path.name}: cut off before its first frames were written")
    found: list[tuple[int, int]] = []  # (end in the file, pts)
    with opened(path) as (container, stream):
        codec = stream.codec_context.name
        for packet in container.demux(stream):
            busy()
            if not packet.size:
                continue
            if not _is_whole(memoryview(packet), codec):
                n_bytes = min(n_bytes, _fragment_start(path, packet.pos))
                break
            found.append((packet.pos + packet.size, packet.pts))
    kept = sorted(pts for end, pts in found if end <= n_bytes)
    if not kept:
        raise MediaError(f"{path.name}: no frame of it was written whole")
    return n_bytes, kept


def units(data: bytes) -> Iterator[bytes]:
    """Yield the units of an Annex B packet without their start codes."""
    start = data.find(b"\x00\x00\x01")
    while start >= 0:
        end = data.find(b"\x00\x00\x01", start + 3)
        yield data[start + 3 : end if end >= 0 else len(data)].rstrip(b"\x00")
        start = end


def _has_parameter_sets(data: bytes, codec: str) -> bool:
    if codec not in _PARAMETER_SETS:
        return True
    mask, shift, wanted = _PARAMETER_SETS[codec]
    return any(unit and (unit[0] & mask) >> shift == wanted for unit in units(data[:4096]))


def _is_whole(data: memoryview, codec: str) -> bool:
    """Say whether a packet is all there: a JPEG to its end mark, or a row of units, each behind its length of four bytes.

    No unit ends in a zero byte (H.264 and H.265, 7.4.1), so one whose end was never written is told from a whole one.
    """
    if codec not in _PARAMETER_SETS:
        return bytes(data[-64:]).rstrip(b"\0").endswith(b"\xff\xd9")  # cameras pad with zeros
    at = 0
    while at + 4 < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
        if at > len(data) or not data[at - 1]:
            return False
    return at == len(data)


def _fragment_start(path: Path, offset: int) -> int:
    """Return the end of the last box before the fragment in which `offset` lies."""
    before = 0
    with path.open("rb") as file:
        for kind, end in top_boxes(file):
            if end > offset:
                break
            before = end if kind != b"moof" else before
    return before
