"""Embeddings of boxes: where a crop lies, what becomes of it, and who must not see it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from curate import cascade, crops, detect, factors, openclip
from curate.plan import Options
from curate.query import Footage
from curate.query import open_catalog as open_footage
from curate.run import curate
from infra import video
from infra.catalog import Catalog
from infra.cli import main
from infra.errors import QueryError, UsageError
from infra.runs import recorded
from infra.settings import Settings

AddClip = Callable[..., str]
DETECT = """
[[stage]]
name = "cheap"
step = "detect"
weights = "cheap.onnx"

[[stage]]
name = "fine"
step = "detect"
weights = "fine.onnx"
"""
FRAMES = """
[[stage]]
name = "vit"
step = "embed"
weights = "tiny"
"""
BOXES = """
[[stage]]
name = "crops"
step = "embed"
weights = "tiny"
on = "boxes"
classes = ["person"]
min_score = 0.4
when = "n_person > 0"
"""
SHEET = '[factor.scene]\nfrom = "prompts"\nprompts = { yard = "a yard", hall = "a hall" }'


@pytest.fixture
def folder(folder: Path, tiny_openclip: Path) -> Path:
    """Return a folder with two detectors of different sizes and an embedder."""
    (folder / "tiny").symlink_to(tiny_openclip)
    return folder


def options(folder: Path, text: str, *, tag: bool = False) -> Options:
    """Return what a run with a cascade is asked for; its tags are by prompts."""
    found = cascade.parse(text, folder=folder)
    embeds = found.last("embed")
    assert embeds is not None
    return Options(
        steps=("scan", "detect", "embed", "tag") if tag else ("scan", "detect", "embed"), cascade=found,
        sheet=factors.parse(SHEET), every_s=0.5, embedder=embeds.weights, embedder_path=embeds.path,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((400, 200, 480, 440), (160, 240, 120)),  # 1280 x 720 in 640: scale 1/2, 140 px of grey above
        ((0, 0, 40, 400), (0, 140, 200)),  # at the border it moves into the picture
        ((1240, 320, 1280, 720), (440, 300, 200)),
        ((0, 300, 1280, 400), (0, 0, 640)),  # wider than the picture is high: grey above and below
        ((100, 300, 1100, 400), (50, 70, 500)),
        ((10, 10, 10.5, 10.2), (5, 145, 1)),  # never below a pixel
    ],
)
def test_a_crop_is_a_square_about_the_box(box: tuple[float, ...], expected: tuple[int, int, int]) -> None:
    """Its side is the box's longer one; it lies in the picture where it can, and always in the letterboxed square."""
    assert crops.square(box, (1280, 720), 640) == expected


def test_what_is_cut_is_what_the_box_showed() -> None:
    """A red square in a blue picture: its crop is red all over; that of a narrow box beside it has a red border."""
    rgb = np.zeros((480, 640, 3), np.uint8)
    rgb[..., 2] = 255
    rgb[100:200, 300:400] = (255, 0, 0)
    square, *_ = video.letterbox(rgb, 320)
    whole, beside = crops.cut(square, np.array([[300, 100, 400, 200], [250, 100, 300, 200]], np.float32), (640, 480), 32)
    assert whole.shape == (32, 32, 3) and (whole[2:-2, 2:-2, 0] > 200).all() and (whole[2:-2, 2:-2, 2] < 60).all()
    assert (beside[2:-2, :20, 2] > 200).all() and (beside[2:-2, 28:, 0] > 200).all()
    assert crops.cut(square, np.array([[10, 10, 10.5, 10.5]], np.float32), (640, 480), 32).shape == (1, 32, 32, 3)


def test_boxes_are_chosen_by_class_and_score_and_packed_with_their_place() -> None:
    """Places count all packed boxes, best first; packed and unpacked they are the same; none is none."""
    score_class = [(0.3, 1), (0.9, 0), (0.6, 1), (0.2, 0)]
    packed = detect.pack(np.array([[0, 0, 5, 5, *pair] for pair in score_class], np.float32))
    names = ("person", "car")
    assert crops.chosen(packed, names, (), 0.25).tolist() == [0, 1, 2]
    assert crops.chosen(packed, names, ("car",), 0.25).tolist() == [1, 2]
    assert crops.chosen(packed, names, ("person",), 0.1).tolist() == [0, 3]
    assert crops.chosen(b"", names, (), 0.1).tolist() == []
    made = crops.pack([1, 2], [b"ab", b"cd"])
    assert crops.unpack(made) == [(1, b"ab"), (2, b"cd")] and crops.unpack(crops.pack([], [])) == [] == crops.unpack(b"")


def test_rows_of_boxes_and_who_reads_them(folder: Path, catalog: Catalog, add_clip: AddClip, tiny_openclip: Path) -> None:
    """A vector for each person from min_score on, as its crop gives it; searches and tags of frames see none of them."""
    for name, level in (("a", 60), ("b", 150), ("c", 240)):
        add_clip(catalog, name, [level] * 10)
    curate(catalog, options(folder, DETECT + FRAMES, tag=True), Settings())
    tags = catalog.scan("tags").drop("batch_id").collect()
    footage = open_footage(catalog.store)
    with pytest.raises(QueryError, match=r'on = "boxes"'):
        footage.boxes_like(box="x")
    [frame] = catalog.scan("embeddings").head(1).select("clip_id", "pts").collect().rows()
    before = footage.similar_to(frame=frame, k=50)
    curate(catalog, options(folder, DETECT + FRAMES + BOXES, tag=True), Settings())
    rows = catalog.scan("embeddings").collect()
    boxes = catalog.scan("detections").filter(pl.col("source").str.starts_with("fine")).collect()
    persons = boxes.filter(pl.col("class_name") == "person")
    wanted = persons.filter(pl.col("score") >= 0.4)
    assert 0 < wanted.height < persons.height and rows["det_id"].null_count() == 6
    assert sorted(rows["det_id"].drop_nulls()) == sorted(wanted["det_id"])
    _alike(footage.similar_to(frame=frame, k=50), before)
    again = catalog.scan("tags").drop("batch_id").collect()
    assert tags.height == 6 and again.sort("clip_id", "pts").rows() == tags.sort("clip_id", "pts").rows()
    assert footage.frames.count() == 6 and before.height == 6
    embedder = openclip.OpenClipEmbedder(tiny_openclip)
    for row in rows.filter(pl.col("det_id").is_not_null()).iter_rows(named=True):
        level = footage.frames.where(f"clip_id = '{row['clip_id']}'").to_polars()["brightness"][0]
        crop = np.full((1, 32, 32, 3), round(level), np.uint8)
        expected = openclip.unpack(list(embedder({"embed_rgb": crop})["embedding"]), 16)
        np.testing.assert_allclose(openclip.unpack([row["vector"]], 16), expected, atol=0.02)
    _searched(footage, catalog, wanted["det_id"][0], tiny_openclip)


def _alike(found: pl.DataFrame, before: pl.DataFrame) -> None:
    """Compare what two searches found, whatever the order of what is nearly equal: batches of other sizes round otherwise."""
    key = [name for name in ("clip_id", "pts", "det_id") if name in found.columns]
    assert_frame_equal(found.sort(key), before.sort(key), abs_tol=2e-3, rel_tol=0)


def _searched(footage: Footage, catalog: Catalog, det_id: str, tiny_openclip: Path) -> None:
    """Search boxes by example and by text; refuse what cannot be."""
    near = footage.boxes_like(box=det_id, k=3)
    assert det_id in near.filter(pl.col("similarity") > 0.999)["det_id"].to_list() and near.height == 3
    assert near["similarity"].is_sorted(descending=True) and set(near["class_name"]) == {"person"}
    assert {"pts_s", "camera_id", "recording_id", "x1", "y2", "score"} <= set(near.columns)
    found = footage.boxes_like(text="a person in a red jacket", classes=["person"], weights=tiny_openclip)
    assert found.height == 4 and found["similarity"].is_sorted(descending=True)
    with recorded(catalog, "curate", {}) as run:
        source = catalog.scan("embeddings").collect()["source"][0]
        run.inputs["openclip"] = {"source": source, "path": str(tiny_openclip), "model_name": None}
    _alike(footage.boxes_like(text="a person in a red jacket"), found)
    for wrong, says in (
        ({}, "either text"), ({"box": "x", "text": "y"}, "either text"), ({"box": "x"}, "box 'x' has no embedding"),
        ({"box": det_id, "classes": ["car"]}, "class 'car': .*legal: person"),
    ):  # fmt: skip
        with pytest.raises(QueryError, match=says):
            footage.boxes_like(**wrong)


def test_a_sentence_finds_boxes_of_their_own_embedder(folder: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """`camloop curate` notes where the embedder of the boxes lies, also where that of the frames is another one."""
    import torch

    shutil.copytree(folder / "tiny", folder / "other")
    [weights] = (folder / "other").glob("*.bin")
    state = torch.load(weights, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, weights)
    (folder / "c.toml").write_text(DETECT + FRAMES.replace('"tiny"', '"other"') + BOXES)
    add_clip(catalog, "a", [200] * 10)
    store = ["--store", str(folder / "store")]
    assert main(["curate", "--local", "--without", "tag", "--cascade", str(folder / "c.toml"), *store]) == 0
    rows = catalog.scan("embeddings").collect()
    footage = open_footage(catalog.store)
    assert rows["source"].n_unique() == 2 and footage.boxes_like(text="a person").height == rows["det_id"].count() == 1
    assert footage.similar_to(text="a yard").height == 1


def test_crops_come_from_the_largest_square_or_from_their_own(folder: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """Without crop_px that of the largest detector; with it the decode stage makes one; rows stand in the fingerprint."""
    plain = cascade.parse(DETECT + BOXES, folder=folder)
    own = cascade.parse(DETECT + BOXES + "crop_px = 96\n", folder=folder)
    assert plain.looks[-1].pixels == plain.looks[1].pixels == "detect64_rgb" and own.looks[-1].pixels == "detect96_rgb"
    assert plain.settings("detect") == own.settings("detect") and plain.settings("embed") != own.settings("embed")
    assert all("crops" not in look and "once_s" not in look for look in plain.settings("detect"))
    add_clip(catalog, "a", [200] * 10)
    result = curate(catalog, options(folder, DETECT + BOXES + "crop_px = 96\n"), Settings())
    assert result.tally.rows["embed"] == 2 + 3 and catalog.scan("embeddings").collect()["det_id"].null_count() == 0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('on = "boxes"', 'on = "box"', r"c\.toml line 16: on 'box' of stage crops; legal: frames, boxes"),
        ('on = "boxes"', "on = 3", r"c\.toml line 16: on 3 of stage"),
        ('on = "boxes"\n', "", r"c\.toml line 16: classes of stage crops is for embed stages"),
        ('["person"]', '["persons"]', r"c\.toml line 17: classes \['persons'\] of stage crops; legal: .*person, car"),
        ('["person"]', '"person"', r"c\.toml line 17: classes 'person' of stage crops"),
        ("min_score = 0.4", "min_score = 0.4\ncrop_px = 9999", r"line 19: crop_px 9999 .*legal: whole pixels, 32 to 1920"),
        ("min_score = 0.4", "crop_px = true", r"c\.toml line 18: crop_px True"),
        ('weights = "fine.onnx"', 'weights = "fine.onnx"\non = "boxes"', r"line 11: on 'boxes' of stage fine; legal: frames"),
    ],
)
def test_what_cannot_be_is_refused_by_its_line(folder: Path, old: str, new: str, says: str) -> None:
    """Before anything is decoded, one line with the place, the value and what would be legal."""
    with pytest.raises(UsageError, match=says):
        cascade.parse((DETECT + BOXES).replace(old, new), name="c.toml", folder=folder)


def test_boxes_need_a_detector_and_prompts_need_frames(folder: Path) -> None:
    """Alone an embed stage of boxes has none to cut; tags by prompts would have no vector of a frame."""
    with pytest.raises(UsageError, match=r"c\.toml line 6: stage crops embeds boxes, and no detect stage before it"):
        cascade.parse(BOXES.replace('when = "n_person > 0"', ""), name="c.toml", folder=folder)
    with pytest.raises(UsageError, match=r"line 1: .*the factor sheet has prompts, and the cascade embeds boxes only"):
        options(folder, DETECT + BOXES, tag=True)
    both = cascade.parse(DETECT + FRAMES + BOXES, folder=folder)
    assert both.last("embed") == both.looks[2]  # the embedder of the tags is that of the frames
    with pytest.raises(UsageError, match="stage more has the weights of stage crops"):
        cascade.parse(DETECT + BOXES + BOXES.replace('"crops"', '"more"'), folder=folder)
