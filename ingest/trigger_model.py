"""A model as a trigger, and what people ask for: the two reasons to record that need more than motion.

`ModelTrigger` runs a bundle by `infra.predictor.Predictor`, as the live loop does: frames by timestamp, state, smoothing. It
is on when a named label has the threshold's probability, and when the model is not sure (its top probability below the
bundle's `uncertain_below`): what a model cannot tell is what it should learn next, so it is kept and marked. With `first`
it is asked only about pictures in which that trigger saw something; the pause resets what the model carries.

`Wishing` looks for wishes (`Wanted`) around any trigger: where-expressions over what a camera knows (camera_id, site, host_id,
recording_id, hour of UTC, label, prob). A wish that asks about what the model says starts a recording by itself; one about
place and time marks what is recorded anyway, or a camera would film through every wanted hour. What nobody knows is
unknown, and a comparison with it is not met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from infra.artefacts import Bundle, Wanted
from infra.errors import QueryError, SettingsError
from infra.log import Log
from infra.predictor import Predictor
from infra.where import Where, matches, parse
from ingest.gate import Seen, Trigger

if TYPE_CHECKING:
    from infra.picture import Rgb

LOOK_EVERY_NS = 60_000_000_000
OCCASION_NS = 30_000_000_000  # what is closer together is one occasion of a wish's quota, as in the live loop
_log = Log("ingest.trigger")


class ModelTrigger:
    """On when a bundle says one of the labels, or is not sure; `score` is the best probability of these labels.

    Args:
        bundle: the model.
        labels: of the bundle.
        threshold: the least probability.
        keep_uncertain: whether to be on when the model is not sure.
        uncertain_below: when it is not; None takes the bundle's own.
        first: a cheaper trigger that must be on before the model is asked.
        threads: of ONNX Runtime.

    Raises:
        SettingsError: a label that the bundle does not have.
        ArtefactError: a bundle that cannot run.
    """

    def __init__(
        self,
        bundle: Bundle,
        labels: Sequence[str],
        *,
        threshold: float = 0.5,
        keep_uncertain: bool = True,
        uncertain_below: float | None = None,
        first: Trigger | None = None,
        threads: int = 1,
    ) -> None:
        spec = bundle.spec
        if unknown := [label for label in labels if label not in spec.labels]:
            raise SettingsError(f"labels has {unknown[0]!r}; bundle {bundle.bundle_id[:8]} has: {', '.join(spec.labels)}")
        self.name = "model" if first is None else f"{first.name} then model"
        self.small_px = (spec.width_px, spec.height_px) if first is None else first.small_px
        self._predictor = Predictor(bundle, threads=threads)
        self._indices = tuple(spec.labels.index(label) for label in labels)
        self._threshold, self._keep_uncertain, self._first = threshold, keep_uncertain, first
        self._uncertain_below = spec.uncertain_below if uncertain_below is None else uncertain_below
        self._last = Seen(False, 0.0, "the model was not asked")

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        """Look at one picture; see `Trigger`. A picture that the model does not want keeps the last verdict.

        Raises:
            ArtefactError: the model failed.
        """
        if self._first is not None:
            seen = self._first.see(small, sensor_ns, utc_ns)
            if not seen.on:
                self._last = Seen(False, 0.0, seen.reason)
                return self._last
        prediction = self._predictor.step(small, sensor_ns, sensor_ns=sensor_ns)
        if prediction is None:
            return self._last
        best = max(self._indices, key=lambda index: prediction.probs[index])
        score = prediction.probs[best]
        uncertain = self._keep_uncertain and prediction.prob < self._uncertain_below
        is_on = score >= self._threshold
        reason = f"{self._predictor.spec.labels[best]} ({score:.0%})" if is_on else "uncertain" if uncertain else "other"
        self._last = Seen(is_on or uncertain, score, reason, uncertain=uncertain, label=prediction.label, prob=prediction.prob)
        return self._last


class Wishing:
    """A trigger that also knows what people ask for.

    Args:
        trigger: the one that looks.
        known: what the camera knows of itself: names to values.
        wishes: gives what is asked for now; called about once a minute of sensor time.
    """

    def __init__(self, trigger: Trigger, known: Mapping[str, object], wishes: Callable[[], Sequence[Wanted]]) -> None:
        self._trigger, self._known, self._wishes = trigger, dict(known), wishes
        self.name, self.small_px = trigger.name, trigger.small_px
        self._looked_ns: int | None = None
        self._asked: list[tuple[Wanted, Where]] = []
        self._met: dict[str, tuple[int, int]] = {}  # wanted_id -> occasions on this camera, time of the last one

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        """Look at one picture; see `Trigger`."""
        seen = self._trigger.see(small, sensor_ns, utc_ns)
        if self._looked_ns is None or not 0 <= sensor_ns - self._looked_ns < LOOK_EVERY_NS:
            self._looked_ns, self._asked = sensor_ns, self._read()
        if not self._asked:
            return seen
        hour = None if utc_ns is None else utc_ns // 3_600_000_000_000 % 24
        row = {**self._known, "hour": hour, "label": seen.label, "prob": seen.prob}
        for wanted, where in self._asked:
            starts = not where.columns.isdisjoint(("label", "prob"))
            if (seen.on or starts) and self._is_met(wanted, where, row, sensor_ns, utc_ns):
                reason = seen.reason if seen.on else f"wanted {wanted.wanted_id}: {wanted.reason}"
                return replace(seen, on=True, reason=reason, wanted_id=wanted.wanted_id)
        return seen

    def _read(self) -> list[tuple[Wanted, Where]]:
        asked = []
        for wanted in self._wishes():
            try:
                asked.append((wanted, parse(wanted.where)))
            except QueryError as error:
                _log.warning("wish_not_understood", wanted_id=wanted.wanted_id, reason=str(error))
        return asked

    def _is_met(self, wanted: Wanted, where: Where, row: Mapping[str, object], sensor_ns: int, utc_ns: int | None) -> bool:
        n_met, last_ns = self._met.get(wanted.wanted_id, (0, -OCCASION_NS))
        is_new = sensor_ns - last_ns >= OCCASION_NS
        if (is_new and n_met >= wanted.quota) or (utc_ns is not None and utc_ns >= wanted.expires_ns):
            return False
        try:
            if not matches(where, {name: row.get(name) for name in where.columns}):
                return False
        except QueryError as error:
            _log.warning("wish_not_understood", wanted_id=wanted.wanted_id, reason=str(error))
            self._met[wanted.wanted_id] = (wanted.quota, -OCCASION_NS)  # asked once, never again
            return False
        if is_new:
            self._met[wanted.wanted_id] = (n_met + 1, sensor_ns)
        return True
