"""Privacy: what is hidden, and that nothing gets past it when hiding fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from infra.demo.render import render
from infra.demo.world import World
from infra.errors import ArtefactError, DeviceError, SettingsError, UsageError
from infra.onnx_boxes import FoundBox, OnnxBoxes
from infra.picture import Rgb
from infra.records import Sidecar
from infra.video import pictures
from ingest.gate import Gate, Seen
from ingest.privacy import CELLS, Privacy, PrivacySettings, private
from ingest.recorder import Recorder
from ingest.source import PRIVACY, EncodedFrame, SimulatedSource, SourceFrame, StreamFormat
from ingest.spool import Spool

DETECTOR = Path(__file__).resolve().parents[2] / "infra" / "demo" / "models" / "detector.onnx"
FACE = (255, 0, 200)  # no drawn scene has this colour: where it is seen, a face is


def face_at(number: int) -> tuple[int, int, int, int]:
    return 10 + 2 * number, 20, 34 + 2 * number, 44


def with_face(number: int, size: tuple[int, int] = (96, 160)) -> Rgb:
    """A picture with a synthetic face: a bright square with two dark eyes, at a place that moves."""
    rgb = np.full((*size, 3), 90, np.uint8)
    x1, y1, x2, y2 = face_at(number)
    rgb[y1:y2, x1:x2] = FACE
    rgb[y1 + 6 : y1 + 10, x1 + 4 : x1 + 8] = rgb[y1 + 6 : y1 + 10, x1 + 14 : x1 + 18] = 0
    return rgb


def shows_face(rgb: Rgb) -> bool:
    return bool((np.abs(rgb.astype(int) - FACE).max(axis=2) < 40).any())


def face_of(rgb: Rgb) -> tuple[float, float, float, float]:
    """Where the face is in a picture that nobody numbered."""
    ys, xs = np.nonzero((rgb == FACE).all(axis=2))
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


class Knows:
    """A finder that knows where the face is, and does what a test tells it on some pictures."""

    def __init__(self, fails: Callable[[int], None] = lambda number: None) -> None:
        self.n, self._fails = 0, fails

    def find(self, rgb: Rgb, class_names: Sequence[str], least_score: float) -> list[FoundBox]:
        number, self.n = self.n, self.n + 1
        self._fails(number)
        return [FoundBox("person", 0.9, *(float(value) for value in face_at(number)))]


def policy(**changes: object) -> PrivacySettings:
    return PrivacySettings(**{"blur": ("person",), "detector": Path("faces.onnx"), "style": "fill", **changes})  # type: ignore[arg-type]


def frames(n: int) -> Iterator[SourceFrame]:
    for number in range(n):
        yield SourceFrame(with_face(number), number * 10**8, number)


@pytest.mark.parametrize("style", ["fill", "pixelate"])
def test_what_is_found_is_hidden(style: str) -> None:
    """No picture shows the face; the rest of the picture stays; the source's own pictures are not touched."""
    given_frames = list(frames(20))
    privacy = Privacy(policy(style=style, hold_frames=0, delay_frames=0), finder=Knows())
    for before, after in zip(given_frames, privacy.frames(given_frames), strict=True):
        x1, y1, x2, y2 = face_at(before.frame_number)
        assert shows_face(before.rgb)
        assert (after.rgb[:10] == 90).all() and (after.rgb[60:] == 90).all()
        patch = after.rgb[y1:y2, x1:x2]
        assert len(np.unique(patch.reshape(-1, 3), axis=0)) <= (1 if style == "fill" else (CELLS + 1) ** 2)
        assert style == "pixelate" or not shows_face(after.rgb)
    assert (privacy.n_passed, privacy.n_withheld) == (20, 0)


def test_masks_cover_boxes_and_polygons() -> None:
    """Masks are black to the pixel beyond their edge; the rest is as it was."""
    rgb = np.full((96, 160, 3), 200, np.uint8)
    hidden = Privacy(PrivacySettings(masks=((0.5, 0.5, 1, 1), (0, 0, 0.2, 0, 0, 0.3)), style="fill")).hide(rgb)
    assert (hidden[48:, 80:] == 0).all() and (hidden[0, :30] == 0).all() and (hidden[:47, 80:] == 200).all()
    assert (hidden[30:, :79] == 200).all() and (rgb == 200).all()


def test_pixelate_leaves_few_cells() -> None:
    """A region of noise has at most 7 x 7 colours afterwards, whatever its shape."""
    rgb = np.random.default_rng(3).integers(0, 255, (90, 200, 3), dtype=np.uint8)
    hidden = Privacy(PrivacySettings(masks=((0, 0, 1, 1),))).hide(rgb)
    assert len(np.unique(hidden.reshape(-1, 3), axis=0)) <= (CELLS + 1) ** 2


def test_boxes_hold() -> None:
    """A finder that sees the face in every third picture only: with boxes that hold and a margin it stays hidden."""
    seen: list[bool] = []

    class Blinks(Knows):
        def find(self, rgb: Rgb, class_names: Sequence[str], least_score: float) -> list[FoundBox]:
            return super().find(rgb, class_names, least_score) if self.n % 3 == 0 else self._nothing()

        def _nothing(self) -> list[FoundBox]:
            self.n += 1
            return []

    for hold in (0, 3):
        privacy = Privacy(policy(hold_frames=hold, delay_frames=0, margin=0.2), finder=Blinks())
        seen.append(any(shows_face(frame.rgb) for frame in privacy.frames(frames(20))))
    assert seen == [True, False]
    privacy = Privacy(policy(hold_frames=0, delay_frames=3, margin=0.2), finder=Blinks())
    assert [shows_face(frame.rgb) for frame in privacy.frames(frames(20))] == [False] * 19 + [True]  # it ends unseen
    every = Privacy(policy(hold_frames=3, margin=0.2, every=3), finder=(finder := Knows()))
    finder.find = lambda rgb, names, score: [FoundBox("person", 0.9, *face_of(rgb))]  # type: ignore[method-assign,assignment]
    assert not any(shows_face(frame.rgb) for frame in every.frames(frames(20)))


def raises(error: Exception) -> None:
    raise error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # SystemExit ends the thread
@pytest.mark.parametrize("error", [RuntimeError("no memory"), MemoryError(), ValueError("shape"), SystemExit(3), KeyError(1)])
def test_a_picture_whose_hiding_raised_is_withheld(error: Exception) -> None:
    """Whatever goes wrong in one picture, that picture is missing, and the next one says whose fault it is."""
    privacy = Privacy(policy(), finder=Knows(lambda number: raises(error) if number in (3, 4, 9) else None))
    passed = list(privacy.frames(frames(12)))
    assert [frame.frame_number for frame in passed] == [0, 1, 2, 5, 6, 7, 8, 10, 11]
    assert [frame.frame_number for frame in passed if frame.lost == PRIVACY] == [5, 10]
    assert not any(shows_face(frame.rgb) for frame in passed)
    assert privacy.n_withheld == 3


def test_a_detector_that_hangs_holds_up_nobody() -> None:
    """While it hangs every picture is withheld at once; when it comes back, pictures pass again."""
    release, entered = threading.Event(), threading.Event()

    def hangs(number: int) -> None:
        if number == 2:
            entered.set()
            release.wait(20)

    privacy = Privacy(policy(timeout_s=0.05, hold_frames=0), finder=Knows(hangs))
    assert not shows_face(privacy.hide(with_face(0))) and not shows_face(privacy.hide(with_face(1)))
    with pytest.raises(DeviceError, match=r"longer than 0.05 s"):
        privacy.hide(with_face(2))
    assert entered.is_set()
    with pytest.raises(DeviceError, match="still busy"):
        privacy.hide(with_face(3))
    release.set()
    privacy._worker._last.result(5)  # type: ignore[union-attr]
    assert not shows_face(privacy.hide(with_face(3)))


def test_many_failures_in_a_row_end_the_recording() -> None:
    """A dead detector: nothing was passed on, and the error says what to do."""
    privacy = Privacy(policy(failures_in_a_row=5), finder=Knows(lambda number: raises(OSError("gone"))))
    with pytest.raises(DeviceError, match=r"5 pictures in a row were withheld.*check the detector"):
        list(privacy.frames(frames(50)))
    assert privacy.n_passed == 0


def test_a_look_that_failed_stays_due() -> None:
    """With `every` above 1 a dead or slow detector lets no picture pass unsearched, and ends the recording all the same."""
    privacy = Privacy(policy(every=2, failures_in_a_row=3), finder=Knows(lambda number: raises(OSError("gone"))))
    with pytest.raises(DeviceError, match=r"3 pictures in a row were withheld"):
        list(privacy.frames(frames(50)))
    assert privacy.n_passed == 0 and privacy.n_withheld == 3
    slow = threading.Event()
    late = Knows(lambda number: raises(OSError("late")) if slow.wait(5) else None)
    privacy = Privacy(policy(every=2, failures_in_a_row=3, timeout_s=0.02), finder=late)
    with pytest.raises(DeviceError, match=r"3 pictures in a row were withheld"):
        list(privacy.frames(frames(50)))
    slow.set()
    assert privacy.n_passed == 0
    privacy = Privacy(policy(every=2), finder=Knows(lambda number: raises(OSError("once")) if number == 1 else None))
    assert [frame.frame_number for frame in privacy.frames(frames(6))] == [0, 1, 3, 4, 5]  # looked at: 0, 2 (failed), 3, 5


def test_masks_that_cannot_be_drawn_end_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covering that fails is counted like looking that fails; the picture after one withheld says why it is missing."""
    privacy = Privacy(policy(failures_in_a_row=5), finder=Knows())
    monkeypatch.setattr(Privacy, "_covered", lambda self, rgb, found: raises(MemoryError("patch")))
    with pytest.raises(DeviceError, match=r"MemoryError: patch; 5 pictures in a row were withheld"):
        list(privacy.frames(frames(50)))
    assert privacy.n_passed == 0 and privacy.n_withheld == 5
    n_calls = iter(range(50))
    monkeypatch.setattr(
        Privacy, "_covered", lambda self, rgb, found: raises(MemoryError("once")) if next(n_calls) == 2 else rgb
    )
    passed = list(Privacy(policy(delay_frames=0), finder=Knows()).frames(frames(6)))
    assert [frame.frame_number for frame in passed] == [0, 1, 3, 4, 5]
    assert [frame.frame_number for frame in passed if frame.lost == PRIVACY] == [3]


@given(broken=st.sets(st.integers(0, 19)), in_a_row=st.integers(1, 10))
@settings(deadline=None, max_examples=20)
def test_killing_the_blur_stage_never_shows_a_face(broken: set[int], in_a_row: int) -> None:
    """Row 55: whichever pictures the stage dies in, 0 unhidden ones come out, and each frame is passed or withheld."""
    privacy = Privacy(
        policy(failures_in_a_row=in_a_row),
        finder=Knows(lambda number: raises(RuntimeError("killed")) if number in broken else None),
    )
    passed: list[SourceFrame] = []
    try:
        for frame in privacy.frames(frames(20)):
            passed.append(frame)
    except DeviceError:
        assert any(all(start + i in broken for i in range(in_a_row)) for start in range(20))
    else:
        assert len(passed) + privacy.n_withheld == 20
    assert not any(shows_face(frame.rgb) for frame in passed)
    assert not {frame.frame_number for frame in passed} & broken


def simulated() -> SimulatedSource:
    """A person in the simulated world, by day."""
    return SimulatedSource(World(301).plan("live", 1, lightings=("day",), duration_s=(1.6, 1.7))[0])


def unhidden(source: SimulatedSource, shown: dict[int, Rgb]) -> tuple[int, int]:
    """Count the persons in the pictures shown (by frame number), and those of which more than a tenth is not hidden."""
    n_persons = n_seen = 0
    for rgb, _, truth in render(source.plan):
        for box in truth.boxes:
            if box.class_name == "person" and truth.frame_number in shown:
                part = np.s_[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)]
                same = (np.abs(rgb[part].astype(int) - shown[truth.frame_number][part]) <= 2).all(axis=2)
                n_persons += 1
                n_seen += bool(same.mean() > 0.1)
    return n_persons, n_seen


def test_people_of_the_simulated_world_with_the_real_detector() -> None:
    """The demo's detector through onnxruntime: every person of a recording is hidden from the first picture on."""
    source = simulated()
    hidden = private(source, policy(detector=DETECTOR, simulated=True))
    n_persons, n_seen = unhidden(source, {frame.frame_number: frame.rgb for frame in hidden})
    assert n_persons >= 10 and n_seen == 0


def test_nothing_unhidden_reaches_the_spool_or_the_trigger(tmp_path: Path) -> None:
    """Through gate and recorder, with a stage that dies four times: the clip lacks those frames and says why."""
    source = simulated()
    finder = OnnxBoxes(DETECTOR)
    calls: list[int] = []
    looked: dict[int, Rgb] = {}

    class Dies:
        def find(self, rgb: Rgb, class_names: Sequence[str], least_score: float) -> list[FoundBox]:
            calls.append(len(calls))
            if calls[-1] in (5, 6, 7, 12):
                raise RuntimeError("killed")
            return finder.find(rgb, class_names, least_score)

    class Looks:
        name, small_px = "looks", (256, 192)

        def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
            looked[len(looked)] = small.copy()
            return Seen(True, 1.0, "on")

    camera = private(source, policy(detector=DETECTOR, simulated=True), finder=Dies())
    gate: Gate[SourceFrame] = Gate(Looks(), small=lambda frame: frame.rgb)
    sidecars: list[Sidecar] = []
    with Spool(tmp_path / "spool") as spool:
        Recorder(camera, spool, segment_s=60, options={"crf": "1"}).record_events(gate.events(camera), on_clip=sidecars.append)
        [path] = [path for path in (tmp_path / "spool").rglob("*.mp4") if path.stat().st_size]
        shown = [picture.rgb() for picture in pictures(path)]
    passed = [number for number in range(source.plan.n_frames) if number not in (5, 6, 7, 12)]
    assert len(shown) == len(looked) == len(passed)
    n_persons, n_seen = unhidden(source, dict(zip(passed, looked.values(), strict=True)))
    assert n_persons >= 10 and n_seen == 0
    assert unhidden(source, dict(zip(passed, shown, strict=True)))[1] == 0
    gaps = [(gap.before_frame, gap.n_missing, gap.cause) for gap in sidecars[0].gaps]
    assert gaps == [(5, 3, PRIVACY), (9, 1, PRIVACY)]


def test_encoded_frames_are_refused() -> None:
    """What is still encoded cannot be hidden in, so it is not passed on."""
    stream = StreamFormat(codec="h264", width_px=64, height_px=48, extradata=b"")
    frame = EncodedFrame(data=b"x", is_keyframe=True, sensor_ns=0, frame_number=0, format=stream)
    with pytest.raises(UsageError, match="needs pictures"):
        list(Privacy(PrivacySettings(masks=((0, 0, 1, 1),))).frames([frame]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"blur": ["person"]}, "go together"),
        ({"detector": "x.onnx"}, "go together"),
        ({"masks": [[0.5, 0, 0.5, 1]]}, "empty box"),
        ({"style": "blur"}, "legal: 'pixelate'"),
        ({"threshold": 0}, "legal: a score"),
        ({"margin": -1}, "legal: 0 to 2"),
        ({"every": 20}, "at least every - 1"),
        ({"delay_frames": 51}, "legal: 0 to 50"),
        ({"timeout_s": 0}, "at most 60"),
        ({"failures_in_a_row": 0}, "1 or more"),
        ({"mask": [[0, 0, 1, 1]]}, "did you mean masks"),
    ],
)
def test_wrong_tables_get_one_line(table: dict[str, object], said: str) -> None:
    """The value and the legal ones."""
    with pytest.raises(SettingsError) as error:
        PrivacySettings.from_table(table)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "simulated = true"),
        ({"simulated": True, "blur": ("face",)}, "blur has 'face'; detector.onnx finds: person, car, animal"),
        ({"detector": Path("nowhere.onnx")}, "give the .onnx file"),
    ],
)
def test_a_detector_that_would_find_nobody_is_refused(changes: dict[str, object], said: str) -> None:
    """One that knows drawn people only, lacks the class, or is not there: refused before the first picture."""
    with pytest.raises(SettingsError, match=said.replace(".", r"\.")):
        Privacy(policy(**{"detector": DETECTOR, **changes}))


def onnx_file(path: Path, *, out: list[int], names: str | None = "{0: 'person'}", value: float = 0.0) -> Path:
    """A detector that always gives the same numbers."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["table", "nothing"], ["output0"]),
        ],
        "fixed",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, out)],
        [
            numpy_helper.from_array(np.full(out, value, np.float32), "table"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if names is not None:
        helper.set_model_props(model, {"names": names})
    onnx.save(model, path)
    return path


def test_the_decoding_of_boxes(tmp_path: Path) -> None:
    """Letterbox and centre-width-height back to picture pixels, clipped; nothing is suppressed."""
    path = onnx_file(tmp_path / "d.onnx", out=[1, 5, 3])
    boxes = OnnxBoxes(path)
    table = np.array([[16, 16, 8, 8, 0.9], [17, 16, 8, 8, 0.8], [0, 16, 8, 8, 0.1]], np.float32)
    boxes._session = type("Fixed", (), {"run": lambda self, names, given: [table.T[None]]})()
    found = boxes.find(np.zeros((32, 64, 3), np.uint8), ["person"], 0.5)  # scale 1/2, 8 px above the picture
    assert [(box.x1, box.y1, box.x2, box.y2) for box in found] == [(24, 8, 40, 24), (26, 8, 42, 24)]
    assert boxes.find(np.zeros((32, 64, 3), np.uint8), ["person"], 0.05)[2].x1 == 0
    table[0, 0] = np.nan
    with pytest.raises(ArtefactError, match="not finite"):
        boxes.find(np.zeros((32, 64, 3), np.uint8), ["person"], 0.5)


def test_files_that_are_no_detector(tmp_path: Path) -> None:
    """Garbage, a model without names, with another output, with a wrong sidecar: refused with the reason."""
    (tmp_path / "garbage.onnx").write_bytes(b"\x00\x01garbage" * 20)
    with pytest.raises(ArtefactError):
        OnnxBoxes(tmp_path / "garbage.onnx")
    with pytest.raises(UsageError, match="a YOLO of ultralytics"):
        OnnxBoxes(onnx_file(tmp_path / "n.onnx", out=[1, 5, 3], names=None))
    with pytest.raises(UsageError, match="without suppression"):
        OnnxBoxes(onnx_file(tmp_path / "o.onnx", out=[1, 300, 6]))
    path = onnx_file(tmp_path / "s.onnx", out=[1, 5, 3])
    (tmp_path / "s.onnx.json").write_text('{"sha256": "00"}')
    with pytest.raises(ArtefactError, match="is about 00"):
        OnnxBoxes(path)
    (tmp_path / "s.onnx.json").write_text("{}")
    with pytest.raises(ArtefactError, match="not the sidecar"):
        OnnxBoxes(path)
