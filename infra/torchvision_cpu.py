"""Make torchvision importable beside a CPU build of torch.

The package index has torchvision for CUDA only; its compiled operators cannot be loaded without the CUDA libraries,
and `import torchvision` then stops at "operator torchvision::nms does not exist" (its `_meta_registrations.py`).
ultralytics and open_clip both import torchvision. What they need of the compiled part is `nms` alone, so this
declares that operator in plain torch where it is missing and lets `torchvision.ops.nms` call it. Where torchvision's own
operators load, nothing happens.

Call `ensure_nms()` before the first import of torchvision, ultralytics or open_clip.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

_LIBRARIES: list[Any] = []  # torch.library.Library unregisters its operators when it is collected


@functools.cache
def ensure_nms() -> None:
    """Declare `torchvision::nms` in plain torch unless torchvision's compiled operators can be loaded."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    extension = next(Path(spec.origin).parent.glob("_C*.so"), None)
    if extension is not None:
        try:
            torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
        except OSError:
            pass  # linked against CUDA libraries that are not here: declare the operator below
        else:
            return
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):  # the two whose registration torchvision does not guard
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl(name, _nms, "CPU")
    _LIBRARIES.append(library)
    import torchvision

    torchvision.ops.nms = torchvision.ops.boxes.nms = _nms  # its own wrapper asks for the compiled part first


def _nms(dets: Any, scores: Any, iou_threshold: float) -> Any:
    """Greedy non-maximum suppression.

    Args:
        dets: float (N, 4) boxes as x1 y1 x2 y2.
        scores: float (N,).
        iou_threshold: boxes that overlap a better one by more than this are dropped.

    Returns:
        int64 (K,) indices of the kept boxes, best first, as torchvision.ops.nms.
    """
    import torch

    order = torch.argsort(scores, descending=True, stable=True)
    areas = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    kept = []
    while order.numel():
        best = order[0]
        kept.append(best)
        rest = order[1:]
        low = torch.maximum(dets[best, :2], dets[rest, :2])
        high = torch.minimum(dets[best, 2:], dets[rest, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        order = rest[overlap / (areas[best] + areas[rest] - overlap) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64, device=dets.device)
