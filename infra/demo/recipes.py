"""Training recipes for trying things out on a handful of simulated recordings: seconds, not quality.

Named as strings (`camloop train DATA --recipe infra.demo.recipes:quick`), because the floor imports no room.
"""

from __future__ import annotations

import importlib
from typing import Any


def quick() -> Any:
    """Return `gesture_gru` with two epochs."""
    recipes: Any = importlib.import_module("train.recipes")
    import dataclasses

    return dataclasses.replace(recipes.gesture_gru(), name="quick", epochs=2)
