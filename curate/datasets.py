"""From rows to a frozen Selection, and from a Selection to a named data set: drawn, split, checked, stored.

`select` draws by `curate.sample`, splits by `curate.split` and refuses what leaks. `save` puts the Selection under its id
and a row into table `selections`; `export` freezes one that has splits under a name. Names are given once: the same
content again is a no-op, another content under the same name is refused.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from curate import sample, split
from infra import keys
from infra.artefacts import Selection, SelectionRow, Split
from infra.catalog import Catalog
from infra.clock import Clock, SystemClock
from infra.errors import ObjectExists, QueryError, UsageError

Purpose = Literal["train", "label", "evaluate", "export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be drawn; see `curate.query.View.sample`."""

    n: int | None
    by: tuple[str, ...]
    strategy: sample.Strategy
    shares: Mapping[str, float]
    seed: int
    name: str
    purpose: Purpose
    split: Mapping[Split, float]
    split_by: str | None
    force_leak: bool


def check_columns(wanted: Sequence[str], columns: Collection[str]) -> None:
    """Refuse a name that is no column, offering near ones."""
    for name in wanted:
        if name not in columns:
            near = difflib.get_close_matches(name, list(columns), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"columns: {', '.join(columns)}"
            raise QueryError(f"no column {name!r}; {hint}")


def select(
    rows: pl.LazyFrame,
    plan: Plan,
    *,
    query: str,
    unit: Literal["frame", "interval", "clip"],
    snapshots: Mapping[str, int],
    extra: Mapping[str, Any],
) -> Selection:
    """Draw and split.

    Args:
        rows: candidates with clip_id, start_pts, end_pts, the columns of the plan and, where there is one, label.
        plan: what to draw.
        query: the where-expression behind `rows`.
        unit: what a row is.
        snapshots: versions of the tables that were read.
        extra: what else made the rows what they are.

    Raises:
        QueryError: an unknown column, a sample or split that cannot be, or a split that would leak.
    """
    schema = rows.collect_schema()
    check_columns([*plan.by, *([plan.split_by] if plan.split_by else [])], schema)
    if bool(plan.split) != bool(plan.split_by):
        raise QueryError("a split needs both the shares of its parts and the column to split by (--split and --split-by)")
    atoms = [name for name in split.ATOMS if name in schema]
    optional = ["label"] if "label" in schema else []
    needed = dict.fromkeys(["clip_id", "start_pts", "end_pts", *optional, *plan.by, *atoms, plan.split_by or "clip_id"])
    found = rows.select(list(needed)).collect()
    cells: list[sample.Cell] = [()] * found.height
    if plan.by and plan.strategy != "random":
        cells = list(found.select(plan.by).iter_rows())
    keyed = found.select("clip_id", "start_pts", "end_pts", label="label" if optional else pl.lit(None, pl.String))
    row_ids = [":".join("" if value is None else str(value) for value in row) for row in keyed.iter_rows()]
    quota = sample.quotas(Counter(cells), plan.n, plan.by, plan.strategy, plan.shares)
    picks = sample.draw(list(zip(row_ids, cells, strict=True)), quota, plan.seed)
    drawn = found[[pick.index for pick in picks]]
    groups = _texts(drawn[plan.split_by]) if plan.split_by else [None] * drawn.height
    labels = _texts(drawn["label"]) if optional else [None] * drawn.height
    parts, leaked = _split(drawn, plan, groups, labels, atoms)
    made = tuple(
        SelectionRow(
            clip_id=row["clip_id"], start_pts=row["start_pts"], end_pts=row["end_pts"], label=label, group=group, split=part,
            columns={name: row[name] for name in plan.by}, p_select=pick.p_select, reason=_reason(plan, pick.cell),
        )
        for row, label, group, part, pick in zip(drawn.iter_rows(named=True), labels, groups, parts, picks, strict=True)
    )  # fmt: skip
    told = {"by": list(plan.by), "strategy": plan.strategy, "n": plan.n, "shares": dict(plan.shares), "split": dict(plan.split)}
    return Selection(
        name=keys.check_name(plan.name, "selection"), purpose=plan.purpose, rows=made, query=query, unit=unit, seed=plan.seed,
        group_by=plan.split_by, snapshots=snapshots, shortages=quota.shortages,
        extra={**extra, **told, "n_candidates": found.height, "leaks": [str(leak) for leak in leaked]},
    )  # fmt: skip


def _texts(column: pl.Series) -> list[str | None]:
    return [None if value is None else str(value) for value in column.to_list()]


def _reason(plan: Plan, cell: sample.Cell) -> str:
    return f"{plan.strategy}: {sample.name_cell(plan.by, cell)}" if cell else plan.strategy


def _split(
    drawn: pl.DataFrame, plan: Plan, groups: Sequence[str | None], labels: Sequence[str | None], atoms: Sequence[str]
) -> tuple[list[Split | None], list[split.Leak]]:
    if not plan.split or plan.split_by is None:
        return [None] * drawn.height, []
    unknown = sum(group is None for group in groups)
    if unknown:
        raise QueryError(
            f"{plan.split_by} is unknown in {unknown} of {drawn.height} rows, so nobody can say which part they belong to: "
            f"split by another column, or add --where '{plan.split_by} is not null'"
        )
    known = [group for group in groups if group is not None]
    assigned = split.assign(known, labels, plan.split, plan.seed)
    parts: list[Split | None] = [assigned[group] for group in known]
    leaked = split.leaks(parts, {name: _texts(drawn[name]) for name in atoms})
    if leaked and not plan.force_leak:
        more = f" and {len(leaked) - 3} more" if len(leaked) > 3 else ""
        raise QueryError(
            f"splitting by {plan.split_by} would leak: {'; '.join(map(str, leaked[:3]))}{more}. "
            f"Split by {leaked[0].column} or something coarser, or keep the leak with --force-leak"
        )
    return parts, leaked


def save(catalog: Catalog, selection: Selection, *, clock: Clock | None = None) -> str:
    """Store a Selection under its id and list it in table `selections`; the same one again adds nothing. Return the id."""
    clock = clock or SystemClock()
    selection_id, data = selection.selection_id, selection.to_bytes()
    key = keys.selection_key(selection_id)
    try:
        catalog.store.put_if_absent(key, data)
    except ObjectExists:
        load(catalog, selection_id)  # a torn object would not hash to its name
    listed = catalog.scan("selections", ["selection_id"]).filter(pl.col("selection_id") == selection_id)
    if listed.collect().is_empty():
        row = {
            "selection_id": selection_id, "name": selection.name, "purpose": selection.purpose, "key": key,
            "n_rows": len(selection.rows), "query": selection.query, "seed": selection.seed, "created_ns": clock.now_ns(),
        }  # fmt: skip
        catalog.append("selections", [row], clock=clock)
    return selection_id


def saved(catalog: Catalog) -> pl.DataFrame:
    """Return the rows of table `selections`, newest last."""
    return catalog.scan("selections").sort("created_ns").collect()


def load(catalog: Catalog, name_or_id: str) -> Selection:
    """Return a stored Selection by id, or the newest of a name; its bytes are verified.

    Raises:
        UsageError: neither; near names are offered.
        ArtefactError: its bytes are not what its id says.
    """
    table = saved(catalog)
    if name_or_id in table["selection_id"]:
        selection_id = name_or_id
    else:
        named = table.filter(pl.col("name") == name_or_id)
        if named.is_empty():
            near = difflib.get_close_matches(name_or_id, [str(name) for name in table["name"].unique()], n=3)
            raise UsageError(
                f"no selection {name_or_id!r}; {'near: ' + ', '.join(near) if near else 'camloop sample makes one'}"
            )
        selection_id = named["selection_id"][-1]
    return Selection.from_bytes(catalog.store.get(keys.selection_key(selection_id)), selection_id=selection_id)


def export(catalog: Catalog, name: str, selection: Selection) -> str:
    """Freeze a Selection with splits as data set `name`. Return its key.

    Raises:
        UsageError: it has no splits, or another data set has the name.
    """
    parts = Counter(row.split for row in selection.rows)
    if None in parts or not parts:
        raise UsageError(
            f"selection {selection.name!r} has {parts[None]} rows without a split: draw it with "
            "camloop sample ... --split train=.6,val=.2,test=.2 --split-by COLUMN"
        )
    key, data = keys.dataset_key(name), selection.to_bytes()
    try:
        catalog.store.put_if_absent(key, data)
    except ObjectExists as error:
        if catalog.store.get(key) != data:
            raise UsageError(f"data set {name!r} exists with other content and is frozen: choose another name") from error
    return key
