"""The stores that the contract suite runs on: memory, a folder, S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.store import DirStore, MemoryStore, Store, open_store
from tests.ministack_server import Ministack, ministack


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Ministack]:
    """One S3 server with signature checks for all tests."""
    with ministack() as server:
        yield server


@pytest.fixture(params=["memory", "folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "memory":
        return MemoryStore()
    if request.param == "folder":
        return DirStore(tmp_path / "store")
    return s3_store(request.getfixturevalue("s3_server"))


def s3_store(server: Ministack) -> Store:
    """Return a store under a prefix of a fresh bucket."""
    from infra.settings import Settings

    return open_store(f"s3://{server.new_bucket()}/farm/a", Settings(s3=server.s3))
