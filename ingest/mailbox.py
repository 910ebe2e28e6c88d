"""A bounded queue between a camera's thread and its reader: when it is full, new frames are refused, never old ones.

Frames of a stream need those before them, so after a refusal nothing is taken until one that stands for itself (a
keyframe). The reader sees a jump in the frame numbers; memory stays within `max_weight`.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Items with a weight, from one thread to another.

    Args:
        max_weight: the sum of the weights of what waits stays at or below it; the unit is the caller's.
    """

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._items: deque[tuple[T, int]] = deque()
        self._weight = 0
        self._refused = False
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T, weight: int, *, stands_alone: bool = True) -> bool:
        """Leave an item for the reader; return False if it was refused.

        Args:
            item: what is left.
            weight: what it weighs.
            stands_alone: it can be read without the items before it.
        """
        with self._changed:
            fits = self._weight + weight <= self._max_weight
            if self._closed or not fits or (self._refused and not stands_alone):
                self._refused = True
                return False
            self._refused = False
            self._items.append((item, weight))
            self._weight += weight
            self._changed.notify()
            return True

    def get(self, timeout_s: float) -> T | None:
        """Take the oldest item; None if none came within `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._items) or self._closed, timeout_s) or not self._items:
                return None
            item, weight = self._items.popleft()
            self._weight -= weight
            return item

    def close(self) -> list[T]:
        """Refuse everything from now on, wake the reader, and return what was still waiting."""
        with self._changed:
            self._closed = True
            left = [item for item, _ in self._items]
            self._items.clear()
            self._weight = 0
            self._changed.notify_all()
            return left
