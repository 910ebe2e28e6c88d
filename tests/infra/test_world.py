"""The simulated world: one seed gives one world, its parts share nothing, and truth is what the pixels show."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the simulated world needs the extra [cloud] (opencv-python)")

from infra.artefacts import SelectionRow
from infra.demo.actions import pose
from infra.demo.annotator import Annotator, write_answers
from infra.demo.counter import read_counter
from infra.demo.film import SimulatedCamera, cameras_toml, film, recordings
from infra.demo.light import NOISE
from infra.demo.render import render
from infra.demo.scenes import HEIGHT_PX, KINDS, WIDTH_PX, make_scene
from infra.demo.truth import ACTIONS, LIGHTINGS, WEATHERS, Action, FrameTruth, RecordingTruth, Segment
from infra.demo.world import FPS, PARTS, Beat, RecordingPlan, World
from infra.errors import ArtefactError, MediaError, UsageError
from infra.video import decode, packets


def _short(plan: RecordingPlan, n_frames: int) -> RecordingPlan:
    return dataclasses.replace(plan, n_frames=n_frames)


def _acting(action: Action, *, lighting: str = "day") -> RecordingPlan:
    """A recording in a hall with one action of 2 s, without sway, so that only the action moves."""
    world = World(5)
    plan = world.plan("train", 1, cameras=world.cameras("train")[:1], lightings=(lighting,))[0]  # type: ignore[arg-type]
    assert plan.camera.kind == "hall"
    script = (Beat(0, 20, action, "stand", 0.5, 0.5),)
    return dataclasses.replace(
        plan, script=script, n_frames=20, manner=dataclasses.replace(plan.manner, sway=0.0), switch_frame=None
    )


def _pictures(plan: RecordingPlan) -> np.ndarray:
    return np.stack([rgb for rgb, _, _ in render(plan)])


def test_one_seed_gives_one_world(tmp_path: Path) -> None:
    """The same seed gives the same frames, the same clip bytes and the same truth; another seed gives others."""
    first, again, other = (World(seed).plan("train", 4)[3] for seed in (11, 11, 12))
    assert first == again and first.recording_id != other.recording_id
    assert np.array_equal(_pictures(_short(first, 8)), _pictures(_short(again, 8)))
    assert not np.array_equal(_pictures(_short(first, 8)), _pictures(_short(other, 8)))
    one, two = (film(_short(first, 30), tmp_path / name, tmp_path / f"{name}-truth") for name in ("a", "b"))
    assert one.sidecar == two.sidecar and one.path.read_bytes() == two.path.read_bytes()
    assert one.truth_path is not None and two.truth_path is not None
    assert RecordingTruth.read(one.truth_path) == RecordingTruth.read(two.truth_path)


def test_more_recordings_do_not_change_the_first() -> None:
    """The first recordings of a longer plan are the recordings of the shorter one."""
    world = World(3)
    assert world.plan("live", 12)[:5] == world.plan("live", 5)


def test_parts_share_nothing() -> None:
    """Models, training, evaluation and live have different layouts, cameras, recordings and random numbers."""
    world = World(1)
    cameras = {part: world.cameras(part, 16) for part in PARTS}
    plans = {part: world.plan(part, 64, cameras=cameras[part]) for part in PARTS}
    for what in ("layout_seed", "camera_id", "number", "boot_id"):
        values = [getattr(camera, what) for part in PARTS for camera in cameras[part]]
        assert len(values) == len(set(values)), what
    for name in ("recording_id", "seed"):
        values = [getattr(plan, name) for part in PARTS for plan in plans[part]]
        assert len(values) == len(set(values)), name
    with pytest.raises(UsageError, match="parts must stay disjoint"):
        world.plan("train", 1, cameras=cameras["evaluate"])


def test_other_worlds_have_other_layouts() -> None:
    """Layout seeds of neighbouring world seeds do not meet, and layouts look different."""
    seeds = [camera.layout_seed for seed in range(1, 12) for part in PARTS for camera in World(seed).cameras(part, 64)]
    assert len(seeds) == len(set(seeds))
    train, judge = (World(1).cameras(part)[0] for part in ("train", "evaluate"))
    a, b = make_scene("hall", train.layout_seed), make_scene("hall", judge.layout_seed)
    assert np.abs(a.colour.astype(int) - b.colour.astype(int)).mean() > 10


def test_recordings_cover_conditions_and_actions() -> None:
    """All lightings meet all weathers outdoors, three kinds of camera see all actions, every person is its own."""
    plans = World(1).plan("train", 128)
    outdoors = {(plan.lighting, plan.weather) for plan in plans if plan.camera.kind == "yard"}
    assert outdoors == {(lighting, weather) for lighting in LIGHTINGS for weather in WEATHERS}
    assert all(plan.weather is None for plan in plans if plan.camera.indoor)
    acting = {kind: {beat.action for plan in plans if plan.camera.kind == kind for beat in plan.script} for kind in KINDS}
    assert acting["hall"] == acting["workshop"] == acting["yard"] == set(ACTIONS) and acting["street"] == {"None"}
    people = [plan.person for plan in plans]
    assert len({(p.jacket, p.height, p.girth) for p in people if p is not None}) == len(people)
    assert len({plan.level for plan in plans}) == len({plan.depth for plan in plans}) == len(plans)


def test_one_lighting_after_the_other_meets_all_weathers() -> None:
    """Taking every second recording of a camera, as a caller who alternates lightings does, still meets all weathers."""
    world = World(1)
    yard = [camera for camera in world.cameras("train") if camera.kind == "yard"]
    plans = world.plan("train", 16, cameras=yard, lightings=("day",))
    assert {plan.weather for plan in plans[::2]} == {plan.weather for plan in plans[1::2]} == set(WEATHERS)


def test_clock_time_fits_the_light_and_recordings_do_not_overlap() -> None:
    """By day it is day; no camera is in two recordings at once; sensor time is the time since its host started."""
    plans = World(2).plan("train", 96) + World(2).plan("train", 48, batch="wanted", lightings=("night",))
    for plan in plans:
        hour = plan.start_ns / 3.6e12 % 24
        assert (9 <= hour <= 16) if plan.lighting == "day" else (hour >= 18 or hour <= 3)
        assert plan.start_mono_ns + plan.camera.boot_ns == plan.start_ns and plan.start_mono_ns > 0
    for camera_id in {plan.camera.camera_id for plan in plans}:
        mine = sorted((plan.start_ns, plan.duration_s) for plan in plans if plan.camera.camera_id == camera_id)
        assert all(start + long * 1e9 < following for (start, long), (following, _) in itertools.pairwise(mine))


@pytest.mark.parametrize("size_px", [(256, 192), (96, 96), (112, 84)])
def test_counters_survive_h264_and_resizing(tmp_path: Path, size_px: tuple[int, int]) -> None:
    """Every burnt-in frame number is read back exactly from the encoded clip, at full size and resized, in all conditions."""
    n = 0
    for plan in World(4).plan("train", 8, counter=True):
        filmed = film(_short(plan, 45), tmp_path)
        for frames in decode(filmed.path, size_px=size_px):
            for rgb, pts in zip(frames.rgb, frames.pts, strict=True):
                assert read_counter(rgb) == (int(pts) // 100, plan.number)
                n += 1
    assert n == 8 * 45


def test_a_picture_without_counter_is_refused() -> None:
    """Reading a counter that was not burnt in says so."""
    with pytest.raises(MediaError, match="counter"):
        read_counter(np.full((HEIGHT_PX, WIDTH_PX, 3), 90, np.uint8))


def test_light_is_door_backwards() -> None:
    """Pose by pose Light is Door in reverse, so the set of poses is the same."""
    manner = _acting("Door").manner
    for i in range(20):
        phase = (i + 0.5) / 20
        door, light = pose("Door", phase, 2.0, manner, 0.0), pose("Light", 1 - phase, 2.0, manner, 0.0)
        assert np.allclose([*door.left, *door.right], [*light.left, *light.right], atol=1e-9)


def test_no_single_frame_tells_door_from_light() -> None:
    """Frames of Light are frames of Door in reverse up to the sensor's noise; in their own order they differ."""
    door, light = (_pictures(_acting(action)).astype(np.float32) for action in ("Door", "Light"))
    same, apart = np.abs(door - light[::-1]), np.abs(door - light)
    assert same.max() < 20 * NOISE["day"][0] and same.mean() < 2.5 * NOISE["day"][0]
    assert apart[3:8].max(axis=(1, 2, 3)).min() > 80
    assert np.abs(door.mean(0) - light.mean(0)).mean() < 1.0  # what a model without order could use


def test_a_classifier_of_frames_is_at_chance_on_door_and_light() -> None:
    """Nearest neighbours among frames of other people's sweeps do not tell Door from Light better than by chance."""
    world = World(9)
    cameras = [camera for camera in world.cameras("train") if camera.kind == "hall"]
    pictures, names, groups = [], [], []
    for group, plan in enumerate(world.plan("train", 14, cameras=cameras, lightings=("day",))):
        for rgb, _, truth in render(plan):
            if truth.action in ("Door", "Light"):
                box = truth.boxes[0]
                x, y = int((box.x1 + box.x2) / 2), int((box.y1 + box.y2) / 2)
                part = rgb[max(y - 60, 0) : y + 60 : 5, max(x - 50, 0) : x + 50 : 5]
                tile = np.zeros((24, 20, 3), np.float32)
                tile[: part.shape[0], : part.shape[1]] = part
                pictures.append(tile.ravel())
                names.append(truth.action)
                groups.append(group)
    x, y, g = np.stack(pictures), np.array(names), np.array(groups)
    far = ((x[:, None] - x[None]) ** 2).sum(2) + 1e12 * (g[:, None] == g[None])
    right = float((y[far.argmin(1)] == y).mean())
    assert 0.35 < right < 0.65, right


@pytest.mark.parametrize(("action", "moving"), [("Music", 6), ("Stop", 0)])
def test_music_moves_and_stop_holds(action: Action, moving: int) -> None:
    """In the middle of the action Music goes on moving; Stop stands still."""
    frames = _pictures(_acting(action)).astype(np.float32)[5:15]
    n = sum(float((np.abs(b - a).max(2) > 40).sum()) > 40 for a, b in itertools.pairwise(frames))
    assert n >= moving if moving else n == 0


@pytest.mark.parametrize("kind", ["hall", "workshop", "yard", "street"])
def test_boxes_are_where_the_pixels_are(kind: str) -> None:
    """A person's box is the box of the pixels that change when the person is left out."""
    world = World(6)
    cameras = [camera for camera in world.cameras("evaluate") if camera.kind == kind]
    plan = world.plan("evaluate", 1, cameras=cameras, lightings=("day",), weathers=("clear",))[0]
    plan = dataclasses.replace(plan, n_cars=0, n_animals=0, switch_frame=None)
    overlaps = []
    for (rgb, _, truth), (empty, _, _) in zip(render(plan), render(dataclasses.replace(plan, person=None)), strict=True):
        if truth.frame_number % 10 or not truth.boxes:
            continue
        changed = np.abs(rgb.astype(int) - empty.astype(int)).max(2) > 24
        changed[: max(int(truth.boxes[0].y1) - 8, 0)] = False
        ys, xs = np.nonzero(changed)
        seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], float)
        box = truth.boxes[0]
        told = np.array([box.x1, box.y1, box.x2, box.y2])
        inner = np.prod(np.clip(np.minimum(seen[2:], told[2:]) - np.maximum(seen[:2], told[:2]), 0, None))
        overlaps.append(inner / (np.prod(seen[2:] - seen[:2]) + np.prod(told[2:] - told[:2]) - inner))
    assert len(overlaps) >= 4 and np.median(overlaps) > 0.75


def test_lightings_look_as_they_are_called() -> None:
    """Day is brighter than dusk, dusk than night; infrared has no colour; a lamp that is switched on is seen."""
    world = World(8)
    for camera in world.cameras("train"):
        plans = {light: world.plan("train", 1, cameras=[camera], lightings=(light,))[0] for light in LIGHTINGS}
        frames = {light: next(render(plan))[0] for light, plan in plans.items()}
        means = {light: float(rgb.mean()) for light, rgb in frames.items()}
        assert means["day"] > means["dusk"] + 12 > means["night"] + 24 and means["night"] < 40
        assert np.ptp(frames["infrared"].astype(int), axis=2).max() <= 2
    hall = _acting("Stop")
    switched = _pictures(dataclasses.replace(hall, switch_frame=10))
    assert switched[12].mean() - switched[8].mean() > 8


def test_pframes_cost_what_real_ones_cost(tmp_path: Path) -> None:
    """P frames take .001 to .012 bytes per pixel, as those of fixed cameras in ../shared/data (docs/adr/0010)."""
    for lighting in LIGHTINGS:
        sizes = []
        for plan in World(1).plan("train", 4, lightings=(lighting,), batch=f"bytes-{lighting}"):
            found = list(packets(film(_short(plan, 60), tmp_path).path))
            assert [i for i, packet in enumerate(found) if packet.is_keyframe] == [0, 20, 40]
            sizes += [packet.n_bytes for packet in found if not packet.is_keyframe]
        assert 0.001 < np.median(sizes) / (WIDTH_PX * HEIGHT_PX) < 0.012, lighting


def test_truth_is_kept_apart(tmp_path: Path) -> None:
    """No file beside the clips names an action, a lighting or a jacket, and truth cannot be written among them."""
    plan = World(7).plan("train", 2)[1]
    film(_short(plan, 20), tmp_path / "clips", tmp_path / "truth")
    assert sorted(path.suffix for path in (tmp_path / "clips").iterdir()) == [".json", ".mp4"]
    for path in (tmp_path / "clips").iterdir():
        for word in (*ACTIONS[1:], plan.lighting, "jacket", "truth"):
            assert word.encode() not in path.read_bytes() or path.suffix == ".mp4"
    with pytest.raises(UsageError, match="outside of it"):
        film(plan, tmp_path / "clips", tmp_path / "clips" / "truth")
    with pytest.raises(ArtefactError, match="no truth file"):
        RecordingTruth.read(tmp_path / "absent.json")


def test_a_simulated_camera_is_a_source(tmp_path: Path) -> None:
    """A camera hands out numbered frames one period apart, moves its clock, and writes the truth that `film` writes."""
    plan = _short(World(7).plan("train", 1)[0], 15)
    camera = SimulatedCamera(plan)
    frames = list(camera)
    assert [frame.frame_number for frame in frames] == list(range(15))
    assert {b.sensor_ns - a.sensor_ns for a, b in itertools.pairwise(frames)} == {1_000_000_000 // FPS}
    assert camera.clock.now_ns() - plan.start_ns == 1_500_000_000 == camera.clock.mono_ns() - plan.start_mono_ns
    film(plan, tmp_path / "clips", tmp_path / "truth")
    written = RecordingTruth.read(camera.write_truth(tmp_path / "again"))
    assert recordings(tmp_path / "truth") == {plan.recording_id: written}


def test_cameras_have_a_registry() -> None:
    """The registry names every camera once with site, angle and whether it hangs indoors."""
    cameras = World(1).cameras("train", 2)
    blocks = tomllib.loads(cameras_toml(cameras))["camera"]
    assert [block["id"] for block in blocks] == [camera.camera_id for camera in cameras]
    assert {block["indoor"] for block in blocks} == {True, False} and len({block["angle"] for block in blocks}) >= 3


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RecordingPlan, object]]:
    """One filmed recording with truth."""
    folder = tmp_path_factory.mktemp("watched")
    plan = World(7).plan("train", 1)[0]
    yield folder, plan, film(plan, folder / "clips", folder / "truth").sidecar


def test_the_annotator_says_what_is_true(watched: tuple[Path, RecordingPlan, object], tmp_path: Path) -> None:
    """Without errors the answers are the script, gapless from start to end, in a file of intervals."""
    folder, plan, sidecar = watched
    answers = Annotator(folder / "truth").watch(sidecar)  # type: ignore[arg-type]
    assert [(round(a.start_s * FPS), round(a.end_s * FPS), a.label) for a in answers] == [
        (beat.start_frame, beat.end_frame, beat.action) for beat in plan.script
    ]
    document = json.loads(write_answers(answers, tmp_path / "labels.json").read_bytes())
    assert document["labels"][0].keys() == {"clip", "start_s", "end_s", "label", "annotator"}


def test_the_annotator_answers_only_what_was_asked(watched: tuple[Path, RecordingPlan, object]) -> None:
    """An interval of a Selection is answered inside its bounds; an unknown clip is refused."""
    folder, _, sidecar = watched
    row = SelectionRow(clip_id=sidecar.clip_id, start_pts=1500, end_pts=4000)  # type: ignore[attr-defined]
    annotator = Annotator(folder / "truth")
    answers = annotator.answer([row, row], {row.clip_id: sidecar})  # type: ignore[dict-item]
    assert answers[0].start_s == 1.5 and answers[-1].end_s == 4.0
    assert sum(a.end_s - a.start_s for a in answers) == pytest.approx(2.5)
    with pytest.raises(UsageError, match="no sidecar"):
        annotator.answer([row], {})


def test_the_annotator_errs_as_often_as_told(tmp_path: Path) -> None:
    """A seeded share of the answers is wrong, the same ones every time."""
    frames = tuple(FrameTruth(i, i * 100_000_000, "Door", (), True) for i in range(40))
    segments = tuple(Segment(start, start + 5, "Door") for start in range(0, 40, 5))
    plans = World(1).plan("train", 30)
    sidecars = []
    for plan in plans:
        filmed = film(_short(plan, 2), tmp_path / "clips")
        RecordingTruth(
            recording_id=plan.recording_id, camera_id="c", part="train", lighting="day", weather=None, jacket="red",
            segments=segments, frames=frames,
        ).write(tmp_path / "t")  # fmt: skip
        sidecars.append(dataclasses.replace(filmed.sidecar, sensor_ns=tuple(frame.sensor_ns for frame in frames)))
    annotator = Annotator(tmp_path / "t", error_rate=0.2, seed=3)
    said = [answer.label for sidecar in sidecars for answer in annotator.watch(sidecar)]
    assert len(said) == 240 and 0.12 < np.mean([label != "Door" for label in said]) < 0.28
    assert said == [answer.label for sidecar in sidecars for answer in annotator.watch(sidecar)]
    with pytest.raises(UsageError, match="error_rate"):
        Annotator(tmp_path, error_rate=1.5)


def test_filming_is_fast_enough(tmp_path: Path) -> None:
    """One core films at least 150 frames per second of its own time, encoding included; the figure is printed."""
    plans = World(1).plan("train", 6)
    film(_short(plans[0], 10), tmp_path)  # imports and tiles
    started = time.process_time()
    n_frames = sum(film(plan, tmp_path).sidecar.sensor_ns.__len__() for plan in plans)
    speed = n_frames / (time.process_time() - started)
    print(f"\nfilming: {speed:.0f} frames per second of one core, {speed / FPS:.0f} times real time")
    assert speed >= 150
