"""What somebody asks the cameras for: the store's `wanted/`, kept in `<spool>/wanted/` so that triggers know without a network.

The uploader pulls them (`pull`, every few minutes, with whatever store it has); recorders read them (`read`). A wish that
is gone from the store or has expired goes here too. A store that cannot be reached, or a host that may not look, changes
nothing: what was asked for last stays asked for until it expires.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from infra import durable
from infra.artefacts import Wanted
from infra.clock import Clock
from infra.errors import ArtefactError, StoreError
from infra.log import Log
from infra.objects import Stat

FOLDER = "wanted"
PREFIX = "wanted/"
MAX_WISHES = 200
MAX_WISH_BYTES = 16 << 10
_log = Log("ingest.wishes")


@runtime_checkable
class Readable(Protocol):
    """What of a store is needed to look for wishes."""

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """Yield what lies under a prefix."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object's bytes."""
        ...


def pull(store: Readable, spool: Path, clock: Clock) -> int:
    """Bring `<spool>/wanted/` up to date and return how many wishes stand there.

    Raises:
        StoreError: the store cannot be reached or does not let this host look; nothing was changed.
        OSError: the disk refuses.
    """
    found: dict[str, bytes] = {}
    for stat in store.list(PREFIX):
        if not stat.key.endswith(".json") or len(found) == MAX_WISHES:
            continue
        data = store.get(stat.key)
        if (wish := _wish(data, stat.key)) is not None and wish.expires_ns > clock.now_ns():
            found[f"{wish.wanted_id}.json"] = data
    folder = spool / FOLDER
    here = {path.name: path for path in folder.glob("*.json") if not durable.is_temporary(path.name)}
    for name, data in found.items():
        if name not in here or here[name].read_bytes() != data:  # an SD card is not written without need
            durable.write(folder / name, data)
    for name in here.keys() - found.keys():
        durable.remove(here[name])
    return len(found)


def pull_quietly(store: object, spool: Path, clock: Clock) -> None:
    """Bring `<spool>/wanted/` up to date if that can be done: an upload never fails for a wish."""
    if not isinstance(store, Readable):
        return
    try:
        pull(store, spool, clock)
    except (StoreError, OSError) as error:
        _log.debug("wishes_not_pulled", reason=str(error))


def read(spool: Path, clock: Clock) -> list[Wanted]:
    """Return the wishes that stand in a spool and have not expired, in order of their ids; damaged ones are left out."""
    found = []
    for path in sorted((spool / FOLDER).glob("*.json")):
        try:
            wish = _wish(path.read_bytes(), path.name)
        except OSError:
            continue
        if wish is not None and wish.expires_ns > clock.now_ns():
            found.append(wish)
    return found


def _wish(data: bytes, name: str) -> Wanted | None:
    try:
        if len(data) > MAX_WISH_BYTES:
            raise ArtefactError(f"{len(data)} bytes; legal: at most {MAX_WISH_BYTES}")
        wish = Wanted.from_bytes(data)
        if not wish.wanted_id.isalnum() or len(wish.wanted_id) > 64:
            raise ArtefactError("its id is no id")
    except ArtefactError as error:
        _log.debug("wish_refused", name=name, reason=str(error))
        return None
    return wish
