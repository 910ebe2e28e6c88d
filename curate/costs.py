"""What it costs to have footage tagged, by the three ways of seed 002, and what believed tags save.

    people of a labelling service   $0.05 a classification, $0.25 a picture with five tags
    people of Mechanical Turk       $0.01 a classification; several people say each, because their quality varies
    models                          the hours that `camloop curate` ran here, at a price for the machine

A person needs 5 seconds a picture (the seed's figure, which makes 27 million pictures a day about 38,000 hours), so with five
tags one second a classification. A classification is one factor of one picture. Those whose tag is believed are saved; those
whose tag is not, or not yet, are still needed. Two counts: every frame of the footage, as the seed has it, and only the
frames that were kept to be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.catalog import Catalog

SECONDS_PER_PICTURE: Final = 5.0
TAGS_PER_PICTURE: Final = 5
SECONDS_PER_TAG: Final = SECONDS_PER_PICTURE / TAGS_PER_PICTURE
MACHINE_USD_PER_HOUR: Final = 0.40  # assumption: about what eight cores cost on demand; --machine-usd says another


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A way to have pictures tagged by people: `overlap` of them say each tag, and the majority counts."""

    name: str
    usd_per_tag: float
    overlap: int = 1

    def usd(self, n_tags: float) -> float:
        """Return what `n_tags` classifications cost."""
        return n_tags * self.usd_per_tag * self.overlap

    def hours(self, n_tags: float) -> float:
        """Return the working hours behind them, all people together."""
        return n_tags * self.overlap * SECONDS_PER_TAG / 3600


SERVICE: Final = Price(name="labelling service", usd_per_tag=0.05)
TURK: Final = Price(name="Mechanical Turk, three people each", usd_per_tag=0.01, overlap=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Hours and dollars of people, for what is saved by believed tags and for what is still needed."""

    way: str
    saved_hours: float
    saved_usd: float
    needed_hours: float
    needed_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the models cost that made the tags: hours that `camloop curate` ran, at a price."""

    hours: float
    usd_per_hour: float

    @property
    def usd(self) -> float:
        return self.hours * self.usd_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Classifications of some pictures: `n_saved` have a believed tag, `n_needed` have none that may be believed."""

    n_pictures: int
    n_saved: float
    n_needed: float


def check(overlap: int, machine_usd: float) -> None:
    """Refuse what cannot be, before anything is measured.

    Raises:
        UsageError: nobody says a tag; a price below 0, or one that is not finite.
    """
    if not overlap >= 1:  # nor NaN
        raise UsageError(f"overlap {overlap}; legal: at least 1 person who says each tag")
    if not 0 <= machine_usd < math.inf:
        raise UsageError(f"machine hours at {machine_usd:g} USD; legal: 0 or more, and finite")


def count(n_pictures: int, believed_shares: Sequence[float]) -> Tags:
    """Return the classifications of pictures.

    Args:
        n_pictures: how many.
        believed_shares: per factor that is not fixed for the camera: share of the footage whose tag is believed.

    Raises:
        UsageError: a share outside [0, 1].
    """
    if any(not 0 <= share <= 1 + 1e-9 for share in believed_shares):
        raise UsageError(f"believed shares {list(believed_shares)}; legal: 0 to 1 each")
    saved = n_pictures * sum(believed_shares)
    return Tags(n_pictures=n_pictures, n_saved=saved, n_needed=max(n_pictures * len(believed_shares) - saved, 0.0))


def bills(tags: Tags, *, overlap: int = TURK.overlap) -> list[Bill]:
    """Return what people would cost, way by way.

    Args:
        tags: how many classifications.
        overlap: people who say each on Mechanical Turk, at least 1.

    Raises:
        UsageError: nobody says a tag.
    """
    check(overlap, MACHINE_USD_PER_HOUR)
    people = "one person" if overlap == 1 else f"{overlap} people"
    turk = Price(name=f"Mechanical Turk, {people} each", usd_per_tag=TURK.usd_per_tag, overlap=overlap)
    return [
        Bill(
            way=price.name, saved_hours=price.hours(tags.n_saved), saved_usd=price.usd(tags.n_saved),
            needed_hours=price.hours(tags.n_needed), needed_usd=price.usd(tags.n_needed),
        )
        for price in (SERVICE, turk)
    ]  # fmt: skip


def spent(catalog: Catalog, usd_per_hour: float = MACHINE_USD_PER_HOUR) -> Spent:
    """Return the hours that runs of `camloop curate` took in this store; 0 where none is recorded.

    Raises:
        UsageError: a price below 0, or one that is not finite.
    """
    check(TURK.overlap, usd_per_hour)
    runs = catalog.scan("runs", ["command", "start_ns", "end_ns"]).filter(pl.col("command") == "curate").collect()
    return Spent(hours=float((runs["end_ns"] - runs["start_ns"]).sum()) / 3.6e12, usd_per_hour=usd_per_hour)
