"""Where-expressions: one small language for queries, slices of a gate, and what a camera is asked to film.

    lighting = 'night' and n_person >= 1 and not (site in ('hall', 'yard') or p_keep is null)

Comparisons (= == != <> < <= > >=), in, between, is null, and, or, not; the grammar is in `expression`. Words are
case-blind, column names are not; a name in double quotes is a column. SQL's null: a comparison with null is null, and a
row whose expression is null is not in the slice. Text orders by code point, NaN equals NaN and is above all numbers, an
integer meets a fraction as float64. Empty text means every row.

`Where.to_polars` runs it on a frame, `matches` on one row without Polars (a Pi has none); both give the same answer.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from infra.errors import QueryError
from infra.expression import Column, Compare, Const, In, IsNull, Join, Node, Not, Parser, short

if TYPE_CHECKING:
    import polars as pl

MAX_TEXT: Final = 20_000
Kind = Literal["text", "number", "true or false", "other"]

_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Where:
    """A parsed where-expression: its text and the columns that it names. Made by `parse`."""

    text: str
    columns: frozenset[str]
    _tree: Node

    def to_polars(self, columns: Iterable[str] | Mapping[str, pl.DataType]) -> pl.Expr:
        """Return the expression for a Polars filter.

        Args:
            columns: the frame's column names, or better its schema: then a comparison of different kinds is refused here.

        Raises:
            QueryError: a column that the frame lacks (near names are offered), or text compared with a number.
        """
        schema = columns if isinstance(columns, Mapping) else None
        self._check_columns(columns)
        if schema is not None:
            _check(Not(self._tree), lambda name: _kind_of_dtype(schema[name]), self.text)
        return _polars(self._tree)

    def texts(self) -> dict[str, frozenset[str]]:
        """Return the texts that each column is compared with: what a speller can check before there are rows."""
        found: dict[str, set[str]] = {}
        for column, value in _compared(self._tree):
            found.setdefault(column, set()).add(value)
        return {column: frozenset(values) for column, values in found.items()}

    def _check_columns(self, known: Iterable[str]) -> None:
        names = list(known)
        for name in sorted(self.columns - set(names)):
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"columns: {', '.join(sorted(names)[:40])}"
            raise QueryError(
                f"no column {name!r} in where-expression {short(self.text)}; {hint} (text stands in 'single quotes')"
            )


def parse(text: str) -> Where:
    """Read a where-expression.

    Args:
        text: see `infra.expression`; empty means every row.

    Raises:
        QueryError: it cannot be read; the message gives the position, what was found and what could stand there.
    """
    if len(text) > MAX_TEXT:
        raise QueryError(f"where-expression of {len(text)} characters; at most {MAX_TEXT}")
    tree = Parser(text).whole() if text.strip() else Const(True)
    _check(Not(tree), lambda name: None, text)  # what `not` can stand before is true or false
    return Where(text, frozenset(_columns(tree)), tree)


def matches(where: Where, row: Mapping[str, Any]) -> bool | None:
    """Evaluate an expression on one row, without Polars; None (null) means: not in the slice.

    Args:
        where: what `parse` returned.
        row: a value or None for every column that the expression names.

    Raises:
        QueryError: the row lacks a column, or text is compared with a number.
    """
    where._check_columns(row)
    _check(Not(where._tree), lambda name: _kind_of_value(row[name]), where.text)
    found = _evaluate(where._tree, row)
    return None if found is None else bool(found)


def _columns(tree: Node) -> Iterable[str]:
    match tree:
        case Column(name):
            yield name
        case Compare(_, left, right):
            yield from _columns(left)
            yield from _columns(right)
        case In(operand, _) | IsNull(operand) | Not(operand):
            yield from _columns(operand)
        case Join(_, parts):
            for part in parts:
                yield from _columns(part)
        case Const():
            return


def _compared(tree: Node) -> Iterable[tuple[str, str]]:
    match tree:
        case Compare(_, Column(name), Const(str(value))) | Compare(_, Const(str(value)), Column(name)):
            yield name, value
        case In(Column(name), values):
            yield from ((name, value) for value in values if isinstance(value, str))
        case Not(operand):
            yield from _compared(operand)
        case Join(_, parts):
            for part in parts:
                yield from _compared(part)


def _kind_of_value(value: object) -> Kind | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true or false"
    return "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else "other"


def _kind_of_dtype(dtype: Any) -> Kind | None:
    import polars as pl

    if dtype == pl.Null:
        return None
    if dtype == pl.Boolean:
        return "true or false"
    return "number" if dtype.is_numeric() else "text" if dtype in (pl.String, pl.Categorical, pl.Enum) else "other"


def _check(tree: Node, kind_of: Callable[[str], Kind | None], text: str) -> Kind | None:
    """Return the kind of a subtree, None where unknown; refuse what compares apples with pears."""

    def refuse(what: str) -> QueryError:
        return QueryError(f"where-expression {short(text)}: {what}")

    match tree:
        case Const(value):
            return _kind_of_value(value)
        case Column(name):
            return kind_of(name)
        case IsNull(operand):
            _check(operand, kind_of, text)
        case Compare(sign, left, right):
            kinds = [_check(left, kind_of, text), _check(right, kind_of, text)]
            known = {kind for kind in kinds if kind is not None}
            if len(known) > 1 or "other" in known:
                named = " and ".join(
                    f"{_name(side)} ({kind or 'null'})" for side, kind in zip((left, right), kinds, strict=True)
                )
                raise refuse(f"{named} cannot be compared")
            if known == {"true or false"} and sign not in ("=", "==", "!=", "<>"):
                raise refuse(f"{_name(left)} is true or false and has no order")
        case In(operand, values):
            for value in values:
                _check(Compare("=", operand, Const(value)), kind_of, text)
        case Not(operand):
            _check(Join("and", (operand,)), kind_of, text)
        case Join(_, parts):
            for part in parts:
                kind = _check(part, kind_of, text)
                if kind not in (None, "true or false"):
                    raise refuse(f"{_name(part)} is a {kind}, not true or false: compare it with something")
    return "true or false"


def _name(tree: Node) -> str:
    match tree:
        case Column(name):
            return name
        case Const(value):
            return repr(value)
    return "(...)"


def _polars(tree: Node) -> pl.Expr:
    import polars as pl

    match tree:
        case Const(value):
            kinds: dict[type, Any] = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64, str: pl.String}
            return pl.lit(value, dtype=kinds[type(value)])
        case Column(name):
            return pl.col(name)
        case Compare(sign, left, right):
            return _COMPARE[sign](_polars(left), _polars(right))  # type: ignore[no-any-return]
        case In(operand, values):
            if all(isinstance(value, str) for value in values):
                return _polars(operand).is_in(list(values))
            return _joined(operator.or_, [_polars(Compare("=", operand, Const(value))) for value in values])
        case IsNull(operand):
            return _polars(operand).is_null()
        case Not(operand):
            return ~_polars(operand)
        case Join(word, parts):
            return _joined(operator.and_ if word == "and" else operator.or_, [_polars(part) for part in parts])


def _joined(join: Callable[[pl.Expr, pl.Expr], pl.Expr], parts: Sequence[pl.Expr]) -> pl.Expr:
    """Join the parts as a balanced tree: a long chain would nest as deep as it is long."""
    half = len(parts) // 2
    return parts[0] if half == 0 else join(_joined(join, parts[:half]), _joined(join, parts[half:]))


def _evaluate(tree: Node, row: Mapping[str, Any]) -> Any:
    match tree:
        case Const(value):
            return value
        case Column(name):
            return row[name]
        case Compare(sign, left, right):
            return _compare(sign, _evaluate(left, row), _evaluate(right, row))
        case In(operand, values):
            found = _evaluate(operand, row)
            return None if found is None else any(_compare("=", found, value) for value in values)
        case IsNull(operand):
            return _evaluate(operand, row) is None
        case Not(operand):
            inner = _evaluate(operand, row)
            return None if inner is None else not inner
        case Join(word, parts):
            decides = word == "or"  # Kleene: one true decides an `or`, one false an `and`
            answers = [_evaluate(part, row) for part in parts]
            if decides in answers:
                return decides
            return None if None in answers else not decides


def _compare(sign: str, left: Any, right: Any) -> bool | None:
    if left is None or right is None:
        return None
    if isinstance(left, float) or isinstance(right, float):
        left, right = _ordered(float(left)), _ordered(float(right))
    return bool(_COMPARE[sign](left, right))


def _ordered(number: float) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(number) else (False, number)
