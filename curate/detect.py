"""Step `detect`: objects in frames, as boxes in pixels of the stored picture.

A detector takes uint8 RGB frames in our one square letterbox (`infra.video.letterbox`), never the library's own per-batch
one, and looks at each frame by itself: no result depends on which frames share its batch. What it finds is packed into
one bytes value per frame (float32 rows x1 y1 x2 y2 score class), the same in the local loop and in Ray.

Weights are a file and its SHA-256, which goes into the step's fingerprint. A hash that stands in no list here and in no
sidecar `<weights>.json` is `unknown`, and is said so. Demo models say `simulated_world_only` in their sidecar.

`UltralyticsDetector` is the only importer of ultralytics (AGPL-3.0). `TorchvisionDetector` is the permissive choice.
"""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from curate.resources import AUTO, Resources, torch_device, use_providers
from infra.errors import JobError, UsageError
from infra.keys import sha256_hex

VERSION = 1
LEAST_SCORE = 0.05  # detections under it are not stored: ten times the rows, and no query asks for them
IOU = 0.45  # default of ultralytics.utils.nms.non_max_suppression; its predict uses .7, which counts a person twice more often
MAX_DETECTIONS = 300  # ultralytics' default for predict (`max_det`)
BATCH_SIZE: Mapping[str, int] = {"cuda": 16}  # of .pt on a kind of device, fixed and padded; elsewhere a batch wins nothing
READS = ("detect_rgb", "width_px", "height_px", "scale", "pad_x", "pad_y")
ADDS = ("detections",)

KNOWN_WEIGHTS: Mapping[str, str] = {
    # hash -> what it is; all three of ../shared/data/weights, compared there with an independent export of the same network
    "8c6f0ca55e9b86c15fd6788a9edb78da087881df55cb225a64842284b84e250c": "YOLOv8n COCO, dynamic int8, 640 px, AGPL-3.0",
    "378c51e2ea5999e692179a2546c4edad55c37458832f46f1e1ed4215c7fa4613": "YOLOv8n COCO, dynamic int8, 320 px, AGPL-3.0",
}

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A weights file, its hash and what is known about it.

    `status` is "known" (listed above), "declared" (its sidecar names this hash) or "unknown" (nobody could verify it).
    """

    path: Path
    sha256: str
    status: Literal["known", "declared", "unknown"]
    note: str
    simulated_world_only: bool = False
    size_px: int | None = None

    @property
    def source(self) -> str:
        """`name@version`: the file's name and the first 8 digits of its hash."""
        return f"{self.path.stem}@{self.sha256[:8]}"

    def check(self) -> None:
        """Make sure that the file is still what was hashed: rows carry that hash.

        Raises:
            JobError: it was replaced or removed since.
        """
        found = sha256_hex(self.path.read_bytes()) if self.path.is_file() else "nothing"
        if found != self.sha256:
            raise JobError(
                f"weights {self.path} changed since the job began (then {self.sha256[:12]}, now {found[:12]}): "
                "what was finished is committed; run the command again for the rest, or put the old file back"
            )


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Make one line of whatever the libraries and the system say of a file that they cannot open as a model.

    Raises:
        UsageError: they raised something.
    """
    errors: tuple[type[Exception], ...] = (
        pickle.PickleError, EOFError, OSError, AttributeError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError,
    )  # fmt: skip
    if path.suffix == ".onnx":
        from infra.onnx_check import ort_errors

        errors += ort_errors()
    try:
        yield
    except errors as error:
        said = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise UsageError(f"{str(path)[:300]}: cannot be opened as a model: {said[:300]}") from error


def read_weights(path: Path) -> Weights:
    """Hash a weights file and read its sidecar `<weights>.json`, where there is one.

    Raises:
        UsageError: no such file, or a sidecar of another file.
    """
    with refusing(path):
        return _read_weights(path)


def _read_weights(path: Path) -> Weights:
    if not path.is_file():
        raise UsageError(f"no weights at {path}: give a .onnx or .pt file, or leave the step out with --without")
    sha256 = sha256_hex(path.read_bytes())
    sidecar = path.with_name(path.name + ".json")
    document: dict[str, Any] = {}
    if sidecar.is_file():
        try:
            document = json.loads(sidecar.read_bytes())
        except ValueError as error:
            raise UsageError(f"{sidecar}: not JSON: {error}") from error
        if document.get("sha256") != sha256:
            raise UsageError(f"{sidecar} is about {document.get('sha256')}, but {path.name} hashes to {sha256}")
    known = KNOWN_WEIGHTS.get(sha256)
    return Weights(
        path=path.resolve(),  # workers may stand in another folder
        sha256=sha256,
        status="known" if known else "declared" if document else "unknown",
        note=known or document.get("note", "declared by its sidecar" if document else "a hash that nobody could verify"),
        simulated_world_only=bool(document.get("simulated_world_only", False)),
        size_px=document.get("size_px"),
    )


class Detector(Protocol):
    """What finds objects. `name` is `name@version`; `size_px` the side of the square letterbox; `classes` in index order."""

    @property
    def name(self) -> str: ...
    @property
    def size_px(self) -> int: ...
    @property
    def classes(self) -> Sequence[str]: ...

    def __call__(self, batch: Batch) -> Batch:
        """Take `detect_rgb` uint8 (N, S, S, 3) RGB and where the picture lies in it (`READS`); replace the pixels by `ADDS`."""
        ...


@dataclass(frozen=True, slots=True)
class Box:
    """One detection in stored-picture pixels, half-open: x1 <= x < x2."""

    class_name: str
    score: float
    x1: float
    y1: float
    x2: float
    y2: float


def pack(xyxy_score_class: NDArray[np.float32]) -> bytes:
    """Return float32 (n, 6) rows as bytes, best score first (ties by class, then place), so that order says nothing."""
    rows = np.ascontiguousarray(xyxy_score_class, dtype="<f4").reshape(-1, 6)
    order = np.lexsort((rows[:, 1], rows[:, 0], rows[:, 5], -rows[:, 4]))
    return rows[order].tobytes()


def unpack(data: bytes, classes: Sequence[str]) -> list[Box]:
    """Return what `pack` packed."""
    rows = np.frombuffer(data, dtype="<f4").reshape(-1, 6)
    return [Box(classes[int(row[5])], *(float(value) for value in (row[4], *row[:4]))) for row in rows]


def to_stored(
    found: NDArray[np.float32], *, width_px: int, height_px: int, scale: float, pad_x: float, pad_y: float
) -> NDArray[np.float32]:
    """Map boxes from the letterbox back to the stored picture, clip them to it and drop what has no area left.

    Args:
        found: float32 (n, 6): x1 y1 x2 y2 in letterbox pixels, score, class.
        width_px: of the stored picture.
        height_px: of the stored picture.
        scale: letterbox pixels per stored pixel, as `infra.video.letterbox` returns it.
        pad_x: letterbox pixels left of the picture.
        pad_y: letterbox pixels above the picture.
    """
    boxes = found.copy()
    boxes[:, [0, 2]] = ((found[:, [0, 2]] - pad_x) / scale).clip(0, width_px)
    boxes[:, [1, 3]] = ((found[:, [1, 3]] - pad_y) / scale).clip(0, height_px)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def _finish(batch: Batch, found: Sequence[NDArray[np.float32]]) -> Batch:
    packed = np.empty(len(found), dtype=object)
    for i, boxes in enumerate(found):
        place = {name: batch[name][i].item() for name in ("width_px", "height_px", "scale", "pad_x", "pad_y")}
        packed[i] = pack(to_stored(boxes, **place))
    return {**{name: column for name, column in batch.items() if name != "detect_rgb"}, "detections": packed}


def _onnx_input(path: Path, session: Any) -> tuple[list[Any], Mapping[str, str]]:
    """Return the input shape (N or a name, 3, S, S) and the metadata of a detector exported by ultralytics.

    Raises:
        UsageError: it is something else.
    """
    shape = list(session.get_inputs()[0].shape)
    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    if len(shape) != 4 or shape[1] != 3 or "names" not in metadata or metadata.get("task", "detect") != "detect":
        raise UsageError(f"weights {path.name}: input {shape}, metadata {sorted(metadata)}; not a detector of ultralytics")
    declared = ast.literal_eval(metadata.get("imgsz", "[640, 640]"))
    shape[2:] = [side if isinstance(side, int) else declared[i] for i, side in enumerate(shape[2:])]
    if shape[2] != shape[3]:
        raise UsageError(f"weights {path.name}: a picture of {shape[3]}x{shape[2]}; only square ones are read")
    return shape, metadata


class UltralyticsDetector:
    """A YOLO of ultralytics, from .onnx or .pt.

    Args:
        weights: the file; .pt files are pickles: load only your own.
        threads: of the inference library; 0 leaves it the choice.
        resources: the device of a .pt file, the providers of an .onnx file.

    An .onnx file is given as many frames at a time as it was exported for. A dynamically quantised file measures its
    scale over the whole batch, and a flexible batch changes the kernels: both get one frame at a time.
    """

    def __init__(self, weights: Weights, *, threads: int = 1, resources: Resources = Resources()) -> None:  # noqa: B008
        from infra.settings import quiet_libraries
        from infra.torchvision_cpu import ensure_nms

        quiet_libraries()
        ensure_nms()
        import torch

        self.name = weights.source
        self._torch = torch
        self._model: Any
        if weights.path.suffix == ".onnx":
            self._device = torch.device("cpu")  # where its pictures are handed over; onnxruntime takes them to its provider
            size_px, self._batch_size, names = self._open_onnx(weights.path, threads, resources.providers)
        elif weights.path.suffix == ".pt":
            self._device = torch_device(resources.device)
            size_px, self._batch_size, names = self._open_torch(weights.path, threads)
        else:
            raise UsageError(f"weights {weights.path.name}: legal endings are .onnx and .pt")
        self.size_px = weights.size_px or size_px
        self.classes = tuple(names[index] for index in sorted(names))

    def _open_onnx(self, path: Path, threads: int, providers: Sequence[str]) -> tuple[int, int, dict[int, str]]:
        import onnxruntime
        from ultralytics.nn.backends.onnx import ONNXBackend

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes need the cores
        options.log_severity_level = 3
        self._model = ONNXBackend(path, self._device, session_options=options)
        use_providers(self._model.session, providers)
        shape, metadata = _onnx_input(path, self._model.session)
        alone = not isinstance(shape[0], int) or b"DynamicQuantizeLinear" in path.read_bytes()
        if alone and isinstance(shape[0], int) and shape[0] > 1:
            raise UsageError(
                f"weights {path.name}: quantised dynamically over a batch of {shape[0]}, so that a frame's boxes depend on "
                "the other frames; export it again with batch=1"
            )
        return shape[3], 1 if alone else shape[0], ast.literal_eval(metadata["names"])

    def _open_torch(self, path: Path, threads: int) -> tuple[int, int, dict[int, str]]:
        from ultralytics.nn.autobackend import AutoBackend

        if threads:
            self._torch.set_num_threads(threads)
        self._model = AutoBackend(str(path), device=self._device, fuse=True, verbose=False).eval()
        arguments = getattr(self._model.backend.model, "args", None) or {}
        size = arguments.get("imgsz", 640) if isinstance(arguments, dict) else getattr(arguments, "imgsz", 640)
        return int(size if isinstance(size, int) else size[0]), BATCH_SIZE.get(self._device.type, 1), self._model.names

    def __call__(self, batch: Batch) -> Batch:
        """Detect; see `Detector`."""
        rgb: NDArray[np.uint8] = batch["detect_rgb"]
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(rgb), self._batch_size):
            part = rgb[start : start + self._batch_size]
            padded = np.concatenate([part, np.repeat(part[-1:], self._batch_size - len(part), axis=0)])
            found += self._detect(padded)[: len(part)]
        return _finish(batch, found)

    def _detect(self, rgb: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        from ultralytics.utils.nms import non_max_suppression

        torch = self._torch
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(rgb)).to(self._device).permute(0, 3, 1, 2).contiguous().float() / 255
            raw = self._model.forward(pixels)
            raw = raw[0] if isinstance(raw, list | tuple) else raw
            # ultralytics stops after 50 ms a picture and returns what it has; a slow machine must not find less
            found = non_max_suppression(
                torch.as_tensor(raw), LEAST_SCORE, IOU, max_det=MAX_DETECTIONS, max_time_img=600.0, nc=len(self.classes)
            )
        return [boxes[:, :6].float().cpu().numpy() for boxes in found]


class TorchvisionDetector:
    """Faster R-CNN with MobileNetV3 of torchvision (BSD-3-Clause): the permissive choice; one frame at a time.

    Args:
        weights: a state dict as torchvision publishes it (`fasterrcnn_mobilenet_v3_large_320_fpn-*.pth`).
        classes: class names in the model's own order, background first; None takes torchvision's COCO names.
        threads: of torch; 0 leaves it the choice.
        device: of torch.
    """

    size_px = 320

    def __init__(
        self, weights: Weights, *, classes: Sequence[str] | None = None, threads: int = 1, device: str = AUTO
    ) -> None:  # fmt: skip
        from infra.torchvision_cpu import ensure_nms

        ensure_nms()
        import torch
        from torchvision.models import detection

        if classes is None:
            classes = detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1.meta["categories"]
        if threads:
            torch.set_num_threads(threads)
        self.name = weights.source
        self.classes = tuple(classes)
        self._torch = torch
        self._device = torch_device(device)
        self._model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=len(classes), box_score_thresh=LEAST_SCORE
        )
        self._model.load_state_dict(torch.load(weights.path, map_location="cpu", weights_only=True))
        self._model.to(self._device).eval()

    def __call__(self, batch: Batch) -> Batch:
        """Detect; see `Detector`."""
        torch, found = self._torch, []
        for rgb in batch["detect_rgb"]:
            with torch.inference_mode():
                pixels = torch.from_numpy(np.ascontiguousarray(rgb)).to(self._device).permute(2, 0, 1).float() / 255
                [boxes] = self._model([pixels])
            rows = torch.cat([boxes["boxes"], boxes["scores"][:, None], boxes["labels"][:, None].float()], dim=1)
            found.append(rows.cpu().numpy())
        return _finish(batch, found)


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of a detector without opening it for work."""

    name: str
    size_px: int
    classes: tuple[str, ...]


def describe(weights: Weights, *, threads: int = 1) -> Described:
    """Return name, input size and classes of a weights file; an .onnx file is asked by its metadata alone.

    Raises:
        UsageError: it is not a detector.
    """
    with refusing(weights.path):
        return _describe(weights, threads)


def _describe(weights: Weights, threads: int) -> Described:
    if weights.path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(weights.path, options, providers=["CPUExecutionProvider"])
        shape, metadata = _onnx_input(weights.path, session)
        names = ast.literal_eval(metadata["names"])
        return Described(weights.source, weights.size_px or shape[3], tuple(names[index] for index in sorted(names)))
    opened = open_detector(weights, threads=threads, resources=Resources(device="cpu"))
    return Described(opened.name, opened.size_px, tuple(opened.classes))


def open_detector(weights: Weights, *, threads: int = 1, resources: Resources = Resources()) -> Detector:  # noqa: B008
    """Return the detector for a weights file, by its ending: .onnx and .pt ultralytics, .pth torchvision."""
    if weights.path.suffix == ".pth":
        return TorchvisionDetector(weights, threads=threads, device=resources.device)
    return UltralyticsDetector(weights, threads=threads, resources=resources)
