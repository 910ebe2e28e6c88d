"""A tiny real model, and a store with a release of it: what the tests of this room start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infra.artefacts import Bundle, BundleSpec, Report, ReportCell, StateSpec
from infra.clock import SystemClock
from serve import repository
from serve.release import Release, release
from serve.repository import Repository

WIDTH_PX, HEIGHT_PX = 32, 16
LABELS = ("dark", "bright")


def brightness_model(gain: float = 1.0) -> bytes:
    """Return a graph: probability of "bright" = gain * mean / 255; its state counts frames and is added with weight 0."""
    value, tensor = helper.make_tensor_value_info, numpy_helper.from_array
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["flat"], axis=0),
        helper.make_node("Unsqueeze", ["flat", "axis"], ["probs"]),
        helper.make_node("Add", ["count", "one"], ["count_next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [value("frame", TensorProto.UINT8, [1, HEIGHT_PX, WIDTH_PX, 3]), value("count", TensorProto.FLOAT, [1])],
        [value("probs", TensorProto.FLOAT, [1, 2]), value("count_next", TensorProto.FLOAT, [1])],
        [
            tensor(np.array([gain / 255], np.float32), "scale"),
            tensor(np.array([1], np.float32), "one"),
            tensor(np.array([0], np.int64), "axis"),
        ],
    )
    model: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    onnx.checker.check_model(model)
    return model


def brightness_bundle(gain: float = 1.0, **changes: object) -> Bundle:
    fields: dict[str, object] = {
        "model_name": f"brightness-{gain}", "labels": LABELS, "width_px": WIDTH_PX, "height_px": HEIGHT_PX, "period_s": 0.1,
        "states": (StateSpec(name="count", shape=(1,)),),
    }  # fmt: skip
    return Bundle(spec=BundleSpec(**{**fields, **changes}), model=brightness_model(gain))  # type: ignore[arg-type]


def report_of(bundle: Bundle, verdict: str = "passed", created_ns: int = 1) -> Report:
    cell = ReportCell(
        slice="night", where="hour < 6", metric="accuracy", value=0.9, low=0.8, high=1.0, n=100, n_groups=12,
        threshold=0.7, verdict=verdict,  # type: ignore[arg-type]
    )  # fmt: skip
    return Report(
        bundle_id=bundle.bundle_id, model_name=bundle.spec.model_name, dataset="d", selection_id="s", group_by="recording_id",
        judged="smoothed", seed=7, cells=(cell,), labels=bundle.spec.labels, created_ns=created_ns,
    )  # fmt: skip


@pytest.fixture
def make_bundle() -> Callable[..., Bundle]:
    """Return what makes a bundle of the brightness model: `make_bundle(gain, **changes of the spec)`."""
    return brightness_bundle


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """Return what makes a report about a bundle with one slice of the given verdict."""
    return report_of


@pytest.fixture(scope="session")
def signers(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return one set of signing keys for the whole session."""
    folder = tmp_path_factory.mktemp("keys")
    repository.make_keys(folder)
    return repository.read_keys(folder)


@pytest.fixture
def publish(signers: dict, tmp_path: Path) -> Callable[..., Release]:
    """Return what releases a bundle (with a passed report, or forced) into a store: `publish(store, bundle, ...)`."""

    def publish(store, bundle, *, channel="stable", force=None, clock=None) -> Release:
        clock = clock or SystemClock()
        report = None if force else report_of(bundle)
        return release(Repository(store, signers, clock), bundle, report, channel=channel, force=force, clock=clock)

    return publish
