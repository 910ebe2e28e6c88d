"""Step `tag`: the factor sheet applied to rows that stand in the tables; no pixel is looked at.

Reads frames, detections (as the counts of `infra.views.frames_view`) and embeddings of the clips concerned, and writes
one row of `tags` per frame and factor whose value is known. Each factor is one expression over all frames at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate import daylight, openclip, quality
from curate.collect import Tally
from curate.factors import Factor, Sheet
from curate.plan import Options, Work
from infra.catalog import Catalog, Done
from infra.clock import Clock
from infra.views import frames_view

if TYPE_CHECKING:
    from curate.openclip import OpenClipEmbedder

CLIPS = 1000  # clips per commit

_KEY = ["clip_id", "pts"]


def run(catalog: Catalog, works: Sequence[Work], options: Options, *, clock: Clock, tally: Tally) -> None:
    """Tag the clips of `works` that are scanned by now, and commit."""
    scanned = catalog.done("scan")
    ready = [work for work in works if "tag" in work.missing and work.clip_id in scanned]
    embedder = _open_embedder(options) if ready and options.sheet.of("prompts") else None
    for start in range(0, len(ready), CLIPS):
        part = ready[start : start + CLIPS]
        tags = tag(catalog, [work.clip_id for work in part], options.sheet, embedder)
        n_tags = dict(tags.group_by("clip_id").len().iter_rows())
        frames = _of(catalog.scan("frames", ["clip_id"]), [work.clip_id for work in part]).collect()
        n_frames = dict(frames.group_by("clip_id").len().iter_rows())
        done = [
            Done("clip", w.clip_id, "tag", w.missing["tag"], n_frames.get(w.clip_id, 0), n_tags.get(w.clip_id, 0)) for w in part
        ]
        catalog.commit({"tags": tags.to_arrow()}, done, clock=clock)
        tally.add("tag", len(part), tags.height)
        for work in part:
            tally.seen(work).n_tagged += 1


def tag(catalog: Catalog, clip_ids: Sequence[str], sheet: Sheet, embedder: OpenClipEmbedder | None = None) -> pl.DataFrame:
    """Return clip_id, pts, factor, name, score, source of all tags of some clips, in the order of the sheet, then of frames."""
    made = []
    frames = _of(catalog.scan("frames"), clip_ids).sort(_KEY).collect()
    for factor in sheet.factors:
        if factor.origin == "lighting":
            made.append(_row(factor, frames, pl.Series(_lighting(frames), dtype=pl.String)))
        elif factor.origin == "rule":
            rows = _of(frames_view(catalog, min_score=factor.min_score, classes=_classes(factor)), clip_ids)
            named = rows.select(*_KEY, name=by_rules(factor, rows.collect_schema())).sort(_KEY).collect()
            made.append(_row(factor, named, named["name"]))
        elif factor.origin == "sun":
            named = daylight.name_frames(frames, daylight.places(catalog))
            made.append(_row(factor, named, named["name"]))
        elif factor.origin == "prompts" and embedder is not None:
            made.append(_from_embeddings(catalog, clip_ids, factor, embedder))
    empty = pl.DataFrame(schema={"clip_id": pl.String, "pts": pl.Int64, "factor": pl.String, "name": pl.String,
                                 "score": pl.Float32, "source": pl.String})  # fmt: skip
    return pl.concat([empty, *made])


def _lighting(frames: pl.DataFrame) -> list[str | None]:
    measures = frames.select("brightness", "colourfulness").iter_rows()
    return [None if None in pair else quality.lighting(*pair) for pair in measures]


def _of(rows: pl.LazyFrame, clip_ids: Sequence[str]) -> pl.LazyFrame:
    return rows.filter(pl.col("clip_id").is_in(list(clip_ids)))


def _classes(factor: Factor) -> list[str]:
    """Return the class names behind the n_<class> columns that a factor's rules name."""
    columns = {column for _, expression in factor.rules for column in expression.columns}
    return sorted({"person", *(column.removeprefix("n_").replace("_", " ") for column in columns if column.startswith("n_"))})


def _row(factor: Factor, keys: pl.DataFrame, names: pl.Series, scores: pl.Series | None = None) -> pl.DataFrame:
    rows = keys.select(_KEY).with_columns(
        factor=pl.lit(factor.name),
        name=names.cast(pl.String),
        score=pl.lit(None, pl.Float32) if scores is None else scores.cast(pl.Float32),
        source=pl.lit(factor.source),
    )
    return rows.filter(pl.col("name").is_not_null())


def _open_embedder(options: Options) -> OpenClipEmbedder:
    """Return the model of the prompts.

    Raises:
        JobError: its file is not the one that the job began with.
    """
    assert options.embedder is not None and options.embedder_path is not None
    embedder = openclip.OpenClipEmbedder(options.embedder_path, model_name=options.embedder_model)  # texts only, and here
    options.embedder.check()  # after it was read: what was swapped until now is found
    return embedder


def _from_embeddings(catalog: Catalog, clip_ids: Sequence[str], factor: Factor, embedder: OpenClipEmbedder) -> pl.DataFrame:
    frame_vectors = pl.col("det_id").is_null() & pl.col("pts").is_not_null() & (pl.col("source") == embedder.name)
    rows = _of(catalog.scan("embeddings"), clip_ids).filter(frame_vectors).sort(_KEY).collect()
    if rows.is_empty():
        return _row(factor, rows, pl.Series([], dtype=pl.String), pl.Series([], dtype=pl.Float32))
    images = openclip.unpack(rows["vector"].to_list(), rows["dim"][0])
    best, probs = by_prompts(factor, images, embedder.texts(factor.sentences), embedder.scale)
    floors = [(value, factor.floors.get(value, factor.floor)) for value in factor.prompts]
    found = ((*floors[index], prob) for index, prob in zip(best, probs, strict=True))
    names = [value if prob >= floor else None for value, floor, prob in found]
    return _row(factor, rows, pl.Series(names, dtype=pl.String), pl.Series(probs))


def by_rules(factor: Factor, schema: pl.Schema) -> pl.Expr:
    """Return the expression that gives the value of the first rule that holds, null when none does.

    Args:
        factor: one with origin "rule".
        schema: of `infra.views.frames_view`, whose columns the rules name.

    Raises:
        QueryError: a rule names a column that is not there.
    """
    conditions = [pl.when(expression.to_polars(schema)).then(pl.lit(value)) for value, expression in factor.rules]
    return pl.coalesce(conditions)


def by_prompts(
    factor: Factor, images: NDArray[np.float32], texts: NDArray[np.float32], scale: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each picture the index of its best value and that value's probability.

    The sentences of a value are averaged before they are compared, as for the ensembles of prompts of CLIP's authors
    (Radford and others, 2021, section 3.1.4): one unit vector per value.

    Args:
        factor: one with origin "prompts".
        images: float32 (N, dim) embeddings, unit length.
        texts: float32 (n sentences, dim) in the order of `factor.sentences`, unit length.
        scale: the model's logit scale (its temperature), as a factor.

    Returns:
        int64 (N,) indices into `factor.prompts` and float32 (N,) probabilities; the floor is the caller's to apply.
    """
    logits = scale * (images @ _one_per_value(factor, texts).T)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = weights / weights.sum(axis=1, keepdims=True)
    best = probs.argmax(axis=1)
    return best.astype(np.int64), probs[np.arange(len(best)), best].astype(np.float32)


def _one_per_value(factor: Factor, texts: NDArray[np.float32]) -> NDArray[np.float32]:
    counts = [len(sentences) for sentences in factor.prompts.values()]
    if max(counts) == 1:
        return texts
    means = np.stack([part.mean(axis=0) for part in np.split(texts, np.cumsum(counts)[:-1])])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)
