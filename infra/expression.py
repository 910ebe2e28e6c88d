"""The grammar of where-expressions: text to tree. What a tree means is in `where`.

    or       := and ("or" and)*
    and      := not ("and" not)*
    not      := "not" not | test
    test     := operand [("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") operand
                         | ["not"] "in" "(" literal ("," literal)* ")" | ["not"] "between" operand "and" operand
                         | "is" ["not"] "null"]
    operand  := "(" or ")" | column | literal
    literal  := 'text' ('' is one quote) | number | true | false

Recursive descent; every text ends in a tree or in a QueryError with a position.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from infra.errors import QueryError

MAX_DEPTH: Final = 60
SIGNS: Final = ("=", "==", "!=", "<>", "<", "<=", ">", ">=")
Value: TypeAlias = "str | int | float | bool"

_WORDS: Final = frozenset({"and", "or", "not", "in", "is", "null", "between", "true", "false"})
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<number>-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![A-Za-z0-9_.])
    |(?P<text>'(?:[^']|'')*')|(?P<quoted>"[^"]+")|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign><=|>=|<>|!=|==|[=<>(),])|(?P<end>\Z))""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Const:
    value: Value


@dataclass(frozen=True, slots=True)
class Column:
    name: str


@dataclass(frozen=True, slots=True)
class Compare:
    sign: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class In:
    operand: Node
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    operand: Node


@dataclass(frozen=True, slots=True)
class Not:
    operand: Node


@dataclass(frozen=True, slots=True)
class Join:
    word: Literal["and", "or"]
    parts: tuple[Node, ...]


Node: TypeAlias = "Const | Column | Compare | In | IsNull | Not | Join"


def short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


class Parser:
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
        return QueryError(f"where-expression {short(self._text)}, position {at + 1}: {what}")

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

    def whole(self) -> Node:
        tree = self._or()
        if self._tokens[self._next][0] != "end":
            raise self._expected("and, or, a comparison or the end")
        return tree

    def _or(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(self._tokens[self._next][2], f"nested over {MAX_DEPTH} deep")
        parts = [self._and()]
        while self._word("or"):
            parts.append(self._and())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Join("or", tuple(parts))

    def _and(self) -> Node:
        parts = [self._not()]
        while self._word("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else Join("and", tuple(parts))

    def _not(self) -> Node:
        negate = False
        while self._word("not"):
            negate = not negate
        tree = self._test()
        return Not(tree) if negate else tree

    def _test(self) -> Node:
        left = self._operand()
        sign = self._sign(*SIGNS)
        if sign:
            return Compare(sign, left, self._operand())
        if self._word("is"):
            negate = self._word("not")
            if not self._word("null"):
                raise self._expected("null")
            return Not(IsNull(left)) if negate else IsNull(left)
        negate = self._word("not")
        if self._word("in"):
            return Not(In(left, self._list())) if negate else In(left, self._list())
        if self._word("between"):
            low = self._operand()
            if not self._word("and"):
                raise self._expected("and")
            tree = Join("and", (Compare(">=", left, low), Compare("<=", left, self._operand())))
            return Not(tree) if negate else tree
        if negate:
            raise self._expected("in or between")
        return left

    def _list(self) -> tuple[Value, ...]:
        if not self._sign("("):
            raise self._expected("(")
        values: list[Value] = []
        while True:
            operand = self._operand()
            if not isinstance(operand, Const):
                self._next -= 1
                raise self._expected("a text, number, true or false")
            values.append(operand.value)
            if self._sign(")"):
                return tuple(values)
            if not self._sign(","):
                raise self._expected(", or )")

    def _operand(self) -> Node:
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
            return Const(found[1:-1].replace("''", "'"))
        if kind == "number":
            return Const(self._number(found, at))
        if kind == "word" and word in ("true", "false"):
            return Const(word == "true")
        return Column(found.strip('"'))

    def _number(self, found: str, at: int) -> int | float:
        number = int(found) if re.fullmatch(r"-?[0-9]{1,40}", found) else float(found)
        if not math.isfinite(number) or (isinstance(number, int) and not -(2**63) <= number < 2**63):
            raise self._error(at, f"{found[:40]} is over 64 bits")
        return number
