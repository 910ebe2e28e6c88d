"""What each camera did today and since the agent's start, and what the spool lost today: counts that survive restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ingest.agent_state import read_state
from ingest.watchdog import Beat


@dataclass(slots=True, kw_only=True)
class Counts:
    """Frames that came, that the source lost, that the trigger did not keep; clips made."""

    n_frames: int = 0
    n_dropped: int = 0
    n_skipped: int = 0
    n_clips: int = 0

    def add(self, more: Counts) -> None:
        """Add another's counts."""
        for name in (each.name for each in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(more, name))


@dataclass(slots=True, kw_only=True)
class DayTally:
    """Counts by camera: `today` of the host's local day, `total` since the agent's start; and what the spool gave up today."""

    day: str
    today: dict[str, Counts]
    total: dict[str, Counts]
    spool_before: dict[str, int] = field(default_factory=dict)  # the spool's counts at the beginning of the day
    _before: dict[str, Beat] = field(default_factory=dict)

    @classmethod
    def read(cls, spool: Path, cameras: Sequence[str], day: str) -> DayTally:
        """Begin, with what an earlier agent of this spool counted on the same day."""
        today = {name: Counts() for name in cameras}
        state = read_state(spool)
        if state is not None and state.get("day") == day:
            for camera in state.get("cameras", ()):
                if camera["id"] in today:
                    today[camera["id"]] = Counts(**camera["today"])
        before = state.get("spool_before", {}) if state is not None and state.get("day") == day else {}
        return cls(day=day, today=today, total={name: Counts() for name in cameras}, spool_before=dict(before))

    def turn_to(self, day: str) -> None:
        """Begin a new day, if it is one."""
        if day != self.day:
            self.day, self.today, self.spool_before = day, {name: Counts() for name in self.today}, {}

    def spool_today(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return what was added to the spool's counts today; the first look of a day is its beginning."""
        for name, n in counts.items():
            self.spool_before.setdefault(name, n)
        return {name: max(0, n - self.spool_before[name]) for name, n in counts.items()}

    def take(self, name: str, beat: Beat | None) -> None:
        """Count what came since the last look. A recorder's own counts begin at zero when it is started again."""
        before = self._before.get(name)
        if beat is None or beat == before:
            return
        more = Counts(**{each.name: getattr(beat, each.name) for each in fields(Counts)})
        if before is not None and beat.n_frames >= before.n_frames:
            for key, value in asdict(more).items():
                setattr(more, key, value - getattr(before, key))
        self._before[name] = beat
        self.today[name].add(more)
        self.total[name].add(more)
