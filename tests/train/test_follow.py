"""The crop that follows motion, the labels of frames around a row, and what a model without colour is shown."""

from __future__ import annotations

import numpy as np
import torch

from infra.artefacts import SelectionRow
from train.augment import without_colour
from train.dataset import UNLABELLED, window_set
from train.footage import Cache
from train.models import ModelConfig, build, initial_state
from train.models.follow import Follow
from train.windows import WindowSpec

SPEC = WindowSpec(n_frames=4, period_s=0.1, context_s=0.2)


def _moving(x_px: int, y_px: int, n: int = 12) -> torch.Tensor:
    """Return (1, n, 1, 80, 112): noise, and a bright patch that trembles around a place."""
    frames = torch.full((1, n, 1, 80, 112), 0.3)
    for number in range(n):
        x = x_px + 3 * (number % 2)
        frames[0, number, 0, y_px - 4 : y_px + 4, x - 4 : x + 4] = 0.9
    return frames


def test_the_crop_goes_where_something_moves() -> None:
    """Its centre ends within a cell of the motion, on whatever side; the same frames one by one give the same crops."""
    follow = Follow(112, 80, 48).eval()
    for x, y in ((30, 30), (80, 50)):
        frames = _moving(x, y)
        state = {spec.name: torch.zeros(spec.shape) for spec in follow.state_specs()}
        crops, last = follow(frames, state)
        centre = follow._centre(last["motion"])[0]
        assert abs((centre[0] + 1) / 2 * 112 - x) < 9 and abs((centre[1] + 1) / 2 * 80 - y) < 9
        for number in range(frames.shape[1]):
            one, state = follow(frames[:, number : number + 1], state)
            torch.testing.assert_close(one[:, 0], crops[:, number])


def test_without_motion_it_looks_at_the_middle() -> None:
    """A still picture has its crop in the middle, and nothing in the channels of change."""
    follow = Follow(112, 80, 48).eval()
    still = torch.rand(1, 1, 1, 80, 112).expand(1, 5, 1, 80, 112)
    crops, last = follow(still, {spec.name: torch.zeros(spec.shape) for spec in follow.state_specs()})
    assert follow._centre(last["motion"]).abs().max() < 1e-6 and crops[:, :, 1:].abs().max() < 1e-5


def test_one_channel_is_as_good_as_three() -> None:
    """A model that follows motion answers the mean of the colours as it answers the colours."""
    model = build(ModelConfig(kind="frame_gru", width_px=112, height_px=80, follow_px=48, channels=(4, 8, 8, 8)), 3).eval()
    pictures = torch.randint(0, 256, (2, 5, 80, 112, 3), dtype=torch.uint8)
    gray = without_colour(pictures)
    assert gray.shape == (2, 5, 80, 112, 1) and not ModelConfig(kind="frame_gru", follow_px=48).sees_colour
    three = gray.expand(2, 5, 80, 112, 3)
    answers = [
        model(seen.permute(0, 1, 4, 2, 3).float() / 255, initial_state(model, 2))[0]  # type: ignore[arg-type]
        for seen in (gray, three)
    ]
    torch.testing.assert_close(answers[0], answers[1], atol=1e-5, rtol=1e-5)


def test_frames_around_a_row_have_their_own_labels() -> None:
    """Context frames take the label of the row that covers them, of the same split; else they give no loss."""
    rows = [
        SelectionRow(clip_id="c" * 32, start_pts=200, end_pts=600, label="wave", split="train"),
        SelectionRow(clip_id="c" * 32, start_pts=600, end_pts=800, label="none", split="train"),
        SelectionRow(clip_id="c" * 32, start_pts=0, end_pts=100, label="none", split="val"),
    ]
    pts = tuple(range(0, 800, 100))  # 200 ticks of context before the first row, 200 after it
    cache = Cache(frames=np.zeros((8, 4, 4, 3), np.uint8), spans=((0, 8), (8, 8), (8, 8)), pts=(pts, (), ()), failed={})
    made = window_set(cache, rows, "train", ["none", "wave"], SPEC, balance=False)
    assert made.positions.tolist()[0] == [0, 1, 2, 3] and made.positions.tolist()[-1] == [4, 5, 6, 7]
    assert made.labels.tolist()[0] == [UNLABELLED, UNLABELLED, 1, 1] and made.labels.tolist()[-1] == [1, 1, 0, 0]
