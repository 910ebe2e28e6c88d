"""Who goes where: whole groups into train, val and test, never a frame. Pure functions, no catalog.

A group is the value of one column (recording, camera, day, site, source group). `assign` is greedy and seeded: large
groups first, each to the part that lacks most of what the group holds, label by label; no part stays empty.
`leaks` then asks whether anything that must stay together came apart: rows of one recording, one source group, or one
near-duplicate group in two parts. The vault, a share of units that no sample may touch, is chosen by a hash alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.artefacts import SPLITS, Split
from infra.errors import QueryError

VAULT_LEAST_UNITS = 40  # DESIGN.md 6: below this many units the vault is empty, said aloud
ATOMS = ("recording_id", "source_group")
"""Columns whose values must not stand in two parts: one continuous recording; clips known to show the same scene."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One value of an atom column that stands in more than one part."""

    column: str
    value: str
    splits: tuple[str, ...]
    n_rows: int

    def __str__(self) -> str:
        return f"{self.column} {self.value!r} stands in {' and '.join(self.splits)} ({self.n_rows} rows)"


def parse_shares(text: str) -> dict[Split, float]:
    """Read `train=.6,val=.2,test=.2`.

    Raises:
        QueryError: an unknown part, a share that is no positive number, or shares that do not add up to 1.
    """
    shares: dict[Split, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        split = next((split for split in SPLITS if split == name), None)
        try:
            share = float(value)
        except ValueError as error:
            raise QueryError(f"split {part.strip()!r}: {value!r} is not a number; write train=.6,val=.2,test=.2") from error
        if split is None or not share > 0 or split in shares:
            legal = ", ".join(SPLITS)
            raise QueryError(f"split {part.strip()!r}: write each of {legal} at most once, as train=.6,val=.2,test=.2")
        shares[split] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise QueryError(f"split {text!r}: the shares add up to {sum(shares.values()):g}, not to 1")
    return shares


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=16).digest()


def assign(groups: Sequence[str], strata: Sequence[str | None], shares: Mapping[Split, float], seed: int) -> dict[str, Split]:
    """Put every group into one part.

    Args:
        groups: the group of each row.
        strata: what is to be spread evenly, usually the label, of each row.
        shares: part -> share of the rows; positive, adding up to 1.
        seed: breaks ties between groups of equal size.

    Returns:
        group -> part; a pure function of the counts per (group, stratum) and the seed, whatever the order of rows.

    Raises:
        QueryError: fewer groups than parts.
    """
    held: dict[str, Counter[str | None]] = {}
    for group, stratum in zip(groups, strata, strict=True):
        held.setdefault(group, Counter())[stratum] += 1
    if len(held) < len(shares):
        raise QueryError(
            f"{len(held)} groups cannot fill {len(shares)} parts ({', '.join(shares)}): "
            "split by a finer column, into fewer parts, or collect more"
        )
    totals: Counter[str | None] = Counter()
    for counts in held.values():
        totals.update(counts)
    lacking = {split: {stratum: share * n for stratum, n in totals.items()} for split, share in shares.items()}
    order = sorted(held, key=lambda group: (-held[group].total(), _hash(seed, group)))
    parts: dict[str, Split] = {}
    for position, group in enumerate(order):
        empty = [split for split in shares if split not in parts.values()]
        # from the moment when only as many groups are left as there are empty parts, each fills one
        candidates = empty if len(empty) >= len(order) - position else list(shares)

        def gain(split: Split, group: str = group) -> float:
            # how much of each stratum the part still lacks, in units of that stratum's total: rare labels count as much
            wants = lacking[split]
            return sum(min(n, max(wants[stratum], 0)) / totals[stratum] for stratum, n in held[group].items())

        def need(split: Split) -> float:
            return sum(lacking[split].values()) / (shares[split] * totals.total())

        best = max(candidates, key=lambda split: (round(gain(split), 12), round(need(split), 12), shares[split]))
        parts[group] = best
        for stratum, n in held[group].items():
            lacking[best][stratum] -= n
    return parts


def leaks(splits: Sequence[str | None], atoms: Mapping[str, Sequence[str | None]]) -> list[Leak]:
    """Return what stands in two parts.

    Args:
        splits: the part of each row, None for rows without one.
        atoms: column name -> its value in each row; None is unknown and compared with nothing.
    """
    found = []
    for column, values in atoms.items():
        where: dict[str, Counter[str]] = {}
        for split, value in zip(splits, values, strict=True):
            if split is not None and value is not None:
                where.setdefault(value, Counter())[split] += 1
        found += [
            Leak(column, value, tuple(sorted(parts)), parts.total()) for value, parts in sorted(where.items()) if len(parts) > 1
        ]
    return found


def in_vault(unit: str, share: float) -> bool:
    """Say whether a unit (a recording, a camera) belongs to the vault: a hash of its name, the same for ever."""
    return int.from_bytes(hashlib.blake2b(f"vault\0{unit}".encode(), digest_size=8).digest()) < share * 2**64
