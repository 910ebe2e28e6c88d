"""When was it filmed? Pure functions from what a file says about itself to UTC nanoseconds.

A file names a time on the camera's own clock: in its container, in the EXIF data of a picture, or in its name. That
time is read as local time in the camera's zone, then the clock's known offset is added:

    true time = (digits, in the camera's zone) + clock_offset_s of the camera row that is valid then

Order: the camera's own `time_pattern` (a person said so), the container, EXIF, then common name patterns. What none of
them says stays unknown. `clips.start_ns` holds the result, `clock` is then "file"; the digits themselves are in the
object and in `source_name`, so a corrected zone or offset is a new camera row and a new batch of step `register` for
the same clip_id, never a new clip.
"""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import IO, Final, Literal

from infra.errors import SettingsError, UsageError
from infra.records import CameraRow

ContainerTime = Literal["local", "utc"]
NAME_PATTERNS: Final = (
    "%Y%m%d_%H%M%S",  # phones, action cameras, many trail cameras
    "%Y%m%d-%H%M%S",
    "%Y%m%dT%H%M%S",
    "%Y-%m-%d_%H-%M-%S",
    "%Y-%m-%d-%H-%M-%S",
    "%Y-%m-%dT%H-%M-%S",
    "%Y-%m-%d %H.%M.%S",
    "%Y-%m-%d_%H.%M.%S",
    "%Y_%m_%d_%H_%M_%S",
    "%Y%m%d%H%M%S",  # Hikvision, Dahua exports
)
"""Patterns that are looked for in a file name when the camera declares none."""

_DIRECTIVES: Final = {
    "Y": r"(?P<Y>\d{4})", "m": r"(?P<m>\d{2})", "d": r"(?P<d>\d{2})", "H": r"(?P<H>\d{2})", "M": r"(?P<M>\d{2})",
    "S": r"(?P<S>\d{2})", "f": r"(?P<f>\d{1,6})", "j": r"(?P<j>\d{3})", "y": r"(?P<y>\d{2})", "z": r"(?P<z>[+-]\d{2}:?\d{2}|Z)",
    "s": r"(?P<s>\d{9,10})",
}  # fmt: skip
_EARLIEST: Final = datetime(1990, 1, 1)  # before it lies the zero of a clock that was never set (1904, 1970, 1980)
_EXIF_IFD, _EXIF_ORIGINAL, _EXIF_ORIGINAL_OFFSET, _EXIF_MODIFIED = 0x8769, 0x9003, 0x9011, 0x0132  # EXIF 2.32, 4.6


def zone(name: str) -> zoneinfo.ZoneInfo:
    """Return the time zone of that IANA name.

    Raises:
        SettingsError: there is none; near names are offered.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = difflib.get_close_matches(name, sorted(zoneinfo.available_timezones()), n=3, cutoff=0.5)
        raise SettingsError(
            f"time_zone {name!r} is not known; use an IANA name such as {', '.join(near or ['Europe/Paris', 'UTC'])}"
        ) from error


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn a strptime-like pattern into an expression that is searched for in a name.

    Raises:
        UsageError: an unknown directive, or the pattern does not fix a date and an hour.
    """
    parts: list[str] = []
    position, seen = 0, set()
    while position < len(pattern):
        if pattern[position] != "%":
            parts.append(re.escape(pattern[position]))
            position += 1
            continue
        directive = pattern[position + 1 : position + 2]
        if directive == "%":
            parts.append("%")
        elif directive not in _DIRECTIVES or directive in seen:
            why = "twice" if directive in seen else "not known"
            raise UsageError(
                f"time pattern {pattern!r}: %{directive} is {why}; legal: {' '.join('%' + d for d in _DIRECTIVES)}"
            )
        else:
            seen.add(directive)
            parts.append(_DIRECTIVES[directive])
        position += 2
    has_date = {"Y", "y"} & seen and ({"m", "d"} <= seen or "j" in seen)
    if not ("s" in seen or (has_date and "H" in seen)):
        raise UsageError(f"time pattern {pattern!r} does not fix date and hour; for example cam_%Y%m%d_%H%M%S")
    return re.compile(r"(?<!\d)" + "".join(parts) + r"(?!\d)")


def _from_match(match: re.Match[str]) -> datetime | None:
    found = {name: text for name, text in match.groupdict().items() if text is not None}
    if "s" in found:
        return datetime.fromtimestamp(int(found["s"]), tz=UTC)
    year = int(found["Y"]) if "Y" in found else 2000 + int(found["y"])
    micro = int(found.get("f", "0").ljust(6, "0"))
    try:
        clock = time(int(found["H"]), int(found.get("M", 0)), int(found.get("S", 0)), micro)
        if "j" in found:
            made = datetime.combine(date(year, 1, 1) + timedelta(days=int(found["j"]) - 1), clock)
        else:
            made = datetime.combine(date(year, int(found["m"]), int(found["d"])), clock)
        return made.replace(tzinfo=_offset(found["z"])) if "z" in found else made
    except ValueError:
        return None


def _offset(text: str) -> timezone:
    if text == "Z":
        return UTC
    digits = text.replace(":", "")
    minutes = int(digits[1:3]) * 60 + int(digits[3:5])
    return timezone(timedelta(minutes=minutes if digits[0] == "+" else -minutes))


def from_name(source_name: str, patterns: Sequence[str] = NAME_PATTERNS) -> datetime | None:
    """Return the time that a file's name holds, or None.

    A pattern with a `/` is looked for in the whole path below the ingested folder, any other in the file's stem.
    The result is naive (the camera's own local digits) unless the pattern holds `%z` or `%s`.
    """
    stem = source_name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    for pattern in patterns:
        expression = compile_pattern(pattern)
        for match in expression.finditer(source_name if "/" in pattern else stem):
            made = _from_match(match)
            if made is not None and made.replace(tzinfo=None) >= _EARLIEST:
                return made
    return None


def from_exif(picture: Path | IO[bytes]) -> datetime | None:
    """Return EXIF DateTimeOriginal of a JPEG or PNG file, or None; aware when EXIF names the offset to UTC."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(picture) as image:
            exif = image.getexif()
            detail = exif.get_ifd(_EXIF_IFD)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, ModuleNotFoundError):
        return None  # ModuleNotFoundError: ultralytics, once imported, makes Pillow ask for pi_heif on what it cannot read
    text = str(detail.get(_EXIF_ORIGINAL) or exif.get(_EXIF_MODIFIED) or "").strip("\x00 ")
    offset = re.fullmatch(r"[+-]\d{2}:\d{2}|Z", str(detail.get(_EXIF_ORIGINAL_OFFSET) or "").strip("\x00 "))
    try:
        made = datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    if made < _EARLIEST:
        return None
    return made.replace(tzinfo=_offset(offset.group())) if offset else made


def from_container(start_ns: int | None, meaning: ContainerTime = "local") -> datetime | None:
    """Return the container's creation time as digits on the camera's clock ("local", what cheap cameras write) or as UTC.

    Args:
        start_ns: `Probe.start_ns`, nanoseconds since 1970 as if the digits were UTC, or None.
        meaning: "utc" for devices that keep to the standard (phones); cameras.toml: `container_time = "utc"`.
    """
    if start_ns is None:
        return None
    made = datetime.fromtimestamp(start_ns // 1_000_000_000, tz=UTC).replace(microsecond=start_ns // 1000 % 1_000_000)
    if made.replace(tzinfo=None) < _EARLIEST:
        return None
    return made if meaning == "utc" else made.replace(tzinfo=None)


def to_ns(when: datetime, time_zone: str) -> int:
    """Return UTC nanoseconds of local digits in `time_zone` (of an aware time: of itself).

    Of an hour that the end of summer time repeats, the first is meant; in one that it skips, the clock had not moved yet.
    """
    aware = when if when.tzinfo is not None else when.replace(tzinfo=zone(time_zone), fold=0)
    return _exact_ns(aware)


def _exact_ns(aware: datetime) -> int:
    since = aware.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def valid_row(rows: Sequence[CameraRow], start_ns: int | None) -> CameraRow:
    """Return the camera row that is valid at a true time; of an unknown time, the newest."""
    ordered = sorted(rows, key=lambda row: row.valid_from_ns)
    valid = [row for row in ordered if start_ns is not None and row.valid_from_ns <= start_ns]
    return valid[-1] if valid else ordered[0] if start_ns is not None else ordered[-1]


def true_start_ns(when: datetime, rows: Sequence[CameraRow]) -> int:
    """Return UTC nanoseconds of a time on the camera's own clock, by the rows of that camera.

    `valid_from_ns` of a row is true time, so each row is asked whether the corrected time lies in its own validity; the
    newest that says yes holds. Where none does (digits that a clock set forward never showed), the row valid at the
    digits themselves is taken.

    Args:
        when: what the file says; naive = local digits.
        rows: the camera's rows in force, at least one.
    """
    ordered = sorted(rows, key=lambda row: row.valid_from_ns)
    for position in reversed(range(len(ordered))):
        row = ordered[position]
        corrected = to_ns(when, row.time_zone) + round(row.clock_offset_s * 1_000_000_000)
        begins = row.valid_from_ns if position else None
        ends = ordered[position + 1].valid_from_ns if position + 1 < len(ordered) else None
        if (begins is None or begins <= corrected) and (ends is None or corrected < ends):
            return corrected
    row = valid_row(rows, to_ns(when, ordered[0].time_zone))
    return to_ns(when, row.time_zone) + round(row.clock_offset_s * 1_000_000_000)


def local_day(start_ns: int, time_zone: str) -> str:
    """Return the date at the camera, `YYYY-MM-DD`."""
    return datetime.fromtimestamp(start_ns // 1_000_000_000, tz=zone(time_zone)).date().isoformat()
