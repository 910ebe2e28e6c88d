"""Who may send a clip now, and who comes when: no stampede after an outage. Pure; times are seconds of one monotonic clock.

The operator states how many clips a second the store may get. Clips that waited for the uplink (`backlog`) are admitted in
slots that lie 1 / capacity apart: who comes without a slot while others wait gets the next free one as its `Retry-After`, and
each answer to a host with more to send names its next slot, so hosts take turns and nobody asks in vain. Clips made just now
(`fresh`) come at once, up to their share of the capacity and a bound per host; each pushes the slots of the backlog back.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from infra.errors import UsageError
from infra.protocol import Lane

CAPACITY_CLIPS_S: Final = 50.0
FRESH_SHARE: Final = 0.5  # of the capacity; what it does not use the backlog gets
FRESH_BURST: Final = 5  # clips of one host that may be fresh at once: an event on several cameras
FRESH_PERIOD_S: Final = 5.0  # and one more each 5 s; beyond that its clips are backlog, whatever it calls them
IDLE_BURST_S: Final = 0.25  # how much unused capacity may be caught up with
SLOT_LIFE_S: Final = 60.0  # a slot that was not used by then is void
MOST_HOSTS: Final = 20_000  # whose fresh allowance is kept before those that are whole again are dropped


@dataclass(frozen=True, slots=True)
class Turn:
    """Come in, or come back: `after_s` is when to ask for the next clip of this lane, 0 for at once."""

    admitted: bool
    after_s: float


class Admission:
    """One broker's door.

    Args:
        capacity_clips_s: how many clips a second may be started, all hosts together.

    Raises:
        UsageError: the capacity is not positive.
    """

    def __init__(self, capacity_clips_s: float = CAPACITY_CLIPS_S) -> None:
        if not capacity_clips_s > 0:
            raise UsageError(f"capacity {capacity_clips_s} clips a second; it must be positive")
        self.capacity_clips_s = capacity_clips_s
        self._next_slot_s = -math.inf
        self._next_fresh_s = -math.inf
        self._slots: dict[tuple[Lane, str], float] = {}  # the turn a host was promised: one per lane, however often it asks
        self._expiring: deque[tuple[float, Lane, str]] = deque()
        self._fresh_of: dict[str, float] = {}  # per host: when its fresh allowance is whole again

    def ask(self, host_id: str, lane: Lane, now_s: float, *, waiting: int = 0) -> Turn:
        """Decide about one clip.

        Args:
            host_id: who asks.
            lane: what the host says the clip is.
            now_s: the broker's monotonic time.
            waiting: how many more clips this host has to send; with 0 no further slot is kept for it.
        """
        self._forget(now_s)
        if lane == "fresh" and self._is_fresh(host_id, now_s):
            return self._fresh(host_id, now_s)
        return self._backlog(host_id, now_s, waiting)

    def window_s(self, n_hosts: int) -> float:
        """Return over how long a fleet of this size spreads its first requests after an outage: twice one turn of all."""
        return 2.0 * n_hosts / self.capacity_clips_s

    def _is_fresh(self, host_id: str, now_s: float) -> bool:
        full_s = max(self._fresh_of.get(host_id, 0.0), now_s)
        return full_s - now_s <= (FRESH_BURST - 1) * FRESH_PERIOD_S

    def _fresh(self, host_id: str, now_s: float) -> Turn:
        promised_s = self._slots.get(("fresh", host_id))
        if promised_s is None:
            promised_s = max(self._next_fresh_s, now_s - IDLE_BURST_S)
            self._next_fresh_s = promised_s + 1.0 / (self.capacity_clips_s * FRESH_SHARE)
            if promised_s > now_s:
                self._keep("fresh", host_id, promised_s)
        if promised_s > now_s:
            return Turn(False, promised_s - now_s)
        self._slots.pop(("fresh", host_id), None)
        self._fresh_of[host_id] = max(self._fresh_of.get(host_id, 0.0), now_s) + FRESH_PERIOD_S
        self._take(now_s)
        return Turn(True, 0.0)

    def _backlog(self, host_id: str, now_s: float, waiting: int) -> Turn:
        promised_s = self._slots.get(("backlog", host_id))
        if promised_s is None:
            promised_s = self._take(now_s)
            if promised_s > now_s:
                self._keep("backlog", host_id, promised_s)
        if promised_s > now_s:
            return Turn(False, promised_s - now_s)
        self._slots.pop(("backlog", host_id), None)
        if waiting <= 0 or self._next_slot_s <= now_s:  # the last one, or nobody else waits: it may come when it likes
            return Turn(True, 0.0)
        slot_s = self._take(now_s)
        self._keep("backlog", host_id, slot_s)
        return Turn(True, slot_s - now_s)

    def _take(self, now_s: float) -> float:
        slot_s = max(self._next_slot_s, now_s - IDLE_BURST_S)
        self._next_slot_s = slot_s + 1.0 / self.capacity_clips_s
        return slot_s

    def _keep(self, lane: Lane, host_id: str, slot_s: float) -> None:
        self._slots[lane, host_id] = slot_s
        self._expiring.append((slot_s + SLOT_LIFE_S, lane, host_id))

    def _forget(self, now_s: float) -> None:
        while self._expiring and self._expiring[0][0] <= now_s:
            expires_s, lane, host_id = self._expiring.popleft()
            if self._slots.get((lane, host_id)) == expires_s - SLOT_LIFE_S:
                del self._slots[lane, host_id]
        if len(self._fresh_of) > MOST_HOSTS:
            self._fresh_of = {host: whole_s for host, whole_s in self._fresh_of.items() if whole_s > now_s}
