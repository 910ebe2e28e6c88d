"""The convolutional trunks: one picture in, one feature vector out. What they find is flattened, not averaged: where
something is in the picture tells "left" from "right".

`Trunk` sees a whole picture: four halvings, depthwise separable after the first, then a 1x1 reduction; about 70 k
parameters and 3 M multiplications at 96 x 96. `CropTrunk` sees a small crop and learns faster: two full convolutions
before two separable ones, nothing reduced.
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


def _full(n_in: int, n_out: int) -> nn.Sequential:
    """Halve the picture by a full 3x3 convolution with batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


def _features(config: ModelConfig, n_in: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(n_in, config.n_features), nn.ReLU())


class Trunk(nn.Module):
    """Picture (M, n_in, H, W), normalised -> features (M, n_features)."""

    def __init__(self, config: ModelConfig, n_in: int) -> None:
        super().__init__()
        a, b, c, d = config.channels
        self.stem = _full(n_in, a)
        self.blocks = nn.Sequential(_block(a, b), _block(b, c), _block(c, d))
        self.reduce = nn.Sequential(nn.Conv2d(d, _REDUCED, 1, bias=False), nn.BatchNorm2d(_REDUCED), nn.ReLU())
        self.features = _features(config, _REDUCED * (config.width_px // 16) * (config.height_px // 16))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the feature vectors, float32 (M, n_features)."""
        features: Tensor = self.features(self.reduce(self.blocks(self.stem(pictures))))
        return features


class CropTrunk(nn.Module):
    """Square crop (M, n_in, side, side) -> features (M, n_features)."""

    def __init__(self, config: ModelConfig, n_in: int) -> None:
        super().__init__()
        a, b, c, d = config.channels
        self.blocks = nn.Sequential(_full(n_in, a), _full(a, b), _block(b, c), _block(c, d))
        self.features = _features(config, d * (config.follow_px // 16) ** 2)

    def forward(self, crops: Tensor) -> Tensor:
        """Return the feature vectors, float32 (M, n_features)."""
        features: Tensor = self.features(self.blocks(crops))
        return features


def normalise(frames: Tensor) -> Tensor:
    """Map [0, 1] to about unit range: mean 0.5 and deviation 0.25 of an ordinary exposure, fixed on purpose."""
    return (frames - 0.5) * 4.0
