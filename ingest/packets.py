"""Packets of a live stream, read by a thread of its own, so that whoever wants them waits no longer than it says.

FFmpeg's reader may hang for ever or end without a word. Here the thread may hang; `next` does not: it returns a packet, or
raises within its deadline. Between the two lies a queue that is bounded in bytes: when it is full because the disk was busy
too long, packets are dropped here, counted, up to the next keyframe; the stream itself is always read.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import av

from infra.errors import DeviceError
from ingest.decoding import check_codec, continues
from ingest.source import StreamFormat

MAX_QUEUE_BYTES: Final = 32 << 20
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StreamPacket:
    """A packet as it came: times on the stream's own clock in nanoseconds (None where it has none), arrival on CLOCK_MONOTONIC.

    `n_dropped` packets before it were dropped here.
    """

    data: bytes
    pts_ns: int | None
    dts_ns: int | None
    is_keyframe: bool
    arrival_ns: int
    n_dropped: int = 0


class PacketReader:
    """Opens a stream in a thread and reads it there.

    Args:
        open_container: opens it; called in the thread.
        shown: how to name the camera in messages, without secrets.
        max_bytes: how much may wait.
    """

    def __init__(self, open_container: Callable[[], Any], shown: str, *, max_bytes: int = MAX_QUEUE_BYTES) -> None:
        self._open, self._shown, self._max_bytes = open_container, shown, max_bytes
        self._waiting: deque[StreamPacket] = deque()
        self._n_bytes = self._n_dropped = 0
        self._changed = threading.Condition()
        self._format: StreamFormat | None = None
        self._problem: str | None = None
        self._stopped = False
        self.period_ns: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"read {shown}", daemon=True)
        self._thread.start()

    def format(self, timeout_s: float) -> StreamFormat:
        """Return the stream's format as soon as it is known.

        Raises:
            DeviceError: it did not open, or not in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._format is not None or self._problem is not None, timeout_s)
            if self._format is None:
                raise DeviceError(f"camera {self._shown}: {self._problem or f'no picture within {timeout_s:g} s'}")
            return self._format

    def next(self, timeout_s: float) -> StreamPacket:
        """Return the next packet.

        Raises:
            DeviceError: the stream ended or failed, or nothing came for `timeout_s`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._problem is not None, timeout_s)
            if not self._waiting:
                raise DeviceError(f"camera {self._shown}: {self._problem or f'no frame for {timeout_s:g} s'}")
            packet = self._waiting.popleft()
            self._n_bytes -= len(packet.data)
            return packet

    def close(self) -> None:
        """Let the thread end; one that hangs in the driver is left behind, holding nothing but itself."""
        self._stopped = True
        self._thread.join(timeout=3)

    def _run(self) -> None:
        try:
            with self._open() as container:
                if not container.streams.video:
                    raise DeviceError("it sends no video")
                stream = container.streams.video[0]
                self._describe(stream)
                time_base = stream.time_base
                for packet in container.demux(stream):
                    if self._stopped:
                        return
                    if packet.size:
                        self._put(packet, int(time_base.numerator), int(time_base.denominator))
            self._end("the stream ended")
        except DeviceError as error:
            self._end(str(error))
        except (av.error.FFmpegError, OSError, ValueError, MemoryError) as error:
            self._end(_reason(error))

    def _describe(self, stream: Any) -> None:
        context = stream.codec_context
        if context is None or not context.width or not context.height:
            raise DeviceError("what it sends cannot be read as video")
        rate = stream.average_rate or stream.guessed_rate
        self.period_ns = round(_NS / rate) if rate and 1 <= rate <= 240 else None
        kind = StreamFormat(
            codec=check_codec(context.name, self._shown), width_px=context.width, height_px=context.height,
            extradata=bytes(context.extradata or b""),
        )  # fmt: skip
        with self._changed:
            self._format = kind
            self._changed.notify_all()

    def _put(self, packet: Any, numerator: int, denominator: int) -> None:
        arrival_ns = time.monotonic_ns()
        data = bytes(packet)
        pts, dts = (None if ticks is None else ticks * numerator * _NS // denominator for ticks in (packet.pts, packet.dts))
        with self._changed:
            is_full = self._n_bytes + len(data) > self._max_bytes
            if is_full or (self._n_dropped and not packet.is_keyframe):
                self._n_dropped += 1
                return
            self._waiting.append(StreamPacket(data, pts, dts, packet.is_keyframe, arrival_ns, self._n_dropped))
            self._n_bytes += len(data)
            self._n_dropped = 0
            self._changed.notify()

    def _end(self, reason: str) -> None:
        with self._changed:
            self._problem = reason
            self._changed.notify_all()


def joined(packets: Iterable[StreamPacket], codec: str) -> Iterator[StreamPacket]:
    """Yield whole pictures: a server that puts parameter sets between the slices of one makes FFmpeg split it.

    Each packet waits for the next one, and is passed on when the stream ends or breaks.
    """
    before: StreamPacket | None = None
    try:
        for packet in packets:
            if before is not None and _is_rest(packet, before, codec):
                timed = before if before.pts_ns is not None else packet
                before = replace(before, data=before.data + packet.data, pts_ns=timed.pts_ns, dts_ns=timed.dts_ns)
                continue
            if before is not None:
                yield before
            before = packet
    except DeviceError:
        if before is not None:
            yield before
        raise
    if before is not None:
        yield before


def _is_rest(packet: StreamPacket, before: StreamPacket, codec: str) -> bool:
    if packet.n_dropped or codec == "mjpeg":
        return False
    return (packet.pts_ns is not None and packet.pts_ns == before.pts_ns) or continues(packet.data, codec)


def _reason(error: Exception) -> str:
    """Return what FFmpeg's error means to the owner of a camera; never the address, which may hold a password."""
    known = {
        "HTTPUnauthorizedError": "it wants a user and a password, or others than these",
        "HTTPForbiddenError": "this user may not see it",
        "HTTPNotFoundError": "it has no stream under this path",
        "HTTPServerError": "it failed to start its stream",
        "InvalidDataError": "what it sends cannot be read",
        "TimeoutError": "it does not answer",
    }
    name = type(error).__name__
    return known.get(name) or getattr(error, "strerror", None) or name
