"""Motion on drawn pictures whose truth is known, and on marked real clips."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.errors import SettingsError
from infra.picture import Rgb, resize
from infra.regions import Region, check_regions, covered
from infra.video import pictures, probe
from ingest.motion import GRID_PX, Motion, Moved, Thresholds, grey_grid, largest_thing, light_jumped, lit_like

TRUTH = Path(__file__).resolve().parents[1] / "motion_truth.toml"
FPS = 10


class Scene:
    """A still scene with structure and noise, 320 x 240; `sd` is the noise in grey levels, `luma` its mean."""

    def __init__(self, sd: float = 2.0, luma: float = 110.0) -> None:
        self._rng = np.random.default_rng(7)
        rows, columns = np.mgrid[0:240, 0:320]
        pattern = 40 * np.sin(columns / 17) * np.cos(rows / 23) + 15 * self._rng.standard_normal((240, 320))
        self.grey, self.sd = np.clip(luma + pattern * luma / 110, 2, 250), sd

    def picture(self, gain: float = 1.0, thing: tuple[int, int, int] | None = None, level: float = 230) -> Rgb:
        """Return one picture; `thing` is (x, y, side) of a square."""
        grey = self.grey * gain
        if thing is not None:
            x, y, side = thing
            grey = grey.copy()
            grey[y : y + side, max(0, x) : x + side] = level
        noisy = grey + self.sd * self._rng.standard_normal(grey.shape)
        return np.repeat(np.clip(noisy, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def watch(
    frames: Iterator[Rgb] | list[Rgb], thresholds: Thresholds | None = None, masks: tuple[Region, ...] = ()
) -> list[Moved]:
    motion = Motion(masks)
    return [motion.see(rgb, (number + 1) * 10**9 // FPS, thresholds or Thresholds()) for number, rgb in enumerate(frames)]


def on(seen: list[Moved]) -> list[int]:
    return [number for number, moved in enumerate(seen) if moved.lasted]


def test_a_thing_that_crosses_the_picture_is_seen() -> None:
    """A square of 40 px is on after the least duration, its share is right, and it is off when it is gone."""
    scene = Scene()
    frames = [scene.picture() for _ in range(30)]
    frames += [scene.picture(thing=(x * 10, 100, 40)) for x in range(20)]
    frames += [scene.picture() for _ in range(20)]
    seen = watch(frames)
    assert 33 <= on(seen)[0] <= 36 and 48 <= on(seen)[-1] <= 52
    assert seen[45].share == pytest.approx(40 * 40 / (320 * 240), rel=0.4)
    assert seen[45].score > 0.8 and "of the picture" in seen[45].reason
    assert seen[10].reason == "still" and seen[10].score == 0


@pytest.mark.parametrize(("sd", "luma"), [(2.0, 110.0), (9.0, 110.0), (12.0, 25.0)])
def test_noise_is_no_motion(sd: float, luma: float) -> None:
    """From daylight to the noise of a dark night: nothing is on; what has the size of a person still is."""
    scene = Scene(sd, luma)
    still = [scene.picture() for _ in range(60)]
    assert on(watch(still)) == []
    walks = [scene.picture(thing=(x * 6, 80, 60), level=luma + 60) for x in range(30)]
    assert len(on(watch(still + walks))) > 15


def test_light_that_changes_is_no_motion() -> None:
    """A lamp switched on and off, an exposure step, and a cloud that passes within seconds."""
    scene = Scene()
    gains = [1.0] * 20 + [1.6] * 20 + [1.0] * 20 + [0.7] * 20 + [0.7 + 0.01 * i for i in range(30)] + [1.0] * 10
    seen = watch([scene.picture(gain) for gain in gains])
    assert on(seen) == []
    assert {moved.reason for moved in seen[20:30]} <= {"sudden light", "light settles"}


def test_motion_right_after_a_lamp_is_seen() -> None:
    """Suppression ends: somebody who switched the light on and walks about is recorded within seconds."""
    scene = Scene()
    frames = [scene.picture() for _ in range(30)]
    frames += [scene.picture(1.6, thing=((x * 5) % 280, 90, 50), level=20) for x in range(110)]
    first = on(watch(frames))[0]
    assert 30 < first <= 30 + 9 * FPS


def test_a_light_patch_on_the_same_things_is_no_motion() -> None:
    """Where a tenth of the picture brightens evenly, the same things stand there in another light."""
    scene = Scene()
    lit = Scene()
    lit.grey = scene.grey.copy()
    lit.grey[64:144, 80:176] *= 1.4
    seen = watch([scene.picture() for _ in range(30)] + [lit.picture() for _ in range(20)])
    assert on(seen) == []
    assert seen[33].reason == "light on the same things" and seen[33].score > 0.5


def test_an_insect_in_front_of_the_lamp_is_too_short() -> None:
    """Two pictures of something large: a least duration of a second leaves it out, none at all keeps it."""
    scene = Scene()
    frames = [scene.picture() for _ in range(30)] + [scene.picture(thing=(100, 60, 80))] * 2 + [scene.picture()] * 10
    assert on(watch(frames, Thresholds(least_duration_s=1.0))) == []
    assert on(watch(frames, Thresholds(least_duration_s=0.0))) == [30, 31]


def test_least_size_and_sensitivity() -> None:
    """A thing of half a per cent is too small for 2 %; a faint one needs more sensitivity."""
    scene = Scene()
    still = [scene.picture() for _ in range(30)]
    small = still + [scene.picture(thing=(x * 8, 100, 20)) for x in range(20)]
    assert on(watch(small)) and not on(watch(small, Thresholds(least_share=0.02)))
    bare = Scene()
    bare.grey = np.full((240, 320), 110.0)
    faint = [bare.picture() for _ in range(30)] + [bare.picture(thing=(x * 8, 80, 60), level=119) for x in range(20)]
    assert not on(watch(faint)) and on(watch(faint, Thresholds(sensitivity=2.0)))


def test_masks_never_count() -> None:
    """A thing inside a masked polygon is not seen; one beside it is, and shares are of what is left."""
    scene = Scene()
    mask = (0.0, 0.0, 0.5, 0.0, 0.5, 1.0, 0.0, 1.0)
    still = [scene.picture() for _ in range(30)]
    left = watch(still + [scene.picture(thing=(x * 5, 100, 40)) for x in range(20)], masks=(mask,))
    right = watch(still + [scene.picture(thing=(170 + x * 5, 100, 40)) for x in range(20)], masks=(mask,))
    assert on(left) == [] and len(on(right)) > 10
    assert right[45].share == pytest.approx(40 * 40 / (160 * 240), rel=0.4)


def test_one_picture_a_second_is_enough() -> None:
    """A stream of which only keyframes are decoded: the duration is told over pictures that far apart."""
    scene = Scene()
    motion = Motion()
    frames = [scene.picture() for _ in range(20)] + [scene.picture(thing=(x * 40, 100, 60)) for x in range(5)]
    seen = [motion.see(rgb, (number + 1) * 10**9, Thresholds(least_duration_s=0.8)) for number, rgb in enumerate(frames)]
    assert on(seen) == [21, 22, 23, 24]


def test_a_gap_and_a_new_size_begin_anew() -> None:
    """After a minute without pictures, or when their size changes, the first picture is a background again."""
    scene = Scene()
    motion = Motion()
    for number in range(20):
        motion.see(scene.picture(), (number + 1) * 10**8, Thresholds())
    assert motion.see(scene.picture(thing=(50, 50, 99)), 80 * 10**9, Thresholds()).reason == "first picture"
    half = np.ascontiguousarray(scene.picture()[::3, ::3])
    assert motion.see(half, 80_100_000_000, Thresholds()).reason == "first picture"
    assert motion.see(half, 80_050_000_000, Thresholds()).reason == "first picture"  # time went back


@pytest.mark.parametrize("shape", [(240, 320), (192, 256), (100, 178), (60, 106), (3, 3), (241, 333)])
def test_the_grid_averages_whole_blocks(shape: tuple[int, int]) -> None:
    """Any size gives a grid of at most about 160, with the grey levels of ITU-R BT.601."""
    rgb = np.zeros((*shape, 3), np.uint8)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = 200, 100, 50
    grey = grey_grid(rgb)
    assert max(grey.shape) <= 1.5 * GRID_PX
    assert np.allclose(grey, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=0.01)
    assert Motion().see(rgb, 1, Thresholds()).score == 0


def test_the_largest_connected_thing() -> None:
    """Blocks that touch at a corner are one; single pixels are none."""
    differs = np.zeros((40, 40), bool)
    differs[0:8, 0:8] = differs[8:12, 8:12] = True  # 4 blocks and one at their corner
    differs[20:24, 20:28] = True
    differs[30, 30] = True
    assert len(largest_thing(differs)) == 5
    assert len(largest_thing(np.zeros((40, 40), bool))) == 0
    assert len(largest_thing(np.ones((3, 3), bool))) == 0


def test_light_like_the_picture() -> None:
    """A background in another brightness and contrast is the picture again."""
    rng = np.random.default_rng(1)
    mean = rng.uniform(60, 140, (60, 80)).astype(np.float32)
    grey = (mean - 100) * 1.3 + 125
    assert np.abs(lit_like(mean, grey) - grey).mean() < 2
    assert light_jumped(grey - mean) and not light_jumped(np.zeros_like(mean))
    halves = np.where(np.arange(80) < 40, 20, -20).astype(np.float32) * np.ones((60, 1), np.float32)
    assert not light_jumped(halves)


def test_regions() -> None:
    """Boxes take every pixel that they touch, polygons those whose centre they hold."""
    assert covered([(0.0, 0.0, 0.26, 0.5)], (4, 4)).tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    triangle = covered([(0.0, 0.0, 1.0, 0.0, 0.0, 1.0)], (8, 8))
    assert triangle[0, :7].all() and not triangle[7, 1:].any() and triangle.sum() == pytest.approx(32, abs=5)
    for wrong in ((0.5, 0.0, 0.5, 1.0), (0.0, 0.0, 1.1, 1.0), (0.1, 0.2, 0.3), (0.0,) * 5, (float("nan"),) * 4):
        with pytest.raises(SettingsError, match=r"masks has .*legal:"):
            check_regions("masks", [wrong])


def test_a_small_picture_costs_well_under_5_ms() -> None:
    """Median CPU time of a picture of 320x240 in which something large moves."""
    scene = Scene()
    frames = [scene.picture(thing=(x * 10, 50, 120)) for x in range(20)]
    motion, spent = Motion(), []
    for number in range(60):
        start = time.thread_time()
        motion.see(frames[number % 20], (number + 1) * 10**8, Thresholds())
        spent.append(time.thread_time() - start)
    assert sorted(spent)[30] < 0.005


def _real(data: Path, name: str) -> list[tuple[int, Moved]]:
    path = data / "videos" / name
    about, motion, seen = probe(path), Motion(), list[tuple[int, Moved]]()
    for number, picture in enumerate(pictures(path, index=about.index)):
        rgb = picture.rgb()
        rgb = resize(rgb, (320, 180)) if rgb.shape[1] > 320 else rgb
        time_ns = round(picture.pts * about.time_base * 1_000_000_000) + 10**9
        seen.append((number, motion.see(rgb, time_ns, Thresholds())))
    return seen


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "n_found", "n_false_frames"),
    [
        ("hallway_person.mp4", 1, 0),
        ("street_brightness_change.avi", 0, 0),
        ("camera_traps_lowres/camera_trap_ir_empty.avi", 0, 0),
        ("camera_traps_lowres/camera_trap_night_grass_still.mp4", 0, 0),
    ],
)
def test_real_clips(shared_data: Path, name: str, n_found: int, n_false_frames: int) -> None:
    """On marked clips: what moves is found, and nothing where nothing does (tests/bench/trigger.py has them all)."""
    [clip] = [clip for clip in tomllib.loads(TRUTH.read_text())["clip"] if clip["path"] == name]
    frames = {number for number, moved in _real(shared_data, name) if moved.lasted}
    assert sum(any(number in frames for number in range(a, b)) for a, b in clip["moves"]) == n_found
    assert sum(number in frames for a, b in clip["quiet"] for number in range(a, b)) == n_false_frames
