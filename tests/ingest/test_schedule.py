"""When the uploader sends what: hours, rates, allowances, turns, and how many at once, on simulated links."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from infra.clock import FakeClock
from infra.errors import SettingsError
from infra.settings import read_table
from ingest.schedule import Allowance, Lanes, Meter, RateLimit, Turns, UploadSettings


def at(text: str) -> int:
    """Return UTC nanoseconds of an ISO time."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e9)


class TestHours:
    @pytest.mark.parametrize(
        ("hours", "zone", "now", "closed_h"),
        [
            ((), "UTC", "2026-01-01T12:00", 0),
            (("22:00-06:00",), "UTC", "2026-01-01T21:30", 0.5),
            (("22:00-06:00",), "UTC", "2026-01-01T22:00", 0),
            (("22:00-06:00",), "UTC", "2026-01-01T05:59", 0),
            (("22:00-06:00",), "UTC", "2026-01-01T06:00", 16),
            (("01:00-02:00", "12:00-13:00"), "UTC", "2026-01-01T02:00", 10),
            (("00:00-24:00",), "UTC", "2026-01-01T23:59", 0),
            (("22:00-06:00",), "Europe/Berlin", "2026-01-01T21:00", 0),
            (("22:00-06:00",), "Europe/Berlin", "2026-07-01T20:00", 0),
            (("22:00-06:00",), "Europe/Berlin", "2026-07-01T19:00", 1),
        ],
    )
    def test_closed(self, hours: tuple[str, ...], zone: str, now: str, closed_h: float) -> None:
        """Spans are half-open, may pass midnight, and are of the camera's zone, summer time included."""
        assert UploadSettings(hours=hours, time_zone=zone).closed_s(at(now)) == pytest.approx(closed_h * 3600)

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"hours": ["9-17"]}, "hours has '9-17'; legal: HH:MM-HH:MM"),
            ({"hours": ["24:30-06:00"]}, "legal: HH:MM-HH:MM"),
            ({"hours": ["06:00-06:00"]}, "legal: HH:MM-HH:MM"),
            ({"time_zone": "Mars/Olympus"}, "time_zone is 'Mars/Olympus'"),
            ({"part_bytes": 1 << 20}, "part_bytes is 1048576; legal: 5242880"),
            ({"bytes_per_s": 0}, "bytes_per_s is 0; legal: 1"),
            ({"connections": 0}, "connections is 0; legal: 1"),
            ({"fresh_share": 2}, "fresh_share is 2; legal: 0 to 1"),
            ({"hour": ["22:00-06:00"]}, "unknown key 'hour'; did you mean hours"),
        ],
    )
    def test_wrong_table(self, table: dict[str, object], message: str) -> None:
        """Each wrong value is named with the legal ones."""
        with pytest.raises(SettingsError) as found:
            read_table(UploadSettings, table, "[upload]")
        assert message in str(found.value)


class TestRate:
    def test_rate_is_held(self) -> None:
        """A minute of pieces at 10 kB/s takes a minute, after a second's worth at once."""
        clock = FakeClock()
        limit = RateLimit(10_000, clock)
        for _ in range(600):
            limit.take(1000)
        assert 58 <= clock.mono_ns() / 1e9 <= 61

    def test_stop_is_heard(self) -> None:
        """A long wait asks twice a second whether it should end."""
        asked: list[int] = []
        RateLimit(1000, FakeClock(), lambda: asked.append(1)).take(10_000)
        assert len(asked) >= 18

    def test_meter(self) -> None:
        """The rate is of the time in which something was under way, not of the pauses."""
        clock, meter = FakeClock(), Meter(FakeClock())
        meter = Meter(clock)
        assert meter.bytes_per_s() is None
        for _ in range(20):
            meter.begin()
            clock.advance_s(2)
            meter.stored(100_000)
            meter.end()
            clock.advance_s(500)
        assert meter.bytes_per_s() == pytest.approx(50_000, rel=0.05)

    def test_allowance(self) -> None:
        """A day's bytes are held, a new day begins at the owner's midnight, and a clip of more than a day goes alone."""
        today = ["a"]
        allowance = Allowance(1000, lambda: today[0], ("a", 900))
        assert allowance.admits(100) and not allowance.admits(101) and not allowance.admits(100, under_way=1)
        allowance.add(100)
        assert not allowance.admits(1)
        today[0] = "b"
        assert allowance.admits(5000)
        allowance.add(5000)
        assert not allowance.admits(1) and allowance.spent == ("b", 5000)
        assert Allowance(None, lambda: "a").admits(10**12)


def climbed(total: float, each: float, most: int, n_bytes: int, seconds: float = 120.0) -> tuple[int, float]:
    """Share a link of `total` B/s among connections of `each` at most; return the last lanes and the share of the best."""
    clock, rng, sent = FakeClock(), random.Random(7), 0
    lanes = Lanes(most, clock)
    left: list[float] = []
    while clock.mono_ns() < seconds * 1e9:
        while len(left) < lanes.n:
            lanes.begin()
            left.append(n_bytes * rng.uniform(0.8, 1.2))
        rate = min(each, total / len(left))
        passed_s = min(left) / rate
        clock.advance_s(passed_s)
        left = sorted(rest - passed_s * rate for rest in left)[1:]
        sent += n_bytes
        lanes.stored(n_bytes)
    return lanes.n, sent / (seconds * min(total, most * each))


class TestLanes:
    def test_lossy_link(self) -> None:
        """Where each connection is slow by itself, all that are allowed are used, soon."""
        n, share = climbed(total=10e6, each=80e3, most=10, n_bytes=200_000)
        assert n == 10 and share > 0.85

    def test_thin_link(self) -> None:
        """Where one fills the link, hardly more are kept: a cut then costs one half part, or two."""
        n, share = climbed(total=3e6, each=3e6, most=10, n_bytes=5_000_000, seconds=75)
        assert n <= 2 and share > 0.85

    def test_one_at_most(self) -> None:
        """A limit of one is one."""
        assert climbed(total=3e6, each=1e6, most=1, n_bytes=200_000)[0] == 1


def drained(fresh_share: float, backlog: int, every_s: float, clip_s: float, hours: float) -> tuple[list[float], int]:
    """Send a clip in `clip_s` while a new one comes every `every_s`; return the fresh ones' delays and the backlog left."""
    clock = FakeClock()
    turns = Turns(fresh_share, clock)
    waiting = [f"old{i}" for i in range(backlog)]
    came, delays, n_old = dict[str, float](), list[float](), 0
    turns.see(waiting)
    next_s = every_s
    while clock.mono_ns() < hours * 3600 * 1e9:
        while next_s <= clock.mono_ns() / 1e9:
            waiting.append(f"new{next_s}")
            came[waiting[-1]] = next_s
            next_s += every_s
        turns.see(waiting)
        clip = turns.next()
        clock.advance_s(clip_s)
        if clip is None:
            continue
        waiting.remove(clip)
        if clip in came:
            delays.append(clock.mono_ns() / 1e9 - came[clip])
        else:
            n_old += 1
    return delays, backlog - n_old


class TestTurns:
    def test_fresh_clips_are_not_starved(self) -> None:
        """After three days without a link, clips filmed now wait for seconds (p95); the backlog drains with what is left."""
        delays, left = drained(fresh_share=0.5, backlog=2000, every_s=60, clip_s=15, hours=6)
        assert sorted(delays)[round(0.95 * len(delays))] <= 60
        assert left <= 2000 - 0.7 * 6 * 3600 / 15

    def test_the_backlog_is_not_starved(self) -> None:
        """When more is filmed than the link takes, the old clips still get their half."""
        _, left = drained(fresh_share=0.5, backlog=1000, every_s=10, clip_s=15, hours=3)
        assert 1000 - left >= 0.45 * 3 * 3600 / 15

    def test_oldest_first(self) -> None:
        """Without news it is the order of the spool; what came minutes ago and was not sent is old as well."""
        clock = FakeClock()
        turns = Turns(0.5, clock)
        turns.see("abc")
        turns.see("abcde")
        clock.advance_s(Turns.FRESH_S + 1)
        assert [turns.next() for _ in range(6)] == ["a", "b", "c", "d", "e", None]
        turns.put_last("a")
        turns.give_back("b")
        assert [turns.next() for _ in range(3)] == ["b", "a", None]
