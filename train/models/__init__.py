"""The video models: `frame_baseline` (each frame alone) and `frame_gru` (frame features, then a causal GRU).

A model is a torch module with two further members; training and export know nothing else of it:

    carried, state_specs() -> tuple[StateSpec, ...]     what it carries from frame to frame, for one recording
    forward(frames, state) -> (logits, state)           float32 (N, T, 3, H, W) in [0, 1] -> (N, T, C), next state
                                                        (N, T, 1, H, W) will do where `sees_colour` is False

Frames go in one by one or T at a time with the same result: what a model learns on windows is what a Pi streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from infra.artefacts import StateSpec
from infra.errors import UsageError

State = dict[str, Tensor]
Kind = Literal["frame_baseline", "frame_gru"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and its sizes. `width_px` and `height_px` are multiples of 16: the trunk halves them four times.

    `follow_px` gives the trunk, instead of the picture, a square crop of that side which follows motion
    (train/models/follow.py). Without it, for frame_gru, `differences` adds a channel: luma minus that of the frame before.
    """

    kind: Kind
    width_px: int = 96
    height_px: int = 96
    channels: tuple[int, int, int, int] = (16, 32, 64, 96)
    n_features: int = 96
    n_hidden: int = 96
    differences: bool = True
    follow_px: int = 0
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.width_px % 16 or self.height_px % 16 or min(self.width_px, self.height_px) < 16:
            raise UsageError(f"model input {self.width_px}x{self.height_px}: both must be multiples of 16")
        if self.kind not in ("frame_baseline", "frame_gru"):
            raise UsageError(f"model {self.kind!r}; legal: frame_baseline, frame_gru")
        if self.follow_px % 16 or not 0 <= self.follow_px <= min(self.width_px, self.height_px):
            raise UsageError(f"follow_px {self.follow_px}: a multiple of 16, at most the shorter side; 0 = whole picture")

    @property
    def sees_colour(self) -> bool:
        """Whether the model looks at more than the mean of the colours; training then need not carry three channels."""
        return not self.follow_px


class VideoModel(Protocol):
    """What training and export need of a model beside being a torch module.

    `carried` names the states that training hands from one window to another; the others belong to their pictures.
    """

    carried: tuple[str, ...]

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Return the tensors carried from frame to frame, shapes with a leading 1."""
        ...

    def __call__(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits (N, T, C) and the state after the last frame."""
        ...


def initial_state(model: VideoModel, n: int) -> State:
    """Return the state of `n` recordings that have not begun."""
    return {s.name: torch.full((n, *s.shape[1:]), s.initial) for s in model.state_specs()}


def build(config: ModelConfig, n_labels: int) -> torch.nn.Module:
    """Return a freshly initialised model; its weights follow torch's global seed."""
    from train.models.frame_baseline import FrameBaseline
    from train.models.frame_gru import FrameGru

    return {"frame_baseline": FrameBaseline, "frame_gru": FrameGru}[config.kind](config, n_labels)
