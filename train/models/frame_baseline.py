"""The per-frame baseline: each frame is judged alone, a window by the mean of its frames' probabilities.

Always trained beside the video model (seed 003 claims that it suffices; the paired difference says whether it does).
With `follow_px` it is told where to look, as the video model is, and sees the luma of that crop in this one frame: the
difference between the two is then what the frames before are worth, and nothing else.
"""

from __future__ import annotations

from torch import Tensor, nn

from infra.artefacts import StateSpec
from train.models import ModelConfig, State
from train.models.follow import Follow
from train.models.trunk import CropTrunk, Trunk, normalise


class FrameBaseline(nn.Module):
    """Trunk and one linear layer per frame; carries at most where to look."""

    carried: tuple[str, ...] = ()

    def __init__(self, config: ModelConfig, n_labels: int) -> None:
        super().__init__()
        self.eyes = Follow(config.width_px, config.height_px, config.follow_px) if config.follow_px else None
        self.trunk: CropTrunk | Trunk = CropTrunk(config, 1) if config.follow_px else Trunk(config, 3)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.n_features, n_labels))

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Return what says where to look; nothing when the whole picture is seen."""
        return self.eyes.state_specs() if self.eyes is not None else ()

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits (N, T, C) for float32 (N, T, 3, H, W) in [0, 1], and the state after the last frame."""
        n, t = frames.shape[:2]
        following: State = {}
        if self.eyes is not None:
            crops, following = self.eyes(frames, state)
            pictures = crops.flatten(0, 1)[:, :1]
        else:
            pictures = normalise(frames.flatten(0, 1))
        logits: Tensor = self.head(self.trunk(pictures))
        return logits.view(n, t, -1), following
