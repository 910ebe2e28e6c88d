"""1,000 cameras after an outage, all clocks injected: a discrete-event simulation around the real `Pace` and `Admission`.

    python -m tests.bench.herd [--cameras 1000] [--seeds 3]          about two minutes

What is simulated is the world: hosts with their own monotonic clocks (another zero, up to 100 ppm fast or slow), links, lost
answers, clips. What decides who asks when is the product's own code: each host holds an `ingest.pace.Pace`, the broker holds a
`serve.admission.Admission`. A clip costs three requests, as the uploader makes them: its sidecar, itself (the one that needs a
turn), a look; all of them are counted where they arrive at the broker, refused ones too.

The world, fixed before its first run (this file's history shows it):
  each camera makes a clip every 60 s, at its own phase; outage of 6 hours, so 360 clips wait on each; stated capacity 200
  clips/s for 1,000 cameras (0.2 each); clips of 1 MB (lognormal, sigma 0.3); uplinks 4 to 40 Mbit/s (log-uniform); latency
  lognormal around 80 ms (sigma 0.5); 1 % of answers lost, noticed after 10 s.
  `link`   the network comes back while all hosts run; they have been asking in vain for 20 minutes, from one common moment on
  `power`  all hosts boot in the same second, with the window that the broker told them; one in ten has never been told one
  `broker` as `link`, and the broker is away again for 60 s, ten minutes into the drain

Bars (the issue's): peak of 1 s windows <= 2 x the mean; drained within 1.25 x backlog / stated capacity; p95 of the delay of
clips made after the outage, until all is drained, <= 60 s.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import time
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

from infra.protocol import Lane
from ingest.pace import Pace
from serve.admission import Admission

CLIP_EVERY_S: Final = 60.0
OUTAGE_S: Final = 6 * 3600.0
CAPACITY_EACH: Final = 0.2  # clips a second and camera
CLIP_BYTES, CLIP_SIGMA = 1_000_000, 0.3
UPLINK_BITS_S = (4e6, 40e6)
LATENCY_S, LATENCY_SIGMA = 0.08, 0.5
LOST, LOST_AFTER_S = 0.01, 10.0
ASKED_IN_VAIN_S: Final = 1200.0
FRESH_S: Final = 120.0  # a clip older than this counts as one that waited
SECOND_OUTAGE_S = (600.0, 660.0)
NEVER_TOLD: Final = 0.1
SCENARIOS: Final = ("link", "power", "broker")

Process = Generator[float, None, None]


@dataclass
class World:
    """One run: the broker's door, what arrived there, and what was delivered."""

    scenario: str
    n_cameras: int
    seed: int
    outage_s: float = OUTAGE_S
    now_s: float = 0.0
    arrivals: Counter[int] = field(default_factory=Counter)
    delays_s: list[float] = field(default_factory=list)
    n_left: int = 0
    drained_s: float | None = None

    def __post_init__(self) -> None:
        self.admission = Admission(CAPACITY_EACH * self.n_cameras)
        self.window_s = self.admission.window_s(self.n_cameras)

    def is_away(self) -> bool:
        """Say whether nobody answers at the broker's address."""
        again = self.scenario == "broker" and SECOND_OUTAGE_S[0] <= self.now_s < SECOND_OUTAGE_S[1]
        return self.now_s < 0 or again

    def run(self) -> None:
        """Run until every clip of the outage is delivered."""
        start_s = 0.0 if self.scenario == "power" else -ASKED_IN_VAIN_S
        order = itertools.count()
        events: list[tuple[float, int, Process]] = []
        for number in range(self.n_cameras):
            host = Host(self, number, random.Random(f"{self.scenario} {self.seed} {number}"))
            self.n_left += len(host.backlog)
            heapq.heappush(events, (start_s, next(order), host.live(start_s)))
        while self.n_left and events:
            self.now_s, _, process = heapq.heappop(events)
            wait_s = next(process)
            heapq.heappush(events, (self.now_s + wait_s, next(order), process))
        self.drained_s = self.now_s


class Host:
    """One camera host: makes clips, sends fresh ones first, asks when its own `Pace` says so."""

    def __init__(self, world: World, number: int, rng: random.Random) -> None:
        self._world, self._name, self._rng = world, f"host-{number}", rng
        self._zero_s, self._speed = rng.uniform(0, 1e6), 1 + rng.uniform(-1e-4, 1e-4)
        low, high = UPLINK_BITS_S
        self._bits_s = math.exp(rng.uniform(math.log(low), math.log(high)))
        self._next_made_s = rng.uniform(0, CLIP_EVERY_S)
        n_waiting = round(world.outage_s / CLIP_EVERY_S)
        self.backlog = deque(self._next_made_s - CLIP_EVERY_S * (number + 1) for number in reversed(range(n_waiting)))
        self._fresh: deque[float] = deque()

    def _mono_s(self) -> float:
        return self._zero_s + self._world.now_s * self._speed

    def live(self, start_s: float) -> Process:
        """Send what waits, then what is made, for ever; yields seconds to wait."""
        world, rng = self._world, self._rng
        told = None if world.scenario == "power" and rng.random() < NEVER_TOLD else world.window_s
        world.now_s = start_s
        self._pace = Pace(self._mono_s(), window_s=told, rng=random.Random(rng.random()))
        while True:
            self._film()
            if not self._fresh and not self.backlog:
                yield self._next_made_s - world.now_s + 0.01
                continue
            yield from self._ask(None)  # the sidecar
            self._film()
            lane: Lane = "fresh" if self._fresh and world.now_s - self._fresh[0] < FRESH_S else "backlog"
            clips = self._fresh if self._fresh and (lane == "fresh" or not self.backlog) else self.backlog
            made_s = clips[0]
            yield from self._ask(lane)
            yield CLIP_BYTES * math.exp(rng.gauss(0, CLIP_SIGMA)) * 8 / self._bits_s
            yield from self._ask(None)  # the look
            clips.popleft()
            if made_s < 0:
                world.n_left -= 1
            else:
                world.delays_s.append(world.now_s - made_s)

    def _film(self) -> None:
        while self._next_made_s <= self._world.now_s:
            self._fresh.append(self._next_made_s)
            self._next_made_s += CLIP_EVERY_S

    def _latency_s(self) -> float:
        return LATENCY_S * math.exp(self._rng.gauss(0, LATENCY_SIGMA))

    def _ask(self, lane: Lane | None) -> Process:
        """One request, repeated until it was answered and admitted."""
        world, pace = self._world, self._pace
        while True:
            if (due_s := pace.due_s(self._mono_s(), lane)) > 0:
                yield due_s / self._speed
            there_s = self._latency_s() / 2
            yield there_s
            if world.is_away():
                yield there_s
                pace.failed(self._mono_s())
                continue
            world.arrivals[math.floor(world.now_s)] += 1
            admitted, after_s = True, 0.0
            if lane is not None:
                waiting = len(self.backlog) + len(self._fresh) - 1
                turn = world.admission.ask(self._name, lane, world.now_s, waiting=waiting)
                admitted, after_s = turn.admitted, turn.after_s
            if self._rng.random() < LOST:
                yield LOST_AFTER_S
                pace.failed(self._mono_s())
                continue
            yield self._latency_s() / 2
            pace.answered(world.window_s)
            if lane is not None:
                pace.told(self._mono_s(), math.ceil(after_s * 1000) / 1000, lane)
            if admitted:
                return


@dataclass(frozen=True)
class Shown:
    """What one run showed, beside the bars."""

    peak_over_mean: float
    drained_over_ideal: float
    fresh_p95_s: float
    peak: int
    mean: float
    drained_s: float
    n_fresh: int

    @property
    def passed(self) -> bool:
        return self.peak_over_mean <= 2 and self.drained_over_ideal <= 1.25 and self.fresh_p95_s <= 60


def measure(world: World) -> Shown:
    """Judge a run that is over."""
    assert world.drained_s is not None
    n_seconds = math.ceil(world.drained_s)
    windows = [world.arrivals[second] for second in range(n_seconds)]
    mean = sum(windows) / world.drained_s
    backlog = world.n_cameras * round(world.outage_s / CLIP_EVERY_S)
    delays = sorted(world.delays_s)
    return Shown(
        peak_over_mean=max(windows) / mean,
        drained_over_ideal=world.drained_s / (backlog / world.admission.capacity_clips_s),
        fresh_p95_s=delays[math.ceil(0.95 * len(delays)) - 1], peak=max(windows), mean=mean, drained_s=world.drained_s,
        n_fresh=len(delays),
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cameras", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--outage-s", type=float, default=OUTAGE_S)
    arguments = parser.parse_args()
    names = ("scenario", "seed", "mean /s", "peak /s", "ratio", "drained", "of ideal", "fresh p95", "n fresh", "verdict", "CPU")
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for scenario in SCENARIOS:
        for seed in range(arguments.seeds):
            began = time.process_time()
            world = World(scenario, arguments.cameras, seed, arguments.outage_s)
            world.run()
            shown = measure(world)
            verdict = "passed" if shown.passed else "MISSED"
            cells = (
                scenario, str(seed), f"{shown.mean:.0f}", str(shown.peak), f"{shown.peak_over_mean:.2f}",
                f"{shown.drained_s:.0f} s", f"{shown.drained_over_ideal:.3f}", f"{shown.fresh_p95_s:.1f} s", str(shown.n_fresh),
                verdict, f"{time.process_time() - began:.0f} s",
            )  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
