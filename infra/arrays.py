"""Arrays in a recorder's clip: one raw frame, or vectors of one extractor, as a `.npy` file whose name holds its CRC-32.

`<nanoseconds>.<crc32>.npy` (ADR 0014): the CRC-32 of the whole `.npy` file, eight hex digits, so that a rotten or torn
member says so by itself. A raw frame is uint8 (H, W, 3) RGB. A batch of vectors is a structured array with the fields
`ns` (int64, the time of each on the clock of the names) and `vector` (float32 or float16, one sub-array of `dim` numbers).

What is read here may come from a stranger: the header is read by numpy's own reader, which never unpickles, and memory is
taken only for what is really there.
"""

from __future__ import annotations

import io
import tokenize
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from infra.errors import MediaError

RAW_SUFFIX: Final = ".npy"
MAX_DIM: Final = 65_536


def array_name(ns: int, data: bytes) -> str:
    """Return the member name of a `.npy` file: its time and its checksum."""
    return f"{ns:019d}.{zlib.crc32(data):08x}{RAW_SUFFIX}"


def is_intact(name: str, data: bytes) -> bool:
    """Say whether a member's bytes are those that its name says."""
    return name.endswith(f".{zlib.crc32(data):08x}{RAW_SUFFIX}")


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """Return an array as a `.npy` file, in C order."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def vector_type(dim: int, dtype: str) -> np.dtype[Any]:
    """Return the type of one timed vector: `ns` int64 and `vector` (`dim`,) of "float32" or "float16", little-endian."""
    return np.dtype([("ns", "<i8"), ("vector", {"float32": "<f4", "float16": "<f2"}[dtype], (dim,))])


def frame_of(data: bytes, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Return a raw frame: uint8 (H, W, 3), RGB, a view of `data`.

    Raises:
        MediaError: other bytes than its name says, or another array.
    """
    frame = _array(data, name)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not 0 < frame.size <= 3 * max_pixels:
        raise MediaError(f"{name}: holds {frame.dtype} {frame.shape}; legal: uint8 (H, W, 3) of up to {max_pixels} pixels")
    return frame


def vectors_of(data: bytes, name: str, dim: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return a batch of vectors: (times int64 (n,), vectors float32 or float16 (n, dim)).

    Raises:
        MediaError: other bytes than its name says, or another array.
    """
    batch = _array(data, name)
    legal = [vector_type(dim, dtype) for dtype in ("float32", "float16")] if 0 < dim <= MAX_DIM else []
    if batch.ndim != 1 or batch.dtype not in legal:
        raise MediaError(f"{name}: holds {batch.dtype} {batch.shape}; legal: (n,) of ns and vectors of {dim} numbers")
    return batch["ns"].astype(np.int64), batch["vector"]


def _array(data: bytes, name: str) -> npt.NDArray[Any]:
    if not is_intact(name, data):
        raise MediaError(f"{name}: its bytes are not those that were written (CRC-32 {zlib.crc32(data):08x}); it is damaged")
    source = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(source) != (1, 0):
            raise ValueError("not of version 1.0")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(source)
        n_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
        if is_fortran or dtype.hasobject or n_bytes != len(data) - source.tell():
            raise ValueError(f"{dtype} {shape} does not fit its {len(data)} bytes")
        return np.frombuffer(data, dtype, offset=source.tell()).reshape(shape)
    except (ValueError, TypeError, ArithmeticError, MemoryError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise MediaError(f"{name}: cannot be read as an array: {' '.join(str(error).split())}") from error
