"""The scan of one clip: what is kept, what stands in its rows, and what motion, quality and lighting say."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate import motion, quality, scan
from infra import video
from infra.decoder import DecoderPool
from infra.errors import MediaError, UsageError

MS = Fraction(1, 1000)
SIZES = {"detect_rgb": 64, "embed_rgb": 32}


def _ground() -> np.ndarray:
    """Return uint8 (96, 160, 3): a smooth coloured ground."""
    y, x = np.mgrid[0:96, 0:160]
    return np.stack([60 + x, 90 + y, 200 - x], axis=-1).astype(np.uint8)


def _film(path: Path, pts: list[int], moves: bool, **options: Any) -> Path:
    with video.Writer(path, 160, 96, MS, gop_s=1.0, **options) as writer:
        for number, at in enumerate(pts):
            rgb = _ground()
            if moves:
                left = (9 * number) % 130
                rgb[30:70, left : left + 30] = (250, 250, 30)
            writer.add(rgb, at)
    return path


def _scan(path: Path, every_s: float = 1.0, index: Any = "packets") -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Return (columns of all kept frames, rows of gops) and check the shape of what was yielded."""
    *parts, end = scan.scan_clip(path, index=index, every_s=every_s, sizes_px=SIZES)
    assert set(end) == {"gops"}
    assert all(set(part) == {"pts", *scan.MEASURES, *SIZES} and 1 <= len(part["pts"]) <= scan.PART for part in parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, end["gops"]


def test_kept_frames_stand_for_all_frames(tmp_path: Path) -> None:
    """With uneven times, the sum of 1/p_keep is the number of frames and each frame stands for those up to the next."""
    pts = [5, 40, 80, 700, 990, 1001, 1500, 2999, 3000, 7000, 7100]
    frames, gops = _scan(_film(tmp_path / "clip.mp4", pts, moves=True))
    assert frames["pts"].tolist() == [5, 1001, 2999, 3000, 7000]
    assert (1 / frames["p_keep"]).tolist() == [5, 2, 1, 1, 2]
    assert sum(1 / frames["p_keep"]) == len(pts)
    assert [pts for gop in gops for pts in gop["pts"]] == pts


def test_every_gop_has_a_row(tmp_path: Path) -> None:
    """GOPs share the clip without gaps; each frame has a motion score, the first none; bytes and scores are there."""
    pts = list(range(0, 3500, 50))
    frames, gops = _scan(_film(tmp_path / "clip.mp4", pts, moves=True))
    assert [gop["gop_index"] for gop in gops] == [0, 1, 2, 3]
    assert [(gop["start_pts"], gop["end_pts"]) for gop in gops] == [(0, 1000), (1000, 2000), (2000, 3000), (3000, 3500)]
    assert [len(gop["motion"]) == len(gop["pts"]) for gop in gops] == [True] * 4
    assert gops[0]["motion"][0] is None
    assert all(score > 0.02 for gop in gops for score in gop["motion"][1:])
    assert all(gop["n_bytes"] > 0 and gop["packet_score"] > 0 and gop["decoded"] and gop["p_keep"] == 1.0 for gop in gops)
    assert json.loads(json.dumps(gops)) == gops
    assert np.isnan(frames["motion_score"][0])
    assert frames["motion_score"][1] == pytest.approx(gops[1]["motion"][0])


def test_a_still_clip_has_no_motion(tmp_path: Path) -> None:
    """The codec's noise is no motion."""
    _, gops = _scan(_film(tmp_path / "clip.mp4", list(range(0, 3000, 100)), moves=False))
    assert max(score for gop in gops for score in gop["motion"] if score is not None) == 0.0


def test_b_frames_change_nothing(tmp_path: Path) -> None:
    """Kept frames and GOPs of a clip with B-frames are those of the clip without."""
    pts = list(range(0, 3000, 40))
    plain, plain_gops = _scan(_film(tmp_path / "a.mp4", pts, moves=True))
    mixed, mixed_gops = _scan(_film(tmp_path / "b.mp4", pts, moves=True, b_frames=2))
    assert mixed["pts"].tolist() == plain["pts"].tolist()
    assert [gop["pts"] for gop in mixed_gops] == [gop["pts"] for gop in plain_gops]


def test_pictures_have_the_models_sizes(tmp_path: Path) -> None:
    """The detector's square is the one letterbox, the other is squeezed."""
    path = _film(tmp_path / "clip.mp4", [0, 40], moves=False)
    frames, _ = _scan(path)
    assert frames["detect_rgb"].shape == (1, 64, 64, 3)
    assert frames["embed_rgb"].shape == (1, 32, 32, 3)
    boxed, _, pad_x, pad_y = video.letterbox(next(video.decode(path)).rgb[0], 64)
    assert (pad_x, pad_y) == (0, 13)
    assert (frames["detect_rgb"][0, :13] == 114).all()
    assert np.abs(frames["detect_rgb"][0].astype(int) - boxed).mean() < 2


def test_a_clip_whose_packets_lied_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a packet gives no picture, the scan refuses the clip instead of counting on."""
    path = _film(tmp_path / "clip.mp4", list(range(0, 400, 40)), moves=True)
    lie = [*video.packets(path), video.Packet(400, 400, 20, False)]
    monkeypatch.setattr(video, "packets", lambda _: iter(lie))
    with pytest.raises(MediaError, match=r"11 packets gave 10 pictures \(first odd pts \[400\]\)"):
        list(scan.scan_clip(path, index="packets", every_s=1.0, sizes_px={}))


def test_motion_knows_light_from_things() -> None:
    """A change of exposure and contrast is no motion; a moved block is its own share; a new scene starts a new background."""
    luma = np.tile(np.linspace(40, 160, 80), (60, 1)).astype(np.uint8)
    brighter = (luma.astype(np.float32) * 1.3 + 20).clip(0, 255).astype(np.uint8)
    assert motion.moving_share(brighter, luma.astype(np.float32)) == 0.0
    block = luma.copy()
    block[10:20, 10:30] = 250
    assert motion.moving_share(block, luma.astype(np.float32)) == pytest.approx(200 / 4800, abs=0.003)
    background = motion.Background()
    assert background.score(luma, 0.0) is None
    scene = np.random.default_rng(0).integers(0, 255, luma.shape, np.uint8)
    assert (background.score(scene, 0.1) or 0) > motion.RESTART_SHARE
    assert background.score(scene, 0.2) == 0.0


def test_background_forgets_by_time_not_by_frames() -> None:
    """What stopped is part of the background after some seconds, at 5 or at 50 frames a second alike."""
    luma = np.tile(np.linspace(40, 160, 80), (60, 1)).astype(np.uint8)
    parked = luma.copy()
    parked[10:20, 10:30] = 250
    for rate in (5, 50):
        background = motion.Background()
        background.score(luma, 0.0)
        scores = [background.score(parked, (k + 1) / rate) or 0.0 for k in range(12 * rate)]
        assert scores[0] > 0.03
        assert scores[-1] == 0.0


def test_measures_of_plain_pictures() -> None:
    """Grey has no colour and no edges; a checkerboard is sharper than its blurred self; shapes are checked."""
    grey = np.full((40, 60, 3), 90, np.uint8)
    flat = quality.measure(grey, grey[..., 0])
    assert (flat.brightness, flat.contrast, flat.blur, flat.colourfulness) == (90.0, 0.0, 0.0, 0.0)
    board = (np.indices((40, 60)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert quality.laplacian_variance(board) > 10 * quality.laplacian_variance((board // 4 + 90).astype(np.uint8))
    assert quality.colourfulness(_ground()) > 33
    assert quality.laplacian_variance(board[:2]) == 0.0
    with pytest.raises(UsageError, match="legal"):
        quality.measure(grey, grey[:10, :, 0])


@pytest.mark.parametrize(
    ("brightness", "colour", "named"),
    [(120, 30, "day"), (80, 30, "day"), (79, 30, "dusk"), (50, 30, "dusk"), (49, 30, "night"), (25, 1, "night"),
     (25, 0.9, "infrared"), (24, 0, "night"), (0, 0, "night"), (200, 7.9, "infrared"), (200, 8, "day"), (120, 4.8, "day")],
)  # fmt: skip
def test_lighting_by_truth_table(brightness: float, colour: float, named: str) -> None:
    """Thresholds are where the docstring says, bounds included below; what is grey goes by the share of brightness."""
    assert quality.lighting(brightness, colour) == named


def test_burnt_in_colours_and_chroma_noise_do_not_colour_a_grey_picture() -> None:
    """A logo in the margin, a clock across the picture and noise leave grey grey; a coloured tenth of the picture does not."""
    luma = np.tile(np.linspace(30, 200, 320), (180, 1)).astype(np.int16)
    noise = np.random.default_rng(0).integers(-4, 5, (180, 320, 3))
    picture = (luma[..., None] + noise).clip(0, 255).astype(np.uint8)
    clean = quality.colourfulness(picture)
    assert 0 < clean < 1.5
    picture[160:, :60] = (240, 90, 20)
    assert quality.colourfulness(picture) == clean
    picture[80:90, 60:220] = (255, 255, 0)
    assert quality.colourfulness(picture) < 1.5
    picture[60:120, 100:220] = (200, 60, 60)
    assert quality.colourfulness(picture) > 100
    assert quality.colourfulness(np.full((1, 900, 3), 7, np.uint8)) == 0


@pytest.mark.real
@pytest.mark.parametrize(
    ("listed", "known"),
    [
        # Developed on these (version 1 had named 6 of them as a person does). Miss: a grey camera.
        ("real_lighting.toml", {"mall_corridor_caviar": ("day", "infrared")}),
        # Listed and measured once, after version 2 was fixed: 8 of 10. The target, all ten, is missed, and why is known.
        (
            "real_lighting_2.toml",
            {
                "car_overhead_day": ("day", "infrared"),  # grey asphalt fills the picture, often without a car
                "camera_trap_ir_empty": ("infrared", "dusk"),  # an infrared picture with a purple tint, 10 % of its brightness
            },
        ),
    ],
)
def test_lighting_of_ten_real_clips(shared_data: Path, listed: str, known: dict[str, tuple[str, str]]) -> None:
    """Of ten clips named by a person beforehand, exactly the known ones are named otherwise: results, whatever they are."""
    seen = tomllib.loads((Path(__file__).parents[1] / listed).read_text())
    wrong = {}
    for name, person in seen.items():
        *parts, _ = scan.scan_clip(shared_data / name, index=video.probe(shared_data / name).index, every_s=1.0, sizes_px={})
        pairs = [pair for part in parts for pair in zip(part["brightness"], part["colourfulness"], strict=True)]
        named = Counter(quality.lighting(*pair) for pair in pairs).most_common(1)[0][0]
        if named != person:
            wrong[Path(name).stem] = (person, named)
    assert len(seen) == 10
    assert wrong == known


@pytest.mark.real
def test_motion_of_real_clips(shared_data: Path) -> None:
    """An empty infra-red night never moves; traffic always does; a person moves in the hallway for a fifth to a third of it."""
    shares = {}
    for name in ("camera_traps_lowres/camera_trap_ir_empty.avi", "highway_traffic_720p.mp4", "hallway_person.mp4",
                 "hallway_ir_light_flash.mp4", "motorway_camera_osd.avi"):  # fmt: skip
        path = shared_data / "videos" / name
        truth = video.probe(path)
        *parts, end = scan.scan_clip(path, index=truth.index, every_s=1.0, sizes_px={})
        scores = np.array([score for gop in end["gops"] for score in gop["motion"]], float)
        assert len(scores) == truth.n_frames == round(sum((1 / part["p_keep"]).sum() for part in parts))
        shares[path.stem] = np.nanmean(scores > 0.01)
    assert shares["camera_trap_ir_empty"] == 0
    assert shares["highway_traffic_720p"] > 0.99
    assert shares["motorway_camera_osd"] > 0.99
    assert 0.15 < shares["hallway_person"] < 0.4
    assert shares["hallway_ir_light_flash"] < 0.05


def test_the_scan_runs_in_a_child_process(tmp_path: Path) -> None:
    """Through the decoder pool the same parts come back, bit for bit."""
    path = _film(tmp_path / "clip.mp4", list(range(0, 12_000, 250)), moves=True)
    with DecoderPool() as pool:
        far = list(pool.stream("curate.scan:scan_clip", path, index="packets", every_s=1.0, sizes_px=SIZES))
    near = list(scan.scan_clip(path, index="packets", every_s=1.0, sizes_px=SIZES))
    assert far[-1] == near[-1]
    assert len(far) == len(near) == 3
    for a, b in zip(far[:-1], near[:-1], strict=True):
        assert list(a) == list(b)
        assert all(np.array_equal(a[name], b[name], equal_nan=name == "motion_score") for name in a)
