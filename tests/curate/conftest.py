"""A small store with made clips, and a detector of a few bytes whose answers can be computed by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infra import keys, video
from infra.catalog import Catalog, Done, open_catalog
from infra.records import Clip
from infra.store import DirStore

WIDTH, HEIGHT, RATE = 64, 48, 10
TINY_OPENCLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


@pytest.fixture(scope="session")
def tiny_openclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random image-text model of 0.8 M parameters, saved as open_clip reads it."""
    from infra.torchvision_cpu import ensure_nms

    ensure_nms()
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(TINY_OPENCLIP))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def make_tiny_detector(path: Path, *, names: Sequence[str] = ("person", "car"), size_px: int = 64) -> Path:
    """Write an .onnx that looks like an export of ultralytics.

    It finds one 'person' of 20 x 20 px at the centre of the letterbox, with the picture's mean value (0..1) as its score,
    and one 'car' of 8 x 8 px at (12, 32) with half of that.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    half = size_px / 2
    boxes = np.array([[half, 12], [half, half], [20, 8], [20, 8]], np.float32)[None]
    weights = np.array([[1, 0], [0, 0.5]], np.float32)[None]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["weights", "mean"], ["scores"]),
            helper.make_node("Concat", ["boxes", "scores"], ["output0"], axis=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size_px, size_px])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, 2])],
        [numpy_helper.from_array(boxes, "boxes"), numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    facts = {
        "task": "detect",
        "names": str(dict(enumerate(names))),
        "imgsz": f"[{size_px}, {size_px}]",
        "stride": "32",
        "batch": "1",
    }
    for key, value in facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
    return path


@pytest.fixture
def tiny_detector(tmp_path: Path) -> Path:
    """Return the path of the tiny detector."""
    return make_tiny_detector(tmp_path / "tiny.onnx")


@pytest.fixture
def make_detector() -> Callable[..., Path]:
    """Return what writes a tiny detector (see `make_tiny_detector`)."""
    return make_tiny_detector


def write_clip(path: Path, levels: Sequence[int]) -> Path:
    """Write an mp4 of 64 x 48 px at 10 frames a second; frame i is grey of `levels[i]`."""
    with video.Writer(path, WIDTH, HEIGHT, Fraction(1, RATE)) as writer:
        for pts, level in enumerate(levels):
            writer.add(np.full((HEIGHT, WIDTH, 3), level, np.uint8), pts)
    return path


_written: dict[Path, tuple[int, ...]] = {}


def put_clip(
    folder: Path, catalog: Catalog, name: str, content: Sequence[int] | bytes, *, camera_id: str = "cam1", **columns: object
) -> dict[str, object]:
    """Put a clip into the store of a catalog and return its row of table `clips`; bytes are put as they are."""
    path = folder / f"{name}.mp4"
    n_frames = 10
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        n_frames = len(content)
        if _written.get(path) != tuple(content):  # x264 gives other bytes of the same pictures once in some hundred times
            write_clip(path, content)
            _written[path] = tuple(content)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    clip_id = keys.clip_id(sha256)
    key = keys.clip_key(camera_id, clip_id, "mp4")
    catalog.store.put_file_if_absent(key, path, sha256=sha256)
    facts: dict[str, object] = {"recording_id": name, **columns}
    clip = Clip(
        clip_id=clip_id, key=key, source_name=path.name, container="mp4", camera_id=camera_id, time_base_num=1,
        time_base_den=RATE, first_pts=0, end_pts=n_frames, n_frames=n_frames, width_px=WIDTH, height_px=HEIGHT,
        codec="h264", n_bytes=path.stat().st_size, sha256=sha256, **facts,  # type: ignore[arg-type]
    )  # fmt: skip
    return {**dataclasses.asdict(clip), "camera_number": 1}


def register(catalog: Catalog, rows: Sequence[dict[str, object]]) -> list[str]:
    """Commit rows of table `clips` at once and return their clip_ids."""
    clip_ids = [str(row["clip_id"]) for row in rows]
    catalog.commit({"clips": rows}, [Done("clip", clip_id, "register", "f", 1, 1) for clip_id in clip_ids])
    return clip_ids


@pytest.fixture
def add_clip(tmp_path: Path) -> Callable[..., str]:
    """Return a function that puts a clip into a catalog and returns its clip_id (see `put_clip`)."""

    def add(catalog: Catalog, name: str, content: Sequence[int] | bytes, **columns: object) -> str:
        return register(catalog, [put_clip(tmp_path, catalog, name, content, **columns)])[0]  # type: ignore[arg-type]

    return add


@pytest.fixture
def add_clips(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that puts many clips, by name, into a catalog in one commit and returns their clip_ids."""

    def add(catalog: Catalog, contents: Mapping[str, Sequence[int] | bytes]) -> list[str]:
        return register(catalog, [put_clip(tmp_path, catalog, name, content) for name, content in contents.items()])

    return add


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return the catalog of an empty store in a folder."""
    return open_catalog(DirStore(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path: Path, make_detector: Callable[..., Path]) -> Path:
    """Return a folder with two detectors of different sizes."""
    make_detector(tmp_path / "cheap.onnx", size_px=32)
    make_detector(tmp_path / "fine.onnx", size_px=64)
    return tmp_path
