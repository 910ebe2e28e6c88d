"""The demo models as they lie in the repository: small, described, loadable without a network, good on sites they never saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the simulated world needs the extra [cloud] (opencv-python)")
pytest.importorskip("torch", reason="the demo models need the extra [cloud] (torch)")

from curate.detect import open_detector, read_weights, unpack
from curate.openclip import OpenClipEmbedder
from curate.openclip import unpack as unpack_vectors
from infra.demo.build_models import DETECTOR, MODELS, OPENCLIP
from infra.demo.footage import Picture, pictures, yolo_lines
from infra.demo.image_text import PROMPTS, WEIGHTS
from infra.demo.render import render
from infra.demo.sentences import VALUES, Facts, facts, holds, one_fact, several_facts
from infra.demo.world import World
from infra.keys import sha256_hex
from infra.video import letterbox, resize

FILES = (DETECTOR, OPENCLIP / WEIGHTS)


@pytest.mark.parametrize("weights", FILES, ids=lambda path: path.name)
def test_each_model_says_what_it_is(weights: Path) -> None:
    """The sidecar names hash, seed, scores, minutes and licence, and that the model is for the simulated world only."""
    document = json.loads(weights.with_name(weights.name + ".json").read_bytes())
    assert document["sha256"] == sha256_hex(weights.read_bytes())
    assert document["simulated_world_only"] is True
    assert {"seed", "licence", "trained_s", "made_by", "scored_on", "note"} <= document.keys()
    assert read_weights(weights).simulated_world_only and read_weights(weights).status == "declared"


def test_models_are_small() -> None:
    """All files of the models together stay under 12 MB."""
    total = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    print(f"\ndemo models: {total / 1e6:.1f} MB")
    assert total < 12e6


def _people(n: int) -> list[tuple[np.ndarray, tuple[float, float, float, float]]]:
    """Frames of people by day on layouts of a world that no model saw, and where they stand."""
    found = []
    world = World(1)
    cameras = [camera for camera in world.cameras("live", 4) if camera.kind != "street"]
    for plan in world.plan("live", n, cameras=cameras, lightings=("day", "dusk"), weathers=("clear",)):
        frames = render(plan)
        for _ in range(20):
            rgb, _, truth = next(frames)
        box = next(box for box in truth.boxes if box.class_name == "person")
        found.append((rgb, (box.x1, box.y1, box.x2, box.y2)))
    return found


def test_the_detector_finds_people_elsewhere() -> None:
    """Curation's own detector, on these weights, puts a box on at least 9 of 10 people at sites of another world."""
    detector = open_detector(read_weights(DETECTOR))
    assert detector.classes == ("person", "car", "animal")
    people = _people(20)
    n_found = 0
    for rgb, box in people:
        boxed, scale, pad_x, pad_y = letterbox(rgb, detector.size_px)
        place = {"width_px": 256, "height_px": 192, "scale": scale, "pad_x": pad_x, "pad_y": pad_y}
        batch = {"detect_rgb": boxed[None], **{name: np.array([value]) for name, value in place.items()}}
        boxes = unpack(detector(batch)["detections"][0], detector.classes)
        seen = [b for b in boxes if b.class_name == "person" and b.score > 0.25]
        n_found += any(_overlap((b.x1, b.y1, b.x2, b.y2), box) > 0.5 for b in seen)
    assert n_found >= 0.9 * len(people), n_found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    inner = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def test_openclip_tells_light_and_weather_elsewhere() -> None:
    """Curation's embedder loads the folder without a network and names the lighting of frames of another world."""
    embedder = OpenClipEmbedder(OPENCLIP)
    prompts = PROMPTS["lighting"]
    words = embedder.texts(list(prompts.values()))
    assert words.shape == (4, 64) and np.allclose(np.linalg.norm(words, axis=1), 1, atol=1e-3)
    right = []
    for plan in World(1).plan("live", 32):
        rgb = next(render(plan))[0]
        found = embedder({"embed_rgb": resize(rgb, (embedder.size_px, embedder.size_px))[None]})["embedding"]
        right.append(list(prompts)[int((unpack_vectors(list(found), 64) @ words.T).argmax())] == plan.lighting)
    assert np.mean(right) >= 0.85, right


def test_footage_of_the_models_is_its_own() -> None:
    """What the models learn from and are scored on share no layout, and labels say what the picture shows."""
    learn, score = (list(pictures(17, use, 4, 2)) for use in ("learn", "score"))
    assert len(learn) == len(score) == 8
    assert not any(np.array_equal(a.rgb, b.rgb) for a in learn for b in score)
    for picture in learn + score:
        lines = yolo_lines(picture).splitlines()
        assert len(lines) == len(picture.boxes)
        assert all(0 <= float(value) <= 1 for line in lines for value in line.split()[1:])


def test_sentences_say_what_is_there() -> None:
    """A sentence about a picture holds for it; a sentence about another value of the same factor does not."""
    rng = np.random.default_rng(3)
    picture: Picture = next(pictures(17, "score", 1, 1))
    known: Facts = facts(picture)
    for _ in range(50):
        text, said = several_facts(known, rng)
        assert text and holds(said, known)
    for factor, values in VALUES.items():
        assert [holds({factor: value}, known) for value in values].count(True) == (factor in known)
        assert all(one_fact(factor, value, rng) for value in values)
