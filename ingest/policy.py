"""What the spool may hold and what it gives up first: pure functions of what the camera knew, never of what turned out true.

`value(sidecar)` is the chance that somebody will want this clip, as far as its own facts say. Reasons are independent, each
may be enough, none takes away from another, so they are joined as chances are: 1 - (1 - a)(1 - b)...

    reason             chance            why so much
    it was filmed      .05               a background without reason is still worth more than nothing
    trigger's peak     .50 x peak        motion and models are wrong about half the time at a useful threshold
    model uncertain    .80               what the model cannot tell teaches it most (the training bank)
    wanted slice met   .90               somebody asked for exactly this; the wish itself has a quota
    label given        .95               a person stood there and said what is shown; nobody will do it again

`give_up_order` then asks what a clip adds to those that stay. Clips of the same stratum (camera, trigger, boot, hour) show
much the same, so the j-th best of a stratum (j = 0, 1, ...) counts value / sqrt(1 + j): what one learns from n like clips
grows as sqrt(n). Age breaks ties only: the oldest clip counts up to a tenth less than the newest. Times are monotonic times
of a boot; the wall clock, which may be wrong, is never asked. See docs/adr/0013.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from infra.errors import SettingsError
from infra.records import Sidecar

Policy = Literal["value", "oldest", "newest", "stop"]
FILMED, PEAK, UNCERTAIN, WANTED, LABELLED = 0.05, 0.50, 0.80, 0.90, 0.95
OLDEST_LESS = 0.10
STRATUM_NS = 3_600_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolLimits:
    """The table `[spool]`: how much may wait here, and what happens beyond it.

    Attributes:
        max_bytes: of all that lies in the spool; None: no limit of its own.
        max_share_of_disk: the same as a share of the file system's size.
        keep_free_bytes: what stays free on the file system, for the segment being filmed and everybody else.
        policy: "value" gives up the least valuable clips, "oldest" the oldest, "newest" those that come now,
            "stop" none: recording stops. Each clip given up is in the ledger first.
    """

    max_bytes: int | None = None
    max_share_of_disk: float = 0.8
    keep_free_bytes: int = 256 << 20
    policy: Policy = "value"

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise SettingsError(f"max_bytes is {self.max_bytes}; legal: more than 0, or leave it out")
        if not 0 < self.max_share_of_disk <= 1:
            raise SettingsError(f"max_share_of_disk is {self.max_share_of_disk:g}; legal: more than 0 to 1, such as 0.8")
        if self.keep_free_bytes < 0:
            raise SettingsError(f"keep_free_bytes is {self.keep_free_bytes}; legal: 0 or more")
        if self.policy not in get_args(Policy):
            raise SettingsError(f"policy is {self.policy!r}; legal: {', '.join(get_args(Policy))}")

    def excess_bytes(self, used_bytes: int, more_bytes: int, disk_total_bytes: int, disk_free_bytes: int) -> int:
        """Return how many bytes must go before `more_bytes` may come; 0 when they fit."""
        limit_bytes = int(self.max_share_of_disk * disk_total_bytes)
        if self.max_bytes is not None:
            limit_bytes = min(limit_bytes, self.max_bytes)
        return max(0, used_bytes + more_bytes - limit_bytes, self.keep_free_bytes + more_bytes - disk_free_bytes)


class Candidate(NamedTuple):
    """A clip that waits, as the policy sees it; candidates come oldest first."""

    clip_id: str
    camera_id: str
    boot_id: str
    seq: int
    start_mono_ns: int
    n_bytes: int
    value: float
    trigger: str


def value(sidecar: Sidecar) -> float:
    """Return the chance, 0 to 1, that somebody will want this clip, from what its sidecar says."""
    event, sent_back = sidecar.event, str((sidecar.outbox or {}).get("reason", ""))
    chances = [
        FILMED,
        PEAK * _peak(event) if sidecar.trigger != "always" else 0.0,
        UNCERTAIN if event.get("uncertain") or sent_back == "uncertain" else 0.0,
        WANTED if event.get("wanted_id") or sent_back.startswith("wanted") else 0.0,
        LABELLED if sidecar.label is not None else 0.0,
    ]
    return 1.0 - math.prod(1.0 - chance for chance in chances)


def _peak(event: Mapping[str, object]) -> float:
    peak = event.get("peak")
    return min(1.0, max(0.0, float(peak))) if isinstance(peak, (int, float)) and math.isfinite(peak) else 0.0


def marginal_values(candidates: Sequence[Candidate]) -> list[float]:
    """Return what each candidate adds to those that are worth more than it; candidates are given oldest first."""
    strata: defaultdict[tuple[str, str, str, int], list[int]] = defaultdict(list)
    for index, clip in enumerate(candidates):
        strata[clip.camera_id, clip.trigger, clip.boot_id, clip.start_mono_ns // STRATUM_NS].append(index)
    made, last = [0.0] * len(candidates), max(1, len(candidates) - 1)
    for members in strata.values():
        members.sort(key=lambda index: (-candidates[index].value, -index))
        for rank, index in enumerate(members):
            age = 1.0 - OLDEST_LESS * (1.0 - index / last)
            made[index] = candidates[index].value * age / math.sqrt(1 + rank)
    return made


def give_up_order(candidates: Sequence[Candidate], policy: Policy) -> list[Candidate]:
    """Return the candidates (given oldest first) in the order in which the policy gives them up; none for newest and stop."""
    if policy == "oldest":
        return list(candidates)
    if policy == "value":
        worth = marginal_values(candidates)
        return [candidates[index] for index in sorted(range(len(candidates)), key=lambda index: (worth[index], index))]
    return []
