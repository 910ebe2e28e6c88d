"""Where-expressions: what is read, what is refused with which words, and that both evaluations agree."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import QueryError
from infra.where import matches, parse

FRAME = pl.DataFrame(
    {
        "n": pl.Series([0, 1, 2, None], dtype=pl.Int64),
        "score": pl.Series([0.25, 0.1, float("nan"), None], dtype=pl.Float32),
        "site": ["hall", "it's", None, "yard"],
        "indoor": [True, False, None, True],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n = 1", [False, True, False, None]),
        ("n == 1", [False, True, False, None]),
        ("n != 1", [True, False, True, None]),
        ("n <> 1", [True, False, True, None]),
        ("NOT n > 0", [True, False, False, None]),
        ("n in (0, 2)", [True, False, True, None]),
        ("n not in (0, 2)", [False, True, False, None]),
        ("n between 1 and 2", [False, True, True, None]),
        ("not n between 1 and 2", [True, False, False, None]),
        ("site is null", [False, False, True, False]),
        ("site is not null", [True, True, False, True]),
        ("site = 'it''s'", [False, True, None, False]),
        ("indoor", [True, False, None, True]),
        ("not indoor or n = 2", [False, True, True, None]),
        ("indoor = true and n >= 0", [True, False, None, None]),
        ("n = 1 or site = 'hall' and not indoor", [False, True, None, None]),
        ("(n = 1 or site = 'hall') and indoor", [True, False, None, None]),
        ("score >= 0.25", [True, False, True, None]),
        ("score = 0.1", [False, False, False, None]),
        ("-1 < n", [True, True, True, None]),
        ("n < 1.5", [True, True, False, None]),
        ('"n" = 1', [False, True, False, None]),
        ("  ", [True, True, True, True]),
    ],
)
def test_meaning(text: str, expected: list[bool | None]) -> None:
    """Each expression gives the stated answer per row, in Polars and in plain Python alike."""
    where = parse(text)
    answers = FRAME.select(where.to_polars(FRAME.schema).alias("answer"))["answer"].to_list()
    assert (answers * len(FRAME) if len(answers) == 1 else answers) == expected
    assert [matches(where, row) for row in FRAME.to_dicts()] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n =", "position 4: expected a column, 'text', number or (, found the end"),
        ("n = 1 site = 'x'", "position 7: expected and, or, a comparison or the end, found site"),
        ("site = 'x", "position 8: a 'text' is not closed"),
        ("n = null", "is null or is not null"),
        ("n & 1", "position 3: '&' cannot stand here"),
        ("(n = 1", "expected ), found the end"),
        ("n in ()", "expected a column"),
        ("n in (site)", "expected a text, number, true or false, found site"),
        ("n in (1 2)", "expected , or )"),
        ("n not 1", "expected in or between"),
        ("n is 1", "expected null"),
        ("site > 3", "site (text) and 3 (number) cannot be compared"),
        ("indoor < true", "indoor is true or false and has no order"),
        ("n", "n is a number, not true or false"),
        ("not site", "site is a text, not true or false"),
        ("nn = 1", "no column 'nn' in where-expression 'nn = 1'; did you mean n?"),
        ("n = 'one' or indoor", "n (number) and 'one' (text) cannot be compared"),
        ("n = 99999999999999999999", "is over 64 bits"),
        ("n = 1e999", "is over 64 bits"),
        ("(" * 100 + "n = 1" + ")" * 100, "nested over 60 deep"),
        ("n = 1 or " * 5000 + "n = 1", "at most 20000"),
    ],
)
def test_refusals(text: str, words: str) -> None:
    """What cannot be read or compared is refused with position, finding and what could stand there."""
    with pytest.raises(QueryError) as caught:
        parse(text).to_polars(FRAME.schema)
    assert words in str(caught.value)


def test_columns_and_a_long_chain() -> None:
    """An expression knows its columns, and a chain of 1800 comparisons neither nests nor overflows."""
    assert parse("a = 1 and not (b in ('x') or c is null) and d between e and 3").columns == frozenset("abcde")
    where = parse(" or ".join(f"n={number}" for number in range(1800)))
    assert FRAME.filter(where.to_polars(FRAME.schema)).height == 3


def test_texts_that_columns_are_compared_with() -> None:
    """Equalities on either side and lists, under any and, or and not; numbers and nulls are no texts."""
    found = parse("a = 'x' and not (b in ('y', 'z') or 'w' != a) or c > 3 or d is null or n in (1, 2)").texts()
    assert found == {"a": {"x", "w"}, "b": {"y", "z"}}
    assert parse("").texts() == {}


def test_a_row_must_have_the_columns() -> None:
    """A row that lacks a column is refused rather than silently never matched."""
    with pytest.raises(QueryError, match="did you mean lighting"):
        matches(parse("lightning = 'night'"), {"lighting": "night"})


numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**53, 2**53 + 1, -(2**63)]), st.sampled_from([0.5, -1.0, 0.1, 2.0**53])
)
texts = st.sampled_from(["", "a", "b'c", "ß", "\U0001f600", "z"])


def literal(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def compared(columns: list[str], values: st.SearchStrategy[Any], signs: list[str]) -> st.SearchStrategy[str]:
    column, constant = st.sampled_from(columns), values.map(literal)
    side = st.one_of(column, constant)
    lists = st.lists(constant, min_size=1, max_size=3).map(", ".join)
    return st.one_of(
        st.tuples(side, st.sampled_from(signs), side).map(" ".join),
        st.builds("{} {} ({})".format, column, st.sampled_from(["in", "not in", "IN"]), lists),
        st.builds("{} {}".format, column, st.sampled_from(["is null", "is not null"])),
    )


ORDERED = ["=", "==", "!=", "<", "<=", ">", ">="]
leaves = st.one_of(
    compared(["i", "f", "g"], numbers, ORDERED),
    compared(["s"], texts, ORDERED),
    compared(["t"], st.booleans(), ["=", "!="]),
    st.builds("{} between {} and {}".format, st.sampled_from(["i", "f"]), numbers.map(literal), numbers.map(literal)),
    st.sampled_from(["t", "true", "false"]),
)
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or", "AND"]), inner), inner.map("not ({})".format)
    ),
    max_leaves=8,
)
rows = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-3, 3) | st.sampled_from([2**53 + 1, 2**63 - 1]),
        "f": st.none() | st.floats(width=64, allow_infinity=True) | st.sampled_from([0.1, 0.5, 2.0**53]),
        "g": st.none() | st.floats(width=32),
        "s": st.none() | texts,
        "t": st.none() | st.booleans(),
    }
)
SCHEMA = pl.Schema({"i": pl.Int64, "f": pl.Float64, "g": pl.Float32, "s": pl.String, "t": pl.Boolean})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(expressions, st.lists(rows, min_size=1, max_size=5))
def test_polars_and_python_agree(text: str, table: list[dict[str, Any]]) -> None:
    """For random expressions and rows with nulls, NaN and 2**53 + 1, Polars and plain Python give the same answers."""
    where = parse(text)
    frame = pl.DataFrame(table, SCHEMA)
    answers = frame.with_columns(where.to_polars(frame.schema).alias("answer"))["answer"].to_list()
    assert answers == [matches(where, row) for row in frame.to_dicts()]


WORDS = ["n", "=", "(", ")", "and", "not", "in", "'x'", "1", ",", "is", "null"]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.text(max_size=40) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_the_parser_is_total(text: str) -> None:
    """Any text ends in an expression or in a QueryError, never in another exception."""
    try:
        parse(text)
    except QueryError as error:
        assert str(error)
