"""Fixtures that every room's tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real clips, labels and weights; skip, with the reason, where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip("real clips are absent: ../shared/data is not beside this checkout")
    return data
