"""From a run's best weights to a bundle: one ONNX file that takes a camera's picture and gives probabilities.

    frame uint8 (1, H, W, 3) RGB, <state> float32 ...  ->  probs float32 (1, C), <state>_next ...

Everything between picture and model (layout, scale, normalisation) is inside the graph, so that training and a Pi
cannot differ in it. `export` runs the file beside the torch model over a sequence of frames and refuses a file that
disagrees by more than PARITY. The same weights give the same bytes, so the same bundle id.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infra import keys
from infra.artefacts import Bundle, BundleSpec
from infra.errors import ArtefactError
from train.models import build, initial_state
from train.recipes import Recipe

PARITY = 1e-4  # largest difference of a probability between torch and onnxruntime, over PARITY_FRAMES frames
PARITY_FRAMES = 12
OPSET = 17  # the newest that onnxruntime 1.17, our oldest, knows in full


class _OneFrame(nn.Module):
    """The model as a Pi calls it: one uint8 picture and the states in, probabilities and the next states out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.names = [state.name for state in model.state_specs()]

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        frames = frame.permute(0, 3, 1, 2).unsqueeze(1).float() / 255.0
        logits, following = self.model(frames, dict(zip(self.names, states, strict=True)))
        return (logits[:, -1].softmax(-1), *(following[name] for name in self.names))


def export(
    weights: Mapping[str, Tensor],
    recipe: Recipe,
    labels: tuple[str, ...],
    *,
    name: str,
    lineage: Mapping[str, Any],
    simulated_world_only: bool = False,
) -> Bundle:
    """Return the bundle of a trained model.

    Args:
        weights: the model's state dict.
        recipe: the recipe that made them.
        labels: class names in the order of the outputs.
        name: the model's name, which a release shows.
        lineage: where it comes from (run_id, dataset, selection_id, ...).
        simulated_world_only: refuse the model outside the simulated world.

    Raises:
        ArtefactError: the exported file and the torch model disagree.
    """
    model = build(recipe.model, len(labels))
    model.load_state_dict(dict(weights))
    one = _OneFrame(model).eval()
    graph = _to_onnx(one, recipe)
    worst = parity(one, graph, recipe)
    if not worst <= PARITY:
        raise ArtefactError(f"exported {name}: probabilities differ from torch by {worst:.2g}, at most {PARITY} is accepted")
    spec = BundleSpec(
        model_name=keys.check_name(name, "model"),
        labels=labels,
        width_px=recipe.model.width_px,
        height_px=recipe.model.height_px,
        period_s=recipe.window.period_s,
        reset_after_periods=recipe.reset_after_periods,
        states=one.model.state_specs(),
        smoothing=recipe.smoothing,
        uncertain_below=recipe.uncertain_below,
        lineage=dict(lineage),
        simulated_world_only=simulated_world_only,
    )
    return Bundle(spec=spec, model=graph)


def _to_onnx(one: _OneFrame, recipe: Recipe) -> bytes:
    """Return the graph's bytes, by torch's TorchScript exporter: 50 ms, and a GRU stays one operator."""
    frame = torch.zeros((1, recipe.model.height_px, recipe.model.width_px, 3), dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself legacy, and warns of batch sizes that a Pi does not have
        torch.onnx.export(
            one,
            (frame, *initial_state(one.model, 1).values()),
            buffer,  # type: ignore[arg-type]  # the annotation names paths only
            dynamo=False,
            opset_version=OPSET,
            input_names=["frame", *one.names],
            output_names=["probs", *(f"{name}_next" for name in one.names)],
        )
    return buffer.getvalue()


def parity(one: nn.Module, graph: bytes, recipe: Recipe, seed: int = 0) -> float:
    """Return the largest difference of a probability between torch and onnxruntime over a moving random picture."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (recipe.model.height_px, recipe.model.width_px, 3), dtype=np.uint8)
    states = list(initial_state(one.model, 1).values())  # type: ignore[arg-type]
    arrays: list[NDArray[Any]] = [state.numpy() for state in states]
    inputs = [tensor.name for tensor in session.get_inputs()]
    worst = 0.0
    with torch.no_grad():
        for shift in range(PARITY_FRAMES):
            frame = np.roll(picture, shift * 3, axis=1)[None].copy()
            probs, *states = one(torch.from_numpy(frame), *states)
            found, *arrays = session.run(None, dict(zip(inputs, [frame, *arrays], strict=True)))
            worst = max(worst, float(np.abs(probs.numpy() - found).max()))
    return worst
