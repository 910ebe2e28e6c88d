"""Features instead of pictures: what a named, hashed extractor says of each frame, with a thumbnail every k seconds.

256 numbers a frame at 7 frames a second are 27 MB an hour, where pictures are 700. They are tied to their extractor for
ever (S0-16): its name and SHA-256 stand in every clip, a segment takes one extractor only, and a named recording refuses
a second one (`claim`). The thumbnails let a person see what was in front of the camera.

The extractor is an ONNX file with one input, uint8 (1, H, W, 3) RGB: resizing is ours (`infra.video.resize`),
normalisation belongs inside the graph. Its first output is taken as one float32 vector. Vectors are written in batches
of `BATCH_S` seconds, so that a batch's header weighs nothing: that is what a crash can cost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from infra import durable, keys
from infra.arrays import MAX_DIM, array_name, npy_bytes, vector_type
from infra.errors import ArtefactError, UsageError
from infra.images import ImageEncoder
from infra.onnx_check import load, ort_errors
from infra.picture import Rgb, fit, resize
from ingest.frames import CONTAINER, name_clock
from ingest.members import MemberFile, NameClock
from ingest.source import Camera, EncodedFrame, Frame

BATCH_S: Final = 10.0
THUMBNAIL_S: Final = 60.0
THUMBNAIL_PX: Final = 128
_INPUT: Final = "uint8 (1, H, W, 3), RGB; put resizing aside and normalisation into the graph"


class Extractor:
    """A model that turns a picture into a vector.

    Args:
        path: an ONNX file, complete in itself.

    Raises:
        UsageError: no such file, or a model with other inputs or outputs.
        ArtefactError: not an ONNX file, or one that refers to others.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UsageError(f"extractor {str(path)[:200]!r}: no such file; give --extractor MODEL.onnx")
        model = path.read_bytes()
        self._session = load(model, f"extractor {path.name}")
        self.name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)[:100]
        self.sha256 = keys.sha256_hex(model)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if inputs else []
        is_picture = len(shape) == 4 and shape[0] in (1, "batch", "N", None) and shape[3] == 3
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or not is_picture:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise UsageError(f"extractor {path.name} takes {found}; legal: {_INPUT}")
        if not all(isinstance(side, int) and 0 < side <= 4096 for side in shape[1:3]):
            raise UsageError(f"extractor {path.name} takes pictures of {shape[1:3]}; legal: a fixed height and width")
        self._input, self.size_px = inputs[0].name, (int(shape[2]), int(shape[1]))
        self.dim = len(self(np.zeros((self.size_px[1], self.size_px[0], 3), np.uint8)))
        if not 0 < self.dim <= MAX_DIM:
            raise UsageError(f"extractor {path.name} gives {self.dim} numbers a picture; legal: 1 to {MAX_DIM}")

    @property
    def source(self) -> str:
        """`name@version` as it stands in table `embeddings`."""
        return f"{self.name}@{self.sha256[:12]}"

    def __call__(self, rgb: Rgb) -> npt.NDArray[np.float32]:
        """Return the vector of a picture: float32 (dim,).

        Args:
            rgb: uint8 (H, W, 3) of any size.

        Raises:
            ArtefactError: the model failed on it.
        """
        picture = rgb if rgb.shape[1::-1] == self.size_px else resize(rgb, self.size_px)
        try:
            (out, *_) = self._session.run(None, {self._input: np.ascontiguousarray(picture)[None]})
        except ort_errors() as error:
            raise ArtefactError(f"extractor {self.name}: failed: {str(error)[:300]}") from error
        return np.asarray(out, np.float32).reshape(-1)


class FeatureSegment:
    """One tar of vectors and thumbnails.

    Args:
        path: the file to make.
        clock: how its members are named.
        extractor: what makes the vectors.
        thumbnail_s: seconds between two thumbnails; the first frame always has one.

    Raises:
        OSError: the disk refused.
    """

    container, survives = CONTAINER, True

    def __init__(self, path: Path, clock: NameClock, extractor: Extractor, thumbnail_s: float = THUMBNAIL_S) -> None:
        said = {"name": extractor.name, "sha256": extractor.sha256, "dim": extractor.dim}
        self._file = MemberFile(path, clock, {"kind": "features", "extractor": said})
        self._clock, self._extractor, self._thumbnail_ns = clock, extractor, round(thumbnail_s * 1e9)
        self._encoder: ImageEncoder | None = None
        self._next_thumbnail_ns = self._batch_ns = 0
        self._batch: list[tuple[int, npt.NDArray[np.float32]]] = []

    def add(self, frame: Frame, pts: int) -> None:
        """Take one frame; `pts` is not used, times stand beside the vectors.

        Raises:
            UsageError: a frame that is not a picture.
            ArtefactError: the extractor failed.
            OSError: the disk refused.
        """
        if isinstance(frame, EncodedFrame):
            raise UsageError(f"features of frames of {frame.format.codec}; legal: pictures (decode the stream first)")
        if self._encoder is None or frame.sensor_ns >= self._next_thumbnail_ns:
            self._add_thumbnail(frame.rgb, frame.sensor_ns)
        if self._batch and frame.sensor_ns - self._batch_ns >= BATCH_S * 1e9:
            self._flush()
        if not self._batch:
            self._batch_ns = frame.sensor_ns
        self._batch.append((self._clock.name_ns(frame.sensor_ns), self._extractor(frame.rgb)))

    def close(self) -> None:
        """Finish the file."""
        if self._batch:
            self._flush()
        self._file.close()

    def _add_thumbnail(self, rgb: Rgb, sensor_ns: int) -> None:
        (width_px, height_px), *_ = fit(rgb.shape[1::-1], (THUMBNAIL_PX, THUMBNAIL_PX))
        if self._encoder is None:
            self._encoder = ImageEncoder(".jpg", width_px, height_px)
        data = self._encoder.encode(resize(rgb, (width_px, height_px)))
        self._file.add(f"{self._clock.name_ns(sensor_ns):019d}.jpg", data)
        self._next_thumbnail_ns = sensor_ns + self._thumbnail_ns

    def _flush(self) -> None:
        batch = np.array(self._batch, vector_type(self._extractor.dim, "float32"))
        data = npy_bytes(batch)
        name, self._batch = array_name(self._batch[0][0], data), []
        self._file.add(name, data)


def features(source: Camera, extractor: Extractor, thumbnail_s: float = THUMBNAIL_S) -> Callable[[Path, Frame], FeatureSegment]:
    """Return what starts a tar of features for the recorder."""
    return lambda path, first: FeatureSegment(path, name_clock(source, first), extractor, thumbnail_s)


def claim(folder: Path, recording: str, extractor: Extractor) -> None:
    """Remember which extractor a named recording is made with; one recording never mixes two.

    Args:
        folder: where the spool lies.
        recording: the recording's name.
        extractor: the one to be used now.

    Raises:
        UsageError: it was begun with another one.
    """
    path = folder / "recordings" / f"{keys.check_name(recording, 'recording')}.json"
    said = {"extractor": extractor.source, "sha256": extractor.sha256}
    if not path.exists():
        durable.write(path, json.dumps(said, sort_keys=True).encode())
        return
    try:
        before = json.loads(path.read_bytes())
    except ValueError:
        before = {}
    if before != said:
        raise UsageError(
            f"recording {recording!r} was begun with extractor {before.get('extractor', 'unknown')}, this is "
            f"{extractor.source}; features of two extractors cannot be compared: name another recording"
        )
