"""One good look per event: which frames are first in their cell, what a look is worth, and what the audit says of it."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

from curate import cascade, collect, detect, factors, losses, once, pipeline
from curate.cascade import Cascade, Look
from curate.detect import Batch
from curate.plan import Options
from curate.query import open_catalog as open_footage
from curate.run import curate
from infra import keys, video, where
from infra import losses as floor
from infra.catalog import Catalog, open_catalog
from infra.errors import UsageError
from infra.settings import Settings
from infra.store import DirStore

AddClip = Callable[..., str]
ONCE_S, TICK_S, N = 2.0, 0.5, 24
TWO = """
[[stage]]
name = "cheap"
step = "detect"
weights = "cheap.onnx"
when = "brightness > 60"
once_s = 0.5
audit = 0.3

[[stage]]
name = "fine"
step = "detect"
weights = "fine.onnx"
when = "n_person > 0"
min_score = 0.47
audit = 0.4
"""


def options(found: Cascade, *steps: Any, **more: Any) -> Options:
    """Return what a run with a cascade is asked for."""
    return Options(
        steps=steps or ("scan", "detect"), cascade=found, sheet=factors.parse(factors.DEFAULT), **{"every_s": 0.1} | more
    )


def test_first_in_a_cell_is_a_matter_of_the_grid_alone() -> None:
    """In order, or by the whole grid with frames left out and mixed; gaps and a cell that is no multiple of the grid."""
    pts = [0, 1, 2, 3, 4, 5, 6, 7, 19, 20, 21]  # of .5 s each
    one = once.Firsts([2.0, 1.5], Fraction(1, 2)).columns(pts)
    firsts = {name: [at for at, first in zip(pts, column, strict=True) if first] for name, column in one.items()}
    assert firsts == {once.column(2.0): [0, 4, 19, 20], once.column(1.5): [0, 3, 6, 19, 21]}
    known = once.Firsts([2.0], Fraction(1, 2), grid=pts)
    assert [known.columns([at])[once.column(2.0)][0] for at in (20, 1, 6, 4)] == [True, False, False, True]
    assert once.kept_grid(range(0, 20), 1.5, Fraction(1, 2)) == [0, 3, 6, 9, 12, 15, 18]


class Seer:
    """A detector that finds a person where a column of the batch says so."""

    def __init__(self, column: str) -> None:
        self._column = column

    def __call__(self, batch: Batch) -> Batch:
        made = np.empty(len(batch["end"]), dtype=object)
        box = detect.pack(np.array([[0, 0, 9, 9, 0.9, 0]], np.float32))
        made[:] = [box if there else b"" for there in batch[self._column]]
        return {"detections": made}


def look(name: str, number: int, **what: Any) -> Look:
    """Return a stage of a detector that knows persons."""
    weights = detect.Weights(path=Path(f"{name}.onnx"), sha256=name, status="unknown", note="")
    return Look(
        name=name, step="detect", source=f"{name}@1", weights=weights, path=weights.path, size_px=2, classes=("person",),
        number=number, **what,
    )  # fmt: skip


def drawn(n_clips: int, seed: int) -> Batch:
    """Return a batch of clips of 12 s at two frames a second, a person in some part of each, in any order.

    `brightness` is 1 where something moves (around the person, and at random), `cheap` is what the cheap detector would see.
    """
    rng = np.random.default_rng(seed)
    n, pts = n_clips * N, np.tile(np.arange(N), n_clips)
    start, length = rng.integers(0, N, n_clips), rng.integers(1, 12, n_clips)
    truth = (pts >= np.repeat(start, N)) & (pts < np.repeat(start + length, N))
    clip_ids = np.repeat([f"{seed}-{i}" for i in range(n_clips)], N)
    ends = np.empty(n, dtype=object)
    ends[:] = b""
    batch: Batch = {
        "clip_id": clip_ids, "pts": pts, "end": ends, "truth": truth, "cheap": truth & (rng.random(n) < 0.8),
        "brightness": (truth | (rng.random(n) < 0.2)).astype(np.float64), "width_px": np.full(n, 2), "height_px": np.full(n, 2),
        "detect2_rgb": np.zeros((n, 2, 2, 3), np.uint8),
        once.column(ONCE_S): np.tile(once.Firsts([ONCE_S], Fraction(1, 2)).columns(range(N))[once.column(ONCE_S)], n_clips),
    }  # fmt: skip
    order = rng.permutation(n)
    return {name: column[order] for name, column in batch.items()}


def looked(batch: Batch, stages: Sequence[Look], size: int = 1000) -> Batch:
    """Run the stages over a batch, in parts."""
    parts: Any = iter([batch])
    for number, stage in enumerate(stages):
        model = Seer("cheap" if stage.name == "cheap" else "truth")
        run = pipeline.OnFrames(model, stage, stages[:number], stages[number + 1 :])
        parts = map(run, list(pipeline.rebatched(parts, size)))
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


STAGES = (
    look("cheap", 0, when=where.parse("brightness > 0"), audit=0.3),
    look("fine", 1, when=where.parse("n_person > 0"), audit=0.2, once_s=ONCE_S),
)


def chance(batch: Batch) -> NDArray[np.float64]:
    """Return by hand with which probability the last stage looks at each row, given what the first one drew."""
    passes = batch["cheap"] & batch[once.column(ONCE_S)]
    first = np.where(batch["brightness"] > 0, 1.0, 0.3)
    return first * np.where(passes, 1.0, 0.2)


def test_each_look_has_its_probability_whatever_the_batch() -> None:
    """Frames as often as their p_look says; sums of 1 / p_look without bias; in other batches the same looks."""
    batch = drawn(600, seed=1)
    seen = looked(batch, STAGES)
    p, is_seen = chance(seen), np.nan_to_num(seen["fine_p_look"]) > 0
    np.testing.assert_allclose(seen["fine_p_look"][is_seen], p[is_seen])
    assert is_seen[p == 1].all()
    assert np.array_equal(seen["fine_passed"], is_seen & seen["cheap"] & seen[once.column(ONCE_S)])
    for share in np.unique(p):
        n, found = int((p == share).sum()), int(is_seen[p == share].sum())
        assert abs(found - n * share) <= 4 * math.sqrt(n * share * (1 - share)) and n > 50
    for there in (seen["truth"], ~seen["truth"], seen["truth"] & (seen["pts"] % 4 == 1)):
        spread = math.sqrt(((1 - p[there]) / p[there]).sum())
        assert abs((1 / p[there & is_seen]).sum() - there.sum()) < 4 * spread
    other = looked({name: column[::-1] for name, column in batch.items()}, STAGES, size=77)
    keyed = [{(c, t): v for c, t, v in zip(b["clip_id"], b["pts"], b["fine_p_look"], strict=True)} for b in (seen, other)]
    assert all(np.array_equal(keyed[0][key], keyed[1][key], equal_nan=True) for key in keyed[0])
    n_met = int(seen["fine_met"].sum())
    assert n_met > 2.5 * seen["fine_passed"].sum() > 0 and not (seen["fine_passed"] & ~seen["fine_met"]).any()


def audited(seed: int, n_clips: int, *, near: bool = True) -> tuple[list[floor.Loss], float, float]:
    """Return what the audit says of drawn clips, and the truth for the last stage: positives kept, and missed.

    Without `near` a positive is kept where the stage looked at it for certain, and no rule about seconds comes in.
    """
    seen = looked(drawn(n_clips, seed), STAGES)
    names = {name for stage in STAGES for name in (stage.p_look, stage.passed, stage.met)}
    names |= {"clip_id", "pts", "truth", "cheap", "brightness"}
    rows = pl.DataFrame({name: seen[name] for name in sorted(names)}).sort("clip_id", "pts")
    looks = []
    for clip_id, mine in rows.partition_by("clip_id", as_dict=True, maintain_order=True).items():
        frames = mine.to_dicts()
        looks += [row for stage in STAGES for row in collect._look_rows(stage, str(clip_id[0]), frames)]
    table = pl.DataFrame(looks, infer_schema_length=None)
    units = rows.select(
        "clip_id", "pts", pts_s=pl.col("pts") * TICK_S, positive=(pl.col("fine_p_look").fill_nan(0) > 0) & pl.col("truth")
    )
    found = list(floor._stages(floor._events(units), table, ["cheap", "fine"], [], "", near=near))
    certain = (rows["pts"] % 4 == 0) & rows["cheap"] & (rows["brightness"] > 0) & rows["truth"]
    rows = rows.with_columns(certain=certain)
    left_out = (pl.col("fine_met").sum() > pl.col("fine_passed").sum()).over("clip_id")
    stands = rows.filter(left_out).filter("certain").group_by("clip_id").agg(at="pts")
    judged = rows.filter(pl.col("brightness") > 0, pl.col("truth")).join(stands, on="clip_id", how="left")
    close = (pl.col("at") - pl.col("pts")).list.eval(pl.element().abs() <= 4).list.any().fill_null(False)
    kept = float(judged.select((pl.col("certain") | close if near else pl.col("certain")).sum()).item())
    return found, kept, judged.height - kept


def test_the_audit_says_what_cells_cost() -> None:
    """Recall is the share of positive frames that a certain look is near; over drawn clips without bias, in its interval."""
    (cheap, fine, whole), kept, missed = audited(2, 700)
    truth = kept / (kept + missed)
    assert (cheap.is_once, fine.is_once, whole.is_once) == (False, True, True)
    assert 0.6 < truth < 0.97 and fine.audit.recall == pytest.approx(truth, abs=0.03)
    assert fine.audit.low <= truth <= fine.audit.high and fine.audit.high - fine.audit.low < 0.1
    errors = []
    for seed in range(10, 22):
        (_, fine, _), kept, missed = audited(seed, 50)
        errors.append(fine.audit.missed.value - missed)
    assert abs(np.mean(errors)) < 3 * np.std(errors, ddof=1) / math.sqrt(len(errors))


def test_without_the_frames_near_a_look_recall_is_that_of_frames() -> None:
    """Of the positives some share was looked at for certain: that is what the gate of a model is told, without bias."""
    (_, fine, whole), kept, missed = audited(3, 700, near=False)
    truth = kept / (kept + missed)
    assert 0.05 < truth < 0.35 and fine.audit.recall == pytest.approx(truth, abs=0.03)
    assert fine.audit.low <= truth <= fine.audit.high and fine.is_once and whole.is_once
    (_, close, _), _, _ = audited(3, 700)
    assert (close.audit.recall or 0) > 2 * (fine.audit.recall or 1)


def test_looks_of_a_run_are_those_of_the_rule(folder: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """Frames, probabilities and counts as the condition, the cells and the hash of (clip, pts, stage) give by hand."""
    add_clip(catalog, "a", [6 * i for i in range(40)])
    add_clip(catalog, "b", [6 * i for i in range(39, -1, -1)])
    result = curate(catalog, options(cascade.parse(TWO, folder=folder)), Settings())
    looks = catalog.scan("looks").filter(pl.col("stage") == "cheap").collect()
    expected, n_met = {}, 0
    for frame in catalog.scan("frames").collect().iter_rows(named=True):
        key, met = (frame["clip_id"], frame["pts"]), frame["brightness"] > 60
        n_met += met
        if met and frame["pts"] % 5 == 0:
            expected[key] = (1.0, True)
        elif keys.uniform("look", *key, "cheap") < 0.3:
            expected[key] = (0.3, False)
    seen = looks.filter(pl.col("pts").is_not_null())
    assert {(row["clip_id"], row["pts"]): (row["p_look"], row["passed"]) for row in seen.iter_rows(named=True)} == expected
    whole = looks.filter(pl.col("pts").is_null())
    assert whole["n_passed"].sum() == n_met == result.tally.stages["cheap"].n_passed and whole["n_in"].sum() == 80
    assert 0 < seen["passed"].sum() < n_met / 3 and result.tally.stages["cheap"].n_out == len(expected)
    footage = open_footage(catalog.store)
    found = losses.losses(footage)
    assert [loss.is_once for loss in found] == [True, False, True]
    [said] = losses.remarks(footage, found)
    assert said.startswith("cheap, cascade: looks once per cell") and "at most 2 s" in said


def film(path: Path) -> bytes:
    """Write 24 s at ten frames a second with sensor noise, in which a block walks from second 9 to second 13."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:48, 0:64]
    ground = np.stack([120 + x, 100 + y, 200 - x], axis=-1)
    with video.Writer(path, 64, 48, Fraction(1, 10), gop_s=1.0) as writer:
        for pts in range(240):
            rgb = ground + rng.normal(0, 2, (48, 64, 1))
            if 90 <= pts < 130:
                left = (3 * pts) % 44
                rgb[15:35, left : left + 16] = (250, 250, 30)
            writer.add(rgb.clip(0, 255).astype(np.uint8), pts)
    return path.read_bytes()


def test_a_gate_and_a_second_pass_change_nothing(folder: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """Stretches are left out and come in any order; scanned and detected in one pass or in two, the looks are the same."""
    add_clip(catalog, "a", film(folder / "film.mp4"))
    shutil.copytree(Path(catalog.store.url), folder / "two")
    second = open_catalog(DirStore(folder / "two"))
    found = cascade.parse(TWO.replace("0.5", "1.0"), folder=folder)
    wanted = options(found, score=2, gate="packets", every_s=0.3)
    curate(catalog, wanted, Settings())
    curate(second, dataclasses.replace(wanted, steps=("scan",)), Settings())
    curate(second, wanted, Settings())
    order = ["stage", "clip_id", "pts"]
    one, two = (store.scan("looks").drop("batch_id").sort(order).collect() for store in (catalog, second))
    assert_frame_equal(one, two)
    frames = catalog.scan("frames").collect()["pts"].to_list()
    grid = once.kept_grid(range(240), 0.3, Fraction(1, 10))
    assert 10 < len(frames) < len(grid) - 10  # the gate left some out
    certain = one.filter(pl.col("stage") == "cheap", pl.col("passed"))["pts"].to_list()
    firsts = once.Firsts([1.0], Fraction(1, 10)).columns(grid)[once.column(1.0)]
    assert len(certain) > 5 and certain == [pts for pts, first in zip(grid, firsts, strict=True) if first and pts in frames]


@pytest.mark.parametrize("value", ["0", "-1", "true", '"2"', "nan", "4000", "0.0001"])
def test_lengths_that_cannot_be_are_refused_by_their_line(folder: Path, value: str) -> None:
    """Seconds above nothing and up to an hour; a stage without the key has none."""
    with pytest.raises(UsageError, match=r"c\.toml line 7: once_s .* of stage cheap; legal: 0\.001 to 3600 seconds"):
        cascade.parse(TWO.replace("once_s = 0.5", f"once_s = {value}"), name="c.toml", folder=folder)
    assert cascade.lengths(cascade.parse(TWO, folder=folder).looks) == [0.5]


def test_cells_need_the_grid_of_the_scan(folder: Path) -> None:
    """Without step scan nobody knows how far apart the kept frames were asked for."""
    with pytest.raises(UsageError, match="once_s in the cascade needs the grid of the scan"):
        options(cascade.parse(TWO, folder=folder), "detect")
    assert options(cascade.parse(TWO.replace("once_s = 0.5\n", ""), folder=folder), "detect")
