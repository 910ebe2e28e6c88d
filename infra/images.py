"""Clips made of images: an uncompressed tar whose images keep their names and bytes, and `camloop.json` saying when.

`camloop.json` is the first member: {"version": 1, "rate": [num, den]} (frames a second, pts = rank, time base 1/rate) or
{"version": 1, "pts_ns": [...]} (one integer per image, time base 1 ns, pts counted from the first; "start_ns" then holds
the first as UTC, when it is one). The order of the other members is the order of the frames.

A recorder on a camera host (ADR 0014) cannot know its times beforehand: with {"version": 2, "pts_ns": "names", ...} each
member is named by its time, `<nanoseconds>.png`. Its "kind" says what the members are: "images"; "raw", where each frame
is `<nanoseconds>.<crc32>.npy`, uint8 (H, W, 3) RGB; or "features", where the images are thumbnails now and then and the
`.npy` members are vectors (`infra/arrays.py`). An image or array is checked whenever it is read.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, VideoReformatter

from infra.arrays import RAW_SUFFIX, frame_of, vectors_of
from infra.errors import MediaError, UsageError
from infra.picture import EXACT, Rgb

INDEX_NAME: Final = "camloop.json"
VERSION: Final = 1
VERSION_NAMES: Final = 2  # times in the names: what a recorder writes
NAMES: Final = "names"
KINDS: Final = ("images", "raw", "features")
MAX_INDEX_BYTES: Final = 64 << 20
MAX_IMAGE_BYTES: Final = 64 << 20
MAX_IMAGES: Final = 500_000
MAX_PIXELS: Final = 7680 * 4320  # 8K; a 390 KB file of 15360x8640 took 0.6 GB (RELIABILITY.md 1.3)
CODECS: Final = {".jpg": "mjpeg", ".jpeg": "mjpeg", ".png": "png"}
PNG_OPTIONS: Final = {"pred": "paeth", "compression_level": "1"}  # a fifth of the time of the default, 5 % more bytes
JPEG_QSCALE: Final = 3  # of FFmpeg's 2 (best) to 31: 11 KB for a picture of 320x240
STRICT: Final = {"err_detect": "crccheck+explode"}  # a chunk of a PNG whose CRC is wrong is an error, not another picture
RAW_CODEC: Final = "rawvideo"


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a tar: where its bytes lie and when it was."""

    name: str
    pts: int
    duration: int
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Roll:
    """The index of a clip of images; `start_ns` is UTC or None.

    `vectors` are the arrays of a clip of features, `extractor` what made them (name, sha256, dim), None elsewhere. Their
    pts, like those of the images, count from the clip's first member.
    """

    images: tuple[Image, ...]
    time_base: Fraction
    start_ns: int | None
    kind: str = "images"
    vectors: tuple[Image, ...] = ()
    extractor: Mapping[str, Any] | None = None


def is_roll(path: Path) -> bool:
    """Say whether the file begins like a tar."""
    try:
        with path.open("rb") as file:
            return file.read(262)[257:] == b"ustar"
    except OSError:
        return False


def is_clip(path: Path) -> bool:
    """Say whether the file is a tar that begins with `camloop.json`."""
    try:
        with path.open("rb") as file:
            head = file.read(262)
    except OSError:
        return False
    return head[257:] == b"ustar" and head[:100].rstrip(b"\0") == INDEX_NAME.encode()


def pack_images(
    paths: Sequence[Path], out: Path, *, rate: Fraction | int | str | None = None, pts_ns: Sequence[int] | None = None,
    names: Sequence[str] | None = None, start_ns: int | None = None,
) -> None:
    """Write images as one clip. The same images and times give the same bytes.

    Args:
        paths: JPEG or PNG files in the order of their frames.
        out: the tar to write; an existing file is replaced.
        rate: frames a second ("30000/1001" is fine); or
        pts_ns: one integer per image, strictly increasing, nanoseconds of any clock.
        names: member names, when the files' own are not distinct.
        start_ns: UTC of the first frame, if known.

    Raises:
        UsageError: no images, another kind of file, names or times that do not fit.
    """
    names = [path.name for path in paths] if names is None else list(names)
    if not paths or len(names) != len(paths) or len(set(names)) != len(names):
        raise UsageError(f"{out.name}: {len(paths)} images with {len(set(names))} distinct names; give one name per image")
    if odd := next((name for name in names if Path(name).suffix.lower() not in CODECS), None):
        raise UsageError(f"{odd}: not an image of a clip; legal: {', '.join(CODECS)}")
    if (rate is None) == (pts_ns is None):
        raise UsageError(f"{out.name}: give either a rate or one time per image")
    index: dict[str, Any] = {"version": VERSION, "start_ns": start_ns}
    if rate is not None:
        exact = Fraction(rate)
        index["rate"] = [exact.numerator, exact.denominator]
    else:
        index["pts_ns"] = list(pts_ns or ())
    _times(index, len(paths), out.name, UsageError)
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, INDEX_NAME, json.dumps(index, sort_keys=True, separators=(",", ":")).encode())
        for name, path in zip(names, paths, strict=True):
            _add(tar, name, path.read_bytes())


def read_roll(path: Path, busy: Callable[[], None] = lambda: None) -> Roll:
    """Return the index of a clip of images; `busy` is called for each member.

    Raises:
        MediaError: a compressed, cut or foreign tar, no `camloop.json`, or times that do not fit the images.
    """
    members, index = _opened(path, busy)
    version = index.get("version") if isinstance(index, dict) else None
    if version not in (VERSION, VERSION_NAMES) or (version == VERSION_NAMES) != (index.get("pts_ns") == NAMES):
        raise MediaError(f"{path.name}: {INDEX_NAME} is of version {version!r}; legal: {VERSION}, {VERSION_NAMES}")
    kind, extractor = index.get("kind", "images"), index.get("extractor")
    if kind not in KINDS or (kind == "features") != isinstance(extractor, dict):
        raise MediaError(f"{path.name}: a clip of {kind!r} with extractor {extractor!r}; legal: {', '.join(KINDS)}")
    suffixes = (RAW_SUFFIX,) if kind == "raw" else tuple(CODECS)
    found = [m for m in members if m.isfile() and Path(m.name).suffix.lower() in suffixes]
    arrays = [m for m in members if m.isfile() and kind == "features" and m.name.endswith(RAW_SUFFIX)]
    if not found or len(found) > MAX_IMAGES or max(m.size for m in (*found, *arrays)) > MAX_IMAGE_BYTES:
        raise MediaError(f"{path.name}: {len(found)} images; legal: 1 to {MAX_IMAGES}, each up to {MAX_IMAGE_BYTES} bytes")
    if max(m.offset_data + m.size for m in (*found, *arrays)) > path.stat().st_size:
        raise MediaError(f"{path.name}: cut off: its last image is not whole; fetch or pack it again")
    if version == VERSION_NAMES:
        index["pts_ns"] = [_time_in(m.name, path) for m in found]
    pts, time_base = _times(index, len(found), path.name, MediaError)
    steps = [b - a for a, b in itertools.pairwise(pts)]
    steps.append(sorted(steps)[len(steps) // 2] if steps else 1)
    rolled = tuple(Image(m.name, p, d, m.offset_data, m.size) for m, p, d in zip(found, pts, steps, strict=True))
    first_ns = index["pts_ns"][0] if arrays else 0
    vectors = tuple(Image(m.name, _time_in(m.name, path) - first_ns, 0, m.offset_data, m.size) for m in arrays)
    start_ns = index.get("start_ns")
    return Roll(rolled, time_base, start_ns if isinstance(start_ns, int) else None, kind, vectors, extractor)


def _opened(path: Path, busy: Callable[[], None]) -> tuple[list[tarfile.TarInfo], Any]:
    """Return the members of a tar and what its `camloop.json` says."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = []
            for member in tar:
                members.append(member)
                busy()
            listed = next((member for member in members if member.name == INDEX_NAME), None)
            source = None if listed is None or listed.size > MAX_INDEX_BYTES else tar.extractfile(listed)
            if source is None:
                raise MediaError(f"{path.name}: a tar without {INDEX_NAME} is not a clip; make one with `pack_images`")
            return members, json.loads(source.read())
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise MediaError(f"{path.name}: cannot be read as a tar of images: {error}") from error


def read_vectors(path: Path, roll: Roll) -> Iterator[tuple[list[int], npt.NDArray[Any]]]:
    """Yield the batches of a clip of features: (pts of each vector, vectors float32 or float16 (n, dim)).

    Raises:
        MediaError: a batch that is damaged, or whose times do not increase.
    """
    extractor = roll.extractor or {}
    dim = extractor.get("dim")
    if not isinstance(dim, int) or not isinstance(extractor.get("name"), str) or not isinstance(extractor.get("sha256"), str):
        raise MediaError(f"{path.name}: its extractor is {dict(extractor)!r}; legal: name, sha256, dim")
    before = -1
    for batch, data in read_images(path, roll.vectors):
        ns, vectors = vectors_of(data, batch.name, dim)
        pts = (ns - ns[0] + batch.pts).tolist() if len(ns) else []
        if any(b <= a for a, b in itertools.pairwise([before, *pts])):
            raise MediaError(f"{path.name}: the times of {batch.name} do not increase")
        before = pts[-1] if pts else before
        yield pts, vectors


def decode_image(data: bytes, name: str) -> Any:
    """Return the av.VideoFrame of one JPEG or PNG file, or of one raw frame.

    Raises:
        MediaError: it cannot be decoded, or its bytes are not those that its name says.
    """
    if name.endswith(RAW_SUFFIX):
        return av.VideoFrame.from_ndarray(frame_of(data, name, MAX_PIXELS), format="rgb24")
    try:
        context: Any = av.CodecContext.create(CODECS[Path(name).suffix.lower()], "r")
        context.options = {"max_pixels": str(MAX_PIXELS), **(STRICT if name.lower().endswith(".png") else {})}
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        raise MediaError(f"{name}: cannot be decoded: {error}") from error
    if len(frames) != 1:
        raise MediaError(f"{name}: holds {len(frames)} pictures; legal: 1")
    return frames[0]


class ImageEncoder:
    """Makes PNG files (lossless) or JPEG files of pictures; the same picture gives the same bytes.

    Args:
        suffix: ".png" or ".jpg".
        width_px, height_px: of every picture.

    Raises:
        UsageError: another suffix.
    """

    def __init__(self, suffix: str, width_px: int, height_px: int) -> None:
        if suffix not in CODECS:
            raise UsageError(f"image {suffix!r}; legal: {', '.join(CODECS)}")
        context: Any = av.CodecContext.create(CODECS[suffix], "w")
        context.width, context.height, context.thread_count = width_px, height_px, 1
        context.time_base = Fraction(1, 1000)
        context.pix_fmt = "rgb24" if suffix == ".png" else "yuvj420p"
        context.options = {"flags": "+bitexact", **(PNG_OPTIONS if suffix == ".png" else {})}
        if suffix != ".png":
            context.qmin = context.qmax = JPEG_QSCALE
        self._context, self._shape = context, (height_px, width_px, 3)
        self._to_yuv, self._n = VideoReformatter(), 0

    def encode(self, rgb: Rgb) -> bytes:
        """Return a whole image file.

        Args:
            rgb: uint8 (height, width, 3).

        Raises:
            UsageError: another size or type.
        """
        if rgb.shape != self._shape or rgb.dtype != np.uint8:
            raise UsageError(f"frame is {rgb.dtype} {rgb.shape}; this encoder takes uint8 {self._shape}")
        frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if self._context.pix_fmt != "rgb24":
            frame = self._to_yuv.reformat(
                frame, format="yuvj420p", interpolation=EXACT, threads=1, dst_color_range=ColorRange.JPEG
            )
        frame.pts, self._n = self._n, self._n + 1
        (packet,) = self._context.encode(frame)
        return bytes(packet)


def read_images(path: Path, images: Sequence[Image]) -> Iterator[tuple[Image, bytes]]:
    """Yield each image with its bytes, as stored."""
    with path.open("rb") as file:
        for image in images:
            file.seek(image.offset)
            yield image, file.read(image.n_bytes)


def _time_in(name: str, path: Path) -> int:
    """Return the nanoseconds that a member of a recorder's clip is named by."""
    digits = name.partition(".")[0]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise MediaError(f"{path.name}: member {name[:80]!r}; legal: <nanoseconds>.<ending>")
    return int(digits)


def _times(index: dict[str, Any], n_images: int, name: str, wrong: type[Exception]) -> tuple[list[int], Fraction]:
    """Return (pts, time base) as the index says them."""
    rate: Any = index.get("rate")
    pts_ns = index.get("pts_ns")
    if pts_ns is not None:
        is_integers = len(pts_ns) == n_images and all(type(t) is int for t in pts_ns)
        if not is_integers or any(b <= a for a, b in itertools.pairwise(pts_ns)):
            raise wrong(f"{name}: {len(pts_ns)} times for {n_images} images; legal: one integer each, strictly increasing")
        return [t - pts_ns[0] for t in pts_ns], Fraction(1, 1_000_000_000)
    try:
        numerator, denominator = rate
        exact = Fraction(numerator, denominator)
    except (TypeError, ValueError, ZeroDivisionError):
        exact = Fraction(0)
    if exact <= 0:
        raise wrong(f"{name}: rate {rate!r}; legal: [numerator, denominator] of a positive number of frames a second")
    return list(range(n_images)), 1 / exact


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add one member without owner, date or mode of this machine."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
