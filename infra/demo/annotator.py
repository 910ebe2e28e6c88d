"""The simulated annotator: looks at clips and says what people do in them, as a person with a label tool would.

It is the only reader of truth files beside tests. What it says is a label file for `camloop label import`: intervals in
seconds from the clip's first frame.
It can err: with `error_rate` it names another action, with `jitter_frames` it is late or early at the borders.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra import durable
from infra.artefacts import SelectionRow
from infra.demo.film import TIME_BASE
from infra.demo.truth import ACTIONS, Action, RecordingTruth
from infra.errors import UsageError
from infra.records import Sidecar


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One row of a label file: [start_s, end_s) of a clip, seconds from its first frame."""

    clip: str
    start_s: float
    end_s: float
    label: Action
    annotator: str


class Annotator:
    """Answers from truth files.

    Args:
        truth_folder: where `film` or `SimulatedCamera` left them.
        name: who signs the labels.
        error_rate: share of intervals that get a wrong action, 0 to 1.
        jitter_frames: borders between actions are off by up to this many frames.
        seed: of the errors; the same clip gets the same answer whatever else is asked.

    Raises:
        UsageError: a rate outside [0, 1].
    """

    def __init__(
        self, truth_folder: Path, *, name: str = "annotator", error_rate: float = 0.0, jitter_frames: int = 0, seed: int = 0
    ) -> None:
        if not 0.0 <= error_rate <= 1.0 or jitter_frames < 0:
            raise UsageError(f"error_rate {error_rate}, jitter_frames {jitter_frames}: legal are [0, 1] and 0 or more")
        self._folder = truth_folder
        self._name, self._error_rate, self._jitter, self._seed = name, error_rate, jitter_frames, seed

    def watch(self, sidecar: Sidecar, start_s: float = 0.0, end_s: float | None = None) -> list[Answer]:
        """Look at a clip, or at [start_s, end_s) of it, and return one answer per action seen, None included.

        Raises:
            ArtefactError: there is no truth about this recording.
        """
        truth = RecordingTruth.read(self._folder / f"{sidecar.recording_id}.json")
        times = sidecar.sensor_ns
        first = times[0]
        period_ns = (times[-1] - first) / max(len(times) - 1, 1)
        starts, actions = self._as_seen(truth, int(sidecar.clip_id[:8], 16))
        clip_end_ns = times[-1] + round(period_ns)
        low = first + round(start_s * 1e9)
        high = clip_end_ns if end_s is None else min(first + round(end_s * 1e9), clip_end_ns)
        begin = max(bisect.bisect_right(starts, low) - 1, 0)
        answers = []
        for start, end, action in zip(starts[begin:], [*starts[begin + 1 :], clip_end_ns], actions[begin:], strict=True):
            a, b = max(start, low), min(end, high)
            if a < b:
                seen = (round((a - first) / 1e9, 4), round((b - first) / 1e9, 4))
                answers.append(Answer(clip=sidecar.clip_id, start_s=seen[0], end_s=seen[1], label=action, annotator=self._name))
        return answers

    def _as_seen(self, truth: RecordingTruth, clip_number: int) -> tuple[list[int], list[Action]]:
        """Return where each action begins (sensor time) and which it is, with this annotator's errors."""
        rng = np.random.default_rng([self._seed, clip_number])
        starts, actions = [], []
        for segment in truth.segments:
            shift = int(rng.integers(-self._jitter, self._jitter + 1)) if segment.start_frame else 0
            at = min(max(segment.start_frame + shift, 0), len(truth.frames) - 1)
            wrong = rng.random() < self._error_rate
            others = [action for action in ACTIONS if action != segment.action]
            other = others[int(rng.integers(len(others)))]
            starts.append(truth.frames[at].sensor_ns)
            actions.append(other if wrong else segment.action)
        return starts, actions

    def answer(self, rows: Iterable[SelectionRow], sidecars: dict[str, Sidecar]) -> list[Answer]:
        """Answer the rows of a Selection.

        Args:
            rows: what was chosen to be labelled; an interval is answered inside its bounds only.
            sidecars: of the clips, by clip_id; pts run from 0 in milliseconds, as the world's clips have them.

        Raises:
            UsageError: a row about a clip that no sidecar was given for.
        """
        answers: dict[Answer, None] = {}
        for row in rows:
            if row.clip_id not in sidecars:
                raise UsageError(f"clip {row.clip_id} of the selection has no sidecar here; the annotator cannot see it")
            start_s, end_s = float(row.start_pts * TIME_BASE), float(row.end_pts * TIME_BASE)
            answers.update(dict.fromkeys(self.watch(sidecars[row.clip_id], start_s, end_s)))
        return list(answers)


def write_answers(answers: Sequence[Answer], path: Path) -> Path:
    """Write a label file for `camloop label import`."""
    durable.write(path, json.dumps({"labels": [dataclasses.asdict(answer) for answer in answers]}, indent=0).encode())
    return path
