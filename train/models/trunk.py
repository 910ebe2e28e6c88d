"""The small convolutional trunk that both models share: one picture in, one feature vector out.

Four halvings, depthwise separable after the first, then a 1x1 reduction whose grid is flattened, not averaged: where
something is in the picture tells "left" from "right". About 70 k parameters and 3 M multiplications at 96 x 96.
"""

from __future__ import annotations

from torch import Tensor, nn

from train.models import ModelConfig

_REDUCED = 16


def _block(n_in: int, n_out: int) -> nn.Sequential:
    """Halve the picture: depthwise 3x3 with stride 2, then pointwise, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_in, 3, stride=2, padding=1, groups=n_in, bias=False),
        nn.BatchNorm2d(n_in),
        nn.ReLU(),
        nn.Conv2d(n_in, n_out, 1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


class Trunk(nn.Module):
    """Picture (M, n_in, H, W), normalised -> features (M, n_features)."""

    def __init__(self, config: ModelConfig, n_in: int) -> None:
        super().__init__()
        a, b, c, d = config.channels
        self.stem = nn.Sequential(nn.Conv2d(n_in, a, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU())
        self.blocks = nn.Sequential(_block(a, b), _block(b, c), _block(c, d))
        self.reduce = nn.Sequential(nn.Conv2d(d, _REDUCED, 1, bias=False), nn.BatchNorm2d(_REDUCED), nn.ReLU())
        n_grid = _REDUCED * (config.width_px // 16) * (config.height_px // 16)
        self.features = nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(n_grid, config.n_features), nn.ReLU())

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the feature vectors, float32 (M, n_features)."""
        features: Tensor = self.features(self.reduce(self.blocks(self.stem(pictures))))
        return features


def normalise(frames: Tensor) -> Tensor:
    """Map [0, 1] to about unit range: mean 0.5 and deviation 0.25 of an ordinary exposure, fixed on purpose."""
    return (frames - 0.5) * 4.0
