"""Where-expressions: one small language for queries, slices of a gate, and what a camera is asked to film.

    lighting = 'night' and n_person >= 1 and not (site in ('hall', 'yard') or p_keep is null)

    or       := and ("or" and)*
    and      := not ("and" not)*
    not      := "not" not | test
    test     := operand [("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") operand
                         | ["not"] "in" "(" literal ("," literal)* ")" | ["not"] "between" operand "and" operand
                         | "is" ["not"] "null"]
    operand  := "(" or ")" | column | literal
    literal  := 'text' ('' is one quote) | number | true | false

Words are case-blind, column names are not; a name in double quotes is a column. SQL's null: a comparison with null is
null, and a row whose expression is null is not in the slice. Text orders by code point, NaN equals NaN and is above all
numbers, an integer meets a fraction as float64. Empty text means every row.

`Where.to_polars` runs it on a frame, `matches` on one row without Polars (a Pi has none); both give the same answer.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from infra.errors import QueryError

if TYPE_CHECKING:
    import polars as pl

MAX_TEXT: Final = 20_000
MAX_DEPTH: Final = 60
Kind = Literal["text", "number", "true or false", "other"]
Value: TypeAlias = "str | int | float | bool"

_WORDS: Final = frozenset({"and", "or", "not", "in", "is", "null", "between", "true", "false"})
_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<number>-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![A-Za-z0-9_.])
    |(?P<text>'(?:[^']|'')*')|(?P<quoted>"[^"]+")|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign><=|>=|<>|!=|==|[=<>(),])|(?P<end>\Z))""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class _Const:
    value: Value


@dataclass(frozen=True, slots=True)
class _Column:
    name: str


@dataclass(frozen=True, slots=True)
class _Compare:
    sign: str
    left: _Node
    right: _Node


@dataclass(frozen=True, slots=True)
class _In:
    operand: _Node
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class _IsNull:
    operand: _Node


@dataclass(frozen=True, slots=True)
class _Not:
    operand: _Node


@dataclass(frozen=True, slots=True)
class _Join:
    word: Literal["and", "or"]
    parts: tuple[_Node, ...]


_Node: TypeAlias = "_Const | _Column | _Compare | _In | _IsNull | _Not | _Join"


@dataclass(frozen=True, slots=True)
class Where:
    """A parsed where-expression: its text and the columns that it names. Made by `parse`."""

    text: str
    columns: frozenset[str]
    _tree: _Node

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
            _check(self._tree, lambda name: _kind_of_dtype(schema[name]), self.text)
        return _polars(self._tree)

    def _check_columns(self, known: Iterable[str]) -> None:
        names = list(known)
        for name in sorted(self.columns - set(names)):
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"columns: {', '.join(sorted(names)[:40])}"
            raise QueryError(
                f"no column {name!r} in where-expression {_short(self.text)}; {hint} (text stands in 'single quotes')"
            )


def parse(text: str) -> Where:
    """Read a where-expression.

    Args:
        text: see the module's grammar; empty means every row.

    Raises:
        QueryError: it cannot be read; the message gives the position, what was found and what could stand there.
    """
    if len(text) > MAX_TEXT:
        raise QueryError(f"where-expression of {len(text)} characters; at most {MAX_TEXT}")
    tree = _Parser(text).whole() if text.strip() else _Const(True)
    _check(tree, lambda name: None, text)
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
    _check(where._tree, lambda name: _kind_of_value(row[name]), where.text)
    found = _evaluate(where._tree, row)
    return None if found is None else bool(found)


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


class _Parser:
    """Recursive descent over tokens (kind, text, position)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        self._next = 0
        self._depth = 0
        at = 0
        while True:
            match = _TOKEN.match(text, at)
            if match is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                what = "a 'text' is not closed" if text[at] == "'" else f"{text[at]!r} cannot stand here"
                raise self._error(at, what)
            kind = match.lastgroup or "end"
            self._tokens.append((kind, match[kind], match.start(kind)))
            if kind == "end":
                return
            at = match.end()

    def _error(self, at: int, what: str) -> QueryError:
        return QueryError(f"where-expression {_short(self._text)}, position {at + 1}: {what}")

    def _expected(self, what: str) -> QueryError:
        kind, found, at = self._tokens[self._next]
        return self._error(at, f"expected {what}, found {'the end' if kind == 'end' else found}")

    def _word(self, *words: str) -> str | None:
        kind, found, _ = self._tokens[self._next]
        if kind == "word" and found.lower() in words:
            self._next += 1
            return found.lower()
        return None

    def _sign(self, *signs: str) -> str | None:
        kind, found, _ = self._tokens[self._next]
        if kind == "sign" and found in signs:
            self._next += 1
            return found
        return None

    def whole(self) -> _Node:
        tree = self._or()
        if self._tokens[self._next][0] != "end":
            raise self._expected("and, or, a comparison or the end")
        return tree

    def _or(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(self._tokens[self._next][2], f"nested over {MAX_DEPTH} deep")
        parts = [self._and()]
        while self._word("or"):
            parts.append(self._and())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else _Join("or", tuple(parts))

    def _and(self) -> _Node:
        parts = [self._not()]
        while self._word("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else _Join("and", tuple(parts))

    def _not(self) -> _Node:
        negate = False
        while self._word("not"):
            negate = not negate
        tree = self._test()
        return _Not(tree) if negate else tree

    def _test(self) -> _Node:
        left = self._operand()
        sign = self._sign(*_COMPARE)
        if sign:
            return _Compare(sign, left, self._operand())
        if self._word("is"):
            negate = self._word("not")
            if not self._word("null"):
                raise self._expected("null")
            return _Not(_IsNull(left)) if negate else _IsNull(left)
        negate = self._word("not")
        if self._word("in"):
            return _Not(_In(left, self._list())) if negate else _In(left, self._list())
        if self._word("between"):
            low = self._operand()
            if not self._word("and"):
                raise self._expected("and")
            tree = _Join("and", (_Compare(">=", left, low), _Compare("<=", left, self._operand())))
            return _Not(tree) if negate else tree
        if negate:
            raise self._expected("in or between")
        return left

    def _list(self) -> tuple[Value, ...]:
        if not self._sign("("):
            raise self._expected("(")
        values: list[Value] = []
        while True:
            operand = self._operand()
            if not isinstance(operand, _Const):
                self._next -= 1
                raise self._expected("a text, number, true or false")
            values.append(operand.value)
            if self._sign(")"):
                return tuple(values)
            if not self._sign(","):
                raise self._expected(", or )")

    def _operand(self) -> _Node:
        kind, found, at = self._tokens[self._next]
        if self._sign("("):
            tree = self._or()
            if not self._sign(")"):
                raise self._expected(")")
            return tree
        word = found.lower()
        if kind in ("end", "sign") or (kind == "word" and word in _WORDS - {"true", "false"}):
            raise self._expected("a column, 'text', number or (" if word != "null" else "is null or is not null")
        self._next += 1
        if kind == "text":
            return _Const(found[1:-1].replace("''", "'"))
        if kind == "number":
            return _Const(self._number(found, at))
        if kind == "word" and word in ("true", "false"):
            return _Const(word == "true")
        return _Column(found.strip('"'))

    def _number(self, found: str, at: int) -> int | float:
        number = int(found) if re.fullmatch(r"-?[0-9]{1,40}", found) else float(found)
        if not math.isfinite(number) or (isinstance(number, int) and not -(2**63) <= number < 2**63):
            raise self._error(at, f"{found[:40]} is over 64 bits")
        return number


def _columns(tree: _Node) -> Iterable[str]:
    match tree:
        case _Column(name):
            yield name
        case _Compare(_, left, right):
            yield from _columns(left)
            yield from _columns(right)
        case _In(operand, _) | _IsNull(operand) | _Not(operand):
            yield from _columns(operand)
        case _Join(_, parts):
            for part in parts:
                yield from _columns(part)
        case _Const():
            return


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


def _check(tree: _Node, kind_of: Callable[[str], Kind | None], text: str) -> Kind | None:
    """Return the kind of a subtree, None where unknown; refuse what compares apples with pears."""

    def refuse(what: str) -> QueryError:
        return QueryError(f"where-expression {_short(text)}: {what}")

    match tree:
        case _Const(value):
            return _kind_of_value(value)
        case _Column(name):
            return kind_of(name)
        case _IsNull(operand):
            _check(operand, kind_of, text)
        case _Compare(sign, left, right):
            kinds = [_check(left, kind_of, text), _check(right, kind_of, text)]
            known = {kind for kind in kinds if kind is not None}
            if len(known) > 1 or "other" in known:
                named = " and ".join(
                    f"{_name(side)} ({kind or 'null'})" for side, kind in zip((left, right), kinds, strict=True)
                )
                raise refuse(f"{named} cannot be compared")
            if known == {"true or false"} and sign not in ("=", "==", "!=", "<>"):
                raise refuse(f"{_name(left)} is true or false and has no order")
        case _In(operand, values):
            for value in values:
                _check(_Compare("=", operand, _Const(value)), kind_of, text)
        case _Not(operand):
            _check(_Join("and", (operand,)), kind_of, text)
        case _Join(_, parts):
            for part in parts:
                kind = _check(part, kind_of, text)
                if kind not in (None, "true or false"):
                    raise refuse(f"{_name(part)} is a {kind}, not true or false: compare it with something")
    return "true or false"


def _name(tree: _Node) -> str:
    match tree:
        case _Column(name):
            return name
        case _Const(value):
            return repr(value)
    return "(...)"


def _polars(tree: _Node) -> pl.Expr:
    import polars as pl

    match tree:
        case _Const(value):
            kinds: dict[type, Any] = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64, str: pl.String}
            return pl.lit(value, dtype=kinds[type(value)])
        case _Column(name):
            return pl.col(name)
        case _Compare(sign, left, right):
            return _COMPARE[sign](_polars(left), _polars(right))  # type: ignore[no-any-return]
        case _In(operand, values):
            if all(isinstance(value, str) for value in values):
                return _polars(operand).is_in(list(values))
            return reduce(operator.or_, (_polars(_Compare("=", operand, _Const(value))) for value in values))
        case _IsNull(operand):
            return _polars(operand).is_null()
        case _Not(operand):
            return ~_polars(operand)
        case _Join(word, parts):
            return reduce(operator.and_ if word == "and" else operator.or_, map(_polars, parts))


def _evaluate(tree: _Node, row: Mapping[str, Any]) -> Any:
    match tree:
        case _Const(value):
            return value
        case _Column(name):
            return row[name]
        case _Compare(sign, left, right):
            return _compare(sign, _evaluate(left, row), _evaluate(right, row))
        case _In(operand, values):
            found = _evaluate(operand, row)
            return None if found is None else any(_compare("=", found, value) for value in values)
        case _IsNull(operand):
            return _evaluate(operand, row) is None
        case _Not(operand):
            inner = _evaluate(operand, row)
            return None if inner is None else not inner
        case _Join(word, parts):
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
