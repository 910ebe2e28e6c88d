"""Frame features, then a GRU that carries its state: one frame in, one prediction out.

    frame, and its difference to the frame before    -> Trunk -> features -> GRU step -> logits
    or, with follow_px, a crop that follows motion   -> Trunk -> ...

State, per recording: `hidden` (1, n_hidden), and what its eyes need: with differences `previous` (1, 1, H, W), the luma of
the frame before, and `seen` (1, 1, 1, 1), 0 before the first frame; with follow_px what `Follow` carries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infra.artefacts import StateSpec
from train.models import ModelConfig, State
from train.models.follow import N_CHANNELS, Follow
from train.models.trunk import CropTrunk, Trunk, normalise

_DIFFERENCE_GAIN = 8.0  # differences are small beside pictures: a change of 1/8 of full range counts as 1


class FrameGru(nn.Module):
    """Trunk per frame and one causal GRU layer over time."""

    carried: tuple[str, ...] = ("hidden",)

    def __init__(self, config: ModelConfig, n_labels: int) -> None:
        super().__init__()
        self.config = config
        self.eyes: Follow | Whole
        self.trunk: CropTrunk | Trunk
        if config.follow_px:
            self.eyes = Follow(config.width_px, config.height_px, config.follow_px)
            self.trunk = CropTrunk(config, N_CHANNELS)
        else:
            self.eyes = Whole(config.width_px, config.height_px, config.differences)
            self.trunk = Trunk(config, 4 if config.differences else 3)
        self.gru = nn.GRU(config.n_features, config.n_hidden, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.n_hidden, n_labels))

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Return `hidden` and what the eyes carry."""
        return (StateSpec(name="hidden", shape=(1, self.config.n_hidden)), *self.eyes.state_specs())

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits (N, T, C) for float32 (N, T, 3, H, W) in [0, 1], and the state after the last frame."""
        n, t = frames.shape[:2]
        pictures, following = self.eyes(frames, state)
        features = self.trunk(pictures.flatten(0, 1)).view(n, t, -1)
        out, hidden = self.gru(features, state["hidden"].unsqueeze(0))
        return self.head(out), {"hidden": hidden[0], **following}


class Whole(nn.Module):
    """The whole picture, normalised, and with `differences` its change as a fourth channel."""

    def __init__(self, width_px: int, height_px: int, differences: bool) -> None:
        super().__init__()
        self.picture, self.differences = (1, 1, height_px, width_px), differences

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Return `previous` and `seen`, or nothing."""
        if not self.differences:
            return ()
        return (StateSpec(name="previous", shape=self.picture), StateSpec(name="seen", shape=(1, 1, 1, 1)))

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return (N, T, 3 or 4, H, W) and the state after the last frame."""
        pictures = normalise(frames)
        if not self.differences:
            return pictures, {}
        luma = frames.mean(2, keepdim=True)
        first = (luma[:, :1] - state["previous"].unsqueeze(1)) * state["seen"].unsqueeze(1)
        change = torch.cat([first, luma[:, 1:] - luma[:, :-1]], 1) * _DIFFERENCE_GAIN
        return torch.cat([pictures, change], 2), {"previous": luma[:, -1], "seen": torch.ones_like(state["seen"])}
