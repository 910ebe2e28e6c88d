"""One predictor for everybody: the gate, the disagreement search and the Pi differ only in where frames come from.

    predictor = Predictor(Bundle.read(folder))
    for rgb, sensor_ns in frames:
        prediction = predictor.step(rgb, sensor_ns)          # None: this frame was not due

Per frame, in this order:

1. **Gap.** If more than `reset_after_periods` periods passed since the last frame that was used, or time went back,
   everything carried is forgotten: state, smoothing and time grid.
2. **Resampling by timestamp.** The first frame after a reset is used and sets a grid of points one period apart. Grid
   point k owns the times within half a period of it, [k - 1/2, k + 1/2); the first frame in there is used, the others
   are not due. So a source of the model's own rate may jitter by half a period without a frame lost or doubled, and a
   faster one is thinned at even distances. When a grid point got no frame (drops, a slower or drifting source), the
   frame that comes next sets the grid anew. `resample` is the same rule over a list of times, for training windows.
3. **Resize** by `infra.video.resize` (swscale) to the size that the bundle names; the graph normalises.
4. **Model**: `frame` uint8 (1, height_px, width_px, 3) RGB and the state tensors in, `probs` and the next states out.
5. **Smoothing** of seed 000: p = f * old + (1 - f) * new with the bundle's factor f; the first frame after a reset
   stands as it is.

`stream_recording` runs whole recordings: state is reset at a new (recording_id, boot_id) or at a gap, never at a clip border.
`recording_frames` only decodes them, for several predictors at once.
This module reads no tables and decides nothing; onnxruntime and numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra import onnx_check, video
from infra.artefacts import Bundle, StateSpec
from infra.errors import ArtefactError
from infra.onnx_check import ort_errors
from infra.records import Clip, Prediction

_ORT_TYPES = {"float32": "tensor(float)"}


class Grid:
    """The times at which a model wants a frame: the rule of the module's docstring, points 1 and 2.

    Args:
        period_s: seconds between two frames that the model wants.
        reset_after_periods: a gap longer than this many periods is a new beginning.
    """

    def __init__(self, period_s: float, reset_after_periods: float) -> None:
        if not (math.isfinite(period_s) and period_s > 0 and math.isfinite(reset_after_periods) and reset_after_periods >= 1):
            raise ArtefactError(
                f"period {period_s} s, reset after {reset_after_periods} periods; legal: a period > 0 and at least 1 period"
            )
        self._period_ns = max(round(period_s * 1e9), 1)
        self._gap_ns = round(period_s * 1e9 * reset_after_periods)
        self._origin_ns = 0
        self._last_ns: int | None = None
        self._last_cell = 0

    def reset(self) -> None:
        """Forget everything; the next frame is used."""
        self._last_ns = None

    def breaks(self, time_ns: int) -> bool:
        """Say whether a frame at `time_ns` begins anew: after a gap, or before the last one."""
        return self._last_ns is not None and not 0 <= time_ns - self._last_ns <= self._gap_ns

    def wants(self, time_ns: int) -> bool:
        """Say whether a frame at `time_ns` would be used. Changes nothing."""
        return self._last_ns is None or self.breaks(time_ns) or self._cell(time_ns) > self._last_cell

    def take(self, time_ns: int) -> None:
        """Note that the frame at `time_ns` was used."""
        cell = self._cell(time_ns)
        if self._last_ns is None or self.breaks(time_ns) or cell > self._last_cell + 1:
            self._origin_ns, cell = time_ns, 0
        self._last_ns, self._last_cell = time_ns, cell

    def _cell(self, time_ns: int) -> int:
        return (2 * (time_ns - self._origin_ns) + self._period_ns) // (2 * self._period_ns)


def resample(times_ns: Sequence[int], period_s: float, reset_after_periods: float = 3.0) -> list[int]:
    """Return the indices of the frames that a `Predictor` with this period would use, of frames at `times_ns` in order."""
    grid = Grid(period_s, reset_after_periods)
    used = []
    for index, time_ns in enumerate(times_ns):
        if grid.wants(time_ns):
            grid.take(time_ns)
            used.append(index)
    return used


class Predictor:
    """A bundle ready to run; carries its state from frame to frame.

    Args:
        bundle: the verified bundle.
        threads: threads of ONNX Runtime within one operator.

    Raises:
        ArtefactError: the graph is not what `bundle.json` says, or refers to anything outside its own bytes.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.bundle = bundle
        self.spec = bundle.spec
        self._session = _session(bundle, threads)
        self._output_names = ["probs", *(f"{state.name}_next" for state in self.spec.states)]
        self._initial = {state.name: np.full(state.shape, state.initial, dtype=state.dtype) for state in self.spec.states}
        self._grid = Grid(self.spec.period_s, self.spec.reset_after_periods)
        self._state: dict[str, NDArray[np.float32]] = {}
        self._smooth: NDArray[np.float64] | None = None
        self.n_resets = 0
        self.reset()

    def reset(self) -> None:
        """Forget state, smoothing and time grid, as at the beginning of a recording."""
        self._state = dict(self._initial)
        self._smooth = None
        self._grid.reset()
        self.n_resets += 1

    def wants(self, time_ns: int) -> bool:
        """Say whether a frame at `time_ns` (nanoseconds of one monotonic clock) is due. Changes nothing."""
        return self._grid.wants(time_ns)

    def step(
        self, rgb: NDArray[np.uint8], time_ns: int, *, pts: int | None = None, sensor_ns: int | None = None
    ) -> Prediction | None:
        """Run one frame.

        Args:
            rgb: uint8 (H, W, 3) RGB of any size.
            time_ns: its time on a clock that does not jump; only differences matter.
            pts: handed through to the prediction: the frame's ticks in its clip.
            sensor_ns: handed through to the prediction: the live frame's sensor time.

        Returns:
            The prediction (`probs` smoothed as the bundle says, `raw_probs` as the model gave them), or None when the
            frame was not due.

        Raises:
            ArtefactError: the model failed, or its probabilities are not finite.
        """
        if self._grid.breaks(time_ns):
            self.reset()
        if not self._grid.wants(time_ns):
            return None
        self._grid.take(time_ns)
        raw = self._run(rgb)
        factor = self.spec.smoothing
        smooth = raw if self._smooth is None or factor == 0 else factor * self._smooth + (1 - factor) * raw
        self._smooth = smooth
        best = int(smooth.argmax())
        return Prediction(
            label=self.spec.labels[best],
            prob=float(smooth[best]),
            probs=tuple(smooth.tolist()),
            raw_probs=tuple(raw.tolist()),
            pts=pts,
            sensor_ns=sensor_ns,
        )

    def _run(self, rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise ArtefactError(f"a frame is uint8 (H, W, 3) RGB, not {rgb.dtype} {rgb.shape}")
        size_px = (self.spec.width_px, self.spec.height_px)
        if (rgb.shape[1], rgb.shape[0]) != size_px:
            rgb = video.resize(rgb, size_px)
        try:
            probs, *states = self._session.run(self._output_names, {"frame": rgb[None], **self._state})
        except ort_errors() as error:
            raise ArtefactError(f"bundle {self.bundle.bundle_id}: the model failed on a frame: {error}") from error
        raw: NDArray[np.float64] = np.asarray(probs[0], dtype=np.float64)
        if not np.isfinite(raw).all():
            raise ArtefactError(f"bundle {self.bundle.bundle_id}: the model gave {raw.tolist()}, not probabilities")
        self._state = dict(zip(self._initial, states, strict=True))
        return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFrame:
    """A frame of a recording: uint8 (H, W, 3) RGB at (clip, pts), and its time on the recording's own clock.

    `begins` is set on the first frame of a recording, where everything carried is forgotten.
    """

    clip: Clip
    pts: int
    time_ns: int
    rgb: NDArray[np.uint8]
    begins: bool


def recording_frames(clips: Iterable[tuple[Path, Clip]], size_px: tuple[int, int]) -> Iterator[RecordedFrame]:
    """Decode clips in the order of recording, each frame once, at `size_px` (width, height).

    Times run on the recording's own clock: monotonic if its first clip knows it, else UTC; a clip that does not know
    where it stands on that clock is taken to follow its predecessor at once.

    Args:
        clips: (a readable file, its clip), the clips of one recording together and in order.
        size_px: what the frames are resized to.

    Raises:
        MediaError: a clip cannot be decoded.
    """
    recording: tuple[str, str | None] | None = None
    clock = "start_mono_ns"
    end_ns = 0
    for path, clip in clips:
        begins = (clip.recording_id, clip.boot_id) != recording
        if begins:
            recording = (clip.recording_id, clip.boot_id)
            clock = "start_mono_ns" if clip.start_mono_ns is not None else "start_ns"
            end_ns = 0
        known_ns: int | None = getattr(clip, clock)
        start_ns = end_ns if known_ns is None else known_ns
        for frames in video.decode(path, size_px=size_px, index=clip.index):
            for rgb, pts in zip(frames.rgb, frames.pts.tolist(), strict=True):
                yield RecordedFrame(clip=clip, pts=pts, time_ns=start_ns + _ticks_ns(clip, pts), rgb=rgb, begins=begins)
                begins = False
        end_ns = start_ns + _ticks_ns(clip, clip.end_pts)


def stream_recording(predictor: Predictor, clips: Iterable[tuple[Path, Clip]]) -> Iterator[tuple[Clip, int, Prediction]]:
    """Run clips in the order of recording and yield (clip, pts, prediction) for every frame that was due.

    State is reset at a new (recording_id, boot_id) and at gaps, never at a clip border; see `recording_frames`.

    Args:
        predictor: reset by this function before the first frame.
        clips: (a readable file, its clip), the clips of one recording together and in order.

    Raises:
        MediaError: a clip cannot be decoded.
    """
    for frame in recording_frames(clips, (predictor.spec.width_px, predictor.spec.height_px)):
        if frame.begins:
            predictor.reset()
        prediction = predictor.step(frame.rgb, frame.time_ns, pts=frame.pts)
        if prediction is not None:
            yield frame.clip, frame.pts, prediction


def _ticks_ns(clip: Clip, pts: int) -> int:
    return round((pts - clip.first_pts) * clip.time_base * 1_000_000_000)


def _session(bundle: Bundle, threads: int) -> Any:
    session = onnx_check.load(bundle.model, f"bundle {bundle.bundle_id}: model.onnx", threads=threads)
    spec = bundle.spec
    if not spec.labels or len(set(spec.labels)) != len(spec.labels):
        raise ArtefactError(f"bundle {bundle.bundle_id}: labels {spec.labels}; legal: at least one, each once")
    if not 0 <= spec.smoothing < 1:
        raise ArtefactError(f"bundle {bundle.bundle_id}: smoothing {spec.smoothing}; legal: [0, 1)")
    inputs = {"frame": ("tensor(uint8)", (1, spec.height_px, spec.width_px, 3)), **_state_tensors(spec.states, "")}
    outputs = {"probs": ("tensor(float)", (1, len(spec.labels))), **_state_tensors(spec.states, "_next")}
    _check_tensors(bundle.bundle_id, "input", session.get_inputs(), inputs)
    _check_tensors(bundle.bundle_id, "output", session.get_outputs(), outputs)
    return session


def _state_tensors(states: Iterable[StateSpec], suffix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = {}
    for state in states:
        if state.dtype not in _ORT_TYPES:
            raise ArtefactError(f"state {state.name!r} has dtype {state.dtype!r}; legal: {', '.join(_ORT_TYPES)}")
        tensors[state.name + suffix] = (_ORT_TYPES[state.dtype], state.shape)
    return tensors


def _check_tensors(bundle_id: str, kind: str, found: Iterable[Any], wanted: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Compare the graph's tensors with the specification's: names, types and shapes, nothing dynamic."""
    have = {tensor.name: (tensor.type, tuple(tensor.shape)) for tensor in found}
    if have != wanted:
        wrong = sorted(name for name in have.keys() | wanted.keys() if have.get(name) != wanted.get(name))
        name = wrong[0]
        raise ArtefactError(
            f"bundle {bundle_id}: {kind} {name!r} of model.onnx is {have.get(name, 'absent')}, "
            f"bundle.json says {wanted.get(name, 'absent')}"
        )
