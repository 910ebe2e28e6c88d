"""The encoder: RGB frames in, an H.264 mp4 out. Used by the recorder, the demo and tests. av and numpy only.

The same frames and options give the same bytes on one machine: one thread, no encoder's or muxer's name in the file,
keyframes by time and not by content, no B-frames unless asked. The caller makes the finished file durable.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from infra.errors import DeviceError, UsageError
from infra.picture import EXACT, Rgb

ENCODERS: Final = {"h264": ("libx264", "libopenh264", "h264_v4l2m2m"), "mpeg4": ("mpeg4",)}
"""In the order in which they are tried; the last of h264 is the Pi's own."""
X264_OPTIONS: Final = {"preset": "veryfast", "crf": "23", "forced-idr": "1", "sc_threshold": "0"}
FRAGMENTED: Final = "frag_keyframe+delay_moov+default_base_moof"  # delay_moov keeps a first pts other than 0


class Writer:
    """Writes one mp4. Use it as a context manager, or call `close`.

    Args:
        path: the file to write; an existing one is replaced.
        width_px: even, at least 2.
        height_px: even, at least 2.
        time_base: seconds per tick of the pts given to `add`; 1/N, kept by the file. The last frame lasts as
            long as the one before.
        codec: "h264" or "mpeg4".
        gop_s: a keyframe at least every so many seconds.
        fragmented: each GOP is readable as soon as the next begins, also after a power cut (see `video.complete_bytes`).
        b_frames: B-frames in a row, 0 for a camera.
        options: more encoder options, such as {"crf": "30", "preset": "ultrafast"}.
        comment: stands in the file, for whoever reads it and so that two files of the same pictures differ.

    Raises:
        UsageError: a size or time base that the file cannot hold, or an unknown codec.
        DeviceError: this build of FFmpeg has no such encoder.
    """

    def __init__(
        self, path: Path | str, width_px: int, height_px: int, time_base: Fraction, *, codec: str = "h264", gop_s: float = 2.0,
        fragmented: bool = False, b_frames: int = 0, options: Mapping[str, str] | None = None, comment: str = "",
    ) -> None:
        if width_px < 2 or height_px < 2 or width_px % 2 or height_px % 2:
            raise UsageError(f"video of {width_px}x{height_px} px; legal: even sides of at least 2 px")
        if time_base.numerator != 1 or not 0 < gop_s < float("inf"):
            raise UsageError(f"time base {time_base}, GOP of {gop_s} s; legal: 1/N, and a positive number of seconds")
        self._encoder = _encoder(codec)
        self._shape = (height_px, width_px, 3)
        self._gop_ticks = max(1, round(Fraction(gop_s) / time_base))
        self._last_pts: int | None = None
        self._last_duration = 1
        self._next_key: int | None = None
        self._to_yuv = VideoReformatter()
        muxer = {"video_track_timescale": str(time_base.denominator), "fflags": "+bitexact"}
        muxer |= {"movflags": FRAGMENTED, "flush_packets": "1"} if fragmented else {}
        self._container = av.open(f"file:{path}", "w", format="mp4", options=muxer)
        if comment:
            self._container.metadata["comment"] = comment
        stream: Any = self._container.add_stream(self._encoder)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 100_000  # keyframes come from `add`
        stream.codec_context.max_b_frames = b_frames
        extra = X264_OPTIONS if self._encoder == "libx264" else {}
        stream.options = {"flags": "+bitexact", **extra, **(options or {})}
        self._stream = stream

    def add(self, rgb: Rgb, pts: int) -> None:
        """Encode one frame.

        Args:
            rgb: uint8 (height, width, 3).
            pts: ticks of the time base, later than the frame before.

        Raises:
            UsageError: another size or type, or a pts that does not increase.
        """
        if rgb.shape != self._shape or rgb.dtype != np.uint8:
            raise UsageError(f"frame is {rgb.dtype} {rgb.shape}; this video takes uint8 {self._shape}")
        if self._last_pts is not None and pts <= self._last_pts:
            raise UsageError(f"pts {pts} after {self._last_pts}: they must increase")
        frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame = self._to_yuv.reformat(frame, format="yuv420p", interpolation=EXACT, threads=1)
        frame.pts, frame.time_base = pts, self._stream.codec_context.time_base
        if self._next_key is None or pts >= self._next_key:
            frame.pict_type = PictureType.I
            self._next_key = pts + self._gop_ticks
        if self._last_pts is not None:
            self._last_duration = pts - self._last_pts
        self._last_pts = pts
        self._mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file. Calling it again does nothing."""
        if self._stream is None:
            return
        if self._last_pts is not None:
            self._mux(self._stream.encode(None))
        self._container.close()
        self._stream = None

    def _mux(self, packets: list[Any]) -> None:
        """Hand packets on; the muxer itself counts a frame's duration to the next, for the last one it takes this."""
        for packet in packets:
            packet.duration = self._last_duration
            self._container.mux(packet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _encoder(codec: str) -> str:
    """Return the first encoder of `codec` that this FFmpeg has."""
    if codec not in ENCODERS:
        raise UsageError(f"codec {codec!r}; legal: {', '.join(ENCODERS)}")
    for name in ENCODERS[codec]:
        try:
            av.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        return name
    raise DeviceError(f"no encoder for {codec} in this FFmpeg (looked for {', '.join(ENCODERS[codec])}); use codec='mpeg4'")
