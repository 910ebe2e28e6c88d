"""One random transform per window and epoch, the same on all its frames.

uint8 (N, T, H, W, 3) RGB -> draw one transform per window -> float32 (N, T, 3, H, W) in [0, 1].

A transform that differed from frame to frame would look like motion. Mirroring is off unless a recipe asks for it: a
mirrored "moves left" is another class. Only sensor noise (of luma) is drawn anew for each frame, with one strength per window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """How far a transform may go; 0 switches a part off.

    `shift` and `zoom` are shares of the picture, `rotation_deg` degrees; `brightness` is added (in units of the full
    range), `contrast` and `gamma` are exponents of 2; `noise` is the largest standard deviation; `flip` and
    `grayscale` are probabilities.
    """

    shift: float = 0.0
    zoom: float = 0.0
    rotation_deg: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    flip: float = 0.0
    grayscale: float = 0.0


def to_float(windows: Tensor) -> Tensor:
    """Return uint8 (N, T, H, W, C) as float32 (N, T, C, H, W) in [0, 1], untransformed."""
    return windows.permute(0, 1, 4, 2, 3).float().div_(255.0)


def without_colour(windows: Tensor) -> Tensor:
    """Return uint8 (N, T, H, W, 1), the mean of the three colours: all that a model sees which looks at luma alone."""
    pictures = windows.numpy()
    total = pictures[..., 0].astype(np.uint16) + pictures[..., 1] + pictures[..., 2]
    return torch.from_numpy((total // 3).astype(np.uint8)[..., None])


def augment(windows: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    """Return the windows transformed, float32 (N, T, C, H, W) in [0, 1].

    Args:
        windows: uint8 (N, T, H, W, C), RGB or, with C = 1, `without_colour`.
        how: the ranges.
        generator: where all random numbers come from.
    """
    frames = _geometry(_light(windows, how, generator), how, generator)
    n, t, _, h, w = frames.shape
    if how.grayscale and windows.shape[-1] == 3:
        gray = torch.rand((n, 1, 1, 1, 1), generator=generator) < how.grayscale
        luma = (frames * torch.tensor(_LUMA).view(1, 1, 3, 1, 1)).sum(2, keepdim=True)
        frames = torch.where(gray, luma, frames)
    if how.noise:
        strength = torch.rand((n, 1, 1, 1, 1), generator=generator) * how.noise
        frames = frames + torch.randn((n, t, 1, h, w), generator=generator) * strength
    return frames.clamp_(0.0, 1.0)


def _light(windows: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and gamma of each window as one, by a table of 256 values: ten times faster than by pixel."""
    if not (how.brightness or how.contrast or how.gamma):
        return to_float(windows)
    n = windows.shape[0]
    table = torch.linspace(0.0, 1.0, 256).repeat(n, 1) + _uniform(n, how.brightness, generator)
    table = (table - 0.5) * torch.exp2(_uniform(n, how.contrast, generator)) + 0.5
    table = table.clamp(0.0, 1.0) ** torch.exp2(_uniform(n, how.gamma, generator))
    pictures = windows.numpy()
    lit = np.stack([np.take(row, picture) for row, picture in zip(table.numpy(), pictures, strict=True)])
    return torch.from_numpy(lit).permute(0, 1, 4, 2, 3)


def _uniform(n: int, limit: float, generator: torch.Generator) -> Tensor:
    """Return (n, 1) numbers in [-limit, limit)."""
    return (torch.rand((n, 1), generator=generator) * 2 - 1) * limit


def _geometry(frames: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    """Shift, zoom, rotate and mirror each window as one; the border is repeated outwards."""
    n, t, c, h, w = frames.shape
    draws = torch.rand((n, 5), generator=generator)
    if not (how.shift or how.zoom or how.rotation_deg or how.flip):
        return frames
    scale = 1.0 + (draws[:, 0] * 2 - 1) * how.zoom
    angle = torch.deg2rad((draws[:, 1] * 2 - 1) * how.rotation_deg)
    mirror = torch.where(draws[:, 2] < how.flip, -1.0, 1.0)
    x, y = ((draws[:, 3:5] * 2 - 1) * 2 * how.shift).unbind(1)  # affine_grid spans [-1, 1]: a share is twice as much
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos * mirror, -sin * h / w, x], 1), torch.stack([sin * mirror * w / h, cos, y], 1)], 1)
    grid = functional.affine_grid(theta, [n, t * c, h, w], align_corners=False)
    flat = functional.grid_sample(frames.reshape(n, t * c, h, w), grid, padding_mode="border", align_corners=False)
    return flat.view(n, t, c, h, w)
