"""A clip against its camera's usual, on drawn pictures: what must be named, and what must not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from curate import factors, layers, scan, scene, scores, usual
from curate.plan import Options
from curate.query import open_catalog as open_footage
from curate.run import curate
from infra import video
from infra.catalog import Catalog, Done
from infra.settings import Settings

WIDTH, HEIGHT = 320, 180
NOON_NS = 1_750_503_600_000_000_000  # 2025-06-21 11:00 UTC
DAY_NS, HOUR_NS = 86_400_000_000_000, 3_600_000_000_000
KEPT, SUCCESSIVE = 3, 4  # pictures of a drawn clip: three kept ones, each with the three after it, 30 a second
ODD = 3  # the day that differs

Rgb = NDArray[np.uint8]
Drawn = NDArray[np.float32]
Change = Callable[[Drawn, int, np.random.Generator], Drawn]


@functools.cache
def world() -> Drawn:
    """A yard larger than the picture: boxes of all sizes and colours on a grained ground, in linear grey levels."""
    generator = np.random.default_rng(5)
    made = np.full((HEIGHT + 80, WIDTH + 80, 3), (120, 122, 112), np.float32)
    for _ in range(160):
        x, y = generator.integers(0, WIDTH + 60), generator.integers(0, HEIGHT + 60)
        width, height = generator.integers(6, 60, 2)
        grain = generator.normal(0, generator.choice([0, 8]), (height, width, 1))
        part = made[y : y + height, x : x + width]
        part[:] = generator.uniform(40, 200) + generator.uniform(-15, 15, 3) + grain[: len(part), : part.shape[1]]
    return made


def view(right_px: int = 0, down_px: int = 0) -> Drawn:
    """The part of the world that a camera sees; things lie `right_px` further right than usual."""
    return world()[40 - down_px : 40 - down_px + HEIGHT, 40 - right_px : 40 - right_px + WIDTH].copy()


def film(change: Change, *, seed: int, noise_sd: float = 2.0) -> dict[str, Any]:
    """Return the row of a clip of a view, each picture changed by `change(picture, its number, generator)`."""
    generator, look = np.random.default_rng(seed), scene.Look()
    for kept in range(KEPT):
        for after in range(SUCCESSIVE):
            number = 30 * kept + after
            drawn = change(view(), number, generator) + generator.normal(0, noise_sd, (HEIGHT, WIDTH, 1))
            frame = av.VideoFrame.from_ndarray(np.clip(np.rint(drawn), 0, 255).astype(np.uint8), "rgb24")
            look.see(video.Picture(number, Fraction(1, 30), frame), after == 0)
    row = look.row()
    assert row is not None
    return scene.unpacked(row)


def plain(drawn: Drawn, number: int, generator: np.random.Generator) -> Drawn:
    return drawn


@functools.cache
def usual_days() -> tuple[dict[str, Any], ...]:
    """Six days of the plain view, a little darker or brighter."""
    return tuple(
        film(lambda drawn, *_, gain=gain: drawn * gain, seed=seed) for seed, gain in enumerate((1, 0.9, 1.1, 1, 0.95, 1.05))
    )


def put(catalog: Catalog, rows: dict[tuple[int, int], dict[str, Any]]) -> list[tuple[str, str]]:
    """Add clips of one camera, (day, hours after noon) -> row of `scenes`; return (day, what) that is said of them."""
    clips, scenes = list[dict[str, Any]](), list[dict[str, Any]]()
    for (day, hour), row in rows.items():
        clip_id = f"{100 * day + hour:032}"
        clips.append({
            "clip_id": clip_id, "key": f"clips/{clip_id}", "camera_id": "yard", "camera_number": 1, "state": "live",
            "recording_id": clip_id, "start_ns": NOON_NS + day * DAY_NS + hour * HOUR_NS, "time_base_num": 1,
            "time_base_den": 30, "first_pts": 0, "end_pts": 90, "n_frames": 90,
        })  # fmt: skip
        scenes.append({"clip_id": clip_id, **row})
    catalog.commit({"clips": clips}, [Done("clip", row["clip_id"], "register", "f", 1, 1) for row in clips])
    catalog.commit({"scenes": scenes}, [Done("clip", row["clip_id"], "scan", "f", 1, 1) for row in clips])
    return [(day, what) for _, day, what in usual.unlike(open_footage(catalog.store))]


def said(catalog: Catalog, odd: dict[str, Any], days: tuple[dict[str, Any], ...] | None = None) -> list[tuple[str, str]]:
    """Return what is said of six days, a clip each, of which number `ODD` is another one."""
    return put(catalog, {(day, 0): row for day, row in enumerate(days or usual_days())} | {(ODD, 0): odd})


def blurred(drawn: Drawn, px: int) -> Drawn:
    """Return the picture, blurred by three boxes of `px`."""
    import cv2

    for _ in range(3):
        drawn = np.asarray(cv2.blur(drawn, (px, px)), np.float32)
    return drawn


def moved(drawn: Drawn, *_: object) -> Drawn:
    return view(right_px=-16, down_px=10)


def turned(drawn: Drawn, *_: object) -> Drawn:
    return view()[::-1, ::-1]


def covered(drawn: Drawn, *_: object) -> Drawn:
    """A cloth: nearly even, grey, a little brighter on one side."""
    return drawn * 0 + np.linspace(30, 60, WIDTH, dtype=np.float32)[None, :, None]


def black(drawn: Drawn, *_: object) -> Drawn:
    return drawn * 0 + 6


def dirty(drawn: Drawn, *_: object) -> Drawn:
    """A drop on the upper right fifth of the lens, out of focus."""
    soft = blurred(drawn, 11)
    drawn[: HEIGHT // 2, -WIDTH * 2 // 5 :] = soft[: HEIGHT // 2, -WIDTH * 2 // 5 :]
    return drawn


def tinted(drawn: Drawn, *_: object) -> Drawn:
    return drawn * np.array([1.0, 0.95, 0.75], np.float32)


def lamp_100_hz(drawn: Drawn, number: int, generator: np.random.Generator) -> Drawn:
    """Mains light of 100 Hz at 30 pictures a second, 6 % deep."""
    return drawn * np.float32(1 + 0.06 * np.sin(2 * np.pi * 100 * number / 30 + 0.4))


@pytest.mark.parametrize(
    ("change", "noise_sd", "word", "number"),
    [
        (moved, 2, "moved: the view lies 5.", "% of its width to the left and 5."),
        (turned, 2, "another view", "usually 0."),
        (covered, 2, "covered, or dense fog", "mean luma 4"),
        (black, 0.5, "black: covered, or without light", "mean luma 6"),
        (dirty, 2, "dirt, a drop or a web", "around the upper right"),
        (tinted, 2, "colour cast", "blue -0.2"),
        (plain, 6, "noise 5.", "(usually 1.9)"),
        (lamp_100_hz, 2, "light flickers from picture to picture by ", "(usually 0."),
    ],
)
def test_what_happened_is_named(catalog: Catalog, change: Change, noise_sd: float, word: str, number: str) -> None:
    """The day is named with its number, one thing is said of it, and nothing of the other days."""
    found = said(catalog, film(change, seed=77, noise_sd=noise_sd))
    assert [day for day, _ in found] == ["2025-06-24"]
    assert found[0][1].startswith(word) and number in found[0][1] and ";" not in found[0][1]


def switched(drawn: Drawn, number: int, generator: np.random.Generator) -> Drawn:
    """The light goes out in the middle of the clip; what is left is a fifth."""
    return drawn * (1.0 if number < 32 else 0.2)


def night(drawn: Drawn, number: int, generator: np.random.Generator) -> Drawn:
    """A street lamp on the left, a quarter of the light and less."""
    return drawn * np.linspace(0.3, 0.12, WIDTH, dtype=np.float32)[None, :, None]


def infrared(drawn: Drawn, number: int, generator: np.random.Generator) -> Drawn:
    """Grey, what was red is bright, what was bright is dimmer: contrast turned round."""
    return np.repeat(255 - drawn[..., :1] * 0.8, 3, axis=2)


def half_lit(drawn: Drawn, *_: object) -> Drawn:
    """A shadow with a hard edge lies over the left half."""
    drawn[:, : WIDTH // 2] *= 0.35
    return drawn


def people(drawn: Drawn, number: int, generator: np.random.Generator) -> Drawn:
    """Three walk through, each a tenth of the picture, in red."""
    for person in range(3):
        x = int((number * 3 + person * 100) % (WIDTH - 40))
        drawn[40:150, x : x + 40] = (190, 30, 40)
    return drawn


def rain(drawn: Drawn, number: int, generator: np.random.Generator) -> Drawn:
    """Four hundred streaks that no two pictures have in common."""
    for x, y in zip(generator.integers(0, WIDTH, 400), generator.integers(0, HEIGHT - 14, 400), strict=True):
        drawn[y : y + 14, x] += 50
    return drawn


def parked(drawn: Drawn, *_: object) -> Drawn:
    """A white van that stays all day."""
    drawn[60:130, 30:130] = 210
    drawn[70:90, 40:60] = drawn[115:130, 45:60] = drawn[115:130, 100:115] = 40
    return drawn


@pytest.mark.parametrize("change", [plain, switched, night, infrared, half_lit, people, rain, parked])
def test_light_weather_and_people_are_not_named(catalog: Catalog, change: Change) -> None:
    """Nothing is wrong with the camera: nothing is said of any day."""
    assert said(catalog, film(change, seed=77)) == []


def test_nights_are_held_against_nights(catalog: Catalog) -> None:
    """A camera that moved is named at night too, from noisy pictures; the plain nights are not."""
    nights = tuple(film(night, seed=seed, noise_sd=5) for seed in range(6))
    found = said(catalog, film(lambda drawn, *rest: night(moved(drawn), *rest), seed=9, noise_sd=5), nights)
    assert [day for day, _ in found] == ["2025-06-24"] and found[0][1].startswith("moved")


def test_one_hour_of_several_is_not_enough(catalog: Catalog) -> None:
    """A cloth for an hour of three is not named, for two it is, with the first of them."""
    rows = {(day, hour): row for day, row in enumerate(usual_days()) for hour in range(3)}
    cloth = film(covered, seed=77)
    found = put(catalog, rows | {(1, 2): cloth, (4, 1): cloth, (4, 2): cloth})
    assert [day for day, _ in found] == ["2025-06-25"] and found[0][1].endswith("2 of 3 hours compared, from 12:00 on")


def test_a_camera_that_moved_for_good_is_named_on_the_fewer_days(catalog: Catalog) -> None:
    """Two days of six after somebody knocked it; the four before agree with each other."""
    after = {(day, 0): film(moved, seed=day) for day in (4, 5)}
    found = put(catalog, {(day, 0): row for day, row in enumerate(usual_days())} | after)
    assert [day for day, _ in found] == ["2025-06-25", "2025-06-26"]
    assert all(what.startswith("moved: the view lies 5.") for _, what in found)


def test_three_days_are_too_few(catalog: Catalog) -> None:
    """Two others are no usual: nothing is said, and the columns are null."""
    assert put(catalog, {(0, 0): usual_days()[0], (1, 0): usual_days()[1], (2, 0): film(covered, seed=7)}) == []
    hours = usual.by_hour(open_footage(catalog.store))
    assert hours["n_others"].to_list() == [2, 2, 2] and hours["structure_usual"].null_count() == 3
    assert hours["agreement_there"].null_count() == 3 and hours["noise"].null_count() == 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of the yard in H.264, thirty pictures a second."""
    path = tmp_path_factory.mktemp("scene") / "yard.mp4"
    generator = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"crf": "12", "preset": "ultrafast", "g": "30"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(120):
            drawn = np.clip(lamp_100_hz(view(), number, generator), 0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(drawn, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def scanned(path: Path, **how: Any) -> Iterator[dict[str, Any]]:
    return scan.scan_clip(path, every_s=1.0, sizes_px={}, **{"index": video.probe(path).index, **how})


def test_a_scan_with_score_2_has_a_scene_and_the_default_has_none(clip: Path) -> None:
    """The row of a real clip has its flicker and outline; the default scan's last part is what it always was."""
    *_, end = scanned(clip, score=2)
    row = scene.unpacked(end["scene"])
    assert row["n_pictures"] == 4 and 0.04 < row["flicker"] < 0.1
    found = scene.agreement(scene.field(scene.outline_of(row)), scene.field(scene.outline_of(usual_days()[0])))
    assert found > 0.8
    *_, by_default = scanned(clip)
    assert set(by_default) == {"gops"}


@pytest.mark.parametrize("how", [{"gate": "packets", "clip_id": "0" * 32}, {"index": "sequential"}])
def test_ways_of_scanning_agree_on_the_scene(clip: Path, how: dict[str, Any]) -> None:
    """Through the gate, and read from start to end: the same flicker and outline as without either, where all is decoded."""
    *_, plain_end = scanned(clip, score=2)
    *_, end = scanned(clip, score=2, **how)
    assert all(gop["decoded"] for gop in end["gops"])
    assert end["scene"] == plain_end["scene"]


def test_what_cannot_be_measured_is_unknown() -> None:
    """A clip of single pictures a second apart has no flicker, a black one no noise and no cast, a tiny one no sharpness."""
    look = scene.Look()
    look.see(video.Picture(0, Fraction(1), av.VideoFrame.from_ndarray(np.full((10, 160, 3), 90, np.uint8), "rgb24")), True)
    for tiny, n in ((look, 1), (scene.Look(), 0)):
        made = tiny.row()
        assert made["n_pictures"] == n and [value for name, value in made.items() if name != "n_pictures"] == [None] * 8
        assert scene.unpacked(made) == made
    look = scene.Look()
    for number in range(4):
        frame = av.VideoFrame.from_ndarray(np.zeros((12, 16, 3), np.uint8), "rgb24")
        look.see(video.Picture(number, Fraction(1), frame), True)
    row = look.row()
    assert row["n_pictures"] == 4 and row["outline_width_px"] == 8
    assert [row[name] for name in ("noise", "cast_red", "cast_blue", "flicker", "sharpness")] == [None] * 5


def test_a_long_clip_holds_few_pictures_and_the_same_outline() -> None:
    """A hundred kept pictures: memory stays at `MOST_PICTURES`, the median is that of the view."""
    look, frame = scene.Look(), av.VideoFrame.from_ndarray(view().astype(np.uint8), "rgb24")
    for number in range(100):
        look.see(video.Picture(number, Fraction(1), frame), True)
    row = look.row()
    assert row is not None and row["n_pictures"] == 100 and len(look._wide) < scene.MOST_PICTURES
    assert np.array_equal(
        scene.outline_of(scene.unpacked(row)), scene._halved(frame.reformat(format="gray").to_ndarray().astype(np.float32))
    )


def test_a_run_writes_a_row_per_clip_and_the_default_run_none(
    catalog: Catalog, add_clip: Callable[..., str], clip: Path
) -> None:
    """Through the decoder's child and the collector: a live row with score 2; scanned in the default way, it is gone."""
    clip_id = add_clip(catalog, "yard", clip.read_bytes())
    options = Options(steps=("scan",), sheet=factors.parse(factors.DEFAULT), score=2)
    curate(catalog, options, Settings())
    rows = catalog.scan("scenes").collect()
    assert rows["clip_id"].to_list() == [clip_id] and rows["flicker"][0] > 0.04 and len(rows["sharpness"][0]) == 144
    assert scene.outline_of(rows.row(0, named=True)).shape == (HEIGHT // 2, WIDTH // 2)
    curate(catalog, dataclasses.replace(options, score=1), Settings())
    assert catalog.scan("scenes").collect().is_empty() and not catalog.scan("frames").collect().is_empty()
    assert usual.unlike(open_footage(catalog.store)) == []


def test_a_clip_that_shows_nothing_does_not_change_the_threshold_of_a_store(
    catalog: Catalog, add_clip: Callable[..., str], clip: Path, tmp_path: Path
) -> None:
    """A strip of 8 px beside a proper clip, both with score 2: motion begins as score 2 wants it, in the tables and live."""
    with video.Writer(tmp_path / "strip.mp4", 320, 8, Fraction(1, 10)) as writer:
        for pts in range(20):
            writer.add(np.full((8, 320, 3), 90, np.uint8), pts)
    names = {add_clip(catalog, "yard", clip.read_bytes()), add_clip(catalog, "strip", (tmp_path / "strip.mp4").read_bytes())}
    curate(catalog, Options(steps=("scan",), sheet=factors.parse(factors.DEFAULT), score=2), Settings())
    rows = catalog.scan("scenes").collect()
    assert set(rows["clip_id"]) == names and rows["outline"].null_count() == 1
    assert scores.motion_on(catalog) == layers.ON[2]


def test_an_hour_is_judged_by_its_first_clip_that_shows_something(catalog: Catalog) -> None:
    """Clips of an hour before the first with an outline, and hours of nothing else, are passed over, and are no error."""
    nothing = scene.unpacked(scene.Look().row())
    days = {(day, 0): row for day, row in enumerate(usual_days())}
    assert put(catalog, days | {(ODD, 1): nothing}) == []
    clip_id = f"{1:032}"
    early = {
        "clip_id": clip_id, "key": "clips/e", "camera_id": "yard", "camera_number": 1, "state": "live", "recording_id": "e",
        "start_ns": NOON_NS + ODD * DAY_NS, "time_base_num": 1, "time_base_den": 30, "first_pts": 0, "end_pts": 90,
        "n_frames": 90,
    }  # fmt: skip
    catalog.commit({"clips": [early]}, [Done("clip", clip_id, "register", "f", 1, 1)])
    catalog.commit({"scenes": [{"clip_id": clip_id, **nothing}]}, [Done("clip", clip_id, "scan", "f", 1, 1)])
    hours = usual.by_hour(open_footage(catalog.store))
    assert hours["clip_id"].to_list() == [f"{100 * day:032}" for day in range(len(usual_days()))]


def test_real_pictures_of_people_in_a_corridor(catalog: Catalog, shared_data: Path) -> None:
    """Six pieces of a real clip as six days: nothing is said; the fourth, cropped 4 % further left, is the one that moved."""
    path = shared_data / "videos" / "mall_corridor_caviar.avi"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    (frames,) = video.decode(path, batch=1000, index=video.probe(path).index)
    height, width = (round(0.9 * side) // 2 * 2 for side in frames.rgb.shape[1:3])

    def piece(day: int, left: int) -> dict[str, Any]:
        look = scene.Look()
        for number, rgb in enumerate(frames.rgb[26 * day : 26 * day + 26]):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, left : left + width]), "rgb24")
            look.see(video.Picture(number, Fraction(1, 25), frame), number % 5 == 0)
        row = look.row()
        assert row is not None
        return scene.unpacked(row)

    days = {(day, 0): piece(day, 8) for day in range(6)}
    assert put(catalog, days) == []
    found = put(catalog, {(day + 6, 0): row for (day, _), row in days.items() if day != 3} | {(9, 0): piece(3, 0)})
    assert [day for day, _ in found] == ["2025-06-30"] and "% of its width to the right" in found[0][1]


@pytest.mark.parametrize("noise_sd", [1.0, 2.0, 6.0])
def test_noise_is_what_was_added(noise_sd: float) -> None:
    """Immerkaer's estimate over edges and shadows is within a fifth of the truth."""
    generator = np.random.default_rng(0)
    luma = np.full((HEIGHT, WIDTH), 90.0)
    luma[50:120, 40:200], luma[20:60, 220:300] = 190, 30
    luma += np.linspace(0, 30, WIDTH) + generator.normal(0, noise_sd, luma.shape)
    assert scene.noise(np.rint(luma).astype(np.uint8)) == pytest.approx(noise_sd, rel=0.2)
