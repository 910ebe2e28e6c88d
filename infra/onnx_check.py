"""What an ONNX file refers to, read from its bytes before anything is loaded: no external files, no custom operators. `load`
opens what passed.

ONNX Runtime resolves external tensor data against a folder and may be told to load libraries of custom operators; a model
that came over a network must do neither (RELIABILITY.md row 45). The few fields that matter are read with a reader of
protobuf's wire format, because the `onnx` package is not part of the light install. Field numbers are those of `onnx.proto`
(IR version 13, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from infra.errors import ArtefactError

MAX_MODEL_BYTES = 256 << 20
MAX_DEPTH = 16  # of nested graphs (If, Loop, Scan): exporters make 1 or 2
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})

# message -> field number -> message inside it
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_NODE_DOMAIN, _FUNCTION_DOMAIN, _EXTERNAL_DATA, _DATA_LOCATION = 7, 10, 13, 14


def check_self_contained(model: bytes) -> None:
    """Check that a model needs nothing but its own bytes.

    Raises:
        ArtefactError: it is too large, not ONNX, keeps tensors in other files, or uses operators outside ONNX's own
            domains that it does not define itself.
    """
    if len(model) > MAX_MODEL_BYTES:
        raise ArtefactError(f"model.onnx has {len(model)} bytes; at most {MAX_MODEL_BYTES} are accepted")
    used: set[str] = set()
    defined: set[str] = set()
    try:
        _walk(memoryview(model), "model", used, defined, 0)
    except (IndexError, UnicodeDecodeError) as error:
        raise ArtefactError(f"model.onnx is not an ONNX file: {error}") from error
    if foreign := sorted(used - STANDARD_DOMAINS - defined):
        raise ArtefactError(f"model.onnx uses operators of domain {foreign[0]!r}; legal: the domains of ONNX itself")


def _walk(message: memoryview, kind: str, used: set[str], defined: set[str], depth: int) -> None:
    if depth > MAX_DEPTH * 3:
        raise ArtefactError(f"model.onnx nests graphs more than {MAX_DEPTH} deep")
    inside = _INSIDE[kind]
    for number, value in _fields(message):
        if isinstance(value, int):
            if kind == "tensor" and number == _DATA_LOCATION and value != 0:
                raise ArtefactError("model.onnx keeps tensors in other files (external data); export it as one file")
        elif kind == "tensor" and number == _EXTERNAL_DATA:
            raise ArtefactError("model.onnx names another file (external data); export it as one file")
        elif kind == "node" and number == _NODE_DOMAIN:
            used.add(str(value, "utf-8"))
        elif kind == "function" and number == _FUNCTION_DOMAIN:
            defined.add(str(value, "utf-8"))
        elif number in inside:
            _walk(value, inside[number], used, defined, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one protobuf message; fixed-width values come as their bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(message, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire} at byte {position}")
        if position + length > len(message):
            raise IndexError(f"field {number} ends after its message")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise IndexError(f"number too long at byte {position}")


def load(model: bytes, what: str, *, threads: int = 1) -> Any:
    """Return the `onnxruntime.InferenceSession` of a model that needs nothing but its own bytes, on the CPU.

    Args:
        model: the bytes of the file.
        what: what messages call it, such as `detector people.onnx`.
        threads: of ONNX Runtime within one operator.

    Raises:
        ArtefactError: see `check_self_contained`; or ONNX Runtime cannot load it.
    """
    import onnxruntime

    check_self_contained(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # its C++ log goes to stderr; errors reach us as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a camera host has other work to do
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints there when a damaged model's names are not UTF-8
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except ort_errors() as error:
        raise ArtefactError(f"{what} cannot be loaded: {str(error)[:300]}") from error


def ort_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its own classes, which have no common root, and ValueError for wrong inputs."""
    from onnxruntime.capi import onnxruntime_pybind11_state as binding

    own = (value for value in vars(binding).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*own, ValueError, RuntimeError)
