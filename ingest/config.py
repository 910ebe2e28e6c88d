"""What a camera host films with and how: `[[camera]]`, `[agent]`, `[trigger]`, `[privacy]`, `[spool]`, `[upload]`, `[fleet]`.

    [[camera]]
    id = "yard"
    url = "rtsp://user:password@192.168.1.20/stream1"
    trigger = {kind = "motion", pre_roll_s = 3}      # over the keys of [trigger], which holds for all cameras

An address may hold a password: it is kept out of `repr`, masked in every message, and never stands in a command line,
since each recorder process reads its own table from the file (`camloop record --camera-table yard`).
Reading is pure: no device is touched, neither numpy nor av is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from infra.errors import SettingsError, UsageError
from infra.keys import check_name
from infra.log import MASK, mask
from infra.settings import Settings, read_table

SCHEMES = ("rtsp", "rtsps", "v4l2", "picam", "sim", "file")
DEFAULT_SPOOL = Path("camloop-spool")
RecordingFormat = Literal["h264", "png", "jpeg", "raw", "features"]
_NO_TABLE: Mapping[str, Any] = {}


def masked_url(url: str) -> str:
    """Return an address without user, password and whatever in its query could be one."""
    url = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://).*@", rf"\g<1>{MASK}@", url, flags=re.DOTALL)
    return mask(re.sub(r"(?i)\b((?:[a-z]*pwd|pass|key|auth)\s*=)[^&;/\s]+", rf"\g<1>{MASK}", url))[:200]


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraConfig:
    """One `[[camera]]` table.

    Attributes:
        id: its name in keys and tables.
        url: a file, rtsp://, rtsps://, v4l2:///dev/video0, picam://0, sim://SEED/CAMERA. May hold a password.
        site: where it stands.
        segment_s: a new file every so many seconds.
        max_segment_bytes: a new file also after so many bytes; the agent lowers it on a slow uplink.
        format: what is recorded: h264 (as the camera sends it), or one of the frame recorders.
        size: (width, height) in pixels that the camera is asked for; None is its own.
        fps: frames per second that the camera is asked for; None is its own.
        label: the class that is being shown all the time, if any.
        realtime: play a file at its own speed, as a camera would film it.
        training: a Pi camera's training mode (exposure and white balance locked, jitter written per frame).
        features: the extractor bundle of the format features.
        allow: hosts and networks that the address may lead to although they are not public ("192.168.1.0/24").
        trigger: the keys of `[trigger]`, this camera's own over those of all.
        privacy: the keys of `[privacy]`, likewise; empty: nothing is hidden.
        options: more for the source, as its own guide says.
    """

    id: str
    url: str = field(repr=False)
    site: str | None = None
    segment_s: float = 60.0
    max_segment_bytes: int | None = None
    format: RecordingFormat = "h264"
    size: tuple[int, int] | None = None
    fps: float | None = None
    label: str | None = None
    realtime: bool = False
    training: bool = False
    features: Path | None = None
    allow: tuple[str, ...] = ()
    trigger: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        try:
            check_name(self.id, "id")
        except UsageError as error:
            raise SettingsError(str(error)) from error
        if not self.url:
            raise SettingsError(f"url is empty; legal: a file, {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
        _check_url(self.url)
        if not 1 <= self.segment_s <= 3600:
            raise SettingsError(f"segment_s is {self.segment_s:g}; legal: 1 to 3600 seconds")
        if self.max_segment_bytes is not None and self.max_segment_bytes < 100_000:
            raise SettingsError(f"max_segment_bytes is {self.max_segment_bytes}; legal: 100000 or more")
        if self.fps is not None and not 0 < self.fps <= 240:
            raise SettingsError(f"fps is {self.fps:g}; legal: more than 0, at most 240")
        if self.size is not None and not all(16 <= side <= 16384 for side in self.size):
            raise SettingsError(f"size is {list(self.size)}; legal: [width, height], each 16 to 16384 pixels")

    @property
    def shown_url(self) -> str:
        """The address without its secrets."""
        return masked_url(self.url)

    @property
    def asked_fps(self) -> float | None:
        """The rate that the table, or the address of a Pi camera in it, asks for."""
        in_address = re.search(r"[?&]fps=(\d*\.?\d+)", self.url) if self.url.lower().startswith("picam://") else None
        fps = float(in_address[1]) if in_address else self.fps
        return fps if fps else None

    @property
    def ends(self) -> bool:
        """Whether the source has an end of its own (a file, a simulated recording), so that its end is no fault."""
        return urlsplit(self.url).scheme in ("", "file", "sim")


def _check_url(url: str) -> None:
    scheme, found, _ = url.partition("://")
    if not found:
        return  # a file
    if scheme.lower() not in SCHEMES:
        raise SettingsError(f"url is {masked_url(url)!r}; legal: a file, {', '.join(f'{name}://' for name in SCHEMES)}")
    if scheme.lower() in ("rtsp", "rtsps"):
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or any(letter.isspace() for letter in url):
            raise SettingsError(
                f"url is {scheme}://{MASK}, which is no address; legal: rtsp://[USER:PASSWORD@]HOST[:PORT]/PATH, "
                "in a password / @ : # ? and spaces written as %2F %40 %3A %23 %3F %20"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The `[agent]` table.

    Attributes:
        spool: where clips wait.
        stall_s: seconds without a frame after which a recorder is killed and started again.
        start_s: seconds that a recorder may take to its first frame.
        longest_pause_s: the longest pause before a broken camera is tried again.
        stop_s: seconds that recorders have to finish their segment when the agent is stopped.
        health_s: seconds between two health documents.
        publish_s: seconds between two states for `camloop agent status`.
        hot_c: degrees Celsius from which the temperature is told as a warning.
        log_lines_per_minute: what one child may write into the log; the rest is counted.
        upload: whether the agent runs an uploader.
        outbox: folders where `camloop run --outbox` leaves what its model was unsure about; they go up too.
        latitude, longitude: where the host stands, in degrees, for triggers that follow the sun.
    """

    spool: Path = DEFAULT_SPOOL
    stall_s: float = 8.0
    start_s: float = 25.0
    longest_pause_s: float = 16.0
    stop_s: float = 20.0
    health_s: float = 300.0
    publish_s: float = 10.0
    hot_c: float = 80.0
    log_lines_per_minute: int = 20
    upload: bool = True
    outbox: tuple[Path, ...] = ()
    latitude: float | None = None
    longitude: float | None = None

    def __post_init__(self) -> None:
        least = {"stall_s": 1.0, "start_s": 1.0, "longest_pause_s": 0.1, "stop_s": 1.0, "health_s": 10.0, "publish_s": 1.0}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise SettingsError(f"{name} is {getattr(self, name):g}; legal: {value:g} seconds or more")
        if self.log_lines_per_minute < 1:
            raise SettingsError(f"log_lines_per_minute is {self.log_lines_per_minute}; legal: 1 or more")
        for name, most in (("latitude", 90), ("longitude", 180)):
            value = getattr(self, name)
            if value is not None and not -most <= value <= most:
                raise SettingsError(f"{name} is {value:g}; legal: {-most} to {most} degrees")


def agent_config(settings: Settings) -> AgentConfig:
    """Return what `[agent]` says.

    Raises:
        SettingsError: an unknown key or a wrong value, with its line.
    """
    return read_table(AgentConfig, settings.toml.get("agent", _NO_TABLE), settings.where("agent"))


def camera_configs(settings: Settings) -> tuple[CameraConfig, ...]:
    """Return all `[[camera]]` tables, with the `[trigger]` and `[privacy]` of all cameras under their own.

    Raises:
        SettingsError: a wrong table (with its line), two cameras of one id, or none at all.
    """
    tables = settings.toml.get("camera", [])
    if not isinstance(tables, list):
        raise SettingsError(f"{settings.where('camera').line()}[camera] is one table; write [[camera]], once per camera")
    if not tables:
        place = settings.file or "camloop.toml (there is none here)"
        raise SettingsError(f'{place}: no camera; add [[camera]] with id = "yard" and url = "rtsp://HOST/PATH" (or picam://0)')
    found: dict[str, int] = {}
    made = []
    for number, table in enumerate(tables):
        where = settings.where("camera", number)
        own = dict(table)
        for name in ("trigger", "privacy"):
            if isinstance(own.get(name, {}), Mapping):
                own[name] = _over(settings.toml.get(name, _NO_TABLE), own.get(name, {}))
        camera = read_table(CameraConfig, own, where)
        if camera.id in found:
            first = settings.where("camera", found[camera.id]).line("id")
            raise SettingsError(f"{where.line('id')}[camera]: id {camera.id!r} is taken ({first.strip(': ')}); ids differ")
        found[camera.id] = number
        made.append(camera)
    return tuple(made)


def camera_config(settings: Settings, camera_id: str) -> CameraConfig:
    """Return the `[[camera]]` table of one camera: what `camloop record --camera-table ID` films with.

    Raises:
        SettingsError: as `camera_configs`, or there is no such camera (the message says which there are).
    """
    cameras = camera_configs(settings)
    for camera in cameras:
        if camera.id == camera_id:
            return camera
    known = ", ".join(camera.id for camera in cameras)
    raise SettingsError(f"no [[camera]] has id {camera_id[:80]!r}; {settings.file} has: {known}")


def _over(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the camera's own keys over those of all; another kind of trigger starts from nothing."""
    if not isinstance(common, Mapping) or ("kind" in own and own["kind"] != common.get("kind", own["kind"])):
        return dict(own)
    return {**common, **own}
