"""Boxes from a YOLO detector as ONNX, with onnxruntime and numpy only: what a camera host needs to hide people.

Reads what ultralytics exports (heads without their own suppression): input float32 (n, 3, S, S), RGB 0..1, in our one square
letterbox (`infra.picture.letterbox`); output (n, 4 + classes, m): centre x, centre y, width, height in letterbox pixels, then a
score per class; names of the classes in the file's metadata. There is no suppression of overlapping boxes here: who hides
what was found wants their union, so nothing may be dropped. For counting see `curate/detect.py`.

A file exported for batches of n is given its picture n times over, at n times the cost: export with batch=1 for a camera.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import ArtefactError, UsageError
from infra.keys import sha256_hex
from infra.onnx_check import load, ort_errors
from infra.picture import Rgb, letterbox


@dataclass(frozen=True, slots=True)
class FoundBox:
    """One thing found, in pixels of the picture, half-open: x1 <= x < x2."""

    class_name: str
    score: float
    x1: float
    y1: float
    x2: float
    y2: float


class OnnxBoxes:
    """A detector, one picture at a time.

    Args:
        path: the .onnx file; a sidecar `<file>.json` beside it may say `simulated_world_only`, and must name its hash.
        threads: of ONNX Runtime within one operator.

    Raises:
        UsageError: no such file, or not a detector of this kind.
        ArtefactError: a file that is damaged, refers to others, or is not the one its sidecar is about.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        try:
            model = path.read_bytes()
        except OSError as error:
            raise UsageError(f"detector {str(path)!r}: {error.strerror}; give the .onnx file of a detector") from error
        self.simulated_world_only = _simulated_only(path, model)
        self._session = load(model, f"detector {path.name}", threads=threads)
        given, out = self._session.get_inputs()[0], self._session.get_outputs()[0]
        names = self._session.get_modelmeta().custom_metadata_map.get("names")
        shape = given.shape
        sizes = [side for side in shape[2:] if isinstance(side, int)]
        if names is None or given.type != "tensor(float)" or len(shape) != 4 or len(sizes) != 2 or sizes[0] != sizes[1]:
            raise UsageError(
                f"detector {path.name}: input {given.type} {shape}; legal: a YOLO of ultralytics, float, n x 3 x S x S"
            )
        classes = ast.literal_eval(names)
        self.classes: tuple[str, ...] = tuple(classes[index] for index in sorted(classes))
        if len(out.shape) != 3 or out.shape[1] != 4 + len(self.classes):
            raise UsageError(
                f"detector {path.name}: output {out.shape}; legal: n x {4 + len(self.classes)} x m, without suppression"
            )
        self.size_px: int = sizes[0]
        self.batch = shape[0] if isinstance(shape[0], int) else 1
        self._name = given.name

    def find(self, rgb: Rgb, class_names: Sequence[str], least_score: float) -> list[FoundBox]:
        """Return every box of these classes with at least this score, overlapping ones too.

        Args:
            rgb: uint8 (H, W, 3) RGB.
            class_names: of `classes`.
            least_score: 0 to 1.

        Raises:
            ArtefactError: the detector failed, or gave something that is not finite.
        """
        picture, scale, pad_x, pad_y = letterbox(rgb, self.size_px)
        pixels = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
        try:
            [raw] = self._session.run(None, {self._name: np.repeat(pixels, self.batch, axis=0)})
        except ort_errors() as error:
            raise ArtefactError(f"the detector failed on a picture: {error}") from error
        rows: NDArray[np.float32] = raw[0].T
        if not np.isfinite(rows).all():
            raise ArtefactError("the detector gave numbers that are not finite")
        found = []
        height, width = rgb.shape[:2]
        for name in class_names:
            scores = rows[:, 4 + self.classes.index(name)]
            for x, y, w, h, score in np.column_stack([rows[:, :4], scores])[scores >= least_score].tolist():
                x1, x2 = ((x + side * w / 2 - pad_x) / scale for side in (-1, 1))
                y1, y2 = ((y + side * h / 2 - pad_y) / scale for side in (-1, 1))
                x1, x2, y1, y2 = max(0.0, x1), min(float(width), x2), max(0.0, y1), min(float(height), y2)
                if x1 < x2 and y1 < y2:
                    found.append(FoundBox(name, score, x1, y1, x2, y2))
        return found


def _simulated_only(path: Path, model: bytes) -> bool:
    sidecar = path.with_name(path.name + ".json")
    if not sidecar.is_file():
        return False
    try:
        document = json.loads(sidecar.read_bytes())
        if document["sha256"] != sha256_hex(model):
            raise ArtefactError(f"{sidecar} is about {document['sha256']}, but {path.name} hashes to {sha256_hex(model)}")
        return bool(document.get("simulated_world_only", False))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{sidecar}: not the sidecar of a detector: {error}") from error
