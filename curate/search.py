"""Nearest neighbours over the stored embeddings: exact, by brute force in blocks, on any machine.

Frames are found among frames, boxes (rows with a det_id, from an embed stage `on = "boxes"`) among boxes, never mixed.
One dot product each: a million frames of 512 numbers take about a second. A sentence is embedded by the very model
that made the vectors; which one that was stands in the `runs` row of the `camloop curate` that made them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate import openclip
from infra import views
from infra.errors import QueryError

if TYPE_CHECKING:
    from infra.catalog import Catalog

BLOCK = 65_536  # vectors held as float32 at a time


def nearest(
    catalog: Catalog,
    *,
    text: str | None,
    frame: tuple[str, int] | None,
    k: int,
    weights: Path | None,
    model_name: str | None,
) -> pl.DataFrame:
    """Return clip_id, pts, similarity (cosine) of the k nearest frames, best first; see `Footage.similar_to`."""
    if (text is None) == (frame is None):
        raise QueryError("similar_to needs either text='a person in a red jacket' or frame=(clip_id, pts)")
    rows = catalog.scan("embeddings").filter(pl.col("det_id").is_null() & pl.col("pts").is_not_null()).collect()
    if rows.is_empty():
        raise QueryError("no embeddings: run camloop curate with --openclip-weights, without --without embed")
    own = rows.clear()
    if frame is not None:
        own = rows.filter((pl.col("clip_id") == frame[0]) & (pl.col("pts") == frame[1]))
        if own.is_empty():
            raise QueryError(f"frame {frame} has no embedding")
    return _nearest(catalog, rows, own, text, k, weights, model_name).select("clip_id", "pts", "similarity")


def nearest_boxes(
    catalog: Catalog, *, text: str | None, box: str | None, k: int, classes: Sequence[str], weights: Path | None,
    model_name: str | None,
) -> pl.DataFrame:  # fmt: skip
    """Return the k nearest boxes with their rows of `detections` and similarity (cosine), best first; see `boxes_like`."""
    if (text is None) == (box is None):
        raise QueryError("boxes_like needs either text='a person in a red jacket' or box=DET_ID")
    found = views.detections(catalog).select("clip_id", "pts", "det_id", "class_name", "score", "x1", "y1", "x2", "y2")
    vectors = catalog.scan("embeddings").filter(pl.col("det_id").is_not_null())
    rows = vectors.join(found, on=["clip_id", "pts", "det_id"], how="inner").sort("clip_id", "det_id").collect()
    if rows.is_empty():
        raise QueryError('no boxes with embeddings: run camloop curate with a cascade whose embed stage says on = "boxes"')
    own = rows.filter(pl.col("det_id") == (box or ""))
    if box is not None and own.is_empty():
        raise QueryError(f"box {box!r} has no embedding; table detections has the det_id of every box")
    known = rows["class_name"].unique().sort().to_list()
    if unknown := sorted(set(classes) - set(known)):
        raise QueryError(f"class {unknown[0]!r}: none of its boxes has an embedding; legal: {', '.join(known)}")
    rows = rows.filter(pl.col("class_name").is_in(list(classes))) if classes else rows
    return _nearest(catalog, rows, own, text, k, weights, model_name).select(*found.collect_schema().names(), "similarity")


def _nearest(
    catalog: Catalog, rows: pl.DataFrame, own: pl.DataFrame, text: str | None, k: int, weights: Path | None,
    model_name: str | None,
) -> pl.DataFrame:  # fmt: skip
    """Return the k rows nearest to the last of `own`, or to a text where `own` is empty, with `similarity`, best first."""
    if own.is_empty():
        embedder = _embedder(catalog, rows["source"].unique(maintain_order=True).to_list(), weights, model_name)
        source, query = embedder.name, embedder.texts([str(text)])[0]
    else:
        source, query = own["source"][-1], openclip.unpack(own["vector"].to_list()[-1:], own["dim"][-1])[0]
    rows = rows.filter(pl.col("source") == source)
    if rows.is_empty():
        return rows.with_columns(similarity=pl.lit(None, pl.Float32))
    scores = np.concatenate([_block(rows[start : start + BLOCK], query) for start in range(0, rows.height, BLOCK)])
    best = np.lexsort((rows["pts"].to_numpy(), -scores))[:k]
    return rows[best].with_columns(similarity=pl.Series(scores[best]))


def _block(rows: pl.DataFrame, query: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = openclip.unpack(rows["vector"].to_list(), rows["dim"][0]) @ query
    return scores


def _embedder(
    catalog: Catalog, sources: Sequence[str], weights: Path | None, model_name: str | None
) -> openclip.OpenClipEmbedder:
    """Return the model whose vectors are in the store; those of extractors on camera hosts know no sentences."""
    if weights is None:
        used = _last_used(catalog, sources)
        weights, model_name = Path(used["path"]), used["model_name"]
    made = openclip.OpenClipEmbedder(weights, model_name=model_name)
    if made.name not in sources:
        raise QueryError(
            f"the embeddings are of {sources[-1]}, these weights are {made.name}: a sentence must go through the same model"
        )
    return made


def _last_used(catalog: Catalog, sources: Sequence[str]) -> dict[str, Any]:
    runs = catalog.scan("runs", ["command", "inputs", "end_ns"]).filter(pl.col("command") == "curate").sort("end_ns").collect()
    for inputs in reversed(runs["inputs"].to_list()):
        told: dict[str, dict[str, Any] | None] = json.loads(inputs or "{}")
        for used in (told.get("openclip"), told.get("openclip_boxes")):
            if used and used.get("source") in sources:
                return used
    raise QueryError(f"nobody knows where the weights of {sources[-1]} are: give weights=PATH")
