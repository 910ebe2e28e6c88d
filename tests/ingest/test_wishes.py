"""Wishes of the store, kept beside the spool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.artefacts import Wanted
from infra.clock import FakeClock
from infra.errors import StoreError, StoreForbidden
from infra.objects import Stat
from infra.store import MemoryStore
from ingest.wishes import FOLDER, MAX_WISH_BYTES, pull, pull_quietly, read


def wish(number: int, expires_ns: int) -> Wanted:
    """Return a wish."""
    return Wanted(wanted_id=f"{number:016x}", where="label = 'wave'", quota=5, expires_ns=expires_ns, reason="rare")


def test_pull_and_read(tmp_path: Path) -> None:
    """What the store asks for stands here; what is withdrawn or expires goes; what did not change is not written again."""
    clock, store = FakeClock(), MemoryStore()
    soon, later = clock.now_ns() + 10**9, clock.now_ns() + 10**12
    for number, expires_ns in enumerate((soon, later, later)):
        store.put(f"wanted/{number:016x}.json", wish(number, expires_ns).to_bytes())
    assert pull(store, tmp_path, clock) == 3 and [found.wanted_id[-1] for found in read(tmp_path, clock)] == ["0", "1", "2"]
    kept = (tmp_path / FOLDER / f"{1:016x}.json").stat().st_mtime_ns
    clock.advance_s(2)
    assert [found.wanted_id[-1] for found in read(tmp_path, clock)] == ["1", "2"]
    store.delete(f"wanted/{2:016x}.json")
    assert pull(store, tmp_path, clock) == 1
    assert [path.name for path in (tmp_path / FOLDER).glob("*.json")] == [f"{1:016x}.json"]
    assert (tmp_path / FOLDER / f"{1:016x}.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"kind":"bundle"}',
        b"x" * (MAX_WISH_BYTES + 1),
        wish(1, 10**19).to_bytes().replace(b"0" * 15, b"../"),
    ],
)
def test_what_is_no_wish(tmp_path: Path, data: bytes) -> None:
    """Garbage under wanted/ harms nobody and makes no file."""
    clock, store = FakeClock(), MemoryStore()
    store.put("wanted/a.json", data)
    assert pull(store, tmp_path, clock) == 0 and not list(tmp_path.rglob("*.json"))
    (tmp_path / FOLDER).mkdir(exist_ok=True)
    (tmp_path / FOLDER / "a.json").write_bytes(data)
    assert read(tmp_path, clock) == []


def test_a_store_that_does_not_let_look(tmp_path: Path) -> None:
    """A refusal or a dead link leaves what was asked for last."""
    clock, store = FakeClock(), MemoryStore()
    store.put("wanted/a.json", wish(1, clock.now_ns() + 10**12).to_bytes())
    pull_quietly(store, tmp_path, clock)

    class Dead(MemoryStore):
        def list(self, prefix: str = "") -> Iterator[Stat]:
            raise StoreForbidden("no")

    with pytest.raises(StoreError):
        pull(Dead(), tmp_path, clock)
    pull_quietly(Dead(), tmp_path, clock)
    pull_quietly(object(), tmp_path, clock)
    assert len(read(tmp_path, clock)) == 1
