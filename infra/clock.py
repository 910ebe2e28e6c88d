"""Clocks: the only place where camloop asks what time it is.

Two clocks, never mixed (see docs/time.md): `now_ns` is UTC and may jump; `mono_ns` only ever grows and says
nothing about the date. Code that needs a time takes a `Clock`; tests and the demo hand in a `FakeClock`.
"""

from __future__ import annotations

import ctypes
import time
from typing import Protocol


class Clock(Protocol):
    """What tells the time. All values are integer nanoseconds."""

    def now_ns(self) -> int:
        """Return UTC as nanoseconds since 1970-01-01; may jump in both directions."""
        ...

    def mono_ns(self) -> int:
        """Return a monotonic time in nanoseconds; its zero means nothing."""
        ...

    def sleep_s(self, seconds: float) -> None:
        """Wait for `seconds`."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ns(self) -> int:
        return time.time_ns()

    def mono_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_s(self, seconds: float) -> None:
        time.sleep(seconds)


class FakeClock:
    """A clock that moves only when told to; shipped, so that users can test with it.

    Args:
        now_ns: UTC nanoseconds to start at.
        mono_ns: monotonic nanoseconds to start at.
    """

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000, mono_ns: int = 0) -> None:
        self._now_ns = now_ns
        self._mono_ns = mono_ns

    def now_ns(self) -> int:
        return self._now_ns

    def mono_ns(self) -> int:
        return self._mono_ns

    def sleep_s(self, seconds: float) -> None:
        self.advance_s(seconds)

    def advance_s(self, seconds: float) -> None:
        """Move both clocks forward together."""
        step_ns = round(seconds * 1_000_000_000)
        self._now_ns += step_ns
        self._mono_ns += step_ns

    def jump_to_ns(self, now_ns: int) -> None:
        """Set UTC only, as an NTP step does; the monotonic clock goes on."""
        self._now_ns = now_ns


_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def is_synchronised() -> bool:
    """Say whether the kernel believes that UTC is right: NTP (or a GPS) has set it and keeps it. False where nobody knows."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):  # not Linux
        return False
    nothing_to_set = ctypes.create_string_buffer(1024)  # a struct timex, larger than any, with modes = 0
    return int(adjtimex(nothing_to_set)) not in (-1, _TIME_ERROR)
