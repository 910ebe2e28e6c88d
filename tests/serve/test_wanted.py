"""Wishes: written once, void after their time, met by what a camera knows."""

from __future__ import annotations

import pytest

from infra.clock import FakeClock
from infra.errors import QueryError, UsageError
from infra.store import MemoryStore
from serve.wanted import create, current, met


def test_a_wish_is_written_once_and_expires() -> None:
    """The same wish again is the same object; after its time it is gone, and may be made anew."""
    store, clock = MemoryStore(), FakeClock()
    first = create(store, "site = 'yard' and hour_utc >= 20", quota=5, days=2, reason="no night", clock=clock)
    clock.advance_s(3600)
    assert create(store, "site = 'yard' and hour_utc >= 20", quota=5, days=2, reason="no night", clock=clock) == first
    assert current(store, clock) == [first]
    clock.advance_s(2 * 86_400)
    assert current(store, clock) == []
    again = create(store, "site = 'yard' and hour_utc >= 20", quota=5, days=2, reason="no night", clock=clock)
    assert again.expires_ns > first.expires_ns and current(store, clock) == [again]


def test_a_camera_filters_by_what_it_knows() -> None:
    """A wish about something that this camera does not know is for others."""
    store, clock = MemoryStore(), FakeClock()
    yard = create(store, "site = 'yard'", quota=1, days=1, reason="a", clock=clock)
    night = create(store, "lighting = 'night' and prob < 0.9", quota=1, days=1, reason="b", clock=clock)
    wishes = current(store, clock)
    assert met(wishes, {"site": "yard", "prob": 0.5}) == yard
    assert met(wishes, {"site": "hall", "prob": 0.5}) is None
    assert met(wishes, {"site": "hall", "lighting": "night", "prob": 0.5}) == night


def test_wrong_wishes_are_refused() -> None:
    """An expression that cannot be read, a quota of none, a time that is over."""
    with pytest.raises(QueryError):
        create(MemoryStore(), "site ==== 'yard'", quota=1, days=1, reason="", clock=FakeClock())
    for quota, days in [(0, 1.0), (1, 0.0)]:
        with pytest.raises(UsageError):
            create(MemoryStore(), "site = 'yard'", quota=quota, days=days, reason="", clock=FakeClock())
