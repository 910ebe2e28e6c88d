"""Detectors: boxes in stored-picture pixels, each frame by itself, weights that are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from curate.detect import UltralyticsDetector, describe, open_detector, pack, read_weights, to_stored, unpack
from infra import video
from infra.errors import UsageError


def batch_of(pictures: list[np.ndarray], size_px: int) -> dict[str, np.ndarray]:
    """Return a batch as the decode stage makes it."""
    boxed = [video.letterbox(rgb, size_px) for rgb in pictures]
    return {
        "detect_rgb": np.stack([rgb for rgb, _, _, _ in boxed]),
        "width_px": np.array([rgb.shape[1] for rgb in pictures]),
        "height_px": np.array([rgb.shape[0] for rgb in pictures]),
        "scale": np.array([scale for _, scale, _, _ in boxed]),
        "pad_x": np.array([pad_x for _, _, pad_x, _ in boxed]),
        "pad_y": np.array([pad_y for _, _, _, pad_y in boxed]),
    }


def test_boxes_come_out_in_pixels_of_the_stored_picture(tiny_detector: Path) -> None:
    """A 128 x 96 picture is halved and padded by 8 rows: the 20 px box at (32, 32) is 40 px at (64, 48) of the picture."""
    detector = open_detector(read_weights(tiny_detector))
    assert (detector.size_px, detector.classes) == (64, ("person", "car"))
    found = detector(batch_of([np.full((96, 128, 3), 255, np.uint8)], 64))
    [person, car] = unpack(found["detections"][0], detector.classes)
    assert (person.class_name, person.x1, person.y1, person.x2, person.y2) == ("person", 44, 28, 84, 68)
    mean = (48 * 255 + 16 * 114) / 64 / 255
    assert person.score == pytest.approx(mean, abs=1e-5) and car.score == pytest.approx(mean / 2, abs=1e-5)
    assert "detect_rgb" not in found


def test_no_frame_depends_on_its_batch_mates(tiny_detector: Path) -> None:
    """Alone, in a batch, and in another order, a frame's boxes are the same bytes."""
    detector = open_detector(read_weights(tiny_detector))
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(5)]
    together = detector(batch_of(pictures, 64))["detections"]
    alone = [detector(batch_of([rgb], 64))["detections"][0] for rgb in pictures]
    backwards = detector(batch_of(pictures[::-1], 64))["detections"][::-1]
    assert list(together) == alone == list(backwards)


def test_a_box_in_the_padding_is_dropped_and_one_over_the_edge_is_cut() -> None:
    """What lies outside the stored picture is not in it."""
    found = np.array([[0, 0, 64, 7, 0.9, 0], [-5, 4, 20, 30, 0.8, 1]], np.float32)
    kept = to_stored(found, width_px=64, height_px=48, scale=1.0, pad_x=0, pad_y=8)
    np.testing.assert_allclose(kept, [[0, 0, 20, 22, 0.8, 1]], rtol=1e-6)


def test_packing_does_not_depend_on_the_order_in_which_boxes_are_found() -> None:
    """Best first, ties by class and place."""
    rows = np.array([[1, 1, 2, 2, 0.5, 0], [0, 1, 2, 2, 0.5, 0], [0, 0, 1, 1, 0.9, 1]], np.float32)
    assert pack(rows) == pack(rows[::-1])
    assert [box.score for box in unpack(pack(rows), ["a", "b"])] == pytest.approx([0.9, 0.5, 0.5])


def test_weights_without_a_word_about_them_are_unknown(tiny_detector: Path) -> None:
    """Nobody can verify the hash; a sidecar that names it declares them; one that names another is refused."""
    assert read_weights(tiny_detector).status == "unknown"
    sidecar = tiny_detector.with_name("tiny.onnx.json")
    sidecar.write_text(json.dumps({"sha256": read_weights(tiny_detector).sha256, "simulated_world_only": True}))
    declared = read_weights(tiny_detector)
    assert (declared.status, declared.simulated_world_only) == ("declared", True)
    sidecar.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(UsageError, match="hashes to"):
        read_weights(tiny_detector)
    with pytest.raises(UsageError, match="--without"):
        read_weights(tiny_detector.with_name("absent.onnx"))


def test_an_onnx_file_that_is_no_detector_is_refused(shared_data: Path) -> None:
    """An export of another library has no class names."""
    with pytest.raises(UsageError, match="not a detector"):
        describe(read_weights(shared_data / "weights/osnet_x0_25_msmt17.onnx"))


@pytest.mark.real
@pytest.mark.parametrize(("picture", "expected"), [("bus.jpg", {"person": 4, "bus": 1}), ("zidane.jpg", {"person": 2})])
def test_the_real_weights_find_what_is_known(shared_data: Path, picture: str, expected: dict[str, int]) -> None:
    """yolov8n_int8_640.onnx on ultralytics' own check pictures: counts at .25 as SOURCES.md has them."""
    import av

    weights = read_weights(shared_data / "weights/yolov8n_int8_640.onnx")
    assert weights.status == "known"
    detector = UltralyticsDetector(weights)
    with av.open(str(shared_data / "weights/reference_images" / picture)) as container:
        rgb = next(container.decode(video=0)).to_ndarray(format="rgb24")
    boxes = unpack(detector(batch_of([rgb], detector.size_px))["detections"][0], detector.classes)
    found = [box.class_name for box in boxes if box.score >= 0.25]
    assert {name: found.count(name) for name in expected} == expected
    assert describe(weights).classes == detector.classes
