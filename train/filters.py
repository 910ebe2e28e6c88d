"""What the filters before a model's footage lost: a model that never sees what they dropped is judged on easy footage.

    judged clips --> their cameras --> every live clip of these        the footage from which the data set could be drawn
    a gated slice, its `positive`  --> recall of the packet gate and of each cascade in it, with intervals (infra/losses.py)
    all filters together           --> [low, high] against the slice's `min_recall` --> passed, failed, unknown

Not the judged clips alone: those were chosen because something was found in them, so in them a filter looks better than it
is. Cascades of several kinds are one: positives kept over positives there, summed over them, lower ends with lower ends.
Together is the product: what survives both the gate and the cascades, its ends the products of the ends, so that it is never
narrower than either. It is the recall of no event: the gate is asked for GOPs that move, a cascade for frames with a positive.
A stage with cells (`once_s`) has a lower end only. Footage that no filter touched has no such entry, and its report is what
it always was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import polars as pl

from infra import losses, views, where
from infra.artefacts import ReportCell, Verdict
from infra.audit import Estimate, recall_of
from infra.catalog import Catalog
from infra.losses import Loss
from infra.records import Clip, Slice
from infra.views import clips_view, frames_view
from train.slices import EVERYTHING

_WORST: Final[tuple[Verdict, ...]] = ("failed", "unknown", "passed")


def survival(catalog: Catalog, clips: Sequence[Clip], slices: Sequence[Slice]) -> dict[str, Any]:
    """Say what filters the footage of some clips went through, and what survived them.

    Args:
        catalog: the tables.
        clips: what was judged.
        slices: what it was judged by; those with a threshold count, the first where none has one.

    Returns:
        Ready for JSON, and empty where no clip of their cameras was filtered: `cameras`; `n_clips`, `n_gated`, `n_cascaded` of
        them; `slices`: per question (where, positive, moving, min_recall) the names of the slices that ask it, `filters`
        (one row each), `recall` (None where unknown), `low`, `high` of all together, `verdict` and `says`, a sentence.

    Raises:
        QueryError: `positive` names a column that is not there.
    """
    cameras = sorted({clip.camera_id for clip in clips})
    mine = catalog.scan("clips", ["clip_id", "camera_id"]).filter(pl.col("camera_id").is_in(cameras)).select("clip_id")
    n_gated, n_cascaded = (
        found(catalog).join(mine, on="clip_id", how="semi").select(pl.len()).collect().item()
        for found in (losses.gated, losses.cascaded)
    )
    if not n_gated + n_cascaded:
        return {}
    questions: dict[tuple[str, str, float, float | None], list[str]] = {}
    for s in [s for s in slices if s.threshold is not None] or slices[:1]:
        questions.setdefault(_question(s), []).append(s.name)
    n_clips = mine.select(pl.len()).collect().item()
    entries = [_entry(catalog, cameras, *question, names=tuple(dict.fromkeys(names))) for question, names in questions.items()]
    found = [entry for entry in entries if entry["filters"] or entry["gaps"]]
    return {"cameras": cameras, "n_clips": n_clips, "n_gated": n_gated, "n_cascaded": n_cascaded, "slices": found}


def asked(cell: ReportCell, s: Slice, survived: Mapping[str, Any]) -> ReportCell:
    """Return the cell of a slice with what `survival` says about it: the worse of both verdicts, and why."""
    if s.min_recall is None or s.threshold is None:
        return cell
    for entry in survived.get("slices", ()):
        if _question(s) == tuple(entry[name] for name in ("where", "positive", "moving", "min_recall")):
            verdict = min(cell.verdict, entry["verdict"], key=_WORST.index)
            return dataclasses.replace(cell, verdict=verdict, why=f"{cell.why}; {entry['says']}")
    return cell


def _question(s: Slice) -> tuple[str, str, float, float | None]:
    """Return where, positive, moving and min_recall of a slice, as an entry has them."""
    text = "" if s.where.strip() in EVERYTHING else s.where.strip()
    return text, s.positive or losses.POSITIVE, s.moving or losses.MOVING, None if s.threshold is None else s.min_recall


def _entry(
    catalog: Catalog, cameras: Sequence[str], text: str, positive: str, moving: float, wanted: float | None, *,
    names: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    gaps: list[str] = []
    found = list(_losses(catalog, cameras, text, positive, moving, gaps))
    ends = _together(found, is_known=not gaps)
    verdict = _verdict(ends, wanted)
    rows = [_row(loss) for loss in found]
    entry = {
        "slices": list(names), "where": text, "positive": positive, "moving": moving, "min_recall": wanted, "filters": rows,
        "gaps": gaps, "recall": ends[0], "low": ends[1], "high": ends[2], "verdict": verdict,
    }  # fmt: skip
    return {**entry, "says": _says(entry, found)}


def _losses(
    catalog: Catalog, cameras: Sequence[str], text: str, positive: str, moving: float, gaps: list[str]
) -> Iterator[Loss]:
    """Yield the losses in one slice; what nobody can know goes to `gaps`."""
    is_mine = pl.col("camera_id").is_in(cameras)
    clips, frames = clips_view(catalog).filter(is_mine), frames_view(catalog).filter(is_mine)
    named, schema = where.parse(text).columns, frames.collect_schema()
    member, is_unknown = where.parse(text).to_polars(schema), losses.unknown_members(catalog, frames, text)
    if not text:
        yield from losses.of_gate(catalog, clips, moving=moving)
    elif named <= set(catalog.scan("clips").collect_schema().names()):
        inside = clips.filter(where.parse(text).to_polars(clips.collect_schema()))
        yield from losses.of_gate(catalog, inside, moving=moving)
    else:
        members = frames.select("clip_id", "pts", member=pl.when(~is_unknown).then(member))
        yield from losses.of_gate(catalog, clips, moving=moving, members=members)
    if losses.cascaded(catalog).join(clips, on="clip_id", how="semi").head(1).collect().is_empty():
        return
    if decided := sorted(named & losses.decided(catalog, schema.names(), clips.collect_schema().names())):
        gaps.append(f"{decided[0]} is known only of frames that the cascade let through: what it lost there cannot be known")
        return
    if unsure := losses.gap(frames, losses.cascaded(catalog), named, is_unknown):
        gaps.append(f"{unsure}: what people or a registry did not say of the others cannot be known")
        return
    inside = frames.filter(member) if text else frames
    never = sorted(name for name in where.parse(positive).columns - set(schema.names()) if name.startswith("n_"))
    if never:
        gaps.append(f"{never[0]}: no such class was ever found in this store")
        inside = inside.with_columns((pl.col("n_person") * 0).alias(name) for name in never)
    found = [loss for loss in losses.of_cascade(catalog, inside, positive=positive, near=False) if loss.audit.n_in]
    if not found and not named <= views.clip_columns(catalog):
        gaps.append("no frame of the clips that a cascade curated lies in this slice")
    yield from found


def _together(found: Sequence[Loss], *, is_known: bool) -> tuple[float | None, float, float]:
    """Return recall, low and high of what survives the packet gate and all cascades."""
    whole = [loss for loss in found if loss.is_whole]
    parts = [_ends(loss) for loss in whole if loss.filter == losses.GATE]
    if cascades := [loss for loss in whole if loss.filter != losses.GATE]:
        parts.append(_union(cascades))
    if not is_known:
        parts.append((None, 0.0, 1.0))
    values = [value for value, _, _ in parts]
    value = None if None in values else math.prod(value for value in values if value is not None)
    return value, math.prod(low for _, low, _ in parts), math.prod(high for _, _, high in parts)


def _union(cascades: Sequence[Loss]) -> tuple[float | None, float, float]:
    """Return recall, low and high of clips of several cascades: a ratio of sums, so that each counts by its positives."""
    if all(loss.audit.n_dropped == 0 for loss in cascades):
        return 1.0, 1.0, 1.0
    kept, missed = (_sum([getattr(loss.audit, name) for loss in cascades]) for name in ("kept", "missed"))
    value, low, high = recall_of(kept, missed)
    return value, low, 1.0 if any(loss.is_once for loss in cascades) else high


def _sum(parts: Sequence[Estimate]) -> Estimate:
    return Estimate(sum(part.value for part in parts), sum(part.low for part in parts), sum(part.high for part in parts))


def _ends(loss: Loss) -> tuple[float | None, float, float]:
    """Return recall, low and high; with cells no upper end: one look stands for frames that count as dropped here."""
    if loss.audit.n_dropped == 0:
        return 1.0, 1.0, 1.0
    return loss.audit.recall, loss.audit.low, 1.0 if loss.is_once else loss.audit.high


def _row(loss: Loss) -> dict[str, Any]:
    recall, low, high = _ends(loss)
    audit = loss.audit
    return {
        "filter": loss.filter, "unit": loss.unit, "n_in": audit.n_in, "n_kept": audit.n_kept, "n_dropped": audit.n_dropped,
        "n_looked": audit.n_looked, "n_found": audit.n_found, "recall": recall, "low": low, "high": high,
    }  # fmt: skip


def _verdict(ends: tuple[float | None, float, float], wanted: float | None) -> Verdict:
    if wanted is None:
        return "not gated"
    recall, low, high = ends
    if recall is None:
        return "unknown"
    return "passed" if low >= wanted else "failed" if high < wanted else "unknown"


def _says(entry: dict[str, Any], found: Sequence[Loss]) -> str:
    """Return the sentence: what was filtered, what survived, and what that means for what was asked."""
    parts = []
    for loss in found:
        if loss.is_whole:
            recall, low, high = _ends(loss)
            parts.append(f"{loss.filter} {'unknown' if recall is None else f'{recall:.3f}'} [{low:.3f}, {high:.3f}]")
    blind = [loss for loss in found if loss.audit.n_dropped and not loss.audit.n_looked]
    still = f"{losses.GATE}: of GOPs in which {entry['moving']:g} of the picture moves; what does not move is not asked"
    reasons = [still] if any(loss.filter == losses.GATE for loss in found) else []
    reasons += entry["gaps"]
    reasons += [
        f"{loss.filter}: of {loss.audit.n_dropped:,} dropped {loss.unit}s none was looked at, it was not audited"
        for loss in blind
    ]
    reasons += [
        f"{loss.filter}: of {loss.n_unknown:,} moving {loss.unit}s that were looked at nobody knows whether they are in it"
        for loss in found
        if loss.n_unknown
    ]
    reasons += [
        f"{loss.filter}: looks once per cell (once_s); what its cells left out counts as dropped; the lower end counts alone"
        for loss in found
        if loss.is_whole and loss.is_once
    ]
    without = [loss for loss in found if loss.is_whole and loss.audit.n_dropped and not loss.n_unknown]
    empty = [loss for loss in without if loss.audit.recall is None]
    reasons += [f"{loss.filter}: no {loss.unit} with an event was found, kept or dropped" for loss in empty]
    if entry["min_recall"] is not None:
        how = {"passed": "is reached", "failed": "is missed", "unknown": "is not shown"}[entry["verdict"]]
        reasons.append(f"the recall of {entry['min_recall']:g} that the gate file asks for {how}")
    head = f"filters of {', '.join(entry['slices'])}: recall of {', '.join(parts) or 'unknown'}"
    if len(parts) > 1:
        head += f", together [{entry['low']:.3f}, {entry['high']:.3f}]"
    return "; ".join([head, *reasons])
