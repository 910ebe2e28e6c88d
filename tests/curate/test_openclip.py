"""The image-text model: a tiny one with random weights, saved as open_clip reads it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curate import factors, openclip
from curate.openclip import OpenClipEmbedder
from curate.plan import Options
from curate.query import open_catalog as open_footage
from curate.run import curate
from infra.catalog import Catalog
from infra.errors import JobError, QueryError, UsageError
from infra.runs import recorded
from infra.settings import Settings
from tests.curate.conftest import TINY_OPENCLIP


def pictures(n: int) -> np.ndarray:
    """Return uint8 (n, 32, 32, 3)."""
    return np.random.default_rng(1).integers(0, 255, (n, 32, 32, 3), np.uint8)


def test_vectors_have_unit_length_and_do_not_depend_on_the_batch(tiny_openclip: Path) -> None:
    """16 numbers as float16, the same bytes alone and together; unpacked they have length one."""
    embedder = OpenClipEmbedder(tiny_openclip)
    assert (embedder.size_px, embedder.name) == openclip.describe(tiny_openclip, None)[::-1]
    rgb = pictures(3)
    together = embedder({"embed_rgb": rgb, "pts": np.arange(3)})
    assert "embed_rgb" not in together and together["pts"].tolist() == [0, 1, 2]
    assert [embedder({"embed_rgb": rgb[i : i + 1]})["embedding"][0] for i in range(3)] == list(together["embedding"])
    vectors = openclip.unpack(list(together["embedding"]), 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    texts = embedder.texts(["a person", "an empty yard"])
    assert texts.shape == (2, 16) and texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


def test_the_preprocessing_of_the_configuration_is_used(tiny_openclip: Path) -> None:
    """Mean and spread come from open_clip_config.json: the same picture through open_clip's own tower agrees."""
    import torch

    embedder = OpenClipEmbedder(tiny_openclip)
    rgb = pictures(1)
    pixels = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.inference_mode():
        expected = embedder._model.encode_image(pixels, normalize=True).numpy()
    found = openclip.unpack(list(embedder({"embed_rgb": rgb})["embedding"]), 16)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_without_weights_the_way_out_is_said(tmp_path: Path, tiny_openclip: Path) -> None:
    """No folder, a folder without weights, a file without its architecture, and a text model that would be fetched."""
    with pytest.raises(UsageError, match="--without embed"):
        openclip.find_weights(tmp_path / "absent")
    (tmp_path / openclip.CONFIG).write_text("{}")
    with pytest.raises(UsageError, match="exactly one weights file"):
        openclip.find_weights(tmp_path)
    with pytest.raises(UsageError, match="list_models"):
        openclip.describe(tiny_openclip / "open_clip_pytorch_model.bin", "NoSuchModel")


@pytest.mark.parametrize("config", ["{}", "no json", "[]", '{"model_cfg": {"vision_cfg": {}}}'])
def test_a_configuration_that_is_none_is_one_line(tmp_path: Path, config: str) -> None:
    """Without its keys, or not JSON: the folder and why."""
    (tmp_path / openclip.CONFIG).write_text(config)
    (tmp_path / "weights.pt").write_bytes(b"garbage")
    with pytest.raises(UsageError, match="cannot be opened as a model") as raised:
        openclip.describe(tmp_path, None)
    assert "\n" not in str(raised.value)


def test_garbage_in_place_of_weights_is_one_line(tmp_path: Path) -> None:
    """What torch raises becomes the file and why."""
    (tmp_path / openclip.CONFIG).write_text(json.dumps(TINY_OPENCLIP))
    (tmp_path / "weights.pt").write_bytes(b"garbage")
    with pytest.raises(UsageError, match="cannot be opened as a model"):
        OpenClipEmbedder(tmp_path)


def test_weights_swapped_before_tagging_are_found(
    catalog: Catalog, add_clip: Callable[..., str], tiny_openclip: Path, tmp_path: Path
) -> None:
    """Tags of another model under the hash of the first are never committed."""
    add_clip(catalog, "a", [90] * 20)
    folder = shutil.copytree(tiny_openclip, tmp_path / "model")
    sheet = factors.parse('[factor.scene]\nfrom = "prompts"\nprompts = { yard = "a yard", hall = "a hall" }')
    wanted = Options(steps=("scan", "embed", "tag"), embedder=openclip.find_weights(folder), embedder_path=folder, sheet=sheet)
    curate(catalog, dataclasses.replace(wanted, steps=("scan", "embed")), Settings())
    weights = next(folder.glob("*.bin"))
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(JobError, match="changed since the job began"):
        curate(catalog, dataclasses.replace(wanted, steps=("tag",)), Settings())
    assert not catalog.done("tag")


def test_embeddings_tags_and_search(catalog: Catalog, add_clip: Callable[..., str], tiny_openclip: Path) -> None:
    """A vector per kept frame; prompts become tags; a frame is nearest to itself; a sentence finds k frames, best first."""
    for name, level in (("a", 30), ("b", 120), ("c", 240)):
        add_clip(catalog, name, [level] * 20)
    sheet = factors.parse('[factor.scene]\nfrom = "prompts"\nprompts = { yard = "a yard", hall = "a hall" }')
    wanted = Options(
        steps=("scan", "embed", "tag"), embedder=openclip.find_weights(tiny_openclip), embedder_path=tiny_openclip, sheet=sheet
    )
    with pytest.raises(QueryError, match="no embeddings"):
        open_footage(catalog.store).similar_to(text="a yard")
    result = curate(catalog, wanted, Settings())
    assert result.tally.rows == {"scan": 6, "embed": 6, "tag": 6}
    rows = catalog.scan("embeddings").collect()
    assert set(rows["dim"]) == {16} and all(len(vector) == 32 for vector in rows["vector"])
    footage = open_footage(catalog.store)
    assert set(footage.frames.to_polars()["scene"]) <= {"yard", "hall"}
    key = (rows["clip_id"][0], rows["pts"][0])
    near = footage.similar_to(frame=key, k=3)
    assert near.height == 3 and near["similarity"][0] == pytest.approx(1, abs=1e-3)
    assert key in list(near.filter(pl.col("similarity") > 0.999).select("clip_id", "pts").iter_rows())
    with pytest.raises(QueryError, match="weights=PATH"):
        footage.similar_to(text="a yard")
    with recorded(catalog, "curate", {}) as run:
        run.inputs["openclip"] = {"source": rows["source"][0], "path": str(tiny_openclip), "model_name": None}
    found = footage.similar_to(text="a yard", k=4)
    assert found["similarity"].is_sorted(descending=True) and found.height == 4
    with pytest.raises(QueryError, match="either"):
        footage.similar_to()


def test_changed_prompts_embed_nothing_again(catalog: Catalog, add_clip: Callable[..., str], tiny_openclip: Path) -> None:
    """Tags are made from stored vectors."""
    add_clip(catalog, "a", [90] * 20)
    base = Options(
        steps=("scan", "embed", "tag"),
        embedder=openclip.find_weights(tiny_openclip),
        embedder_path=tiny_openclip,
        sheet=factors.parse('[factor.scene]\nfrom = "prompts"\nprompts = { yard = "a yard", hall = "a hall" }'),
    )
    curate(catalog, base, Settings())
    other = factors.parse('[factor.scene]\nfrom = "prompts"\nprompts = { road = "a road", lake = "a lake" }')
    result = curate(catalog, dataclasses.replace(base, sheet=other), Settings())
    assert result.tally.clips == {"tag": 1}
    assert set(open_footage(catalog.store).frames.to_polars()["scene"]) <= {"road", "lake"}
