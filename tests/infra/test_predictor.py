"""The predictor: resampling, reset, carried state, smoothing, and what it refuses to load."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infra import video
from infra.artefacts import Bundle, BundleSpec, StateSpec
from infra.errors import ArtefactError
from infra.predictor import Grid, Predictor, resample, stream_recording
from infra.records import Clip

WIDTH_PX, HEIGHT_PX = 8, 4
MS = 1_000_000


def counting_model(*, domain: str = "", dtype: int = TensorProto.UINT8, name: str = "frame") -> onnx.ModelProto:
    """Return a graph whose second probability is n / (n + 1) after n frames, plus nothing of the picture but its mean."""
    constants = [
        numpy_helper.from_array(np.array([1.0], np.float32), "one"),
        numpy_helper.from_array(np.array([0.0], np.float32), "zero"),
    ]
    nodes = [
        helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["count", "one"], ["count_next"], domain=domain),
        helper.make_node("Add", ["count_next", "one"], ["below"]),
        helper.make_node("Div", ["count_next", "below"], ["second"]),
        helper.make_node("Sub", ["one", "second"], ["first"]),
        helper.make_node("Add", ["first", "nothing"], ["first_seen"]),
        helper.make_node("Concat", ["first_seen", "second"], ["flat"], axis=0),
        helper.make_node("Unsqueeze", ["flat", "axis"], ["probs"]),
    ]
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "axis"))
    graph = helper.make_graph(
        nodes,
        "counting",
        [
            helper.make_tensor_value_info(name, dtype, [1, HEIGHT_PX, WIDTH_PX, 3]),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("probs", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("count_next", TensorProto.FLOAT, [1]),
        ],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


SPEC = BundleSpec(
    model_name="counting",
    labels=("first", "second"),
    width_px=WIDTH_PX,
    height_px=HEIGHT_PX,
    period_s=0.1,
    states=(StateSpec(name="count", shape=(1,)),),
)


def predictor(**changes: object) -> Predictor:
    return Predictor(Bundle(spec=dataclasses.replace(SPEC, **changes), model=counting_model().SerializeToString()))


def picture(value: int = 0) -> np.ndarray:
    return np.full((HEIGHT_PX, WIDTH_PX, 3), value, np.uint8)


def counts(model: Predictor, times_ms: list[int]) -> list[int | None]:
    """Return after each frame how many frames the model has counted, None where the frame was not due."""
    found = []
    for time_ms in times_ms:
        prediction = model.step(picture(), time_ms * MS)
        found.append(None if prediction is None else round(1 / prediction.raw_probs[0]) - 1)
    return found


def test_every_frame_of_its_own_rate_is_used_whatever_the_jitter() -> None:
    """A source at the model's rate may jitter by less than half a period against its first frame."""
    rng = random.Random(7)
    times = [0, *(100 * k + rng.randint(-24, 24) for k in range(1, 200))]
    assert resample([t * MS for t in times], 0.1) == list(range(200))


@pytest.mark.parametrize("rate", [12, 15, 25, 29.97, 30, 60])
def test_faster_sources_are_thinned_to_one_frame_per_period(rate: float) -> None:
    """Faster sources give one frame per grid point, each within half a period of it."""
    times = [round(k * 1e9 / rate) for k in range(int(rate * 20))]
    used = resample(times, 0.1)
    assert abs(len(used) - 200) <= 1
    cells = [round((times[i] - times[0]) / 1e8 + 1e-9) for i in used]
    assert len(set(cells)) == len(cells)


def test_a_drifting_source_is_not_thinned_for_ever() -> None:
    """A source 0.01 % slow with jitter loses no frame to the border between two grid points."""
    rng = random.Random(3)
    times = [round(k * 100.01 * MS) + rng.randint(-5, 5) * MS for k in range(20_000)]
    assert len(resample(times, 0.1)) > 19_990


def test_frames_that_are_not_due_give_none_and_leave_no_trace() -> None:
    """A frame between two grid points is no step of the model."""
    assert counts(predictor(), [0, 20, 100, 130, 200]) == [1, None, 2, None, 3]


def test_gap_and_time_going_back_reset() -> None:
    """More than three periods, or an earlier time, begin anew; exactly three do not."""
    assert counts(predictor(), [0, 100, 400, 701, 801, 50, 150]) == [1, 2, 3, 1, 2, 1, 2]


def test_wants_changes_nothing_and_agrees_with_step() -> None:
    """`wants` says for any time what `step` will do."""
    rng = random.Random(11)
    model, time_ns = predictor(), 0
    for _ in range(300):
        time_ns += rng.choice([5, 20, 33, 100, 120, 350]) * MS
        wanted = [model.wants(time_ns) for _ in range(3)]
        assert {model.step(picture(), time_ns) is not None} == set(wanted)


def test_smoothing_is_that_of_seed_000() -> None:
    """p = f * old + (1 - f) * new; the first frame after a reset stands as it is."""
    model, expected = predictor(smoothing=0.8), None
    for k in range(5):
        prediction = model.step(picture(), k * 100 * MS)
        assert prediction is not None
        raw = np.array(prediction.raw_probs)
        expected = raw if expected is None else 0.8 * expected + 0.2 * raw
        np.testing.assert_allclose(prediction.probs, expected, rtol=1e-12)
    model.reset()
    prediction = model.step(picture(), 0)
    assert prediction is not None and prediction.probs == prediction.raw_probs


def test_names_ride_along_and_frames_of_any_size_are_resized() -> None:
    """pts and sensor_ns are handed through; a larger picture is resized by swscale."""
    prediction = predictor().step(np.zeros((90, 160, 3), np.uint8), 5, pts=17, sensor_ns=5)
    assert prediction is not None and (prediction.pts, prediction.sensor_ns) == (17, 5)
    assert prediction.label == "first" and prediction.prob == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("model", "changes", "word"),
    [
        (counting_model(dtype=TensorProto.FLOAT), {}, "input 'frame'"),
        (counting_model(name="image"), {}, "input 'frame'"),
        (counting_model(), {"labels": ("one", "two", "three")}, "output 'probs'"),
        (counting_model(), {"labels": ("one", "one")}, "each once"),
        (counting_model(), {"states": ()}, "input 'count'"),
        (counting_model(), {"states": (StateSpec(name="count", shape=(2,)),)}, "input 'count'"),
        (counting_model(), {"width_px": 9}, "input 'frame'"),
        (counting_model(), {"smoothing": 1.0}, "smoothing"),
        (counting_model(), {"period_s": 0.0}, "period"),
        (counting_model(domain="evil.ops"), {}, "evil.ops"),
        (counting_model(domain="com.microsoft"), {}, "com.microsoft"),
    ],
)
def test_a_graph_that_is_not_what_the_bundle_says_is_refused(model: onnx.ModelProto, changes: dict, word: str) -> None:
    """Names, types, shapes, labels and operator domains are compared with bundle.json when the model is loaded."""
    with pytest.raises(ArtefactError, match=word):
        Predictor(Bundle(spec=dataclasses.replace(SPEC, **changes), model=model.SerializeToString()))


@pytest.mark.parametrize("place", ["initializer", "attribute", "branch"])
def test_external_data_is_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that lies in another file is refused wherever it hides, though the file is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(np.array([1.0], np.float32).tobytes())
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights")
    model = counting_model()
    if place == "initializer":
        model.graph.initializer.append(tensor)
    else:
        node = helper.make_node("Constant", [], ["outside"], value=tensor)
        if place == "branch":
            branch = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("outside", TensorProto.FLOAT, [1])])
            node = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch)
        model.graph.node.append(node)
    with pytest.raises(ArtefactError, match="external data"):
        Predictor(Bundle(spec=SPEC, model=model.SerializeToString()))


@pytest.mark.parametrize("junk", [b"", b"not a model", b"\x80\x04\x95pickle" * 10, b"\xff" * 64])
def test_junk_is_refused_in_one_line(junk: bytes) -> None:
    """Bytes that are no model give an ArtefactError, never a crash."""
    with pytest.raises(ArtefactError):
        Predictor(Bundle(spec=SPEC, model=junk))


def test_random_damage_never_escapes_as_another_error() -> None:
    """Flipped and cut models load or raise ArtefactError."""
    rng, whole = random.Random(5), counting_model().SerializeToString()
    for _ in range(120):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        data = bytes(damaged[: rng.randrange(len(damaged)) if rng.random() < 0.3 else len(damaged)])
        with contextlib.suppress(ArtefactError):
            Predictor(Bundle(spec=SPEC, model=data)).step(picture(), 0)


def clip_of(path: Path, **changes: object) -> Clip:
    """Return the record of a 10-frame clip of 10 frames per second at `path`."""
    seen = video.probe(path)
    fields = {
        "clip_id": path.stem,
        "key": path.name,
        "source_name": path.name,
        "container": "mp4",
        "camera_id": "c",
        "recording_id": "r",
        "boot_id": "b",
        "time_base_num": seen.time_base.numerator,
        "time_base_den": seen.time_base.denominator,
        "first_pts": seen.first_pts,
        "end_pts": seen.end_pts,
        "n_frames": seen.n_frames,
        "width_px": 32,
        "height_px": 16,
        "codec": "h264",
        "n_bytes": 1,
        "sha256": "0" * 64,
    }
    return Clip(**{**fields, **changes})


def test_a_recording_is_streamed_over_clip_borders(tmp_path: Path) -> None:
    """State goes on over a clip border; it resets at a new recording, a new boot and a gap."""
    path = tmp_path / "clip.mp4"
    writer = video.Writer(path, width_px=32, height_px=16, time_base=Fraction(1, 10))
    for k in range(10):
        writer.add(np.full((16, 32, 3), 20 * k, np.uint8), k)
    writer.close()
    second = 1_000_000_000
    clips = [
        (path, clip_of(path, start_mono_ns=0)),
        (path, clip_of(path, start_mono_ns=1 * second)),
        (path, clip_of(path, start_mono_ns=5 * second)),
        (path, clip_of(path, boot_id="b2")),
        (path, clip_of(path, boot_id="b2")),
        (path, clip_of(path, recording_id="r2", start_ns=50 * second)),
    ]
    found = [round(1 / p.raw_probs[0]) - 1 for _, _, p in stream_recording(predictor(), clips)]
    ten = list(range(1, 11))
    assert found == [*ten, *range(11, 21), *ten, *ten, *range(11, 21), *ten]


def test_grid_refuses_senseless_settings() -> None:
    """A gap shorter than the period would reset at every frame."""
    with pytest.raises(ArtefactError):
        Grid(0.1, 0.5)
