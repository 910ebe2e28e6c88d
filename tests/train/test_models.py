"""Models and augmentation: streaming equals windows, one transform per window."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from infra.errors import UsageError
from train.augment import Augment, augment, to_float
from train.models import ModelConfig, build, initial_state
from train.models.frame_gru import FrameGru


@pytest.mark.parametrize("kind", ["frame_baseline", "frame_gru"])
def test_one_by_one_equals_all_at_once(kind: str) -> None:
    """Frames given singly, state carried by hand, give the logits of the whole window."""
    torch.manual_seed(0)
    model = build(ModelConfig(kind=kind, width_px=32, height_px=32), 3).eval()  # type: ignore[arg-type]
    frames = torch.rand(2, 5, 3, 32, 32)
    with torch.no_grad():
        whole, last = model(frames, initial_state(model, 2))  # type: ignore[arg-type]
        state, steps = initial_state(model, 2), []  # type: ignore[arg-type]
        for t in range(5):
            logits, state = model(frames[:, t : t + 1], state)
            steps.append(logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)
    assert {name: tuple(value.shape) for name, value in state.items()} == {n: tuple(v.shape) for n, v in last.items()}
    assert {s.name: s.shape for s in model.state_specs()} == {n: (1, *v.shape[1:]) for n, v in state.items()}  # type: ignore[operator]


def test_first_frame_has_no_difference() -> None:
    """A still picture gives the same features on its first and its second frame."""
    torch.manual_seed(0)
    model = FrameGru(ModelConfig(kind="frame_gru", width_px=32, height_px=32), 2).eval()
    seen: list[torch.Tensor] = []
    model.trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    still = torch.rand(1, 1, 3, 32, 32).expand(1, 3, 3, 32, 32)
    model(still, initial_state(model, 1))
    assert torch.equal(seen[0][:, 3], torch.zeros(3, 32, 32))


def test_models_are_small() -> None:
    """At 96 x 96 the models have under 150 k parameters."""
    for kind in ("frame_baseline", "frame_gru"):
        model = build(ModelConfig(kind=kind), 5)
        assert 30_000 < sum(p.numel() for p in model.parameters()) < 150_000


def test_sizes_that_do_not_divide_are_refused() -> None:
    """The trunk halves four times; other sizes are refused with the rule."""
    with pytest.raises(UsageError, match="16"):
        ModelConfig(kind="frame_gru", width_px=100)


def test_a_window_gets_one_transform() -> None:
    """Equal frames stay equal within a window, and windows differ from each other."""
    window = torch.randint(0, 256, (1, 1, 24, 32, 3), dtype=torch.uint8).expand(3, 4, 24, 32, 3)
    how = Augment(shift=0.2, zoom=0.2, rotation_deg=10, brightness=0.2, contrast=0.5, gamma=0.5, flip=0.5, grayscale=0.5)
    found = augment(window, how, torch.Generator().manual_seed(1))
    assert found.shape == (3, 4, 3, 24, 32) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(found[:, 0], found[:, 3])
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_nothing_asked_changes_nothing() -> None:
    """The default augmentation is the identity; in particular nothing is mirrored."""
    window = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    assert torch.allclose(augment(window, Augment(), torch.Generator().manual_seed(0)), to_float(window), atol=1e-6)


def test_mirroring_and_shift_do_what_they_say() -> None:
    """flip=1 mirrors left and right; a shift moves by at most its share; noise differs from frame to frame."""
    window = torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8)
    window[:, :, :, :4] = 255
    mirrored = augment(window, Augment(flip=1.0), torch.Generator().manual_seed(0))
    assert torch.allclose(mirrored, to_float(window).flip(-1), atol=1e-5)
    moved = augment(window, Augment(shift=0.25), torch.Generator().manual_seed(3))
    assert abs(float(moved[0, 0, 0].mean()) - 0.25) <= 0.25 + 1e-6 and not torch.equal(moved, to_float(window))
    noisy = augment(window, dataclasses.replace(Augment(), noise=0.2), torch.Generator().manual_seed(0))
    assert not torch.equal(noisy[0, 0], noisy[0, 1])
