"""Is a frame the same frame everywhere? Numbers burnt into the pictures are read back behind every step of the loop.

camera -> recorder -> spool -> store -> register -> training window, and -> exported model's prediction. The key between
steps is (clip_id, pts); the burnt-in number does not know it, so a frame taken for its neighbour is seen here.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch

from infra.artefacts import SelectionRow
from infra.catalog import Catalog, open_catalog
from infra.cli import main
from infra.demo.counter import read_counter
from infra.predictor import Predictor
from infra.store import DirStore
from ingest.source import open_source
from train.export import export
from train.footage import in_order, load, read_clips
from train.models import build
from train.recipes import Recipe, gesture_gru
from train.stream import Judge, watch

SOURCES = tuple(f"sim://11/harbour1-{place}?seconds=7&counter=1&batch=identity" for place in ("hall", "yard"))
Key = tuple[str, int]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, dict[Key, int]]:
    """Return a store with two recordings in segments of 3 s, and the burnt-in number of each (clip_id, pts).

    The number is found by the sensor's time alone: `captures` joins it to pts, the source to the frame's number.
    """
    folder = tmp_path_factory.mktemp("identity")
    for command in (
        ["record", *SOURCES, "--spool", str(folder / "spool"), "--segment-s", "3"],
        ["upload", str(folder / "spool")],
        ["ingest"],
    ):
        assert main([*command, "--store", str(folder / "store"), "--quiet", "--json"]) == 0
    number_at = {
        (source.recording_id, frame.sensor_ns): frame.frame_number for source in map(open_source, SOURCES) for frame in source
    }
    catalog = open_catalog(DirStore(folder / "store"), create=False)
    joined = catalog.scan("captures").join(catalog.scan("clips", ["clip_id", "recording_id"]), on="clip_id").collect()
    truth = {
        (row["clip_id"], row["pts"]): number_at[row["recording_id"], row["sensor_ns"]] for row in joined.iter_rows(named=True)
    }
    assert len(truth) == len(number_at) == 140
    return catalog, truth


def recipe() -> Recipe:
    """Return the demo's recipe: 5 frames a second at 112 x 80."""
    return gesture_gru()


def test_windows(filmed: tuple[Catalog, dict[Key, int]]) -> None:
    """Every frame of a training cache carries the number that its (clip_id, pts) stands for: 0 errors."""
    catalog, truth = filmed
    clips = read_clips(catalog, pl.lit(True))
    rows = [
        SelectionRow(clip_id=clip.clip_id, start_pts=clip.first_pts + 18_000 * i, end_pts=clip.end_pts, label="a", group="g",
                     split="train")
        for clip in clips.values() for i in (0, 3)
    ]  # fmt: skip
    cache = load(catalog.store, clips, rows, recipe(), advance=lambda n: None)
    n_seen = 0
    for row, (first, stop), pts in zip(rows, cache.spans, cache.pts, strict=True):
        assert stop - first == len(pts) > 0
        for rgb, at in zip(cache.frames[first:stop], pts, strict=True):
            assert read_counter(rgb)[0] == truth[row.clip_id, at]
            n_seen += 1
    assert n_seen > 100


def test_predictions(filmed: tuple[Catalog, dict[Key, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prediction of an exported model is noted at the pts whose number stood in the picture it was made from."""
    catalog, truth = filmed
    torch.manual_seed(1)
    bundle = export(build(recipe().model, 2).state_dict(), recipe(), ("a", "b"), name="untrained", lineage={})
    pictures: list[tuple[int, int | None]] = []
    step = Predictor.step

    def seen(self: Predictor, rgb: Any, time_ns: int, *, pts: int | None = None, **more: Any) -> Any:
        prediction = step(self, rgb, time_ns, pts=pts, **more)
        if prediction is not None:
            assert prediction.pts == pts
            pictures.append((read_counter(rgb)[0], pts))
        return prediction

    monkeypatch.setattr(Predictor, "step", seen)
    judge = Judge(bundle)
    clips = in_order(read_clips(catalog, pl.lit(True)).values())
    assert watch(catalog.store, clips, [judge], advance=lambda n: None) == {}
    assert len(judge.found) == len(pictures) >= 70
    for (clip_id, pts, prediction), (number, given) in zip(judge.found, pictures, strict=True):
        assert pts == given == prediction.pts and number == truth[clip_id, pts]


def test_a_neighbour_would_be_seen(filmed: tuple[Catalog, dict[Key, int]]) -> None:
    """The rig can fail: one frame further on, the number is another."""
    _, truth = filmed
    shifted = {(clip_id, pts + 9_000): number for (clip_id, pts), number in truth.items()}
    assert all(truth[key] != number for key, number in shifted.items() if key in truth)
    assert sum(key in truth for key in shifted) > 100
