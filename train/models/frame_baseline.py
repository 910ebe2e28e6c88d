"""The per-frame baseline: each frame is judged alone, a window by the mean of its frames' probabilities.

Always trained beside the video model (seed 003 claims that it suffices; the paired difference says whether it does).
"""

from __future__ import annotations

from torch import Tensor, nn

from infra.artefacts import StateSpec
from train.models import ModelConfig, State
from train.models.trunk import Trunk, normalise


class FrameBaseline(nn.Module):
    """Trunk and one linear layer per frame; carries no state."""

    carried: tuple[str, ...] = ()

    def __init__(self, config: ModelConfig, n_labels: int) -> None:
        super().__init__()
        self.trunk = Trunk(config, 3)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.n_features, n_labels))

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Return nothing: a frame is judged alone."""
        return ()

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits (N, T, C) for float32 (N, T, 3, H, W) in [0, 1], and the empty state."""
        n, t = frames.shape[:2]
        logits: Tensor = self.head(self.trunk(normalise(frames.flatten(0, 1))))
        return logits.view(n, t, -1), {}
