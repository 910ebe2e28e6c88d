"""The factor sheet: what the footage varies in, which values are expected, and where each value comes from.

    [factor.lighting]                       # one table per factor
    from = "lighting"                       # the classical measure of curate/quality.py
    values = ["day", "dusk", "night", "infrared"]
    expected = { day = 0.5, night = 0.4 }   # share of footage time that is expected, for coverage reports

    [factor.weather]
    from = "prompts"                        # the openclip model compares the picture with a sentence per value
    prompts = { clear = "a photo taken in clear weather", rain = "a photo of rain", fog = "a photo of thick fog" }
    floor = 0.5                             # a best score under this writes no tag: unknown stays unknown

    [factor.people]
    from = "rule"                           # the first rule that holds for the frame, over n_<class>, quality and motion
    rules = [ { value = "some", where = "n_person > 0" }, { value = "none", where = "n_person = 0" } ]
    min_score = 0.25                        # detections below it are not counted

    [factor.angle]
    from = "camera"                         # fixed for the camera: joined from the registry by the views, no tags written

Tagging is a pure function of rows that stand in the tables already, so that a changed sheet decodes nothing again.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from infra import where
from infra.errors import CamloopError, UsageError
from infra.keys import json_sha256

if TYPE_CHECKING:
    import polars as pl

VERSION = 1
ORIGINS = ("lighting", "prompts", "rule", "camera")
Origin = Literal["lighting", "prompts", "rule", "camera"]
_KEYS = {"from", "values", "expected", "prompts", "floor", "rules", "min_score"}

DEFAULT = """
[factor.lighting]
from = "lighting"

[factor.people]
from = "rule"
rules = [
    { value = "none", where = "n_person = 0" },
    { value = "one", where = "n_person = 1" },
    { value = "several", where = "n_person > 1" },
]
"""
"""The sheet of a store that was given none: what needs no further model than the detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One row of the sheet. `values` is None where every value is legal (camera attributes)."""

    name: str
    origin: Origin
    values: tuple[str, ...] | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    floor: float = 0.0
    rules: tuple[tuple[str, where.Where], ...] = ()
    min_score: float = 0.25

    @property
    def source(self) -> str:
        """What stands in the `source` column of its tags: `name@version`."""
        return f"{self.origin}@{VERSION}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """All factors of a store, in the order of the file; `text_sha256` goes into the fingerprint of step `tag`."""

    factors: tuple[Factor, ...]
    text_sha256: str

    def of(self, origin: Origin) -> tuple[Factor, ...]:
        """Return the factors that come from `origin`."""
        return tuple(factor for factor in self.factors if factor.origin == origin)


def parse(text: str, *, name: str = "factors.toml") -> Sheet:
    """Read and check a sheet.

    Raises:
        UsageError: not TOML; an unknown key, origin or value; a share that is none; a rule that cannot be read.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: {error}") from error
    tables = document.pop("factor", None)
    if document or not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UsageError(f"{name}: top-level {sorted(document) or 'tables'} not understood; legal: [factor.NAME] tables")
    factors = tuple(_factor(f"{name}: factor {key}", key, table) for key, table in tables.items())
    return Sheet(factors=factors, text_sha256=json_sha256(tables))


def _factor(at: str, name: str, table: Mapping[str, Any]) -> Factor:
    unknown = set(table) - _KEYS
    if unknown:
        raise UsageError(f"{at}: unknown {', '.join(sorted(unknown))}; legal: {', '.join(sorted(_KEYS))}")
    if not name.isidentifier():
        raise UsageError(f"{at}: a factor becomes a column; use letters, digits and _, not starting with a digit")
    origin = table.get("from")
    if origin not in ORIGINS:
        raise UsageError(f"{at}: from = {origin!r}; legal: {', '.join(ORIGINS)}")
    prompts, rules = table.get("prompts", {}), _rules(at, table.get("rules", []))
    if bool(prompts) != (origin == "prompts") or bool(rules) != (origin == "rule"):
        raise UsageError(f'{at}: prompts belong to from = "prompts" and rules to from = "rule", and are needed there')
    if len(prompts) == 1:
        raise UsageError(f"{at}: one prompt is always the best one; give at least two, such as the value and its opposite")
    made = prompts or dict.fromkeys(value for value, _ in rules)
    values = tuple(table["values"]) if "values" in table else tuple(made) or None
    if origin == "lighting" and values is None:
        from curate.quality import LIGHTINGS

        values = tuple(LIGHTINGS)
    stray = (set(made) | set(table.get("expected", {}))) - set(values or ())
    if values is not None and stray:
        raise UsageError(f"{at}: {', '.join(sorted(stray))} is not among its values: {', '.join(values)}")
    factor = Factor(
        name=name, origin=origin, values=values, expected=table.get("expected", {}), prompts=prompts, rules=rules,
        floor=_share(at, "floor", table.get("floor", 0.0)), min_score=_share(at, "min_score", table.get("min_score", 0.25)),
    )  # fmt: skip
    total = sum(_share(at, f"expected {value}", share) for value, share in factor.expected.items())
    if total > 1 + 1e-6:
        raise UsageError(f"{at}: expected shares add up to {total:g}, more than 1")
    return factor


def _share(at: str, what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(f"{at}: {what} = {value!r}; legal: a number from 0 to 1")
    return float(value)


def _rules(at: str, rules: Sequence[Mapping[str, str]]) -> tuple[tuple[str, where.Where], ...]:
    made = []
    for rule in rules:
        if set(rule) != {"value", "where"}:
            raise UsageError(f"{at}: a rule is {{ value = ..., where = ... }}, not {dict(rule)}")
        try:
            made.append((rule["value"], where.parse(rule["where"])))
        except CamloopError as error:
            raise UsageError(f"{at}: rule for {rule['value']!r}: {error}") from error
    return tuple(made)


def by_rules(factor: Factor, schema: pl.Schema) -> pl.Expr:
    """Return the expression that gives the value of the first rule that holds, null when none does.

    Args:
        factor: one with origin "rule".
        schema: of `infra.views.frames_view`, whose columns the rules name.

    Raises:
        QueryError: a rule names a column that is not there.
    """
    import polars as pl

    conditions = [pl.when(expression.to_polars(schema)).then(pl.lit(value)) for value, expression in factor.rules]
    return pl.coalesce(conditions)


def by_prompts(
    factor: Factor, images: NDArray[np.float32], texts: NDArray[np.float32], scale: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each picture the index of its best prompt and that prompt's probability.

    Args:
        factor: one with origin "prompts".
        images: float32 (N, dim) embeddings, unit length.
        texts: float32 (n prompts, dim) in the order of `factor.prompts`, unit length.
        scale: the model's logit scale (its temperature), as a factor.

    Returns:
        int64 (N,) indices into `factor.prompts` and float32 (N,) probabilities; the floor is the caller's to apply.
    """
    logits = scale * (images @ texts.T)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = weights / weights.sum(axis=1, keepdims=True)
    best = probs.argmax(axis=1)
    return best.astype(np.int64), probs[np.arange(len(best)), best].astype(np.float32)
