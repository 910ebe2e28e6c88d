"""Chosen GOPs of one clip: its packets read once, then only those decoded that somebody asks for. Use it through `infra.video`.

    with video.open_gops(path) as gops:
        gops.packets                      # per GOP, in the order of the file: what there is, without decoding anything
        for picture in gops.pictures(7, 9): ...      # GOPs 7 and 8, in presentation order

For clips with `index="packets"` that are streams, not images. One file handle and one decoder serve all calls, so that a
look at a GOP costs a seek and its frames. Where a keyframe has pictures before it that need the GOP before (an open GOP),
that one is decoded too, and thrown away. Pictures of H.264 or MPEG-4 that nobody asks for and that no other picture is made
from (B-frames, as a rule) need not be decoded: `needed`. HEVC's are decoded all: what its decoder calls free of references may
be one of a higher temporal layer.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from infra.errors import MediaError
from infra.picture import Converter, Picture
from infra.reader import SEEK_BACK_S, Packet, demux, opened, rotation_deg

SKIPPING: Final = ("h264", "mpeg4")


@contextmanager
def open_gops(path: Path | str, threads: int = 1) -> Iterator[Gops]:
    """Open a clip for looks at chosen GOPs.

    Raises:
        MediaError: not a clip, or over a limit; also for whatever FFmpeg raises inside the block.
    """
    path = Path(path)
    with opened(path, threads, is_known=True) as (container, stream):
        yield Gops(container, stream, path)


class Gops:
    """The GOPs of one open clip; `open_gops` makes it.

    Attributes:
        packets: per GOP its packets, in the order of the file; a GOP begins with a keyframe.
        time_base: seconds per tick.
    """

    def __init__(self, container: Any, stream: Any, path: Path) -> None:
        self._container, self._stream, self._path = container, stream, path
        self._converter = Converter()
        self.time_base: Fraction = stream.time_base
        self.packets: list[list[Packet]] = []
        for packet in demux(container, stream, path):
            if packet.is_keyframe or not self.packets:
                self.packets.append([])
            self.packets[-1].append(packet)

    def pictures(self, first: int, end: int, needed: Container[int] | None = None) -> Iterator[Picture]:
        """Yield the pictures of the GOPs [first, end) in presentation order.

        Args:
            first: GOP.
            end: GOP, no longer wanted.
            needed: pts that somebody looks at; others may be left out where the decoder can do without. None: all.

        Raises:
            MediaError: damaged, or its packets do not give the pictures that they promise (of those that are needed).
        """
        wanted = {packet.pts for gop in self.packets[first:end] for packet in gop}
        given: set[int | None] = set()
        size = None
        for frame in self._decoded(first - 1 if first and self._is_open(first) else first, end, needed):
            if frame.pts not in wanted:
                continue
            picture = Picture(frame.pts, self.time_base, frame, rotation_deg(frame, self._path), self._converter)
            if size is not None and picture.size_px != size:
                raise MediaError(f"{self._path.name}: changes from {size} to {picture.size_px} px; a clip has one size")
            size = picture.size_px
            given.add(frame.pts)
            yield picture
        missing = {pts for pts in wanted - given if needed is None or pts in needed}
        if missing:
            raise MediaError(
                f"{self._path.name}: {len(wanted)} packets gave {len(given)} pictures (GOPs {first} to {end - 1}): "
                "the clip is damaged, or register it again so that it is read sequentially"
            )

    def _is_open(self, gop: int) -> bool:
        key, *others = self.packets[gop]
        return any(packet.pts is not None and key.pts is not None and packet.pts < key.pts for packet in others)

    def _decoded(self, first: int, end: int, needed: Container[int] | None) -> Iterator[Any]:
        """Yield the av.VideoFrames that the packets of the GOPs [first, end) give."""
        context, n_left = self._stream.codec_context, sum(map(len, self.packets[first:end]))
        may_skip = context.name in SKIPPING
        for packet in self._from(self.packets[first][0]):
            is_free = may_skip and needed is not None and packet.pts not in needed
            context.skip_frame = "NONREF" if is_free else "DEFAULT"
            yield from context.decode(packet)
            n_left -= 1
            if not n_left:
                break
        yield from context.decode(None)
        context.flush_buffers()

    def _from(self, key: Packet) -> Iterator[Any]:
        """Yield the stream's packets from this keyframe on."""
        for back_s in SEEK_BACK_S:
            at = key.pts if back_s is not None and key.pts is not None else self.packets[0][0].dts or 0
            self._container.seek(at - round((back_s or 0) / self.time_base), stream=self._stream)
            is_there = False
            for packet in self._container.demux(self._stream):
                if not packet.size:
                    continue
                if not is_there and packet.dts is not None and key.dts is not None and packet.dts > key.dts:
                    break  # landed late: from further back
                is_there = is_there or (packet.pts == key.pts and packet.is_keyframe)
                if is_there:
                    yield packet
            if is_there:
                return
        raise MediaError(f"{self._path.name}: its keyframe at pts {key.pts} cannot be found again; register it anew")
