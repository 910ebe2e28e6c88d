"""Cameras that send an encoded stream, RTSP here, USB in `usb.py`. Packets are kept as they come.

    camera = open_rtsp("rtsp://user:password@192.168.1.20/stream1", camera_id="yard", allow=["192.168.1.0/24"])
    for frame in camera: ...        # EncodedFrame, from the first keyframe on

1. The address is judged (`address.py`), the connection made by a relay that FFmpeg cannot leave (`relay.py`), and read by a
   thread with a bounded queue (`packets.py`). Whatever hangs in there, the iterator goes on or raises within `stall_s`.
2. The stream's times are tied to this machine's CLOCK_MONOTONIC (`stream_clock.py`). Its first frame has none: it gets one.
3. A stream that broke is opened again, with pauses that grow. An outage of less than `reopen_s` is a gap of the same recording:
   time goes on, the missing frames are counted by the stream's usual distance. A longer one raises, so that the open segment
   is finished and can be delivered; the agent (or the person) starts again, which is a new recording.

A frame that does not even begin like one of its codec is left out and counted. Passwords appear in no message.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import av

from infra.clock import Clock, SystemClock, is_synchronised
from infra.errors import DeviceError, UsageError
from infra.keys import check_name, new_id
from infra.log import Log
from infra.records import ClockQuality
from ingest.address import resolve
from ingest.cmdline import hide_argument
from ingest.decoding import SmallPictures, format_of, is_sound
from ingest.host import boot_id
from ingest.packets import PacketReader, StreamPacket, joined
from ingest.relay import Relay
from ingest.source import DAMAGED, RECORDER_SLOW, REOPENED, SOURCE_DROPPED, EncodedFrame, StreamFormat
from ingest.stream_clock import StreamClock, settled

if TYPE_CHECKING:
    from infra.picture import Rgb

OPEN_S: Final = 15.0  # FFmpeg looks at a stream for 0.5 to 2 s; a keyframe may be 10 s away
STALL_S: Final = 4.0
REOPEN_S: Final = 2.0  # with STALL_S less than the 8 s after which the agent's watchdog kills: the clip is finished first
PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0)
_RTSP: Final = {
    "rtsp_transport": "tcp", "protocol_whitelist": "rtsp,tcp,rtp", "max_delay": "500000", "allowed_media_types": "video",
    "analyzeduration": "10000000", "fpsprobesize": "3",  # wait for late parameter sets, not for the rate
}  # fmt: skip
_log = Log("ingest.stream")


@dataclass(slots=True)
class Connection:
    """One opening of a stream."""

    reader: PacketReader
    format: StreamFormat
    relay: Relay | None = None

    def packets(self, stall_s: float) -> Iterator[StreamPacket]:
        """Yield the packets.

        Raises:
            DeviceError: the stream ended, failed, or gave nothing for `stall_s`.
        """
        while True:
            try:
                yield self.reader.next(stall_s)
            except DeviceError as error:
                raise self.explained(error) from error

    def explained(self, error: DeviceError) -> DeviceError:
        """Return the error with what the relay knows better than FFmpeg."""
        known = None if self.relay is None else self.relay.problem
        return error if known is None else DeviceError(f"{str(error).partition(': ')[0]}: {known}")

    def close(self) -> None:
        """End it, whatever hangs."""
        if self.relay is not None:
            self.relay.cut()
        self.reader.close()


def opened(reader: PacketReader, relay: Relay | None = None) -> Connection:
    """Return the connection as soon as its format is known; close everything when it fails."""
    try:
        return Connection(reader, reader.format(OPEN_S), relay)
    except DeviceError as error:
        failed = Connection(reader, StreamFormat(codec="h264", width_px=0, height_px=0, extradata=b""), relay)
        explained = failed.explained(error)
        failed.close()
        raise explained from error


class StreamCamera:
    """A camera that sends packets: an `EncodedSource`. Use `open_rtsp` or `usb.open_v4l2`.

    Args:
        connect: opens the stream once, given the seconds that the camera has to answer; raises DeviceError.
        camera_id: who films.
        host_id: the machine that records.
        site: where the camera stands.
        small: makes the trigger's pictures; None: nothing is decoded.
        stall_s: seconds without a frame after which the stream counts as broken.
        reopen_s: seconds for which a broken stream is opened again before the recording ends.
        clock: the machine's.

    Raises:
        DeviceError: it cannot be opened now.
    """

    def __init__(
        self,
        connect: Callable[[float], Connection],
        *,
        camera_id: str,
        host_id: str = "host",
        site: str | None = None,
        small: SmallPictures | None = None,
        stall_s: float = STALL_S,
        reopen_s: float = REOPEN_S,
        clock: Clock | None = None,
    ) -> None:
        self.camera_id, self.host_id, self.site = check_name(camera_id, "camera"), host_id, site
        self.boot_id, self.recording_id = boot_id(), new_id()
        self._connect, self._small, self._stall_s, self._reopen_s = connect, small, stall_s, reopen_s
        self._machine = clock or SystemClock()
        self.clock: ClockQuality = _quality()
        self._ties = StreamClock()
        self._number = -1
        self._connection = connect(stall_s)
        self.format: StreamFormat = self._connection.format
        self.width_px, self.height_px = self.format.width_px, self.format.height_px

    def utc_ns(self, sensor_ns: int) -> int | None:
        """Return what this machine's UTC was then, if it ran evenly since; `clock` says how good that is."""
        return self._machine.now_ns() - self._machine.mono_ns() + sensor_ns

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def __iter__(self) -> Iterator[EncodedFrame]:
        """Yield the frames from the first keyframe on.

        Raises:
            DeviceError: the stream broke and did not come back.
        """
        try:
            while True:
                try:
                    yield from self._frames()
                except DeviceError as error:
                    self._reopen(error)
        finally:
            self._connection.close()

    def _frames(self) -> Iterator[EncodedFrame]:
        connection = self._connection
        first_ns = None
        is_joined, n_bad = False, 0
        whole = joined(connection.packets(self._stall_s), self.format.codec)
        for packet, pts_ns, dts_ns in settled(whole, connection.reader.period_ns):
            arrival_ns = packet.arrival_ns
            if first_ns is None and connection.relay is not None:
                arrival_ns = connection.relay.first_media_ns or arrival_ns
            first_ns = first_ns or arrival_ns
            if not (packet.is_keyframe or is_joined):
                continue
            if not is_sound(packet.data, self.format.codec) or not self._follows_format(packet):
                n_bad += 1
                continue
            tied = self._ties.tie(pts_ns, dts_ns, arrival_ns)
            if tied.leapt:
                _log.warning("stream_time_leapt", camera_id=self.camera_id, sensor_ns=tied.sensor_ns)
            n_missing = max(packet.n_dropped + n_bad, tied.n_missing)
            lost = SOURCE_DROPPED if is_joined or self._number < 0 else REOPENED
            lost = RECORDER_SLOW if packet.n_dropped else DAMAGED if n_bad else lost
            self._number += 1 + n_missing
            is_joined, n_bad = True, 0
            if packet.is_keyframe:
                self.clock = _quality()
            yield EncodedFrame(
                data=packet.data, is_keyframe=packet.is_keyframe, sensor_ns=tied.sensor_ns, frame_number=self._number,
                format=self.format, decode_ns=None if tied.sensor_ns == tied.decode_ns else tied.decode_ns,
                small=self._small_of(packet, tied.sensor_ns), lost=lost,
            )  # fmt: skip

    def _follows_format(self, packet: StreamPacket) -> bool:
        """Take over a change of the format that a keyframe shows; False when it cannot be read."""
        if not packet.is_keyframe:
            return True
        found = format_of(packet.data, self.format)
        if found is None:
            return False
        if (found.width_px, found.height_px) != (self.width_px, self.height_px):
            sizes = f"{self.width_px}x{self.height_px} to {found.width_px}x{found.height_px}"
            _log.warning("stream_size_changed", camera_id=self.camera_id, size_px=sizes)
        self.format, self.width_px, self.height_px = found, found.width_px, found.height_px
        return True

    def _small_of(self, packet: StreamPacket, sensor_ns: int) -> Rgb | None:
        return None if self._small is None else self._small.of(packet.data, packet.is_keyframe, self.format, sensor_ns)

    def _reopen(self, error: DeviceError) -> None:
        """Open the stream again.

        Raises:
            DeviceError: not within `reopen_s`.
        """
        _log.warning("stream_broke", camera_id=self.camera_id, reason=str(error))
        self._connection.close()
        began_ns, n_tries = self._machine.mono_ns(), 0
        while True:
            pause_s = PAUSES_S[min(n_tries, len(PAUSES_S) - 1)]
            self._machine.sleep_s(pause_s * random.uniform(0.8, 1.2))
            n_tries += 1
            try:
                self._connection = self._connect(min(self._stall_s, self._reopen_s))
            except DeviceError as again:
                if (self._machine.mono_ns() - began_ns) / 1e9 + pause_s > self._reopen_s:
                    raise DeviceError(f"{again}; {n_tries} tries since it broke ({error})") from again
                continue
            self._ties.reopened()
            _log.info("stream_reopened", camera_id=self.camera_id, n_tries=n_tries)
            return


def open_rtsp(
    url: str,
    *,
    camera_id: str | None = None,
    host_id: str = "host",
    site: str | None = None,
    allow: Sequence[str] = (),
    small: SmallPictures | None = None,
    verify_tls: bool = True,
    stall_s: float = STALL_S,
    reopen_s: float = REOPEN_S,
) -> StreamCamera:
    """Open a camera's RTSP stream.

    Args:
        url: rtsp:// or rtsps://, with user and password where the camera wants them.
        camera_id: who films; default: the host in the address.
        host_id: the machine that records.
        site: where the camera stands.
        allow: networks that are not public and yet meant (see `address.resolve`).
        small: makes the trigger's pictures.
        verify_tls: whether an rtsps camera must show a certificate that this machine trusts.
        stall_s: seconds without a byte after which the stream counts as broken.
        reopen_s: seconds for which it is opened again before the recording ends.

    Raises:
        UsageError: an address that is none, or that leads where it must not.
        DeviceError: the camera is not there.
    """
    hide_argument(url.rpartition("@")[0].partition("://")[2])
    host = resolve(url, allow=allow).host

    def connect(answer_s: float) -> Connection:
        address = resolve(url, allow=allow)  # looked up again each time, judged again, connected to by its number
        relay = Relay(address, stall_s=stall_s, answer_s=answer_s, verify_tls=verify_tls)
        reader = PacketReader(lambda: av.open(address.through(relay.port), options=dict(_RTSP)), address.shown)
        return opened(reader, relay)

    return StreamCamera(
        connect, camera_id=camera_id or host.replace(":", "_"), host_id=host_id, site=site, small=small, stall_s=stall_s,
        reopen_s=reopen_s,
    )  # fmt: skip


STREAM_OPTIONS: Final[Mapping[str, tuple[type, ...]]] = {
    "small": (str,), "small_fps": (int, float), "verify_tls": (bool,), "stall_s": (int, float), "reopen_s": (int, float),
}  # fmt: skip


def stream_options(given: Mapping[str, Any], small_px: tuple[int, int] | None, scheme: str) -> dict[str, Any]:
    """Return the arguments of `open_rtsp` or `open_v4l2` that a camera's `options` stand for.

    Raises:
        UsageError: an option that streams do not have, or a value that it cannot take.
    """
    for name, value in given.items():
        if name not in STREAM_OPTIONS:
            raise UsageError(f"option {name!r} of a {scheme} camera; legal: {', '.join(STREAM_OPTIONS)}")
        is_right = isinstance(value, STREAM_OPTIONS[name]) and isinstance(value, bool) == (name == "verify_tls")
        if not is_right or (isinstance(value, (int, float)) and name != "verify_tls" and value <= 0):
            raise UsageError(f"option {name} = {value!r} of a {scheme} camera; legal: {_LEGAL[name]}")
    if given.get("small", "auto") not in ("auto", "keyframes", "all"):
        raise UsageError(f"option small = {given['small']!r} of a {scheme} camera; legal: {_LEGAL['small']}")
    made = {name: given[name] for name in ("verify_tls", "stall_s", "reopen_s") if name in given}
    if scheme == "v4l2":
        made.pop("verify_tls", None)
    if small_px is not None:
        made["small"] = SmallPictures(small_px, of=given.get("small", "auto"), max_fps=given.get("small_fps", 5.0))
    return made


_LEGAL: Final = {
    "small": '"auto", "keyframes" (cheap) or "all" (a share of a core)', "small_fps": "above 0", "verify_tls": "true or false",
    "stall_s": "seconds, above 0", "reopen_s": "seconds, above 0",
}  # fmt: skip


def _quality() -> ClockQuality:
    return "ntp" if is_synchronised() else "unknown"
