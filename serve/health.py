"""How a device is doing: figures of the live loop as JSON lines, in the columns of table `health`, for whoever asks.

`<home>/health.jsonl` gets one batch a minute and one at the end; at 4 MiB it becomes `health.1.jsonl`, which replaces the
one before, so that a card never fills up with them.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from infra import durable
from infra.clock import Clock
from serve.golden import percentile

MAX_BYTES = 4 << 20
EVERY_S = 60.0
KEPT_LATENCIES = 4096


@dataclass(slots=True)
class Counts:
    """What the live loop counts. Latencies are seconds from a frame's arrival to its prediction, the newest 4096."""

    n_frames: int = 0
    n_dropped: int = 0
    n_predictions: int = 0
    n_resets: int = 0
    n_unsure: int = 0
    n_sent: int = 0
    n_calls: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LATENCIES))

    def latency_s(self, share: float) -> float | None:
        """Return a percentile of the latencies, None before the first prediction."""
        return percentile(list(self.latencies_s), share) if self.latencies_s else None


class Health:
    """Writes a device's figures.

    Args:
        path: the file of JSON lines.
        host_id: whose figures.
        boot_id: since when they count.
        clock: for the time of each row, and when the next batch is due.
    """

    def __init__(self, path: Path, *, host_id: str, boot_id: str, clock: Clock) -> None:
        self._path = path
        self._host_id = host_id
        self._boot_id = boot_id
        self._clock = clock
        self._next_ns = clock.mono_ns() + round(EVERY_S * 1e9)

    @property
    def is_due(self) -> bool:
        """Whether a minute has passed since the last batch."""
        return self._clock.mono_ns() >= self._next_ns

    def write(self, counts: Counts, *, bundle_id: str, update: str) -> None:
        """Write one batch of rows: counts, latencies, the bundle that runs and how the last update went."""
        self._next_ns = self._clock.mono_ns() + round(EVERY_S * 1e9)
        figures: dict[str, float | None] = {
            "frames": counts.n_frames, "dropped": counts.n_dropped, "predictions": counts.n_predictions,
            "resets": counts.n_resets, "unsure": counts.n_unsure, "sent": counts.n_sent, "calls": counts.n_calls,
            "latency_p50_s": counts.latency_s(0.5), "latency_p95_s": counts.latency_s(0.95),
        }  # fmt: skip
        rows = [self._row(name, value, None) for name, value in figures.items()]
        rows += [self._row("bundle", None, bundle_id), self._row("update", None, update)]
        if self._path.exists() and self._path.stat().st_size > MAX_BYTES:
            durable.adopt(self._path, self._path.with_suffix(".1.jsonl"))
        durable.append(self._path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def _row(self, name: str, value: float | None, text: str | None) -> dict[str, object]:
        return {
            "host_id": self._host_id, "boot_id": self._boot_id, "at_ns": self._clock.now_ns(), "name": name,
            "value": value, "text": text,
        }  # fmt: skip
