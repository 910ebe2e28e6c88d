"""What a store really does when two writers want the same key: tried on the store and prefix that will be used.

A store that ignores a condition answers 200 to both writers and loses one of them silently (RELIABILITY.md, finding 3);
documentation, server names and earlier versions prove nothing, versioning of the same bucket may change the answer.
Each test writes small objects `selftest-<random>` beside the data and removes them again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from infra.errors import ObjectChanged, ObjectExists, StoreForbidden, StoreIncapable
from infra.keys import new_id

if TYPE_CHECKING:
    from infra.objects import Store

N_WRITERS = 8
N_KEYS = 2


@contextlib.contextmanager
def fresh_key(store: Store) -> Iterator[str]:
    """Give a key that nobody uses and remove its object afterwards."""
    key = f"selftest-{new_id()}"
    try:
        yield key
    finally:
        store.delete(key)


def _attempt(store: Store, key: str, start: threading.Barrier, number: int) -> int | None:
    start.wait()
    try:
        store.put_if_absent(key, f"writer {number}".encode())
    except ObjectExists:
        return None
    return number


def put_if_absent(store: Store) -> bool:
    """Race writers for one key, several times: True when always exactly one won and its bytes are what is stored."""
    with ThreadPoolExecutor(N_WRITERS) as pool:
        for _ in range(N_KEYS):
            with fresh_key(store) as key:
                start = threading.Barrier(N_WRITERS)
                try:
                    racing = [pool.submit(_attempt, store, key, start, number) for number in range(N_WRITERS)]
                except RuntimeError:  # the process is ending (Ctrl-C): the rest will never come to the barrier
                    start.abort()
                    raise
                try:
                    won = [number for race in racing if (number := race.result()) is not None]
                except StoreIncapable:
                    return False
                if len(won) != 1 or store.get(key) != f"writer {won[0]}".encode():
                    return False
    return True


def put_if_match(store: Store) -> bool:
    """Replace with the right, a stale and a missing version: True when only the first is done."""
    with fresh_key(store) as key:
        first = store.put(key, b"1")
        try:
            store.put_if_match(key, b"2", first.etag)
        except ObjectChanged:
            return False
        refused = 0
        for target in (key, f"{key}-missing"):
            try:
                store.put_if_match(target, b"3", first.etag)
                store.delete(target)
            except (ObjectChanged, StoreForbidden):  # forbidden: missing, to who may not list
                refused += 1
        return refused == 2 and store.get(key) == b"2"
