"""What a Pi camera is asked for, as an address: `picam://0?width=1280&height=720&fps=30&training=jitter`.

Only words: nothing here touches a camera, so a wrong address is refused on any machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints
from urllib.parse import parse_qsl, urlsplit

from infra.errors import SettingsError, UsageError
from infra.settings import read_table

SLOWEST_FPS = 1.0
Training = Literal["off", "lock", "jitter"]
Rotation = Literal[0, 180]


@dataclass(frozen=True, slots=True, kw_only=True)
class PiSettings:
    """How a Pi camera films.

    Attributes:
        number: which camera, as `rpicam-hello --list-cameras` counts them.
        width, height: size of the recorded picture, in pixels, even.
        fps: frames a second; a longer exposure in the dark makes fewer. Below `SLOWEST_FPS`, or below what the camera can,
            it films faster and pictures are taken out of that: exposure settles, and a camera that hangs is soon noticed.
        bitrate: bits a second of the H.264 stream; None leaves it to picamera2's table for the size and rate.
        gop_s: seconds between keyframes.
        small: width in pixels of the small picture for trigger and preview; 0 makes none. Its height follows the shape.
        rotate: 180 for a camera that hangs upside down.
        training: `lock` settles, then locks exposure and white balance; `jitter` also draws another gain and white
            balance for every frame (see `ingest.picam_training`). Never for a preview.
        settle_s: how long the camera finds its exposure before it is locked.
        seed: of the jitter.
    """

    number: int = 0
    width: int = 1280
    height: int = 720
    fps: float = 30.0
    bitrate: int | None = None
    gop_s: float = 2.0
    small: int = 320
    rotate: Rotation = 0
    training: Training = "off"
    settle_s: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "height", "small"):
            value, least = getattr(self, name), 0 if name == "small" else 16
            if value % 2 or not least <= value <= 16384:
                raise SettingsError(f"{name} is {value}; legal: an even number from {least} to 16384 (pixels)")
        if self.number < 0:
            raise SettingsError(f"number is {self.number}; legal: 0 or more")
        if not 0 < self.fps <= 1000:
            raise SettingsError(f"fps is {self.fps:g}; legal: more than 0, at most 1000")
        if self.bitrate is not None and not 10_000 <= self.bitrate <= 200_000_000:
            raise SettingsError(f"bitrate is {self.bitrate}; legal: 10000 to 200000000 bits a second")
        if not 0.1 <= self.gop_s <= 60:
            raise SettingsError(f"gop_s is {self.gop_s:g}; legal: 0.1 to 60 s")
        if not 0 <= self.settle_s <= 60:
            raise SettingsError(f"settle_s is {self.settle_s:g}; legal: 0 to 60 s")

    @property
    def frame_us(self) -> int:
        """Microseconds from frame to frame."""
        return round(1e6 / self.fps)

    def film_us(self, longest_us: int = round(1e6 / SLOWEST_FPS)) -> int:
        """Return the microseconds between the frames that are filmed: a whole part of `frame_us`, at most `longest_us`."""
        return self.frame_us // max(1, math.ceil((self.frame_us - 1) / longest_us))

    @property
    def small_px(self) -> tuple[int, int] | None:
        """(width, height) of the small picture, even, never larger than the recorded one; None if there is to be none."""
        if self.small == 0:
            return None
        width = min(self.small, self.width)
        return width, max(2, round(width * self.height / self.width / 2) * 2)


def parse_picam(url: str, options: Mapping[str, Any] | None = None) -> PiSettings:
    """Read `picam://NUMBER[?option=..&..]`; the options are the fields of `PiSettings`.

    Args:
        url: the address.
        options: more of them, weaker than the address's own, as a `[[camera]]` table has them: also `size`
            (width, height), and `training` as true (jitter) or false.

    Raises:
        UsageError: not such an address, an unknown option, or a value that is not legal.
    """
    parts = urlsplit(url)
    if parts.scheme != "picam" or not re.fullmatch(r"\d{1,3}", parts.netloc) or parts.path.strip("/"):
        raise UsageError(f"source {url!r} is not understood; legal: picam://0[?width=1280&height=720&fps=30&training=lock]")
    kinds = get_type_hints(PiSettings)
    table: dict[str, Any] = {name: value for name, value in (options or {}).items() if value is not None}
    if "size" in table:
        table["width"], table["height"] = table.pop("size")
    if isinstance(table.get("training"), bool):
        table["training"] = "jitter" if table["training"] else "off"
    table["number"] = int(parts.netloc)
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        table[name] = _value(kinds.get(name), text)
    if "number" in dict(parse_qsl(parts.query)):
        raise UsageError(f"source {url!r}: the number stands after picam://")
    try:
        return read_table(PiSettings, table, f"source {url!r}")
    except SettingsError as error:
        raise UsageError(str(error)) from error


def _value(kind: Any, text: str) -> Any:
    """Return a word of an address as the number that its field wants, else the word itself: `read_table` refuses it."""
    numeric = kind is not str and kind is not None and kind is not Training
    if numeric and re.fullmatch(r"-?\d+", text):
        return int(text)
    if numeric and re.fullmatch(r"-?\d*\.\d+|-?\d+\.", text):
        return float(text)
    return text
