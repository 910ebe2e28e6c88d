"""The cascade: models in a row, each looking only at the frames that are worth it, and at a random sample of the others.

    [[stage]]                               # cascade.toml, given as `camloop curate --cascade FILE`; from cheap to expensive
    name = "cheap"
    step = "detect"                         # detect or embed
    weights = "yolov8n_320.onnx"            # beside this file; `sha256` refuses others; `model` as --openclip-model
    when = "motion_score > 0.005"           # a where-expression over what is known by then: measures of the scan,
    audit = 0.02                            #   n_<class> of the detector before it; 2 % of the others are looked at anyway

    [[stage]]
    name = "fine"
    step = "detect"
    weights = "yolov8n_640.onnx"
    when = "n_person > 0"
    min_score = 0.1                         # the least score of a box that `when` counts (default .25)
    once_s = 2.0                            # of those that meet `when`, the first frames of cells of 2 s (`curate.once`)
    audit = 0.05

    [[stage]]
    name = "vit"
    step = "embed"
    weights = "ViT-B-32.pt"
    model = "ViT-B-32"
    on = "boxes"                            # crops of the judge's boxes (`curate.crops`) instead of "frames"
    classes = ["person"]                    # of these classes, from min_score on; `crop_px` cuts them from a larger square

A stage considers exactly the frames that the stage before it looked at (the first: all kept frames), and looks where `when`
holds (with `once_s`: and the frame is the first of its cell), or else with probability `audit`, drawn by a hash of clip,
frame and stage: no order, batch or machine plays a part.
So each look has a known probability, the product down the row: `p_look` in table `looks` (ADR 0018), which audits and
estimates divide by. The last detect stage is the *judge*: views show its counts as n_<class>, null where it did not look.
Detect stages come before embed stages: what is judged never waits for an embedding, nor is dropped for want of one.

Without a cascade the models of a run are `Look`s without conditions; they see every kept frame, and `looks` stays empty.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate import crops, detect, once, openclip, scan
from curate.crops import Crops
from curate.detect import Batch, Weights
from curate.sheet_lines import Lines
from infra import keys, where
from infra.errors import CamloopError, UsageError
from infra.views import class_column

VERSION: Final = 1
LookStep = Literal["detect", "embed"]
On = Literal["frames", "boxes"]
MIN_SCORE: Final = 0.25  # as `infra.views.frames_view`
LEAST_ONCE_S: Final = 0.001
MOST_ONCE_S: Final = 3600.0
_TEXTS: Final = ("name", "step", "weights", "sha256", "model", "when", "on")
_TAKEN: Final = {"decode", "cascade"}  # rows of their own in the funnel and in `camloop query --audit`
_OF_BOXES: Final = ("classes", "crop_px")
_KEYS: Final = {*_TEXTS, *_OF_BOXES, "min_score", "audit", "once_s"}
_FLOAT32: Final = set(scan.MEASURES) - {"p_keep"}  # conditions see what the table will hold, now and later


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One model that looks at frames; its columns in a batch are named after it.

    Attributes:
        name: of the stage.
        step: what its rows belong to.
        source: `name@version` of its rows.
        weights: file and hash.
        path: folder or file that an embedder is opened from.
        model: architecture of a bare weights file.
        size_px: side of its square.
        classes: class names of a detector, in index order.
        number: place in the cascade; None outside of one, where every frame is looked at and nothing is noted.
        when: which frames it looks at; None is all.
        min_score: the least score of a box that `when` counts, and of one that is cropped.
        audit: probability with which a frame that fails `when`, or is not the first of its cell, is looked at anyway.
        once_s: length of a cell, seconds; None looks at all frames that meet `when`.
        crops: for an embedder of boxes, which ones; None embeds frames.
    """

    name: str
    step: LookStep
    source: str
    weights: Weights
    path: Path
    model: str | None = None
    size_px: int
    classes: tuple[str, ...] = ()
    number: int | None = None
    when: where.Where | None = None
    min_score: float = MIN_SCORE
    audit: float = 0.0
    once_s: float | None = None
    crops: Crops | None = None

    @property
    def pixels(self) -> str:
        """The column with its pictures; looks of one size share it. Crops are cut from those of a detector's size."""
        if self.crops is not None:
            return f"detect{self.crops.square_px}_rgb"
        return f"{self.step}_rgb" if self.number is None else f"{self.step}{self.size_px}_rgb"

    @property
    def pixels_px(self) -> int:
        """Side of the squares in `pixels`."""
        return self.crops.square_px if self.crops is not None else self.size_px

    @property
    def made(self) -> str:
        """The column with what it finds: packed boxes, or a vector; empty bytes where it did not look."""
        plain = "detections" if self.step == "detect" else "embedding"
        return plain if self.number is None else f"{self.name}_{plain}"

    @property
    def p_look(self) -> str:
        """The column with the probability of its look: 0 where it did not look, NaN where it was not asked."""
        return f"{self.name}_p_look"

    @property
    def passed(self) -> str:
        """The column that says whether it looked for certain: `when` held, on the first frame of a cell where it has cells."""
        return f"{self.name}_passed"

    @property
    def met(self) -> str:
        """The column that says whether `when` held; false where it was not asked."""
        return self.passed if self.once_s is None else f"{self.name}_met"

    @property
    def seconds(self) -> str:
        """The column with the seconds that each row cost."""
        return f"{self.name}_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """All stages, in the order of the file."""

    looks: tuple[Look, ...]

    @property
    def steps(self) -> frozenset[LookStep]:
        """The steps that it has stages for."""
        return frozenset(look.step for look in self.looks)

    def upto(self, step: LookStep) -> tuple[Look, ...]:
        """Return the stages that decide the rows of a step: those up to its last."""
        last = max((number for number, look in enumerate(self.looks) if look.step == step), default=-1)
        return self.looks[: last + 1]

    def last(self, step: LookStep) -> Look | None:
        """Return the last stage of a step: for detectors the judge, for embedders the last of frames where there is one."""
        mine = [look for look in self.looks if look.step == step]
        whole = [look for look in mine if look.crops is None]
        return (whole or mine)[-1] if mine else None

    def settings(self, step: LookStep) -> list[dict[str, Any]]:
        """Return what the rows of a step depend on, for its fingerprint."""
        return [
            {
                "name": look.name, "step": look.step, "weights": look.weights.sha256, "model": look.model,
                "min_score": look.min_score, "when": look.when.text if look.when else None, "audit": look.audit,
                **({"once_s": look.once_s} if look.once_s is not None else {}),
                **({"crops": [crops.VERSION, *look.crops.classes, look.crops.square_px]} if look.crops else {}),
            }
            for look in self.upto(step)
        ]  # fmt: skip


def lengths(looks: Sequence[Look]) -> list[float]:
    """Return the lengths of cells that some stages ask for, each once."""
    return sorted({look.once_s for look in looks if look.once_s is not None})


def read(path: Path) -> Cascade:
    """Read a cascade file and everything that its weights say of themselves.

    Raises:
        UsageError: see `parse`, or no such file.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--cascade {path}: {error}") from error
    return parse(text, name=path.name, folder=path.parent)


def parse(text: str, *, name: str = "cascade.toml", folder: Path = Path()) -> Cascade:
    """Read and check a cascade; nothing is decoded before this is through.

    Args:
        text: TOML.
        name: what messages call it.
        folder: where relative weights lie.

    Raises:
        UsageError: not TOML; an unknown key, step or value; a detect stage after an embed stage; boxes without a detect stage
            before, or of a class that it does not know; weights that are absent, of another hash, not a model or used twice; a
            condition that cannot be read or names a column that no earlier stage writes. The message names the line.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: {error}") from error
    tables = document.pop("stage", None)
    if document or not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{name}: {sorted(document) or 'no stages'} not understood; legal: [[stage]] tables, at least one")
    lines, looks = Lines(text, name), list[Look]()
    for number, table in enumerate(tables):
        looks.append(_look(lines, number, table, folder, looks))
    return Cascade(looks=tuple(looks))


def _look(lines: Lines, number: int, table: Mapping[str, Any], folder: Path, before: Sequence[Look]) -> Look:
    def refuse(key: str, what: str) -> UsageError:
        return UsageError(f"{lines.at('stage', key, nth=number)}: {what}")

    if unknown := sorted(set(table) - _KEYS):
        raise refuse(unknown[0], f"unknown key {unknown[0]!r}; legal: {', '.join(sorted(_KEYS))}")
    for key in _TEXTS:
        if not isinstance(table.get(key, ""), str):
            raise refuse(key, f"{key} {table[key]!r} of stage {number + 1}; legal: text in quotes")
    stage, step = table.get("name", ""), table.get("step", "")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stage) or stage in _TAKEN or stage in [look.name for look in before]:
        raise refuse("name", f"stage name {stage!r}: give each its own, of a-z, 0-9 and _; not {' or '.join(sorted(_TAKEN))}")
    if step not in get_args(LookStep):
        raise refuse("step", f"step {step!r} of stage {stage}; legal: {', '.join(get_args(LookStep))}")
    if step == "detect" and (embeds := [look.name for look in before if look.step == "embed"]):
        raise refuse("step", f"detect stages come before embed stages: move stage {stage} above stage {embeds[0]}")
    numbers = _numbers(table, stage, refuse)
    cropped = _crops(table, stage, step, before, refuse)
    try:
        path, model, sha256 = folder / table.get("weights", ""), table.get("model"), table.get("sha256")
        look = _described(stage, cast(LookStep, step), path, model, sha256)
    except _WrongHash as error:
        raise refuse("sha256", str(error)) from error
    except CamloopError as error:
        raise refuse("weights", f"stage {stage}: {error}") from error
    if twin := [other.name for other in before if other.source == look.source and bool(other.crops) == bool(cropped)]:
        raise refuse("weights", f"stage {stage} has the weights of stage {twin[0]}, which saw more; their rows would be one")
    try:
        condition = _condition(table["when"], before) if "when" in table else None
    except CamloopError as error:
        raise refuse("when", f"stage {stage}: {error}") from error
    placed = {field: getattr(look, field) for field in look.__dataclass_fields__}
    return Look(**placed | {"number": number, "when": condition, "crops": cropped} | numbers)


def _numbers(table: Mapping[str, Any], stage: str, refuse: Callable[[str, str], UsageError]) -> dict[str, float]:
    made = {"audit": 0.0, "min_score": MIN_SCORE}
    for key, least, most in (("audit", 0, 1), ("min_score", 0, 1), ("once_s", LEAST_ONCE_S, MOST_ONCE_S)):
        if key not in table:
            continue
        value = table[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            unit = " seconds" if key.endswith("_s") else ""
            raise refuse(key, f"{key} {value!r} of stage {stage}; legal: {least:g} to {most:g}{unit}")
        made[key] = float(value)
    return made


def _crops(
    table: Mapping[str, Any], stage: str, step: str, before: Sequence[Look], refuse: Callable[[str, str], UsageError]
) -> Crops | None:
    """Return which boxes a stage embeds, None where it looks at frames."""
    on = table.get("on", "frames")
    if on not in get_args(On) or (on == "boxes" and step != "embed"):
        legal = ", ".join(get_args(On)) if step == "embed" else "frames; boxes are for embed stages"
        raise refuse("on", f"on {on!r} of stage {stage}; legal: {legal}")
    if on == "frames":
        if idle := [key for key in _OF_BOXES if key in table]:
            raise refuse(idle[0], f'{idle[0]} of stage {stage} is for embed stages with on = "boxes": add that or leave it out')
        return None
    judge = counting(before)
    if judge is None:
        raise refuse("on", f"stage {stage} embeds boxes, and no detect stage before it finds any: add one above")
    classes = table.get("classes", [])
    if not isinstance(classes, list) or not all(name in judge.classes for name in classes):
        known = ", ".join(judge.classes[:10]) + (", ..." if len(judge.classes) > 10 else "")
        raise refuse("classes", f"classes {classes!r} of stage {stage}; legal: a list of what {judge.name} knows: {known}")
    side = table.get("crop_px", max(look.size_px for look in before if look.step == "detect"))
    if isinstance(side, bool) or not isinstance(side, int) or not crops.LEAST_PX <= side <= crops.MOST_PX:
        raise refuse("crop_px", f"crop_px {side!r} of stage {stage}; legal: whole pixels, {crops.LEAST_PX} to {crops.MOST_PX}")
    return Crops(classes=tuple(classes), square_px=side)


class _WrongHash(UsageError):
    """Weights are not those that a cascade names."""


def _described(stage: str, step: LookStep, path: Path, model: str | None, sha256: str | None) -> Look:
    """Return a look without conditions at what a weights path holds: hashed first, since opening a pickle runs it."""
    weights = detect.read_weights(path) if step == "detect" else openclip.find_weights(path)
    if sha256 not in (None, weights.sha256):
        raise _WrongHash(f"{weights.path.name} of stage {stage} hashes to {weights.sha256}, not to this")
    return detector(weights, name=stage) if step == "detect" else embedder(path, model, name=stage)


def detector(weights: Weights, *, name: str = "detect") -> Look:
    """Return a look by a detector, without conditions."""
    found = detect.describe(weights)
    return Look(
        name=name, step="detect", source=found.name, weights=weights, path=weights.path, size_px=found.size_px,
        classes=found.classes,
    )  # fmt: skip


def embedder(path: Path, model: str | None, *, name: str = "embed") -> Look:
    """Return a look by an image-text model, without conditions."""
    source, size_px = openclip.describe(path, model)
    weights = openclip.find_weights(path)
    return Look(name=name, step="embed", source=source, weights=weights, path=path.resolve(), model=model, size_px=size_px)


def _condition(text: str, before: Sequence[Look]) -> where.Where:
    """Return the condition if its columns are there by then, of kinds that can be compared."""
    condition = where.parse(text)
    condition.to_polars(_schema(counting(before)))
    return condition


def counting(before: Sequence[Look]) -> Look | None:
    """Return the stage whose boxes n_<class> counts: the last detector before."""
    return next((look for look in reversed(before) if look.step == "detect"), None)


def _schema(counted: Look | None) -> dict[str, pl.DataType]:
    measures: dict[str, pl.DataType] = {name: pl.Float64() for name in scan.MEASURES}
    return measures | {class_column(name): pl.Int64() for name in (counted.classes if counted else ())}


def holds(look: Look, counted: Look | None, batch: Batch) -> NDArray[np.bool_]:
    """Return for each row of a batch whether the stage's condition holds; unknown does not.

    Args:
        look: the stage.
        counted: what `counting` returned for it.
        batch: measures of the scan, and the boxes of `counted`.
    """
    n = len(batch["end"])
    if look.when is None:
        return np.ones(n, dtype=bool)
    columns: dict[str, pl.Series] = {}
    for name in look.when.columns:
        if name in scan.MEASURES:
            values = np.asarray(batch[name], np.float64)
            values = values.astype(np.float32).astype(np.float64) if name in _FLOAT32 else values
            columns[name] = pl.Series(name, values, nan_to_null=True)
        else:
            columns[name] = pl.Series(name, _counts(name, cast(Look, counted), look.min_score, batch), pl.Int64)
    frame = pl.DataFrame(columns) if columns else pl.DataFrame({"": [0] * n})
    answer = frame.select(look.when.to_polars(_schema(counted) if columns else {}).alias("_")).to_series()
    return np.broadcast_to(answer.fill_null(False).to_numpy(), n).copy()


def _counts(column: str, counted: Look, min_score: float, batch: Batch) -> list[int]:
    """Return how many boxes of the classes behind `column` each row has, from a least score on."""
    indices = [number for number, name in enumerate(counted.classes) if class_column(name) == column]
    made = []
    for packed in batch[counted.made]:
        rows = np.frombuffer(packed, dtype="<f4").reshape(-1, 6)
        made.append(int((np.isin(rows[:, 5], indices) & (rows[:, 4] >= np.float32(min_score))).sum()))
    return made


def leads(look: Look, batch: Batch) -> NDArray[np.bool_]:
    """Return for each row of a batch whether it is one of the frames that a stage would look at for certain, by its time."""
    n = len(batch["end"])
    return np.ones(n, dtype=bool) if look.once_s is None else np.asarray(batch[once.column(look.once_s)], dtype=bool)


def draw(look: Look, batch: Batch, asked: NDArray[np.bool_], passed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the rows that were not to be looked at for certain, and are looked at anyway."""
    made = np.zeros(len(asked), dtype=bool)
    for i in np.flatnonzero(asked & ~passed) if look.audit else ():
        made[i] = keys.uniform("look", str(batch["clip_id"][i]), int(batch["pts"][i]), look.name) < look.audit
    return made
