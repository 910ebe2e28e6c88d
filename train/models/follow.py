"""Looking where it moves: a square crop that follows motion through the picture, from frame to frame.

    luma -> |change to the frame before|, pooled -> a map that forgets slowly -> its centre -> crop of three channels

A person is a small part of a fixed camera's picture and may stand anywhere in it. A model that sees the whole picture has
to learn each action at each place; one that looks where something moves learns it once. What stands still is out of the
crop's way: beside the luma it shows the change to the frame before and the difference to a slow mean of all frames.

The map is compared with its own mean, so the crop follows motion in the dark as well; what it shows is not scaled: a
night looks dark. While training, the crop is a little off and a little too large or small, the same for all
frames of a window: the cheapest of all augmentations, since it costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from infra.artefacts import StateSpec
from train.models import State

CELL_PX = 8  # the motion map is this much coarser than the picture
_KEEP_MOTION = 0.9  # share of the map that is left after a frame: it forgets in about a second at ten frames a second
_KEEP_BACKGROUND = 0.95
_ABOVE_MEAN = 2.0  # motion below twice the picture's mean is noise
_LIGHT_GAIN, _CHANGE_GAIN, _BACKGROUND_GAIN = 4.0, 6.0, 3.0  # changes are small beside pictures
_JITTER, _ZOOM = 0.12, 0.15  # while training: of the half picture, and of the crop's side
N_CHANNELS = 3


class Follow(nn.Module):
    """Frames float32 (N, T, 3, H, W) in [0, 1] -> crops (N, T, 3, side, side): luma, change, difference to the background.

    Args:
        width_px: of the picture, a multiple of 8.
        height_px: of the picture, a multiple of 8.
        side_px: of the crop.
    """

    window: Tensor
    columns: Tensor
    rows: Tensor

    def __init__(self, width_px: int, height_px: int, side_px: int) -> None:
        super().__init__()
        self.width_px, self.height_px, self.side_px = width_px, height_px, side_px
        lines = torch.linspace(-1.0, 1.0, side_px)
        y, x = torch.meshgrid(lines * (side_px / height_px), lines * (side_px / width_px), indexing="ij")
        self.register_buffer("window", torch.stack([x, y], -1).unsqueeze(0), persistent=False)  # around a centre at 0
        self.register_buffer("columns", _centres(width_px), persistent=False)
        self.register_buffer("rows", _centres(height_px), persistent=False)

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Return `previous`, `background`, `motion`, and `seen`, which is 0 before the first frame."""
        picture = (1, 1, self.height_px, self.width_px)
        return (
            StateSpec(name="previous", shape=picture),
            StateSpec(name="background", shape=picture),
            StateSpec(name="motion", shape=(1, 1, self.height_px // CELL_PX, self.width_px // CELL_PX)),
            StateSpec(name="seen", shape=(1, 1, 1, 1)),
        )

    @torch.no_grad()
    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the crops and the state after the last frame; nothing here is learned."""
        n, t = frames.shape[:2]
        luma = frames.mean(2, keepdim=True)
        seen, motion = state["seen"], state["motion"]
        previous = torch.where(seen > 0, state["previous"], luma[:, 0])
        background = torch.where(seen > 0, state["background"], luma[:, 0])
        shown, centres = [], []
        for number in range(t):
            now = luma[:, number]
            change = now - previous
            energy = functional.avg_pool2d(change.abs(), CELL_PX)
            motion = _KEEP_MOTION * motion + (energy - _ABOVE_MEAN * energy.mean((2, 3), keepdim=True)).clamp(min=0.0)
            centres.append(self._centre(motion))
            seen_now = ((now - 0.5) * _LIGHT_GAIN, change * _CHANGE_GAIN, (now - background) * _BACKGROUND_GAIN)
            shown.append(torch.cat(seen_now, 1))
            background = _KEEP_BACKGROUND * background + (1.0 - _KEEP_BACKGROUND) * now
            previous = now
        grid = self._window(n, t) + torch.stack(centres, 1).view(n * t, 1, 1, 2)
        crops = functional.grid_sample(torch.stack(shown, 1).flatten(0, 1), grid, align_corners=False, padding_mode="border")
        following = {"previous": previous, "background": background, "motion": motion, "seen": torch.ones_like(seen)}
        return crops.view(n, t, N_CHANNELS, self.side_px, self.side_px), following

    def _window(self, n: int, t: int) -> Tensor:
        """Return the crop around a centre at 0, (1 or n * t, side, side, 2)."""
        if not self.training:
            return self.window
        zoom = 1.0 + (torch.rand(n, 1, 1, 1) * 2 - 1) * _ZOOM
        shift = (torch.rand(n, 1, 1, 2) * 2 - 1) * _JITTER
        return (self.window * zoom + shift).repeat_interleave(t, 0)

    def _centre(self, motion: Tensor) -> Tensor:
        """Return the centre of the squared map, (N, 2) as x, y in [-1, 1]; without motion, the middle."""
        weight = motion[:, 0] ** 2
        total = weight.sum((1, 2)) + 1e-8
        x = (weight.sum(1) * self.columns).sum(1) / total
        y = (weight.sum(2) * self.rows).sum(1) / total
        return torch.stack([x, y], 1)


def _centres(length_px: int) -> Tensor:
    """Return where the middle of each cell lies, from -1 to 1."""
    n = length_px // CELL_PX
    return (torch.arange(n) + 0.5) * (2.0 / n) - 1.0
