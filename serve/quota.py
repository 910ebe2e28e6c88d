"""How much each camera and host may send a day (UTC), so that none can fill the store or starve the others.

Counted when an address is given out, once for an object whose address is asked for again soon. A clip counts its
announced length, which the address enforces; a sidecar counts with its clip's camera; ledger pages and health documents count
with their host. The counts lie in memory, and in `fleet/usage/<day>.json` so that a restart of the broker does not forget them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from infra.clock import Clock
from infra.errors import ObjectMissing
from infra.log import Log
from infra.objects import Store
from infra.protocol import Ask
from serve.registry import Host

DOCUMENTS_A_DAY: Final = 5_000  # ledger pages and health documents of one host: one each 17 s
N_RECENT: Final = 256  # objects of a camera whose address may be asked for again without being counted again
SAVE_EVERY_S: Final = 60.0
_DAY_NS: Final = 86_400_000_000_000
_log = Log("serve.broker")


@dataclass(slots=True)
class _Count:
    n: int = 0
    n_bytes: int = 0
    recent: dict[str, int] = field(default_factory=dict)  # key -> bytes: an address asked for again is free


class Quota:
    """The day's counts of one broker; safe between threads.

    Args:
        store: where the counts are kept.
        clock: says which day it is.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._day: int | None = None
        self._counts: dict[str, _Count] = {}
        self._saved_ns = clock.mono_ns()

    def charge(self, host: Host, ask: Ask, key: str, n_bytes: int) -> float | None:
        """Count one object.

        Args:
            host: who asks, with its limits.
            ask: for its kind and camera.
            key: the object; asked for again, it is not counted again.
            n_bytes: its length.

        Returns:
            None when it may be sent, else the seconds until the next day begins (UTC).
        """
        with self._lock:
            now_ns = self._clock.now_ns()
            self._turn_day(now_ns // _DAY_NS)
            if ask.kind in ("clip", "sidecar"):
                name, most = f"{ask.kind} {ask.camera_id}", host.clips_a_day
            else:
                name, most = f"host {host.host_id}", DOCUMENTS_A_DAY
            count = self._counts.setdefault(name, _Count())
            charged = count.recent.get(key)
            more = n_bytes - (charged or 0)
            if (charged is None and count.n >= most) or (more > 0 and count.n_bytes + more > host.bytes_a_day):
                return (_DAY_NS - now_ns % _DAY_NS) / 1e9
            count.n += charged is None
            count.n_bytes += max(more, 0)
            count.recent[key] = max(n_bytes, charged or 0)
            if len(count.recent) > N_RECENT:
                del count.recent[next(iter(count.recent))]
            due = self._clock.mono_ns() - self._saved_ns >= SAVE_EVERY_S * 1e9
        if due:
            self.save()
        return None

    def used(self) -> Mapping[str, tuple[int, int]]:
        """Return (objects, bytes) counted today by name: `clip CAMERA`, `sidecar CAMERA`, `host HOST`."""
        with self._lock:
            return {name: (count.n, count.n_bytes) for name, count in self._counts.items()}

    def save(self) -> None:
        """Write the counts; StoreError when the store refuses."""
        with self._lock:
            self._saved_ns = self._clock.mono_ns()
            if self._day is None:
                return
            key, counts = _key(self._day), {name: [count.n, count.n_bytes] for name, count in self._counts.items()}
        self._store.put(key, json.dumps(counts, sort_keys=True).encode())

    def _turn_day(self, day: int) -> None:
        if day == self._day:
            return
        counts: dict[str, _Count] = {}
        try:  # a store that does not answer leaves the day unread: the next request tries again
            before = json.loads(self._store.get(_key(day)))
            counts = {name: _Count(int(n), int(n_bytes)) for name, (n, n_bytes) in before.items()}
        except ObjectMissing:
            pass
        except (ValueError, TypeError, AttributeError) as error:
            _log.warning("usage_unreadable", day=day, error=str(error))
        self._day, self._counts = day, counts


def _key(day: int) -> str:
    return f"fleet/usage/{datetime.fromtimestamp(day * 86_400, UTC):%Y-%m-%d}.json"
