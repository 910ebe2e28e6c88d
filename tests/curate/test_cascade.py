"""Cascades: who looked at what, with which probability; what views, reruns, Ray and refusals make of it."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from curate import cascade, detect, factors, jobs, plan
from curate.cascade import Cascade
from curate.plan import Options
from curate.query import open_catalog as open_footage
from curate.run import Result, curate
from infra import keys
from infra.catalog import Catalog, open_catalog
from infra.cli import main
from infra.errors import UsageError
from infra.settings import Settings
from infra.store import DirStore

AddClip = Callable[..., str]
TWO = """
[[stage]]
name = "cheap"
step = "detect"
weights = "cheap.onnx"
when = "brightness > 60"
audit = 0.3

[[stage]]
name = "fine"
step = "detect"
weights = "fine.onnx"
when = "n_person > 0"
min_score = 0.47
audit = 0.4
"""


def options(found: Cascade, *steps: plan.Step, every_s: float = 0.1) -> Options:
    """Return what a run with a cascade is asked for."""
    chosen = steps or ("scan", "detect", "tag")
    return Options(steps=chosen, cascade=found, sheet=factors.parse(factors.DEFAULT), every_s=every_s)


def run(catalog: Catalog, found: Cascade, *steps: plan.Step) -> Result:
    """Run the plain loop."""
    return curate(catalog, options(found, *steps), Settings())


def ramps(catalog: Catalog, add_clip: AddClip) -> None:
    """Add two clips of 40 frames whose brightness rises from 0 to 234, and one that is dark throughout."""
    add_clip(catalog, "a", [6 * i for i in range(40)])
    add_clip(catalog, "b", [6 * i for i in range(39, -1, -1)])
    add_clip(catalog, "dark", [3] * 20)


def test_each_stage_looks_where_its_condition_holds_and_at_its_sample(
    folder: Path, catalog: Catalog, add_clip: AddClip
) -> None:
    """Frames, probabilities and counts are those that the conditions and the hash of (clip, pts, stage) give by hand."""
    ramps(catalog, add_clip)
    result = run(catalog, cascade.parse(TWO, folder=folder))
    looks = catalog.scan("looks").collect()
    expected = {"cheap": {}, "fine": {}}
    n_passed = {"cheap": 0, "fine": 0}
    for frame in catalog.scan("frames").collect().iter_rows(named=True):
        key, p_look = (frame["clip_id"], frame["pts"]), 1.0
        for stage, passes, share in (("cheap", frame["brightness"] > 60, 0.3), ("fine", frame["brightness"] > 123, 0.4)):
            n_passed[stage] += passes
            p_look *= 1.0 if passes else share
            if not passes and keys.uniform("look", *key, stage) >= share:
                break
            expected[stage][key] = (p_look, passes)
    for stage in ("cheap", "fine"):
        rows = looks.filter(pl.col("stage") == stage, pl.col("pts").is_not_null())
        found = {(row["clip_id"], row["pts"]): (row["p_look"], row["passed"]) for row in rows.iter_rows(named=True)}
        assert found == expected[stage]
        flow = result.tally.stages[stage]
        assert (flow.n_passed, flow.n_out) == (n_passed[stage], len(found)) and flow.seconds > 0
    assert result.tally.stages["cheap"].n_in == 100 and result.tally.stages["fine"].n_in == len(expected["cheap"])
    whole = looks.filter(pl.col("pts").is_null()).group_by("stage").agg(pl.col("n_in").sum(), pl.len()).sort("stage")
    assert whole.rows() == [("cheap", 100, 3), ("fine", len(expected["cheap"]), 3)]
    decoded = result.tally.stages["decode"]
    assert (decoded.n_in, decoded.n_out) == (100, 100) and decoded.seconds > 0


def test_the_last_detector_judges_and_unseen_is_null(folder: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """n_person is the judge's count: null where it did not look, 0 where it found none; another stage's by its name."""
    ramps(catalog, add_clip)
    found = cascade.parse(TWO, folder=folder)
    run(catalog, found)
    rows = open_footage(catalog.store).frames.to_polars()
    fine = catalog.scan("looks").filter(pl.col("stage") == "fine", pl.col("pts").is_not_null()).collect()
    seen = rows.filter(pl.col("n_person").is_not_null())
    assert seen.select("clip_id", "pts", "p_look").sort("clip_id", "pts").rows() == sorted(
        fine.select("clip_id", "pts", "p_look").rows()
    )
    assert rows.filter(pl.col("n_person").is_null())["p_look"].is_null().all() and 0 < seen.height < 100
    bright = seen.filter(pl.col("brightness") > 70)
    assert set(bright["n_person"]) == {1} and set(seen.filter(pl.col("brightness") < 50)["n_person"]) <= {0}
    view = open_footage(catalog.store).frames.counting(0.25, {"detections": found.looks[0].source}).to_polars()
    assert view["n_person"].is_not_null().sum() == catalog.scan("looks").filter(stage="cheap").collect()["pts"].count()
    audits = catalog.scan("audits").collect()
    assert (
        set(audits["step"]) == {"cheap", "fine"} and audits["dropped"].all() and audits["audit_id"].n_unique() == audits.height
    )


def test_a_clip_of_which_nothing_was_looked_at_is_unknown(folder: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """Nothing passes and nothing is audited: every n_person is null, and a plain run beside it counts as ever."""
    add_clip(catalog, "dark", [3] * 10)
    none = TWO.replace("brightness > 60", "brightness > 300").replace("audit = 0.3", "audit = 0")
    run(catalog, cascade.parse(none, folder=folder))
    rows = open_footage(catalog.store).frames.to_polars()
    assert (
        rows["n_person"].is_null().all() and rows["p_look"].is_null().all() and catalog.scan("detections").collect().is_empty()
    )
    add_clip(catalog, "bright", [200] * 10, camera_id="cam2")
    plain = dataclasses.replace(options(cascade.parse(none, folder=folder)), cascade=None, detector=_weights(folder))
    curate(catalog, plain, Settings())
    rows = open_footage(catalog.store).frames.to_polars()
    assert set(rows["n_person"]) == {0, 1} and "p_look" not in rows.columns


def _weights(folder: Path) -> object:
    from curate.detect import read_weights

    return read_weights(folder / "fine.onnx")


def test_reruns_and_changes(folder: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """The same cascade does nothing; another condition runs the stages and no scan; the rows are those of one run for all."""
    ramps(catalog, add_clip)
    shutil.copytree(Path(catalog.store.url), folder / "fresh")  # the same bytes: an encoder under load need not make them twice
    first = cascade.parse(TWO, folder=folder)
    run(catalog, first)
    assert run(catalog, first).tally.clips == {}
    other = cascade.parse(TWO.replace("> 60", "> 90"), folder=folder)
    assert run(catalog, other).tally.clips == {"detect": 3, "tag": 3}
    fresh = open_catalog(DirStore(folder / "fresh"))
    run(fresh, other)
    for table in ("looks", "detections", "audits", "frames"):
        rows = [store.scan(table).drop("batch_id").collect() for store in (catalog, fresh)]
        order = [name for name in ("clip_id", "pts", "stage", "step", "source", "det_id") if name in rows[0].columns]
        assert rows[0].height > 0
        assert_frame_equal(*(table_rows.sort(order) for table_rows in rows))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('when = "n_person > 0"', 'when = "n_persons > 0"', r"c\.toml line 13: stage fine: no column 'n_persons'.*n_person"),
        ('when = "brightness > 60"', 'when = "n_person > 0"', r"c\.toml line 6: stage cheap: no column 'n_person'"),
        ('when = "brightness > 60"', "when = \"brightness > 'a'\"", r"c\.toml line 6: stage cheap: .*cannot be compared"),
        ('weights = "fine.onnx"', 'weights = "gone.onnx"', r"c\.toml line 12: stage fine: no weights at .*gone\.onnx"),
        ('weights = "fine.onnx"', 'weights = "cheap.onnx"', r"c\.toml line 12: stage fine has the weights of stage cheap"),
        (
            'weights = "fine.onnx"',
            'weights = "fine.onnx"\nsha256 = "00"',
            r"c\.toml line 13: fine\.onnx of stage fine hashes to",
        ),
        ("audit = 0.3", "audit = 30", r"c\.toml line 7: audit 30 of stage cheap; legal: 0 to 1"),
        ('step = "detect"\nweights = "fine.onnx"', 'step = "look"\nweights = "fine.onnx"', r"c\.toml line 11: step 'look'"),
        ('name = "fine"', 'name = "cheap"', r"c\.toml line 10: stage name 'cheap'"),
        ('name = "fine"', 'name = "cascade"', r"c\.toml line 10: stage name 'cascade'.*not cascade or decode"),
        ('name = "fine"', 'name = "decode"', r"c\.toml line 10: stage name 'decode'"),
        ('name = "fine"', 'name = "füne"', r"c\.toml line 10: stage name 'füne'"),
        ('name = "fine"', 'name = "_fine"', r"c\.toml line 10: stage name '_fine'"),
        ('name = "fine"', "name = 5", r"c\.toml line 10: name 5 of stage 2; legal: text in quotes"),
        ('weights = "fine.onnx"', "weights = 5", r"c\.toml line 12: weights 5 of stage 2; legal: text in quotes"),
        ('weights = "fine.onnx"', 'weights = "fine.onnx"\nmodel = 5', r"c\.toml line 13: model 5 of stage 2"),
        ('weights = "fine.onnx"', 'weights = "fine.onnx"\nsha256 = 5', r"c\.toml line 13: sha256 5 of stage 2"),
        ('when = "n_person > 0"', "when = 5", r"c\.toml line 13: when 5 of stage 2; legal: text in quotes"),
        ('weights = "fine.onnx"', f'weights = "{"x" * 300}"', r"c\.toml line 12: stage fine: .*cannot be opened.*too long"),
        ("min_score = 0.47", "min_scores = 0.47", r"c\.toml line 14: unknown key 'min_scores'; legal: audit, classes, crop_px"),
        ("[[stage]]", "[[stages]]", r"c\.toml: .*legal: \[\[stage\]\] tables"),
    ],
)
def test_what_cannot_be_is_refused_by_its_line(folder: Path, old: str, new: str, says: str) -> None:
    """Before anything is decoded, one line with the place, the value and what would be legal."""
    with pytest.raises(UsageError, match=says):
        cascade.parse(TWO.replace(old, new), name="c.toml", folder=folder)


@pytest.mark.parametrize("name", ["garbage.onnx", "garbage.pth", "garbage.pt", "empty.pth", "list.pt"])
def test_a_file_that_is_no_model_is_one_line(folder: Path, name: str) -> None:
    """Whatever its library raises: in a cascade the line, alone the path, always in one line."""
    (folder / name).write_bytes(pickle.dumps([1]) if name == "list.pt" else b"" if name == "empty.pth" else b"garbage")
    with pytest.raises(UsageError, match=rf"c\.toml line 12: stage fine: .*{name}: cannot be opened as a model") as raised:
        cascade.parse(TWO.replace("fine.onnx", name), name="c.toml", folder=folder)
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match=rf"^/.*{name}: cannot be opened as a model"):
        detect.describe(detect.read_weights(folder / name))


def test_the_command_refuses_what_is_no_model(
    folder: Path, catalog: Catalog, add_clip: AddClip, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--weights` and `--openclip-weights`: exit code 2 and one line, nothing scanned."""
    add_clip(catalog, "a", [3] * 10)
    (folder / "garbage.onnx").write_bytes(b"garbage")
    (folder / "vit").mkdir()
    (folder / "vit/open_clip_config.json").write_text("{}")
    (folder / "vit/weights.pt").write_bytes(b"garbage")
    curating = ["curate", "--local", "--store", str(folder / "store")]
    for given in (["--weights", "garbage.onnx", "--without", "embed"], ["--openclip-weights", "vit", "--without", "detect"]):
        assert main([*curating, given[0], str(folder / given[1]), *given[2:]]) == 2
        [said] = [line for line in capsys.readouterr().err.splitlines() if "cannot be opened" in line]
        assert given[1] in said and not catalog.done("scan")


class _Marker:
    """Pickled, it writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.path, "opened")


def test_weights_of_another_hash_are_never_opened(folder: Path) -> None:
    """A pickle runs what it likes when it is opened: `sha256` is compared before."""
    marker, path = folder / "marker", folder / "fine.pt"
    path.write_bytes(pickle.dumps(_Marker(marker)))
    text = TWO.replace('"fine.onnx"', '"fine.pt"\nsha256 = "00"')
    with pytest.raises(UsageError, match=r"c\.toml line 13: fine\.pt of stage fine hashes to"):
        cascade.parse(text, name="c.toml", folder=folder)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # so the file would have written it


EMBED = """
[[stage]]
name = "vit"
step = "embed"
weights = "vit.pt"
model = "ViT-B-32"
"""


def test_detectors_come_before_embedders(folder: Path) -> None:
    """Behind an embed stage the judge would be cut off where no embeddings are asked for, and audits would miss a share."""
    (folder / "vit.pt").write_bytes(b"only hashed here")
    parts = TWO.split("[[stage]]")
    text = f"[[stage]]{parts[1]}{EMBED}[[stage]]{parts[2]}"
    with pytest.raises(
        UsageError, match=r"c\.toml line 16: detect stages come before embed stages: move stage fine above .*vit"
    ):
        cascade.parse(text, name="c.toml", folder=folder)
    assert [look.step for look in cascade.parse(TWO + EMBED, folder=folder).looks] == ["detect", "detect", "embed"]


def test_the_architecture_is_part_of_the_fingerprint(folder: Path) -> None:
    """The same file read as another model gives other vectors."""
    (folder / "vit.pt").write_bytes(b"only hashed here")
    texts = [TWO + EMBED, TWO + EMBED.replace("ViT-B-32", "ViT-B-16")]
    prints = [
        [options(cascade.parse(text, folder=folder)).fingerprint(step, {}) for text in texts] for step in ("detect", "embed")
    ]
    assert prints[0][0] == prints[0][1] and prints[1][0] != prints[1][1]


def test_a_sheet_over_a_class_that_the_judge_lacks_is_refused(folder: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """Before anything is decoded, as with --weights; the classes are those of the last detect stage."""
    add_clip(catalog, "a", [3] * 10)
    made = options(cascade.parse(TWO, folder=folder))
    sheet = factors.parse('[factor.big]\nfrom = "rule"\nrules = [{ value = "yes", where = "n_truck > 0" }]')
    with pytest.raises(UsageError, match=r"fine\.onnx knows no class behind .n_truck."):
        plan.make(catalog, dataclasses.replace(made, sheet=sheet))
    known = factors.parse('[factor.big]\nfrom = "rule"\nrules = [{ value = "yes", where = "n_car > 0" }]')
    assert plan.make(catalog, dataclasses.replace(made, sheet=known)).works


def test_a_step_without_a_stage_is_refused(folder: Path) -> None:
    """Embeddings cannot come from a cascade of detectors."""
    with pytest.raises(UsageError, match=r"step embed has no .*--without embed"):
        options(cascade.parse(TWO, folder=folder), "scan", "embed")


@pytest.mark.slow
def test_ray_gives_the_same_looks(folder: Path, add_clip: AddClip) -> None:
    """Batches in any order, on workers: the same rows of looks, audits and detections."""
    pytest.importorskip("ray", reason="the extra [cloud] (ray) is not installed here")
    stores = [open_catalog(DirStore(folder / name)) for name in ("loop", "ray")]
    wanted = options(cascade.parse(TWO, folder=folder))
    for catalog in stores:
        ramps(catalog, add_clip)
    loop = curate(stores[0], wanted, Settings())
    with jobs.cluster(None) as cpus:
        by_ray = curate(stores[1], wanted, Settings(), engine=jobs.run_ray, cpus=cpus)
    for stage, flow in loop.tally.stages.items():
        assert dataclasses.replace(by_ray.tally.stages[stage], seconds=0) == dataclasses.replace(flow, seconds=0)
    for table, order in (("looks", ["clip_id", "stage", "pts"]), ("audits", ["audit_id"]), ("detections", ["det_id"])):
        rows = [catalog.scan(table).drop("batch_id").sort(order).collect() for catalog in stores]
        assert rows[0].height > 0
        assert_frame_equal(*rows, abs_tol=1e-4, rel_tol=0)


def test_a_condition_without_columns_and_unknown_measures(folder: Path) -> None:
    """A constant holds for every row or none; an unknown measure (NaN) does not hold."""
    look = cascade.parse(TWO, folder=folder).looks[0]
    batch = {"end": np.array([b"", b""], dtype=object), "brightness": np.array([np.nan, 70.0])}
    assert cascade.holds(look, None, batch).tolist() == [False, True]
    constant = cascade.parse(TWO.replace("brightness > 60", "1 = 1"), folder=folder).looks[0]
    assert cascade.holds(constant, None, batch).tolist() == [True, True]
    assert json.dumps(cascade.parse(TWO, folder=folder).settings("detect"))
