"""Questions about a store: filter, count, look at distributions, draw. What a notebook and `camloop query` talk to.

    catalog = open_catalog("./camloop-data")
    night = catalog.frames.where("n_person > 0 and lighting = 'night'")
    night.count(); night.distribution(by=["camera_id"]); night.sample(200, by=["camera_id"], seed=7)

A view is frozen: `where` returns a narrower one, and nothing is read before it is asked for. Its unit is what a row is:
a *frame* that some step looked at, a *clip*, or an *interval*: one to which a person gave a class label, or (`events`) one in
which a layer such as motion is on.

Rows are not footage. A frame stands for more time the less likely it was to be looked at; so a distribution gives both:
rows, and seconds of footage, each frame counting its clip's mean time per frame / p_keep; where a cascade curated and the
question names what its judge saw (n_person, or people), also / p_look (`curate.look_weights`). The vault is left out
unless asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import polars as pl

from curate import datasets, events, look_weights, scores, search
from curate.distribution import Distribution
from curate.layers import MOTION, Layer, layer
from curate.sample import STRATEGIES, Strategy
from curate.split import VAULT_LEAST_UNITS, in_vault
from infra import catalog as tables
from infra import views, where
from infra.artefacts import Selection, Split
from infra.errors import QueryError
from infra.settings import Settings, load_settings
from infra.store import Store, open_store

if TYPE_CHECKING:
    from pathlib import Path

Unit = Literal["frame", "clip", "interval"]
UNITS: tuple[Unit, ...] = get_args(Unit)
TIME = "footage_s"  # column: seconds of footage that a row stands for


def open_catalog(store: str | Store, *, settings: Settings | None = None, vault: bool = False) -> Footage:
    """Return what lies in a store, ready for questions.

    Args:
        store: a folder, `s3://bucket/prefix`, or an open Store.
        settings: where credentials come from; None reads camloop.toml and the environment.
        vault: True also shows the held-out part; commands record that as a `runs` row.

    Raises:
        CatalogError: there is no store.
    """
    opened = open_store(store, settings or load_settings()) if isinstance(store, str) else store
    return Footage(tables.open_catalog(opened, create=False), vault=vault)


@dataclass(frozen=True, slots=True)
class Vault:
    """The held-out units: `n_units` exist, those in `held` are left out; below 40 units there is no vault."""

    unit: str
    share: float
    n_units: int
    held: frozenset[str]
    is_open: bool

    def __str__(self) -> str:
        if self.n_units < VAULT_LEAST_UNITS or not self.share:
            return f"no vault: {self.n_units} of {self.unit}, {VAULT_LEAST_UNITS} needed" if self.share else "no vault"
        return f"vault: {len(self.held)} of {self.n_units} of {self.unit} {'shown' if self.is_open else 'left out'}"


@dataclass(frozen=True, slots=True)
class Footage:
    """The catalog of a store as views. `frames`, `clips` and `intervals` are where questions start."""

    catalog: tables.Catalog
    vault: bool = False

    @property
    def frames(self) -> View:
        """One row per frame that some step looked at."""
        return View(self, "frame")

    @property
    def clips(self) -> View:
        """One row per clip."""
        return View(self, "clip")

    @property
    def intervals(self) -> View:
        """One row per live class label; its other columns are those of the kept frame nearest its centre."""
        return View(self, "interval")

    def events(self, name: str = MOTION, **how: Any) -> View:
        """Return one row per interval in which a layer is on, as a view with unit "interval": `where`, `sample`, ... work.

        Args:
            name: motion, a class such as person, or a where-expression over frames; see `curate.layers`.
            how: on, off, least_s, merge_s, pad_s, dark, hours, join_s: see `curate.layers.layer`; `on` of motion is by
                default what suits the motion score of the store's clips (`curate.scores.motion_on`).

        Raises:
            QueryError: a name or number that cannot be.
        """
        if name == MOTION and how.get("on") is None:
            how["on"] = scores.motion_on(self.catalog)
        return View(self, "interval", layer=layer(name, **how))

    def view(self, unit: Unit) -> View:
        """Return the view of a unit by name."""
        if unit not in UNITS:
            raise QueryError(f"unit {unit!r}; legal: {', '.join(UNITS)}")
        return View(self, unit)

    def vault_state(self) -> Vault:
        """Say what the vault holds now."""
        unit, share = str(self.catalog.settings["vault_unit"]), float(self.catalog.settings["vault_share"])
        units = self.catalog.scan("clips", [unit]).drop_nulls().unique().collect()[unit].to_list()
        held = [name for name in units if in_vault(name, share)] if len(units) >= VAULT_LEAST_UNITS else []
        return Vault(unit, share, len(units), frozenset(held), self.vault)

    def similar_to(
        self,
        *,
        text: str | None = None,
        frame: tuple[str, int] | None = None,
        k: int = 20,
        weights: Path | None = None,
        model_name: str | None = None,
    ) -> pl.DataFrame:
        """Return the k frames most like a sentence or another frame, best first, one row each with `similarity`.

        Args:
            text: what to look for; needs the open_clip weights that made the embeddings.
            frame: (clip_id, pts) of a frame with an embedding.
            k: how many.
            weights: open_clip folder or file; None takes the one that `camloop curate` used last.
            model_name: architecture of a bare weights file.

        Raises:
            QueryError: no embeddings, or neither or both of text and frame.
        """
        found = search.nearest(self.catalog, text=text, frame=frame, k=k, weights=weights, model_name=model_name)
        return self._placed(found)

    def boxes_like(
        self, *, text: str | None = None, box: str | None = None, k: int = 20, classes: Sequence[str] = (),
        weights: Path | None = None, model_name: str | None = None,
    ) -> pl.DataFrame:  # fmt: skip
        """Return the k boxes most like a sentence or another box, best first; a cascade embeds them by `on = "boxes"`.

        Args:
            text: what to look for; needs the open_clip weights that made the embeddings.
            box: det_id of a box with an embedding.
            k: how many.
            classes: class names; empty looks among all.
            weights: as for `similar_to`.
            model_name: as for `similar_to`.

        Returns:
            One row each: the columns of `similar_to`, and det_id, class_name, score, x1, y1, x2, y2.

        Raises:
            QueryError: no boxes with embeddings, or neither or both of text and box.
        """
        found = search.nearest_boxes(
            self.catalog, text=text, box=box, k=k, classes=classes, weights=weights, model_name=model_name
        )
        return self._placed(found)

    def _placed(self, found: pl.DataFrame) -> pl.DataFrame:
        """Return what a search found with time and camera of its frames, without what is held out."""
        seen = self.frames.lazy().select("clip_id", "pts", "pts_s", "camera_id", "recording_id")
        return found.lazy().join(seen, on=["clip_id", "pts"], how="inner").sort("similarity", descending=True).collect()

    def __repr__(self) -> str:
        counts = {unit: self.view(unit).count() for unit in UNITS}
        parts = ", ".join(f"{n:,} {unit}s" for unit, n in counts.items())
        return f"<Footage {self.catalog.store.url}: {parts}; {self.vault_state()}>"


@dataclass(frozen=True, slots=True)
class View:
    """Rows of one unit that meet a where-expression. Frozen; made by `Footage` and `where`."""

    footage: Footage
    unit: Unit
    text: str = ""
    min_score: float = 0.25
    sources: Mapping[str, str] = field(default_factory=dict)
    layer: Layer | None = None

    def where(self, text: str) -> View:
        """Return the narrower view; the expression is read now and its columns are checked when rows are read."""
        where.parse(text)
        return dataclasses.replace(self, text=f"({self.text}) and ({text})" if self.text and text else self.text or text)

    def counting(self, min_score: float, sources: Mapping[str, str] | None = None) -> View:
        """Return the view with other arguments: detections count from `min_score`; `sources` names a step's source."""
        counted = self.layer
        if counted is not None and counted.is_expression:
            counted = dataclasses.replace(counted, min_score=min_score)
        return dataclasses.replace(self, min_score=min_score, sources=dict(sources or {}), layer=counted)

    def lazy(self, catalog: tables.Catalog | None = None, *, by: Sequence[str] = ()) -> pl.LazyFrame:
        """Return the rows as a Polars LazyFrame, with `footage_s`: the seconds of footage that each stands for.

        Args:
            catalog: the tables, or a snapshot of them.
            by: columns that the seconds will be split by: what a cascade's judge saw of frames counts 1 / p_look.

        Raises:
            QueryError: the expression names a column that is not there (near names are offered).
        """
        catalog = catalog or self.footage.catalog
        if self.unit == "clip":
            rows = _clips(catalog)
        else:
            rows = views.frames_view(catalog, min_score=self.min_score, sources=self.sources or None)
            rows = self._timed(catalog, rows, by) if self.unit == "frame" else self._intervals(catalog, rows)
        vault = self.footage.vault_state()
        if vault.held and not self.footage.vault:
            rows = rows.filter(~pl.col(vault.unit).is_in(sorted(vault.held)) | pl.col(vault.unit).is_null())
        return rows.filter(where.parse(self.text).to_polars(rows.collect_schema())) if self.text else rows

    def _timed(self, catalog: tables.Catalog, frames: pl.LazyFrame, by: Sequence[str]) -> pl.LazyFrame:
        """Add the seconds that each frame stands for in a question that names the columns `by` and those of `where`."""
        joined = frames.join(_frame_seconds(catalog), on="clip_id", how="left", maintain_order="left")
        timed = joined.with_columns(**{TIME: pl.col("frame_s") / pl.col("p_keep")}).drop("tick_s", "frame_s")
        named = [*by, *(where.parse(self.text).columns if self.text else ())]
        if not look_weights.judged(catalog, named):
            return timed
        timed = look_weights.weighed(catalog, timed, self.sources.get("detections"))
        return timed.with_columns(pl.col(TIME) * pl.col(look_weights.WEIGHT)).drop(look_weights.WEIGHT)

    def _intervals(self, catalog: tables.Catalog, frames: pl.LazyFrame) -> pl.LazyFrame:
        if self.layer is None:
            return _nearest(catalog, frames, _labelled(catalog))
        clips = View(self.footage, "clip").lazy(catalog).select("clip_id").collect()["clip_id"]
        found = events.find(catalog, self.layer, clips.to_list()).rows
        return _nearest(catalog, frames, found.drop("camera_id", "recording_id", "source_name").lazy())

    def count(self) -> int:
        """Return the number of rows."""
        return int(self.lazy().select(pl.len()).collect().item())

    def to_polars(self) -> pl.DataFrame:
        """Return the rows."""
        return self.lazy().collect()

    @property
    def columns(self) -> list[str]:
        """The names that an expression or `by` may use."""
        return list(dataclasses.replace(self, text="").lazy().collect_schema())

    def distribution(self, by: Sequence[str]) -> Distribution:
        """Return rows and footage per combination of values, both as numbers and shares; unknown (null) is a value.

        Raises:
            QueryError: an unknown column.
        """
        rows = self.lazy(by=by)
        datasets.check_columns(by, rows.collect_schema())
        table = rows.group_by(by).agg(rows=pl.len(), footage_s=pl.col(TIME).sum()).sort(by, nulls_last=True).collect()
        n_rows, footage_s = int(table["rows"].sum()), float(table["footage_s"].sum())
        table = table.select(
            *by,
            "rows",
            share_rows=pl.col("rows") / max(n_rows, 1),
            footage_s="footage_s",
            share_footage=pl.col("footage_s") / (footage_s or 1.0),
        )
        return Distribution(tuple(by), table, n_rows, footage_s, _denominator_s(self.footage, self.unit))

    def sample(
        self,
        n: int | None,
        *,
        by: Sequence[str] = (),
        strategy: Strategy | None = None,
        shares: Mapping[str, float] | None = None,
        seed: int = 7,
        name: str = "sample",
        purpose: Literal["train", "label", "evaluate", "export"] = "train",
        split: Mapping[Split, float] | None = None,
        split_by: str | None = None,
        force_leak: bool = False,
    ) -> Selection:
        """Draw rows and freeze them, with the query, the tables' versions and what could not be met.

        Args:
            n: how many; None takes all (with "balanced": as many of each as the rarest has).
            by: columns whose combinations are the cells.
            strategy: see `curate.sample`; "balanced" where there is something to balance, else "random".
            shares: value -> share, for strategy "shares".
            seed: another seed, another draw.
            name: what the Selection is called.
            purpose: what it is for.
            split: part -> share; whole groups of `split_by` go into one part.
            split_by: the group column.
            force_leak: keep a split that leaks; the leaks then stand in the Selection.

        Raises:
            QueryError: unknown column or strategy, shares or a split that cannot be, or a split that would leak.
        """
        chosen: Strategy = strategy or ("shares" if shares else "balanced" if by and n is not None else "random")
        if chosen not in STRATEGIES:
            raise QueryError(f"strategy {chosen!r}; legal: {', '.join(STRATEGIES)}")
        plan = datasets.Plan(
            n=n, by=tuple(by), strategy=chosen, shares=dict(shares or {}), seed=seed, name=name, purpose=purpose,
            split=dict(split or {}), split_by=split_by, force_leak=force_leak,
        )  # fmt: skip
        versions = self.footage.catalog.snapshot()
        rows = self.lazy(self.footage.catalog.at(versions)).with_columns(**_span(self.unit))
        asked = {"layer": dataclasses.asdict(self.layer)} if self.layer else {}
        asked.get("layer", {}).pop("min_score", None)  # it stands beside the layer
        extra = asked | {"min_score": self.min_score, "sources": dict(self.sources), "vault": str(self.footage.vault_state())}
        return datasets.select(rows, plan, query=self.text, unit=self.unit, snapshots=versions, extra=extra)

    def __repr__(self) -> str:
        return f"<{self.count():,} {self.unit}s{' where ' + self.text if self.text else ''}>"

    def _repr_html_(self) -> str:
        head = f"<p>{self.count():,} {self.unit}s {'where <code>' + self.text + '</code>' if self.text else ''}</p>"
        return head.replace("<code>" + self.text, "<code>" + _escape(self.text)) + str(
            self.lazy().head(10).collect()._repr_html_()
        )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _frame_seconds(catalog: tables.Catalog) -> pl.LazyFrame:
    """Return clip_id, tick_s (seconds per tick) and frame_s (mean seconds per frame)."""
    columns = ["clip_id", "time_base_num", "time_base_den", "first_pts", "end_pts", "n_frames"]
    tick_s = pl.col("time_base_num") / pl.col("time_base_den")
    return catalog.scan("clips", columns).select(
        "clip_id", tick_s=tick_s, frame_s=(pl.col("end_pts") - pl.col("first_pts")) * tick_s / pl.col("n_frames")
    )


def _span(unit: Unit) -> dict[str, pl.Expr]:
    """Return what a row of the unit covers, [start_pts, end_pts)."""
    if unit == "frame":
        return {"start_pts": pl.col("pts"), "end_pts": pl.col("pts") + 1}
    return {"start_pts": pl.col("first_pts" if unit == "clip" else "start_pts"), "end_pts": pl.col("end_pts")}


def _clips(catalog: tables.Catalog) -> pl.LazyFrame:
    length = (pl.col("end_pts") - pl.col("first_pts")) * pl.col("time_base_num") / pl.col("time_base_den")
    return views.clips_view(catalog).with_columns(**{TIME: length})


def _labelled(catalog: tables.Catalog) -> pl.LazyFrame:
    """Return one row per live class label: clip_id, start_pts, end_pts, label, annotator."""
    labels = catalog.scan("labels")
    retracted = labels.filter(pl.col("retracts").is_not_null()).select(label_id="retracts")
    about_all = pl.col("retracts").is_null() & pl.col("factor").is_null() & pl.col("x1").is_null()  # a box is about a part
    live = labels.filter(about_all).join(retracted, on="label_id", how="anti")
    said = live.select("clip_id", "start_pts", "end_pts", "annotator", label="name")
    return said.group_by("clip_id", "start_pts", "end_pts", "label").agg(pl.col("annotator").unique().sort().str.join(", "))


def _nearest(catalog: tables.Catalog, frames: pl.LazyFrame, found: pl.LazyFrame) -> pl.LazyFrame:
    """Return intervals with the columns of the kept frame nearest to the centre of each (null without one)."""
    found = found.join(_frame_seconds(catalog), on="clip_id", how="semi")
    found = found.with_columns(pts=(pl.col("start_pts") + pl.col("end_pts")) // 2).sort("pts")
    clip_columns = ["camera_id", "recording_id", "site", "day", "source_group", "source_name"]
    clips = views.clips_view(catalog)
    own = [name for name in clip_columns if name in clips.collect_schema()]
    given = found.drop("clip_id", "pts").collect_schema().names()
    seen = frames.drop("label", *given, *own, strict=False).sort("pts")
    joined = found.join_asof(seen, on="pts", by="clip_id", strategy="nearest", check_sortedness=False).join(
        clips.select("clip_id", *own), on="clip_id", how="left"
    )
    timed = joined.join(_frame_seconds(catalog).select("clip_id", "tick_s"), on="clip_id", how="left")
    made = timed.with_columns(**{TIME: (pl.col("end_pts") - pl.col("start_pts")) * pl.col("tick_s")}).drop("tick_s", "pts")
    return made.sort("clip_id", "start_pts", *(["label"] if "label" in given else []))


def _denominator_s(footage: Footage, unit: Unit) -> float:
    """Return the seconds of all footage that is not held out: for frames what was scanned (`gops`), else all clips."""
    visible = View(footage, "clip").lazy().select("clip_id", TIME)
    if unit != "frame":
        return float(visible.select(pl.col(TIME).sum()).collect().item())
    spans = footage.catalog.scan("gops", ["clip_id", "start_pts", "end_pts"]).join(visible, on="clip_id", how="semi")
    timed = spans.join(_frame_seconds(footage.catalog), on="clip_id")
    return float(timed.select(((pl.col("end_pts") - pl.col("start_pts")) * pl.col("tick_s")).sum()).collect().item())
