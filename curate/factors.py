"""The factor sheet: what the footage varies in, which values are expected, and where each value comes from.

    [factor.lighting]                       # one table per factor
    from = "lighting"                       # the classical measure of curate/quality.py
    values = ["day", "dusk", "night", "infrared"]
    expected = { day = 0.5, night = 0.4 }   # share of footage time that is expected, for coverage reports
    tolerated = { night = 0.3 }             # share of errors that a model may make there; one number: for every value

    [factor.weather]
    from = "prompts"                        # the openclip model compares the picture with sentences for each value
    prompts = { clear = ["a photo taken in clear weather", "a sunny day"], rain = "a photo of rain", fog = "a photo of fog" }
    floor = 0.5                             # a best score under this writes no tag: unknown stays unknown
    floors = { fog = 0.8 }                  # the same for single values, as `camloop query --coverage` proposes them

    [factor.people]
    from = "rule"                           # the first rule that holds for the frame, over n_<class>, quality and motion
    rules = [ { value = "some", where = "n_person > 0" }, { value = "none", where = "n_person = 0" } ]
    min_score = 0.25                        # detections below it are not counted

    [factor.daylight]
    from = "sun"                            # day, twilight or night by capture time and the camera's latitude and longitude

    [factor.angle]
    from = "camera"                         # fixed for the camera: joined from the registry by the views, no tags written

    [[combination]]                         # what matters together
    name = "people at night"
    where = "lighting = 'night' and people = 'some'"
    expected = 0.05
    tolerated = 0.2

Tagging is a pure function of rows that stand in the tables already, so that a changed sheet decodes nothing again; what
is expected or tolerated of combinations, and what is tolerated at all, makes no tag and tags nothing again either.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from curate.sheet_lines import Lines
from infra import where
from infra.errors import CamloopError, UsageError
from infra.keys import json_sha256

VERSION = 1
Origin = Literal["lighting", "prompts", "rule", "camera", "sun"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
DAYLIGHTS = ("day", "twilight", "night")
_KEYS = {"from", "values", "expected", "tolerated", "prompts", "floor", "floors", "rules", "min_score"}
_TAGS_NOTHING = {"tolerated"}  # keys outside the fingerprint; `expected` has always been inside

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
    """One row of the sheet. `values` is None where every value is legal (camera attributes).

    Attributes:
        name: becomes a column.
        origin: where its values come from.
        values: all legal ones.
        expected: value -> share of footage time.
        tolerated: value -> share of errors that a model may make there.
        prompts: value -> its sentences.
        floor: least score of a tag.
        floors: value -> another floor than `floor`.
        rules: (value, condition), the first that holds counts.
        min_score: least score of a detection that the rules count.
        at: file and line, for messages.
    """

    name: str
    origin: Origin
    values: tuple[str, ...] | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    tolerated: Mapping[str, float] = field(default_factory=dict)
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    floor: float = 0.0
    floors: Mapping[str, float] = field(default_factory=dict)
    rules: tuple[tuple[str, where.Where], ...] = ()
    min_score: float = 0.25
    at: str = field(default="", compare=False)

    @property
    def source(self) -> str:
        """What stands in the `source` column of its tags: `name@version`."""
        return f"{self.origin}@{VERSION}"

    @property
    def sentences(self) -> list[str]:
        """All prompts, value by value."""
        return [sentence for sentences in self.prompts.values() for sentence in sentences]


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Values that matter together: a condition over factors, the share of footage expected, the error tolerated."""

    name: str
    where: where.Where
    expected: float | None = None
    tolerated: float | None = None
    at: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """All factors of a store, in the order of the file; `text_sha256` goes into the fingerprint of step `tag`."""

    factors: tuple[Factor, ...]
    text_sha256: str
    combinations: tuple[Combination, ...] = ()

    def of(self, origin: Origin) -> tuple[Factor, ...]:
        """Return the factors that come from `origin`."""
        return tuple(factor for factor in self.factors if factor.origin == origin)

    def columns(self) -> dict[str, str]:
        """Return the columns that rules and combinations name, other than the sheet's factors: name -> where it stands."""
        named = {column: factor.at for factor in self.factors for _, rule in factor.rules for column in rule.columns}
        named |= {column: each.at for each in self.combinations for column in each.where.columns}
        own = {factor.name for factor in self.factors}
        return {column: at for column, at in named.items() if column not in own}

    def check_columns(self, known: Collection[str]) -> None:
        """Refuse a rule or combination over a column that is not there; counts (`n_<class>`) are `check_classes`' to judge.

        Raises:
            UsageError: it names the line, the column and near names.
        """
        for column, at in self.columns().items():
            if column not in known and not column.startswith("n_"):
                raise UsageError(f"{at}: there is no column or factor {column!r}; {_near(column, known)}")

    def check_classes(self, known: Collection[str], detector: str) -> None:
        """Refuse a rule or combination over the count of a class that the detector does not know: it would be 0 for ever.

        Args:
            known: the counts that the detector makes, n_<class>.
            detector: what messages call it.

        Raises:
            UsageError: it names the line, the column and near names.
        """
        for column, at in self.columns().items():
            if column.startswith("n_") and column not in known:
                raise UsageError(f"{at}: {detector} knows no class behind {column!r}; {_near(column, known)}")


def parse(text: str, *, name: str = "factors.toml") -> Sheet:
    """Read and check a sheet.

    Raises:
        UsageError: not TOML; an unknown key, origin or value; a share that is none, or shares that do not add up; a rule or
            combination that cannot be read. The message names the line.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: {error}") from error
    lines = Lines(text, name)
    tables, combinations = document.pop("factor", None), document.pop("combination", [])
    if document or not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        at = lines.at(next(iter(document))) if document else name
        raise UsageError(
            f"{at}: top-level {sorted(document) or 'tables'} not understood; legal: [factor.NAME] and [[combination]] tables"
        )
    made = tuple(_Reader(lines, "factor", key).factor(table) for key, table in tables.items())
    for factor in made:
        for value, rule in factor.rules:
            _check_texts(rule, made, lines.at("factor", factor.name, "rules", value))
    tagging = {key: {k: v for k, v in table.items() if k not in _TAGS_NOTHING} for key, table in tables.items()}
    return Sheet(factors=made, text_sha256=json_sha256(tagging), combinations=_combinations(combinations, made, lines))


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"legal: {', '.join(sorted(known)[:40])}"


def _check_texts(expression: where.Where, factors: Sequence[Factor], at: str) -> None:
    """Refuse a comparison of a factor with a value that it never has."""
    values = {factor.name: factor.values for factor in factors if factor.values is not None}
    for column, texts in expression.texts().items():
        for value in sorted(texts - set(values.get(column) or texts)):
            raise UsageError(f"{at}: {value!r} is no value of factor {column}; {_near(value, values[column] or ())}")


def _combinations(tables: object, factors: Sequence[Factor], lines: Lines) -> tuple[Combination, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{lines.at('combination')}: write combinations as [[combination]] tables")
    made: list[Combination] = []
    for number, table in enumerate(tables):
        at = lines.at("combination", nth=number)
        unknown, lacking = set(table) - {"name", "where", "expected", "tolerated"}, {"name", "where"} - set(table)
        if unknown or lacking or not all(isinstance(table[key], str) and table[key].strip() for key in ("name", "where")):
            raise UsageError(f"{at}: a combination has name and where (texts), and expected and tolerated (shares): {table}")
        if table["name"] in {each.name for each in made}:
            raise UsageError(f"{at}: combination {table['name']!r} stands twice")
        at = f"{at}: combination {table['name']!r}"
        try:
            expression = where.parse(table["where"])
        except CamloopError as error:
            raise UsageError(f"{at}: {error}") from error
        _check_texts(expression, factors, at)
        shares = {key: _share(at, key, table[key]) for key in ("expected", "tolerated") if key in table}
        made.append(Combination(name=table["name"], where=expression, at=at, **shares))
    return tuple(made)


def _share(at: str, what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(f"{at}: {what} = {value!r}; legal: a number from 0 to 1")
    return float(value)


class _Reader:
    """Reads one [factor.NAME] table; every refusal begins with its file and line."""

    def __init__(self, lines: Lines, *path: str) -> None:
        self._lines, self._path, self._name = lines, path, path[-1]

    def _at(self, *words: str) -> str:
        return f"{self._lines.at(*self._path, *words)}: factor {self._name}"

    def factor(self, table: Mapping[str, Any]) -> Factor:
        at, unknown = self._at(), sorted(set(table) - _KEYS)
        if unknown:
            raise UsageError(f"{self._at(unknown[0])}: unknown {', '.join(unknown)}; legal: {', '.join(sorted(_KEYS))}")
        if not self._name.isidentifier():
            raise UsageError(f"{at}: a factor becomes a column; use letters, digits and _, not starting with a digit")
        origin = table.get("from")
        if origin not in ORIGINS:
            raise UsageError(f"{self._at('from')}: from = {origin!r}; legal: {', '.join(ORIGINS)}")
        prompts, rules = self._prompts(table.get("prompts", {})), self._rules(table.get("rules", []))
        if bool(prompts) != (origin == "prompts") or bool(rules) != (origin == "rule"):
            raise UsageError(f'{at}: prompts belong to from = "prompts" and rules to from = "rule", and are needed there')
        if len(prompts) == 1:
            raise UsageError(
                f"{at}: the prompts of one value are always the best; give at least two values, such as one and its opposite"
            )
        values = self._values(table, origin, tuple(prompts or dict.fromkeys(value for value, _ in rules)))
        return Factor(
            name=self._name, origin=origin, values=values, prompts=prompts, rules=rules, at=at,
            expected=self._expected(table.get("expected", {}), values),
            tolerated=self._tolerated(table.get("tolerated"), values),
            floor=_share(self._at("floor"), "floor", table.get("floor", 0.0)),
            floors=self._shares("floors", table.get("floors", {}), values),
            min_score=_share(self._at("min_score"), "min_score", table.get("min_score", 0.25)),
        )  # fmt: skip

    def _values(self, table: Mapping[str, Any], origin: Origin, made: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the legal values: those named, else those that the origin makes, else None for any."""
        if origin == "lighting":
            from curate.quality import LIGHTINGS

            made = tuple(LIGHTINGS)
        elif origin == "sun":
            made = DAYLIGHTS
        if "values" not in table:
            return made or None
        values = table["values"]
        if (
            not isinstance(values, list)
            or not all(isinstance(value, str) for value in values)
            or len(set(values)) < len(values)
        ):
            raise UsageError(f"{self._at('values')}: values = {values!r}; legal: a list of texts, each once")
        if stray := sorted(set(made) - set(values)):
            raise UsageError(f"{self._at(stray[0])}: {', '.join(stray)} is not among its values: {', '.join(values)}")
        return tuple(values)

    def _shares(self, key: str, shares: object, values: tuple[str, ...] | None) -> dict[str, float]:
        if not isinstance(shares, Mapping):
            raise UsageError(f"{self._at(key)}: {key} = {shares!r}; legal: a table of value = share")
        stray = [value for value in shares if values is not None and value not in values]
        if stray:
            raise UsageError(
                f"{self._at(key, stray[0])}: {', '.join(stray)} is not among its values: {', '.join(values or ())}"
            )
        return {value: _share(self._at(key, value), f"{key} {value}", share) for value, share in shares.items()}

    def _expected(self, shares: object, values: tuple[str, ...] | None) -> dict[str, float]:
        expected = self._shares("expected", shares, values)
        total = sum(expected.values())
        if total > 1 + 1e-6:
            raise UsageError(f"{self._at('expected')}: expected shares add up to {total:g}, more than 1")
        if values and len(expected) == len(values) and total < 1 - 1e-6:
            raise UsageError(f"{self._at('expected')}: expected shares of all values add up to {total:g}, not 1")
        return expected

    def _tolerated(self, tolerated: object, values: tuple[str, ...] | None) -> dict[str, float]:
        if tolerated is None:
            return {}
        if isinstance(tolerated, Mapping):
            return self._shares("tolerated", tolerated, values)
        share = _share(self._at("tolerated"), "tolerated", tolerated)
        if values is None:
            raise UsageError(f"{self._at('tolerated')}: one number for all values needs values = [...]")
        return dict.fromkeys(values, share)

    def _prompts(self, prompts: object) -> dict[str, tuple[str, ...]]:
        if not isinstance(prompts, Mapping):
            raise UsageError(f"{self._at('prompts')}: prompts = {prompts!r}; legal: value = a sentence, or a list of sentences")
        made = {}
        for value, said in prompts.items():
            sentences = [said] if isinstance(said, str) else said
            whole = isinstance(sentences, list) and sentences and all(isinstance(one, str) and one.strip() for one in sentences)
            if not whole:
                raise UsageError(f"{self._at('prompts', value)}: {value} = {said!r}; legal: a sentence, or a list of sentences")
            made[value] = tuple(sentences)
        return made

    def _rules(self, rules: object) -> tuple[tuple[str, where.Where], ...]:
        made = []
        for rule in rules if isinstance(rules, list) else [rules]:
            if (
                not isinstance(rule, dict)
                or set(rule) != {"value", "where"}
                or not all(isinstance(t, str) for t in rule.values())
            ):
                raise UsageError(f"{self._at('rules')}: a rule is {{ value = ..., where = ... }} of two texts, not {rule}")
            try:
                made.append((rule["value"], where.parse(rule["where"])))
            except CamloopError as error:
                raise UsageError(f"{self._at('rules', rule['value'])}: rule for {rule['value']!r}: {error}") from error
        return tuple(made)
