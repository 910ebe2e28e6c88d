"""Curation: from clips to tables, from tables to samples. `open_catalog` is where a notebook starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.query import Footage, View, open_catalog

__all__ = ["Footage", "View", "open_catalog"]


def __getattr__(name: str) -> Any:
    # on first use: the command line must be able to import this package without the extra [cloud]
    if name in __all__:
        from curate import query

        return getattr(query, name)
    raise AttributeError(f"module 'curate' has no attribute {name!r}")
