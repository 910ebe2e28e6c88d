"""Splits keep groups whole, fill every part and do not depend on order; leaks are found."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.split import assign, in_vault, leaks, parse_shares
from infra.artefacts import Split
from infra.errors import QueryError

SHARES: dict[Split, float] = {"train": 0.6, "val": 0.2, "test": 0.2}


def test_equal_groups_are_shared_out_as_asked() -> None:
    """Twenty groups of one row each come out 12, 4, 4."""
    parts = assign([f"g{i}" for i in range(20)], [None] * 20, SHARES, seed=7)
    assert Counter(parts.values()) == {"train": 12, "val": 4, "test": 4}


def test_labels_are_spread_evenly() -> None:
    """Ten recordings of each of two labels: every part has both in equal number."""
    groups = [f"g{i}" for i in range(20) for _ in range(3)]
    strata = ["fight" if i % 2 else "calm" for i in range(20) for _ in range(3)]
    parts = assign(groups, strata, SHARES, seed=1)
    per_part = Counter((parts[group], label) for group, label in zip(groups, strata, strict=True))
    assert per_part == {("train", "fight"): 18, ("train", "calm"): 18, ("val", "fight"): 6, ("val", "calm"): 6,
                        ("test", "fight"): 6, ("test", "calm"): 6}  # fmt: skip


rows = st.lists(st.tuples(st.sampled_from([f"g{i}" for i in range(12)]), st.sampled_from(["a", "b", None])), min_size=3)


@given(rows=rows, seed=st.integers(0, 3), data=st.data())
def test_no_part_is_empty_and_order_does_not_matter(rows: list[tuple[str, str | None]], seed: int, data: st.DataObject) -> None:
    """With at least as many groups as parts each part has a group; shuffled rows give the same split."""
    groups, strata = [group for group, _ in rows], [stratum for _, stratum in rows]
    if len(set(groups)) < 3:
        with pytest.raises(QueryError, match="cannot fill 3 parts"):
            assign(groups, strata, SHARES, seed)
        return
    parts = assign(groups, strata, SHARES, seed)
    assert set(parts.values()) == set(SHARES) and set(parts) == set(groups)
    shuffled = data.draw(st.permutations(rows))
    assert assign([group for group, _ in shuffled], [stratum for _, stratum in shuffled], SHARES, seed) == parts


def test_rows_of_one_recording_in_two_parts_are_a_leak() -> None:
    """Clips of one recording came apart; unknown values are compared with nothing."""
    found = leaks(["train", "test", "test", None], {"recording_id": ["r1", "r1", "r2", "r2"], "source_group": [None] * 4})
    assert [str(leak) for leak in found] == ["recording_id 'r1' stands in test and train (2 rows)"]


@given(groups=st.lists(st.sampled_from("abcdefghij"), min_size=20), seed=st.integers(0, 9))
def test_a_split_by_groups_never_leaks_them(groups: list[str], seed: int) -> None:
    """Whatever is split by a column has no value of it in two parts."""
    if len(set(groups)) >= 3:
        parts = assign(groups, [None] * len(groups), SHARES, seed)
        assert leaks([parts[group] for group in groups], {"group": groups}) == []


@pytest.mark.parametrize(
    "text", ["train=.6,val=.2", "train=.5,dev=.5", "train=1,train=0", "train=x,test=.5", "train=1.2,test=-.2"]
)
def test_a_wrong_split_is_refused(text: str) -> None:
    """Shares that do not add up, unknown or doubled parts, and numbers that are none."""
    with pytest.raises(QueryError):
        parse_shares(text)


def test_a_split_is_read() -> None:
    """The way the command line writes it."""
    assert parse_shares("train=.6, val=.2,test=.2") == SHARES


def test_the_vault_is_a_fixed_share() -> None:
    """A tenth of the units, the same ones at every call, more of them when the share grows."""
    units = [f"recording-{i}" for i in range(5000)]
    tenth = {unit for unit in units if in_vault(unit, 0.1)}
    assert abs(len(tenth) / 5000 - 0.1) < 0.015
    assert tenth <= {unit for unit in units if in_vault(unit, 0.2)}
    assert not any(in_vault(unit, 0.0) for unit in units)
