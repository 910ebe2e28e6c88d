"""The live loop: frames in, `label (xx%)` out, what is unsure into the outbox, what was waited for into an action.

    for frame in frames:                         # all, or newest first (serve/frames.py)
        if predictor.wants(frame.sensor_ns):     # else nothing is converted
            prediction = predictor.step(...)
            -> unsure.keep / clip                # written beside the loop
            -> actions.step                      # run beside the loop
            -> a line when the label changes, and once a second

The loop never imports a camera: frames come as an iterable. However it ends, by Ctrl-C too, what it handed to its workers
is finished first, so that the outbox holds whole clips only, and the last figures are written.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from infra.artefacts import Outbox, Wanted
from infra.clock import Clock
from infra.log import Log
from infra.predictor import Predictor
from infra.records import Prediction
from serve.actions import Actions, Rule, known_rules
from serve.frames import LiveFrame, Recording
from serve.health import Counts, Health
from serve.unsure import PendingClip, Unsure
from serve.wanted import met

LINE_EVERY_S = 1.0
KEPT_LINES = 10_000
_log = Log("serve.live")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What runs: a predictor, and of the release it came with the report and the reasons why it was forced."""

    predictor: Predictor
    report_id: str | None = None
    reasons: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Live:
    """One run of the loop and all it needs.

    Args:
        model: what runs first.
        clock: for latencies.
        outbox: where unsure clips go; None keeps nothing.
        rules: [[serve.on]].
        wishes: what somebody wants filmed.
        say: gets each line for people.
        predictions: gets each prediction as one line of JSON.
        health: gets figures once a minute.
        renew: asked before each frame; a new Model swaps the one that runs.
        outbox_every_s: at most one clip per so many seconds.
        update: how the last update went, in words, for `health`.
    """

    model: Model
    clock: Clock
    outbox: Outbox | None = None
    rules: Sequence[Rule] = ()
    wishes: Sequence[Wanted] = ()
    say: Callable[[str], None]
    predictions: IO[str] | None = None
    health: Health | None = None
    renew: Callable[[], Model | None] = lambda: None
    outbox_every_s: float = 30.0
    update: str = ""
    counts: Counts = field(default_factory=Counts)
    lines: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    _pending: list[Future[Path | None]] = field(default_factory=list)
    _resets: int = 0
    _actions: Actions = field(init=False)
    _unsure: Unsure = field(init=False)
    _writing: ThreadPoolExecutor = field(init=False)
    _calling: ThreadPoolExecutor = field(init=False)
    _left: dict[str, int] = field(default_factory=dict)

    def run(self, frames: Iterable[LiveFrame], *, max_frames: int | None = None) -> Counts:
        """Run until the frames end, `max_frames` were taken, or Ctrl-C; always ends clean.

        Raises:
            CamloopError: the source or the model failed. What was counted stands in `counts`.
        """
        self._left = {wanted.wanted_id: wanted.quota for wanted in self.wishes}
        # Of their own each: a slow web hook holds up no clip, a slow card no action.
        with ThreadPoolExecutor(1, "clips") as writing, ThreadPoolExecutor(2, "actions") as calling:
            self._writing, self._calling = writing, calling
            self._begin(self.rules)
            try:
                self._loop(frames, max_frames)
            finally:
                self._unsure.end()
                self._settle(wait=True)
                self._write_health()
        return self.counts

    def _loop(self, frames: Iterable[LiveFrame], max_frames: int | None) -> None:
        recording: Recording | None = None
        line_ns, label = 0, None
        for frame in frames:
            arrived_ns = self.clock.mono_ns() if frame.arrived_ns is None else frame.arrived_ns
            self.counts.n_frames += 1
            self.counts.n_dropped += frame.n_dropped
            if (model := self.renew()) is not None:
                self._resets += self.model.predictor.n_resets
                self.model = model
                self._unsure.end()
                self._begin(known_rules(self.rules, model.predictor.spec.labels))
            predictor = self.model.predictor
            if frame.recording is not recording:
                recording, label = frame.recording, None
                predictor.reset()
                self._actions.reset()
            prediction = self._predict(predictor, frame)
            if prediction is not None:
                self.counts.latencies_s.append((self.clock.mono_ns() - arrived_ns) / 1e9)
                self.counts.n_predictions += 1
                if prediction.label != label or (frame.sensor_ns - line_ns) / 1e9 >= LINE_EVERY_S:
                    line_ns, label = frame.sensor_ns, prediction.label
                    self._line(frame, prediction)
                self.counts.n_calls += len(self._actions.step(prediction, frame.sensor_ns))
                self._keep(frame, prediction)
                self._log(frame, prediction)
            if self.health is not None and self.health.is_due:
                self._write_health()
            if max_frames is not None and self.counts.n_frames >= max_frames:
                return

    def _begin(self, rules: Sequence[Rule]) -> None:
        """Let the machines around the model begin anew, for a new model."""

        def send(clip: PendingClip) -> None:
            self._settle(wait=False)
            self._pending.append(self._writing.submit(clip.write))
            self.counts.n_sent += 1

        predictor = self.model.predictor
        self._actions = Actions(rules, predictor.spec.labels, self._calling)
        self._unsure = Unsure(self.outbox or Outbox(Path()), predictor.bundle.bundle_id, send, every_s=self.outbox_every_s)

    def _predict(self, predictor: Predictor, frame: LiveFrame) -> Prediction | None:
        if not predictor.wants(frame.sensor_ns):
            return None
        size_px = (predictor.spec.width_px, predictor.spec.height_px)
        return predictor.step(frame.rgb(size_px), frame.sensor_ns, pts=frame.pts, sensor_ns=frame.sensor_ns)

    def _keep(self, frame: LiveFrame, prediction: Prediction) -> None:
        """Remember the frame, and send a clip if this moment is unsure or wanted."""
        is_unsure = prediction.prob < self.model.predictor.spec.uncertain_below
        self.counts.n_unsure += is_unsure
        if self.outbox is None:
            return
        self._unsure.keep(frame)
        if is_unsure:
            self._unsure.trigger(prediction, "uncertain")
        elif any(self._left.values()):
            wanted = met((wish for wish in self.wishes if self._left[wish.wanted_id] > 0), _known(frame, prediction))
            if wanted is not None and self._unsure.trigger(prediction, f"wanted {wanted.wanted_id}: {wanted.reason}"):
                self._left[wanted.wanted_id] -= 1

    def _line(self, frame: LiveFrame, prediction: Prediction) -> None:
        self.say(f"{prediction.label} ({prediction.prob:.0%})")
        self.lines.append(_document(frame, prediction))

    def _log(self, frame: LiveFrame, prediction: Prediction) -> None:
        if self.predictions is not None:
            more = {
                "camera_id": frame.recording.camera_id, "boot_id": frame.recording.boot_id,
                "recording_id": frame.recording.recording_id, "recording": frame.recording.name,
                "bundle_id": self.model.predictor.bundle.bundle_id, "report_id": self.model.report_id,
                "probs": prediction.probs, "raw_probs": prediction.raw_probs,
            }  # fmt: skip
            self.predictions.write(json.dumps({**_document(frame, prediction), **more}) + "\n")

    def _settle(self, *, wait: bool) -> None:
        """Look at what the workers finished; a clip that could not be written is an event, and not counted as sent."""
        for future in [future for future in self._pending if wait or future.done()]:
            self._pending.remove(future)
            error = future.exception()
            if error is not None or future.result() is None:
                self.counts.n_sent -= 1
            if error is not None:
                _log.error("clip_not_written", error=str(error))

    def _write_health(self) -> None:
        self.counts.n_resets = self._resets + self.model.predictor.n_resets
        if self.health is not None:
            self.health.write(self.counts, bundle_id=self.model.predictor.bundle.bundle_id, update=self.update)


def _document(frame: LiveFrame, prediction: Prediction) -> dict[str, Any]:
    return {"sensor_ns": frame.sensor_ns, "pts": frame.pts, "label": prediction.label, "prob": prediction.prob}


def _known(frame: LiveFrame, prediction: Prediction) -> dict[str, object]:
    """Return what a camera knows of a moment, for where-expressions; it knows no time zone, so the hour is UTC's."""
    source = frame.recording
    utc_ns = source.utc_ns(frame.sensor_ns)
    hour_utc = None if utc_ns is None else utc_ns // 3_600_000_000_000 % 24
    return {
        "camera_id": source.camera_id, "host_id": source.host_id, "site": source.site, "recording_id": source.recording_id,
        "hour_utc": hour_utc, "label": prediction.label, "prob": prediction.prob,
    }  # fmt: skip
