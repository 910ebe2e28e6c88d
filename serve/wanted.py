"""What the cameras are asked to film next: `Wanted` objects under `wanted/` of the store, and which of them a frame meets.

A wish is a where-expression over what a camera knows by itself (its id and site, UTC's hour as `hour_utc`, the label and
probability that its model gives, ...), a quota of clips and an expiry. What a camera does not know is null there, by SQL's
rules: a comparison with it is not met, so the wish is for other cameras.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from infra import keys
from infra.artefacts import Wanted
from infra.clock import Clock
from infra.errors import ObjectExists, UsageError
from infra.store import Store
from infra.where import matches, parse

PREFIX = "wanted/"


def create(store: Store, where: str, *, quota: int, days: float, reason: str, clock: Clock) -> Wanted:
    """Ask the cameras for clips; the same wish again is a no-op until it has expired.

    Args:
        store: where cameras look.
        where: a where-expression, parsed here.
        quota: how many clips are enough, of all cameras together.
        days: after which the wish is void.
        reason: why, in words; it travels with every clip.
        clock: for the expiry.

    Raises:
        QueryError: the expression cannot be read.
        UsageError: a quota or time that is not positive.
    """
    parse(where)
    if quota < 1 or days <= 0:
        raise UsageError(f"wanted: quota {quota}, {days} days; legal: at least 1 clip, more than 0 days")
    wanted = Wanted(
        wanted_id=keys.derived_id("wanted", where, quota, reason)[:16],
        where=where,
        quota=quota,
        expires_ns=clock.now_ns() + round(days * 86_400e9),
        reason=reason,
    )
    try:
        store.put_if_absent(f"{PREFIX}{wanted.wanted_id}.json", wanted.to_bytes())
    except ObjectExists:
        before = Wanted.from_bytes(store.get(f"{PREFIX}{wanted.wanted_id}.json"))
        if before.expires_ns > clock.now_ns():
            return before
        store.put(f"{PREFIX}{wanted.wanted_id}.json", wanted.to_bytes())
    return wanted


def current(store: Store, clock: Clock) -> list[Wanted]:
    """Return the wishes that have not expired, in order of their ids.

    Raises:
        ArtefactError: an object under `wanted/` is no wish.
    """
    found = [Wanted.from_bytes(store.get(stat.key)) for stat in store.list(PREFIX) if stat.key.endswith(".json")]
    return [wanted for wanted in found if wanted.expires_ns > clock.now_ns()]


def met(wishes: Iterable[Wanted], row: Mapping[str, Any]) -> Wanted | None:
    """Return the first wish that `row` meets: names to values as one camera knows them; what it does not know is unknown."""
    for wanted in wishes:
        where = parse(wanted.where)
        known = {name: row.get(name) for name in where.columns}
        if matches(where, known):
            return wanted
    return None
