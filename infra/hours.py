"""Hours of the day, as `[upload]`, `[trigger]` and layers write them: `22:00-06:00`, in a time zone, the end excluded.

Hours may run over midnight. Without a `time_zone` they are those of the machine.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo

from infra.errors import SettingsError

DAY_MIN = 24 * 60
_HOURS = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


def minutes(text: str) -> tuple[int, int]:
    """Return start and end of "22:00-06:00" in minutes of the day, the end excluded; it may be the smaller one.

    Raises:
        SettingsError: not two times of a day, or twice the same.
    """
    match = _HOURS.fullmatch(text)
    numbers = [int(group) for group in match.groups()] if match else [0, 0, 0, 0]
    start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if max(start, end) > DAY_MIN or start == end:
        raise SettingsError(f"hours has {text[:40]!r}; legal: HH:MM-HH:MM, 00:00 to 24:00, such as 22:00-06:00")
    return start, end


def within(hours: Sequence[str], minute: int) -> bool:
    """Say whether a minute of the day lies in one of `hours`."""
    pairs = [minutes(text) for text in hours]
    return any(start <= minute < end if start < end else minute >= start or minute < end for start, end in pairs)


def zone(name: str | None) -> tzinfo | None:
    """Return a time zone by its name, None for the machine's own.

    Raises:
        SettingsError: nobody knows it.
    """
    if name is None:
        return None
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SettingsError(
            f"time_zone is {name[:60]!r}; legal: names such as Europe/Berlin, or none for the machine's"
        ) from error


def local(now_ns: int, name: str | None) -> datetime:
    """Return UTC nanoseconds as the time of a zone, or of the machine."""
    return datetime.fromtimestamp(now_ns / 1e9, UTC).astimezone(zone(name))
