"""A small extractor for tests and benches: a random projection of the picture, seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_extractor(path: Path, *, seed: int = 7, side_px: int = 16, dim: int = 256, dtype: int = TensorProto.UINT8) -> Path:
    """Write a model that maps uint8 (1, side, side, 3) to float32 (1, dim) and return its path."""
    n = side_px * side_px * 3
    weights = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32) / n
    nodes = [
        helper.make_node("Cast", ["frame"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["real", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["vector"]),
    ]
    graph = helper.make_graph(
        nodes, "extractor", [helper.make_tensor_value_info("frame", dtype, [1, side_px, side_px, 3])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, dim])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, n], np.int64), "flat")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
