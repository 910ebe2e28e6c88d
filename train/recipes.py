"""Recipes: a training run is a Python function that returns a complete, frozen configuration.

    def mine() -> Recipe:
        return dataclasses.replace(gesture_gru(), name="mine", epochs=40)

`camloop train DATA --recipe my_module:mine` finds it; built-in ones go by their name alone.
Hyper-parameters live here and nowhere else; the command line names what and where.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.errors import UsageError
from train.augment import Augment
from train.models import ModelConfig
from train.windows import WindowSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a training run depends on beside its data.

    `warm_up` frames of each window give no loss: the state has to settle first. `carry_share` is the probability that
    a window begins with the hidden state in which another one ended, as it does when a camera goes on filming.
    `max_windows` bounds the windows drawn per epoch; `balance` draws each class equally often. The learning rate rises
    over the first epoch and falls to 1 % on a cosine. `patience` epochs without a better validation loss end the run.
    `threads` is part of the recipe, since sums depend on it; one thread does not suffer when a machine is busy, and two
    models side by side use two cores better than one model does.
    """

    name: str
    model: ModelConfig
    window: WindowSpec
    augment: Augment = field(default_factory=Augment)
    epochs: int = 20
    batch_windows: int = 16
    max_windows: int | None = None
    balance: bool = True
    lr: float = 2e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    clip_norm: float = 1.0
    warm_up: int = 0
    carry_share: float = 0.0
    patience: int = 8
    seed: int = 7
    threads: int = 1
    cache_bytes: int = 2 << 30
    smoothing: float = 0.0
    uncertain_below: float = 0.6
    reset_after_periods: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < self.window.n_frames:
            raise UsageError(f"recipe {self.name}: warm_up {self.warm_up} leaves none of {self.window.n_frames} frames")
        if min(self.epochs, self.batch_windows, self.patience, self.threads) < 1:
            raise UsageError(f"recipe {self.name}: epochs, batch_windows, patience and threads are at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON document."""
        document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return document


def from_json(document: Mapping[str, Any]) -> Recipe:
    """Read back what `Recipe.to_json` gave.

    Raises:
        UsageError: a field is missing or unknown: the run was made by another version of camloop.
    """
    try:
        model = ModelConfig(**{**document["model"], "channels": tuple(document["model"]["channels"])})
        window, how = WindowSpec(**document["window"]), Augment(**document["augment"])
        return Recipe(**{**document, "model": model, "window": window, "augment": how})
    except (KeyError, TypeError) as error:
        raise UsageError(f"recipe of another version of camloop: {error}") from error


def gesture_gru() -> Recipe:
    """Movements of a person before a fixed camera, five frames a second; no mirroring, directions matter.

    The crop that follows motion is moved and zoomed while training; light is not augmented: a night has to be filmed.
    """
    model = ModelConfig(kind="frame_gru", width_px=112, height_px=80, follow_px=48, channels=(16, 32, 64, 64), dropout=0.3)
    return Recipe(
        name="gesture_gru",
        model=model,
        window=WindowSpec(n_frames=12, period_s=0.2, stride=2, context_s=0.8),
        epochs=15,
        batch_windows=8,
        max_windows=640,
        lr=3e-3,
        label_smoothing=0.02,
        warm_up=2,
        carry_share=0.3,
        patience=15,
        threads=1,
        smoothing=0.5,
    )


def quick() -> Recipe:
    """`gesture_gru` for two epochs: shows in seconds that everything fits together, and learns next to nothing."""
    return dataclasses.replace(gesture_gru(), name="quick", epochs=2)


def gesture_frame() -> Recipe:
    """The per-frame baseline to `gesture_gru`: the same crop of the same windows, one frame at a time."""
    gru = gesture_gru()
    model = dataclasses.replace(gru.model, kind="frame_baseline")
    return dataclasses.replace(gru, name="gesture_frame", model=model, carry_share=0.0)


def cctv_small() -> Recipe:
    """Actions in surveillance footage, five frames a second, windows of two seconds; mirroring changes no class."""
    return Recipe(
        name="cctv_small",
        model=ModelConfig(kind="frame_gru", width_px=112, height_px=64, dropout=0.4),
        window=WindowSpec(n_frames=10, period_s=0.2, stride=5),
        augment=Augment(shift=0.1, zoom=0.15, brightness=0.1, contrast=0.3, gamma=0.3, noise=0.03, flip=0.5, grayscale=0.2),
        epochs=24,
        lr=1e-3,
        weight_decay=5e-2,
        warm_up=2,
        smoothing=0.5,
    )


def cctv_frame() -> Recipe:
    """The per-frame baseline to `cctv_small`."""
    gru = cctv_small()
    return dataclasses.replace(gru, name="cctv_frame", model=dataclasses.replace(gru.model, kind="frame_baseline"), warm_up=0)


BUILT_IN: dict[str, Callable[[], Recipe]] = {
    "gesture_gru": gesture_gru,
    "gesture_frame": gesture_frame,
    "quick": quick,
    "cctv_small": cctv_small,
    "cctv_frame": cctv_frame,
}


def find(name: str) -> Recipe:
    """Return the recipe of a built-in name or of `module:function`.

    Raises:
        UsageError: there is no such recipe, or the function gives something else.
    """
    make = BUILT_IN.get(name)
    if make is None:
        module_name, _, function = name.partition(":")
        try:
            make = getattr(importlib.import_module(module_name), function) if function else None
        except (ModuleNotFoundError, AttributeError) as error:
            raise UsageError(f"recipe {name!r}: {error}") from error
    if make is None:
        raise UsageError(f"recipe {name!r}; legal: {', '.join(BUILT_IN)} or module:function of your own")
    recipe = make()
    if not isinstance(recipe, Recipe):
        raise UsageError(f"recipe {name!r} returned {type(recipe).__name__}, not a train.recipes.Recipe")
    return recipe
