"""Encoded frames are looked at: their format, small pictures for the trigger, and whole pictures where those are wanted.

A pass-through recording decodes nothing but what its trigger looks at. `SmallPictures` decodes keyframes only (cheap: one
picture a second or so), or all frames (a share of a core) when the trigger must see every k-th, or keyframes are far apart.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal

import av
import numpy as np

from infra.errors import DeviceError
from infra.picture import Converter
from infra.records import ClockQuality
from infra.remux import units
from ingest.source import DAMAGED, EncodedFrame, EncodedSource, SourceFrame, StreamFormat

if TYPE_CHECKING:
    from infra.picture import Rgb

NS: Final = Fraction(1, 1_000_000_000)
_START: Final = b"\x00\x00\x00\x01"
_PARAMETERS: Final[Mapping[str, tuple[int, int, frozenset[int]]]] = {
    "h264": (0x1F, 0, frozenset({7, 8})),  # H.264 table 7-1: SPS, PPS
    "hevc": (0x7E, 1, frozenset({32, 33, 34})),  # H.265 table 7-1: VPS, SPS, PPS
}
_HEAD_BYTES: Final = 4096
KEYFRAME_NS: Final = 1_100_000_000  # a second, and the unevenness of a stream: what passes within it may be missed


def parameter_sets(data: bytes, codec: str) -> bytes:
    """Return the parameter sets at the beginning of an Annex B packet, each once, as Annex B; empty when there are none."""
    if codec not in _PARAMETERS:
        return b""
    mask, shift, kinds = _PARAMETERS[codec]
    found = (unit for unit in units(data[:_HEAD_BYTES]) if unit and (unit[0] & mask) >> shift in kinds)
    return b"".join(_START + unit for unit in dict.fromkeys(found))  # servers repeat them


def is_sound(data: bytes, codec: str) -> bool:
    """Say whether a packet begins as one of its codec must: what a device sends that is broken does not."""
    return data[:2] == b"\xff\xd8" if codec == "mjpeg" else data[:3] == _START[1:] or data[:4] == _START


def continues(data: bytes, codec: str) -> bool:
    """Say whether a packet is the rest of the picture before it: its first slice is not the picture's first.

    H.264: first_mb_in_slice, ue(v), is 0 as a single 1 bit (7.3.3); HEVC: first_slice_segment_in_pic_flag (7.3.6.1).
    """
    if codec not in _PARAMETERS:
        return False
    for unit in units(data[:_HEAD_BYTES]):
        if len(unit) < 3:
            continue
        kind = unit[0] & 0x1F if codec == "h264" else (unit[0] & 0x7E) >> 1
        if kind in (1, 5) if codec == "h264" else kind < 32:
            return not unit[1 if codec == "h264" else 2] & 0x80
    return False


def format_of(data: bytes, known: StreamFormat) -> StreamFormat | None:
    """Return the format that a keyframe shows, `known` itself when nothing changed, None when it cannot be read."""
    if known.codec == "mjpeg":
        size = _jpeg_size(data)
        return known if size == (known.width_px, known.height_px) else _sized(known, size)
    found = parameter_sets(data, known.codec)
    if not found or found == parameter_sets(known.extradata, known.codec):
        return known
    size = None
    for frame in _Decoder(known.codec).whole(data):
        size = (int(frame.width), int(frame.height))
    changed = _sized(known, size)
    return None if changed is None else replace(changed, extradata=found)


def _sized(known: StreamFormat, size: tuple[int, int] | None) -> StreamFormat | None:
    return None if size is None else replace(known, width_px=size[0], height_px=size[1])


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) from a JPEG's frame header (T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in (0xC0, 0xC1, 0xC2):
            height_px, width_px = struct.unpack_from(">HH", data, at + 5)
            return (width_px, height_px) if width_px and height_px else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


class _Decoder:
    """One decoder of one format; what cannot be decoded gives no frames."""

    def __init__(self, codec: str, options: Mapping[str, str] | None = None) -> None:
        self._context: Any = av.CodecContext.create(codec, "r")
        self._context.thread_count = 1
        self._context.options = dict(options or {})

    def feed(self, data: bytes | None, pts: int = 0) -> list[Any]:
        """Return the frames that come out when a packet goes in; None drains it."""
        packet: Any = None
        if data is not None:
            packet = av.Packet(data)
            packet.pts = packet.dts = pts
            packet.time_base = NS
        try:
            return list(self._context.decode(packet))
        except (av.error.FFmpegError, ValueError, MemoryError):
            return []

    def whole(self, data: bytes) -> list[Any]:
        """Return the picture of a keyframe alone."""
        found = self.feed(data) + self.feed(None)
        self._context.flush_buffers()
        return found


class SmallPictures:
    """Makes the small pictures of a stream.

    Args:
        size_px: (width, height) of the pictures.
        of: "keyframes" decodes those alone; "all" decodes every frame, so that any may be shown; "auto" all from a keyframe on
            that came more than `KEYFRAME_NS` after the one before it, else those alone.
        max_fps: pictures a second, at most.
    """

    def __init__(
        self, size_px: tuple[int, int], *, of: Literal["auto", "keyframes", "all"] = "keyframes", max_fps: float = 5.0
    ) -> None:
        self._size_px, self._all, self._is_auto = size_px, of == "all", of == "auto"
        self._keyframe_ns: int | None = None
        self._step_ns = round(1e9 / max_fps)
        self._converter = Converter()
        self._format: StreamFormat | None = None
        self._due_ns = 0

    def of(self, data: bytes, is_keyframe: bool, kind: StreamFormat, sensor_ns: int) -> Rgb | None:
        """Return the picture that is due with this frame, uint8 (h, w, 3) RGB, None when none is."""
        if kind != self._format:
            self._format, self._decoder = kind, _Decoder(kind.codec, {"skip_loop_filter": "all"})
        if is_keyframe:
            if self._is_auto and self._keyframe_ns is not None:
                self._all = sensor_ns - self._keyframe_ns > KEYFRAME_NS
            self._keyframe_ns = sensor_ns
        is_due = sensor_ns >= self._due_ns
        if self._all and kind.codec != "mjpeg":
            found = self._decoder.feed(data, sensor_ns)
        else:
            found = self._decoder.whole(data) if is_keyframe and is_due else []
        if not found or not is_due:
            return None
        self._due_ns = max(self._due_ns + self._step_ns, sensor_ns - self._step_ns)
        plane = self._converter.plane(found[-1], "rgb24", self._size_px)
        return np.ascontiguousarray(plane.reshape(self._size_px[1], self._size_px[0], 3))


@dataclass(slots=True)
class _Sent:
    n_missing: int
    lost: str
    controls: Mapping[str, float]


class Pictures:
    """A `Source` made of an `EncodedSource`, by decoding all of it."""

    def __init__(self, source: EncodedSource) -> None:
        self._source = source
        self.camera_id, self.host_id, self.boot_id = source.camera_id, source.host_id, source.boot_id
        self.recording_id, self.site = source.recording_id, source.site
        self.width_px, self.height_px = source.width_px, source.height_px
        self.clock: ClockQuality = source.clock

    def utc_ns(self, sensor_ns: int) -> int | None:
        """Return what the camera says."""
        return self._source.utc_ns(sensor_ns)

    def __iter__(self) -> Iterator[SourceFrame]:
        """Yield the pictures in the order in which they are shown; what cannot be decoded is missing."""
        decoder, kind = None, None
        waiting: dict[int, _Sent] = {}
        before: EncodedFrame | None = None
        number = -1
        for frame in self._source:
            self.clock = self._source.clock
            if frame.format != kind:
                if decoder is not None:
                    for shown in self._shown(decoder.feed(None), waiting, number):
                        number = shown.frame_number
                        yield shown
                decoder, kind = _Decoder(frame.format.codec), frame.format
            n_missing = 0 if before is None else frame.frame_number - before.frame_number - 1
            waiting[frame.sensor_ns] = _Sent(n_missing, frame.lost, frame.controls)
            before = frame
            assert decoder is not None
            for shown in self._shown(decoder.feed(frame.data, frame.sensor_ns), waiting, number):
                number = shown.frame_number
                yield shown
        if decoder is not None:
            yield from self._shown(decoder.feed(None), waiting, number)

    def _shown(self, found: list[Any], waiting: dict[int, _Sent], number: int) -> Iterator[SourceFrame]:
        for picture in found:
            sent = waiting.pop(picture.pts, None)
            if sent is None:
                continue
            passed = [ns for ns in waiting if ns < picture.pts]  # went in and never came out
            lost = DAMAGED if passed else sent.lost
            number += 1 + sent.n_missing + sum(1 + waiting.pop(ns).n_missing for ns in passed)
            yield SourceFrame(picture.to_ndarray(format="rgb24"), picture.pts, number, sent.controls, lost)


def check_codec(name: str, shown: str) -> Literal["h264", "hevc", "mjpeg"]:
    """Return a stream's codec as one that is kept as it comes.

    Raises:
        DeviceError: another one.
    """
    if name == "h264":
        return "h264"
    if name == "hevc":
        return "hevc"
    if name == "mjpeg":
        return "mjpeg"
    raise DeviceError(f"camera {shown} sends {name}; legal: h264, hevc, mjpeg (choose one in the camera's own settings)")
