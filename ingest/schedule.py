"""When the uploader sends what: hours, a rate, a daily allowance, turns for fresh and old clips, and how many at once.

    [upload]
    hours = ["22:00-06:00"]            # of `time_zone`; none: always (infra/hours.py)
    bytes_per_s = 500_000
    metered_bytes_per_day = 200_000_000

Pure but for the clock that is handed in; threads may share a `RateLimit`, a `Meter` and `Lanes`.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from infra import durable, hours
from infra.clock import Clock
from infra.errors import SettingsError
from infra.log import Log
from infra.objects import MIN_PART_BYTES

_log = Log("ingest.upload")
PIECE_S = 0.5  # a rate limit waits at most so long at a time, so that a stop is heard


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSettings:
    """The table `[upload]` of camloop.toml.

    Attributes:
        hours: when sending is allowed, such as "22:00-06:00"; empty: always.
        time_zone: of `hours` and of a metered day, such as "Europe/Berlin"; None: the machine's.
        bytes_per_s: the most that is sent; None: what the link takes.
        metered_bytes_per_day: the most a day, of clips and what is sent with them; None: no limit.
        connections: the most at once; how many really help is measured.
        part_bytes: of big clips; a cut costs about half a part.
        fresh_share: the share of turns that clips filmed since the uploader's start get while older ones wait, 0 to 1.
        tries: how often one request is tried before the uploader pauses.
    """

    hours: tuple[str, ...] = ()
    time_zone: str | None = None
    bytes_per_s: int | None = None
    metered_bytes_per_day: int | None = None
    connections: int = 10
    part_bytes: int = MIN_PART_BYTES
    fresh_share: float = 0.5
    tries: int = 4

    def __post_init__(self) -> None:
        for text in self.hours:
            hours.minutes(text)
        for name, least in (("bytes_per_s", 1), ("metered_bytes_per_day", 1), ("connections", 1), ("tries", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"{name} is {value}; legal: {least} or more")
        if self.part_bytes < MIN_PART_BYTES:
            raise SettingsError(f"part_bytes is {self.part_bytes}; legal: {MIN_PART_BYTES} (5 MiB, S3's least) or more")
        if not 0.0 <= self.fresh_share <= 1.0:
            raise SettingsError(f"fresh_share is {self.fresh_share:g}; legal: 0 to 1")
        hours.zone(self.time_zone)

    def local(self, now_ns: int) -> datetime:
        """Return UTC nanoseconds as the zone's own time."""
        return hours.local(now_ns, self.time_zone)

    def closed_s(self, now_ns: int) -> float:
        """Return for how many seconds sending is not allowed at this UTC time; 0 while it is."""
        if not self.hours:
            return 0.0
        local = self.local(now_ns)
        minute = local.hour * 60 + local.minute
        if hours.within(self.hours, minute):
            return 0.0
        wait_min = min((hours.minutes(text)[0] - minute) % hours.DAY_MIN for text in self.hours)
        return wait_min * 60.0 - local.second - local.microsecond / 1e6


class Closed(BaseException):
    """The hours are over in the middle of a clip; it goes on when they come again."""


class RateLimit:
    """Lets bytes through at a rate, a second's worth at once at most; shared by all connections.

    Args:
        bytes_per_s: None lets everything through.
        clock: its monotonic time counts.
        check: called before and while waiting; it raises to stop.
    """

    def __init__(self, bytes_per_s: int | None, clock: Clock, check: Callable[[], None] = lambda: None) -> None:
        self._rate, self._clock, self._check = bytes_per_s, clock, check
        self._free_at_ns = clock.mono_ns()
        self._lock = threading.Lock()

    def take(self, n_bytes: int) -> None:
        """Wait until n bytes may go out."""
        self._check()
        if self._rate is None:
            return
        with self._lock:
            now_ns = self._clock.mono_ns()
            self._free_at_ns = max(self._free_at_ns, now_ns - 1_000_000_000) + round(n_bytes / self._rate * 1e9)
            wait_s = (self._free_at_ns - now_ns) / 1e9
        while wait_s > 0:
            self._clock.sleep_s(min(wait_s, PIECE_S))
            wait_s -= PIECE_S
            self._check()


class Meter:
    """How fast the link is: bytes that the store acknowledged over the time in which anything was under way.

    Old times count less and less: by half after `HALF_LIFE_S` of sending.
    """

    HALF_LIFE_S = 60.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._busy_s = self._bytes = 0.0
        self._active, self._since_ns = 0, 0
        self._lock = threading.Lock()

    def _count(self) -> None:
        now_ns = self._clock.mono_ns()
        if self._active:
            passed_s = (now_ns - self._since_ns) / 1e9
            kept = 0.5 ** (passed_s / self.HALF_LIFE_S)
            self._busy_s, self._bytes = self._busy_s * kept + passed_s, self._bytes * kept
        self._since_ns = now_ns

    def begin(self) -> None:
        """A transfer is under way."""
        with self._lock:
            self._count()
            self._active += 1

    def end(self) -> None:
        """It ended, well or not."""
        with self._lock:
            self._count()
            self._active -= 1

    def stored(self, n_bytes: int) -> None:
        """The store has n bytes more."""
        with self._lock:
            self._count()
            self._bytes += n_bytes

    def bytes_per_s(self) -> float | None:
        """Return the rate, None while too little was sent to tell."""
        with self._lock:
            self._count()
            return None if self._busy_s < 0.05 or not self._bytes else self._bytes / self._busy_s


class Lanes:
    """How many transfers at once: twice as many while that brings a `GAIN`th of what it could, else fewer if they do as well.

    A window ends after some acknowledged puts at one number of lanes; its rate is compared with the one before. On a thin
    link few lanes fill it, and a cut then costs a few half parts, not ten. What did not help is tried again, ever later.
    Where a cut costs less than `CHEAP_S` of sending, as with small clips on a good link, all lanes are used at once.
    """

    FIRST = 2
    GAIN = 0.12
    LOSS = 0.05
    CHEAP_S = 1.0  # half of what is under way on all lanes, in seconds of the link
    WINDOW_S = 0.4  # at least
    RETRY_S = 5.0
    LONGEST_RETRY_S = 120.0

    def __init__(self, most: int, clock: Clock) -> None:
        self._most, self._clock = most, clock
        self.n = min(self.FIRST, most)
        self._best: tuple[int, float] | None = None  # lanes, bytes a second
        self._from_ns: int | None = None
        self._stored, self._bytes = 0, 0
        self._hold_until_ns, self._retry_s = 0, self.RETRY_S
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A transfer starts: a window runs from the first one."""
        with self._lock:
            if self._from_ns is None:
                self._from_ns = self._clock.mono_ns()

    def idle(self) -> None:
        """Nothing is left to send: the time until the next transfer is nobody's."""
        with self._lock:
            self._from_ns, self._stored, self._bytes = None, 0, 0

    def stored(self, n_bytes: int) -> None:
        """A clip or a part was acknowledged; may change `n`."""
        with self._lock:
            self._stored, self._bytes = self._stored + 1, self._bytes + n_bytes
            now_ns = self._clock.mono_ns()
            if self._from_ns is None or self._stored < 3 * self.n or now_ns - self._from_ns < self.WINDOW_S * 1e9:
                return
            _log.debug("lanes", n=self.n, bytes_per_s=round(self._bytes / (now_ns - self._from_ns) * 1e9))
            rate = self._bytes / (now_ns - self._from_ns) * 1e9
            if self._most * self._bytes / self._stored / 2 <= self.CHEAP_S * rate:
                self.n, self._best = self._most, (self._most, rate)  # a cut would cost next to nothing anyhow
            else:
                self._decide(rate, now_ns)
            self._from_ns, self._stored, self._bytes = now_ns, 0, 0

    def _decide(self, rate: float, now_ns: int) -> None:
        best_n, best_rate = self._best or (self.n, rate)
        more, fewer = self.n > best_n, self.n < best_n
        if more and rate < best_rate * (1 + self.GAIN * (self.n / best_n - 1)):
            self.n = best_n // 2 if best_n > 1 else self._held(best_n, now_ns)  # perhaps fewer do as well
        elif fewer and rate < best_rate * (1 - self.LOSS):
            self.n = self._held(best_n, now_ns)
        else:
            self._best = (self.n, rate)
            if fewer:
                self.n = self.n // 2 if self.n > 1 else self._held(self.n, now_ns)
            elif more or now_ns >= self._hold_until_ns:
                self._retry_s = self.RETRY_S if more else self._retry_s
                self.n = min(self._most, self.n * 2)

    def _held(self, n: int, now_ns: int) -> int:
        self._hold_until_ns = now_ns + round(self._retry_s * 1e9)
        self._retry_s = min(2 * self._retry_s, self.LONGEST_RETRY_S)
        return n


class Turns:
    """Whose turn it is: clips that came within the last `FRESH_S`, or those that have waited longer, each oldest first.

    Each kind is guaranteed its share of turns while both wait, so that neither starves after an outage; a kind that has
    none gives its turn away. What waited when the uploader started counts as old.
    """

    FRESH_S = 300.0

    def __init__(self, fresh_share: float, clock: Clock) -> None:
        self._share, self._credit, self._clock = fresh_share, 0.0, clock
        self._old: deque[str] = deque()
        self._fresh: deque[tuple[str, int]] = deque()  # with the monotonic time at which it was first seen
        self._aside: dict[str, int] = {}  # until when (monotonic)
        self._seen: set[str] | None = None
        self.was_fresh = False  # the clip that `next` returned last

    def __len__(self) -> int:
        return len(self._old) + len(self._fresh)

    def see(self, clip_ids: Iterable[str]) -> None:
        """Take note of all clips that wait, oldest first; it may be called as often as one likes."""
        now, now_ns = list(clip_ids), self._clock.mono_ns()
        if self._seen is None:
            self._old.extend(now)
        else:
            self._fresh.extend((clip_id, now_ns) for clip_id in now if clip_id not in self._seen)
        self._seen = set(now)
        for clip_id in [clip_id for clip_id, until_ns in self._aside.items() if until_ns <= now_ns]:
            del self._aside[clip_id]
            if clip_id in self._seen:
                self._old.append(clip_id)

    def next(self) -> str | None:
        """Return the clip whose turn it is, None if none waits."""
        while self._fresh and self._clock.mono_ns() - self._fresh[0][1] > self.FRESH_S * 1e9:
            self._old.append(self._fresh.popleft()[0])
        fresh = bool(self._fresh)
        if fresh and self._old:
            self._credit += self._share
            fresh = self._credit >= 1.0
            self._credit -= fresh
        self.was_fresh = fresh
        if fresh:
            return self._fresh.popleft()[0]
        return self._old.popleft() if self._old else None

    def give_back(self, clip_id: str) -> None:
        """Put a clip back that may not go now: it is the next of the old ones."""
        self._old.appendleft(clip_id)

    def set_aside(self, clip_ids: Iterable[str], seconds: float) -> None:
        """Give clips no turn for so long; then they come after all others."""
        until_ns = self._clock.mono_ns() + round(seconds * 1e9)
        self._aside |= dict.fromkeys(clip_ids, until_ns)
        self._old = deque(clip_id for clip_id in self._old if clip_id not in self._aside)
        self._fresh = deque(item for item in self._fresh if item[0] not in self._aside)

    def put_last(self, clip_ids: Iterable[str]) -> None:
        """Put clips back that could not be delivered: all others have a try before them."""
        self._old.extend(clip_ids)


class Allowance:
    """What a metered link may carry in a day of the owner's time zone; None: anything.

    Args:
        bytes_per_day: the limit.
        today: names the day.
        spent: (day, bytes) as an earlier process left it.
    """

    def __init__(self, bytes_per_day: int | None, today: Callable[[], str], spent: tuple[str, int] | None = None) -> None:
        self._limit, self._today = bytes_per_day, today
        self._day, self._spent = spent or ("", 0)
        self._lock = threading.Lock()

    @property
    def spent(self) -> tuple[str, int]:
        """The day and what was sent on it."""
        return self._day, self._spent

    def add(self, n_bytes: int) -> None:
        """Count bytes that go out."""
        with self._lock:
            self._turn()
            self._spent += n_bytes

    def admits(self, n_bytes: int, under_way: int = 0) -> bool:
        """Say whether a clip may go today beside what is under way; one larger than a whole day's is a day's first and only."""
        with self._lock:
            self._turn()
            spent = self._spent + under_way
            return self._limit is None or spent == 0 or spent + n_bytes <= self._limit

    def _turn(self) -> None:
        if (today := self._today()) != self._day:
            self._day, self._spent = today, 0


def read_spent(path: Path) -> tuple[str, int] | None:
    """Return the day and its bytes as an earlier process wrote them down, None where it did not."""
    try:
        found = json.loads(path.read_bytes())
        return str(found["day"]), int(found["n_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_spent(path: Path, spent: tuple[str, int], under_way: int) -> None:
    """Write it down, with what was begun; a full disk costs only this."""
    day, n_bytes = spent[0], spent[1] + under_way
    with contextlib.suppress(OSError):
        durable.write(path, json.dumps({"day": day, "n_bytes": n_bytes}).encode())
