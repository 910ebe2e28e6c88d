"""When a camera host asks next: so that a thousand of them do not fall upon a broker that has just come back.

Pure; times are seconds of the host's own monotonic clock. The first request of a process waits for a draw from the window
that the broker named when it last answered (it grows with the fleet). A request without an answer is followed by a pause drawn
afresh between the shortest one and three times the last (decorrelated jitter), so that hosts which lost the broker at one
moment do not come back at one moment. What the broker says about its lanes is kept: the next clip that had waited goes when it
is its turn; a fresh one does not wait for those.
"""

from __future__ import annotations

import random
import threading
from typing import Final

from infra.protocol import Lane

FIRST_WINDOW_S: Final = 60.0  # of a host that no broker ever told one
LONGEST_WINDOW_S: Final = 900.0  # a broker cannot make a host wait longer for its first request
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0  # or the window, where that is longer
LONGEST_TURN_S: Final = 3600.0


class Pace:
    """One host's patience with one broker; safe between threads.

    Args:
        now_s: the host's monotonic time at the start.
        window_s: what the broker said when it last answered, None if it never did.
        rng: draws the pauses; no two hosts may share its seed.
    """

    def __init__(self, now_s: float, *, window_s: float | None = None, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self.window_s = FIRST_WINDOW_S if window_s is None else _between(window_s, LONGEST_WINDOW_S)
        self._pause_s = FIRST_PAUSE_S
        self._any_s = now_s + self._rng.uniform(0.0, self.window_s)  # no request before
        self._lane_s: dict[Lane, float] = {}  # no clip of that lane before
        self._lock = threading.Lock()

    def due_s(self, now_s: float, lane: Lane | None = None) -> float:
        """Return how many seconds to wait before asking, 0 for none.

        Args:
            now_s: the host's monotonic time.
            lane: of the clip to send; None for what is no clip.
        """
        with self._lock:
            until_s = self._any_s if lane is None else max(self._any_s, self._lane_s.get(lane, 0.0))
            return max(0.0, until_s - now_s)

    def answered(self, window_s: float | None = None) -> None:
        """The broker answered, whatever it said; `window_s` is what it named, if it did."""
        with self._lock:
            self._pause_s = FIRST_PAUSE_S
            if window_s is not None:
                self.window_s = _between(window_s, LONGEST_WINDOW_S)

    def failed(self, now_s: float) -> float:
        """No answer, or one that says the broker cannot: pause; return for how many seconds."""
        with self._lock:
            longest_s = max(LONGEST_PAUSE_S, self.window_s)
            self._pause_s = self._rng.uniform(FIRST_PAUSE_S, min(longest_s, 3 * self._pause_s))
            self._any_s = max(self._any_s, now_s + self._pause_s)
            return self._pause_s

    def told(self, now_s: float, after_s: float, lane: Lane | None = None) -> None:
        """The broker said when to come for the next clip of a lane, or, without a lane, for anything."""
        until_s = now_s + _between(after_s, LONGEST_TURN_S)
        with self._lock:
            if lane is None:
                self._any_s = max(self._any_s, until_s)
            else:
                self._lane_s[lane] = until_s


def _between(value: float, most: float) -> float:
    return min(max(0.0, value), most)
