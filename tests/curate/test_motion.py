"""Motion score 2: what it finds, what it stands up to, and the masks that people give it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from curate import cameras, motion, scan
from infra import video
from infra.errors import SettingsError
from infra.regions import covered

HEIGHT, WIDTH, N = 90, 160, 30
_CHECKS = (np.indices((HEIGHT, WIDTH)).sum(0) // 8) % 2
Scene = Callable[[int], np.ndarray]


def _ground() -> np.ndarray:
    """Return float (H, W): a room with edges, 40 to 160."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    picture: np.ndarray = 40 + 80 * x / WIDTH + 20 * (y > 50)
    picture[20:60, 30:50] = 150
    picture[10:30, 90:140] = 60
    return picture


def _scores(scene: Scene, *, n: int = N, noise: float = 1.0, masks: tuple[tuple[float, ...], ...] = ()) -> list[float | None]:
    rng = np.random.default_rng(3)
    pictures = [scene(number) + rng.normal(0, noise, (HEIGHT, WIDTH)) for number in range(n)]
    luma = np.stack(pictures).clip(0, 255).round().astype(np.uint8)
    return motion.largest_shares(luma, ~covered(masks, (WIDTH, HEIGHT)) if masks else None)


def _block(number: int, size: int = 12, level: float = 230, y: int = 60) -> np.ndarray:
    picture = _ground()
    left = 5 + 4 * number
    picture[y : y + size, left : left + size] = level
    return picture


def test_a_thing_is_its_own_share_of_the_picture() -> None:
    """A block of 12 x 12 walks: every picture scores about its share, the first as well; smaller ones score less."""
    scores = _scores(_block)
    assert all(score == pytest.approx(144 / WIDTH / HEIGHT, rel=0.35) for score in scores)
    small = _scores(lambda number: _block(number, size=5))
    assert 0.0003 < np.median([score or 0 for score in small]) < 0.003


@pytest.mark.parametrize(
    ("what", "scene", "noise"),
    [
        ("nothing", lambda number: _ground(), 1.0),
        ("strong noise", lambda number: _ground(), 5.0),
        ("dark noise", lambda number: _ground() * 0.1, 1.5),
        ("clouds", lambda number: _ground() * (1 + 0.3 * np.sin(number / 5)), 1.0),
        ("exposure rises", lambda number: _ground() + 1.5 * number, 1.0),
        ("keyframe pulses", lambda number: _ground() + 3 * _CHECKS * (number % 10 == 0), 1.0),
        ("a mount that shakes", lambda number: np.roll(_ground(), number % 2, axis=1)[:, :], 1.0),
        ("a small clock", lambda number: _clock(number), 1.0),
    ],
)  # fmt: skip
def test_what_is_no_motion(what: str, scene: Scene, noise: float) -> None:
    """Light, noise, the encoder, a shaking mount and a burnt-in clock score less than a usual threshold."""
    scores = _scores(scene, noise=noise)
    assert max(score or 0.0 for score in scores) < 0.0015, what


def _clock(number: int) -> np.ndarray:
    picture = _ground()
    picture[2:5, 2:20] = 230
    picture[2:5, 17:19] = 230 if number // 10 % 2 else 20
    return picture


def test_rain_is_many_small_things() -> None:
    """A hundred streaks in every picture score less than one person of the same area."""
    rng = np.random.default_rng(5)

    def rain(number: int) -> np.ndarray:
        picture = _ground()
        for y, x in rng.integers((0, 0), (HEIGHT - 6, WIDTH), (60, 2)):
            picture[y : y + 5, x] += 40
        return picture

    assert np.median([score or 0 for score in _scores(rain)]) < 0.0015


@pytest.mark.parametrize("after", [lambda g: g + 70, lambda g: g * 0.2, lambda g: 255 - g])
def test_a_switch_cuts_the_stretch(after: Callable[[np.ndarray], np.ndarray]) -> None:
    """A lamp on, a lamp off, or infrared: unknown for a moment, then still; someone in the new light is seen."""
    scores = _scores(lambda number: _ground() if number < 15 else after(_ground()))
    assert scores[15 : 15 + motion.SETTLE_FRAMES] == [None] * motion.SETTLE_FRAMES
    assert all(score == 0 for score in [*scores[:15], *scores[15 + motion.SETTLE_FRAMES :]])
    walks = _scores(lambda number: _block(number) if number < 15 else after(_block(number)))
    assert min(score for score in walks[18:] if score is not None) > 0.003


def test_light_on_the_same_things_is_no_thing() -> None:
    """A patch of headlights that moves over a wall with structure shows the wall, brighter."""
    texture = _ground() + 25 * np.sin(np.indices((HEIGHT, WIDTH))[1] * 1.3) * np.sin(np.indices((HEIGHT, WIDTH))[0] * 1.1)

    def headlights(number: int) -> np.ndarray:
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
        lit: np.ndarray = texture * (1 + 0.6 * np.exp(-((x - 20 - 4 * number) ** 2 + (y - 45) ** 2) / 400))
        return lit

    assert np.mean(np.array([score or 0.0 for score in _scores(headlights)]) >= 0.0015) < 0.1


def test_a_mask_hides_the_tree_only() -> None:
    """What waves under the mask scores nothing; what walks beside it does."""

    def tree(number: int) -> np.ndarray:
        picture = _block(number)
        picture[0:40, 120:160] += 90 * (np.random.default_rng(number).random((4, 4)).repeat(10, 0).repeat(10, 1) > 0.8)
        return picture

    mask = ((0.7, 0.0, 1.0, 0.5),)
    assert np.median([score or 0 for score in _scores(tree)]) > 0.012
    assert np.median([score or 0 for score in _scores(tree, masks=mask)]) == pytest.approx(
        144 / (WIDTH * HEIGHT * 0.85), rel=0.4
    )


def test_too_few_pictures_say_nothing() -> None:
    """One or two pictures have no background."""
    assert _scores(_block, n=2) == [None, None]


def test_masks_of_cameras_are_checked_and_hold_from_their_time(tmp_path: Path) -> None:
    """A mask outside the picture is refused with its line; a valid one holds from its period on."""
    text = '[[camera]]\nid = "gate"\n\n[[camera]]\nid = "yard"\nmask = [[0.0, 0.0, 1.4, 0.5]]\n'
    with pytest.raises(SettingsError, match=r"cameras.toml line 6: mask has \[0.0, 0.0, 1.4, 0.5\]; legal"):
        cameras.parse(text)
    with pytest.raises(SettingsError, match=r"cameras.toml line 6: mask = 'tree'; legal"):
        cameras.parse(text.replace("[[0.0, 0.0, 1.4, 0.5]]", '"tree"'))
    good = (
        '[[camera]]\nid = "yard"\n\n[[camera]]\nid = "yard"\nvalid_from = 2024-01-01T00:00:00\nmask = [[0.0, 0.0, 0.4, 0.5]]\n'
    )
    rows = cameras.parse(good).cameras["yard"].rows
    assert cameras.masks_at(rows, None) == ((0.0, 0.0, 0.4, 0.5),)
    assert cameras.masks_at(rows, 10**18) == ()
    assert cameras.masks_at((), None) == ()


@pytest.mark.real
def test_real_clips_by_score_2(shared_data: Path) -> None:
    """Still nights never move, a person in the hallway does, a lamp is over within a second of its last switch."""
    shares = {}
    for name in ("camera_traps_lowres/camera_trap_ir_empty.avi", "hallway_person.mp4", "hallway_ir_light_flash.mp4"):
        path = shared_data / "videos" / name
        *_, end = scan.scan_clip(path, index=video.probe(path).index, every_s=1.0, sizes_px={}, score=2)
        shares[path.stem] = np.array([score for gop in end["gops"] for score in gop["motion"]], float) >= 0.0015
    assert not shares["camera_trap_ir_empty"].any()
    assert shares["hallway_person"][192:350].mean() > 0.9
    assert not shares["hallway_person"][:180].any()
    assert not shares["hallway_ir_light_flash"][54:].any()
