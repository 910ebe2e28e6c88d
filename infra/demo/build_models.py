"""Makes the two demo models from nothing on the simulated world: `nice python -m infra.demo.build_models`.

1. `footage` films the part `models` of the world: 12 sites to learn from, 4 others for the scores.
2. A YOLO a quarter as wide as the smallest published one learns person, car and animal from random weights, through
   ultralytics (AGPL-3.0; curation's `detect.py` and this file are its only importers), and is exported to ONNX for 8
   frames at a time.
3. `image_text` trains a small image-text model that open_clip loads.

Beside each model lies `<weights>.json`: what it is, its hash, its scores, how long it took. Both know drawn scenes only and say
so (`simulated_world_only`): curation refuses them elsewhere. Two cores take about the minutes that the sidecars name.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infra import durable, keys
from infra.demo.footage import Use, pictures, yolo_lines
from infra.demo.truth import CLASSES

MODELS = Path(__file__).resolve().parent / "models"
DETECTOR = MODELS / "detector.onnx"
OPENCLIP = MODELS / "openclip"
SIZE_PX, BATCH = 256, 8
COMMAND = "python -m infra.demo.build_models"
LICENCE = (
    "Weights trained by this project on pictures that it draws itself. The network's definition and exporter are ultralytics "
    "(AGPL-3.0): who passes the file on does so under that licence."
)
# YOLOv8's layout (ultralytics cfg/models/v8/yolov8.yaml) with its width multiple 0.25 halved.
_NETWORK = """
nc: 3
scales:
  n: [0.33, 0.125, 1024]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 3, C2f, [128, True]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [-1, 6, C2f, [256, True]]
  - [-1, 1, Conv, [512, 3, 2]]
  - [-1, 6, C2f, [512, True]]
  - [-1, 1, Conv, [1024, 3, 2]]
  - [-1, 3, C2f, [1024, True]]
  - [-1, 1, SPPF, [1024, 5]]
head:
  - [-1, 1, nn.Upsample, [None, 2, "nearest"]]
  - [[-1, 6], 1, Concat, [1]]
  - [-1, 3, C2f, [512]]
  - [-1, 1, nn.Upsample, [None, 2, "nearest"]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 3, C2f, [256]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [[-1, 12], 1, Concat, [1]]
  - [-1, 3, C2f, [512]]
  - [-1, 1, Conv, [512, 3, 2]]
  - [[-1, 9], 1, Concat, [1]]
  - [-1, 3, C2f, [1024]]
  - [[15, 18, 21], 1, Detect, [nc]]
"""


def write_sidecar(weights: Path, document: Mapping[str, Any]) -> Path:
    """Write `<weights>.json` with the file's hash and size beside what the builder knows."""
    data = weights.read_bytes()
    path = weights.with_name(weights.name + ".json")
    full = {"simulated_world_only": True, "sha256": keys.sha256_hex(data), "n_bytes": len(data), **document}
    durable.write(path, (json.dumps(full, indent=1) + "\n").encode())
    return path


def _write_set(folder: Path, seed: int, use: Use, n_recordings: int, frames_each: int) -> int:
    import cv2

    images, labels = folder / "images" / use, folder / "labels" / use
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    n = 0
    for n, picture in enumerate(pictures(seed, use, n_recordings, frames_each), 1):
        cv2.imwrite(str(images / f"{n:05}.png"), np.ascontiguousarray(picture.rgb[..., ::-1]))
        (labels / f"{n:05}.txt").write_text(yolo_lines(picture))
    return n


def build_detector(
    target: Path, *, seed: int, n_recordings: int, frames_each: int, epochs: int, threads: int
) -> dict[str, Any]:
    """Train the detector and write `target` (.onnx) with its sidecar; return the scores on sites it never saw."""
    from infra.settings import quiet_libraries
    from infra.torchvision_cpu import ensure_nms

    quiet_libraries()
    ensure_nms()
    import torch
    from ultralytics.models import YOLO

    torch.set_num_threads(threads)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        n_learn = _write_set(folder, seed, "learn", n_recordings, frames_each)
        n_score = _write_set(folder, seed, "score", max(n_recordings // 4, 4), frames_each)
        network, data = folder / "yolov8n-demo.yaml", folder / "data.yaml"
        network.write_text(_NETWORK)
        places = {"path": str(folder), "train": "images/learn", "val": "images/score", "names": list(CLASSES)}
        data.write_text(json.dumps(places))
        filmed_s = time.monotonic() - started
        model = YOLO(str(network), task="detect")
        model.train(
            data=str(data), imgsz=SIZE_PX, epochs=epochs, batch=16, seed=seed, device="cpu", workers=0, amp=False, val=False,
            plots=False, optimizer="AdamW", lr0=0.003, warmup_epochs=1.0, cos_lr=True, mosaic=0.4,
            close_mosaic=max(epochs // 3, 1), scale=0.3, hsv_h=0.01, hsv_s=0.3, hsv_v=0.3, project=str(folder), name="run",
            deterministic=True, verbose=False,
        )  # fmt: skip
        figures = model.val(data=str(data), imgsz=SIZE_PX, batch=8, device="cpu", workers=0, plots=False, verbose=False)
        classwise = zip(figures.box.ap_class_index, figures.box.ap50, strict=True)
        scores = {
            "map50": round(float(figures.box.map50), 4),
            "map50_95": round(float(figures.box.map), 4),
            "map50_per_class": {CLASSES[int(number)]: round(float(value), 4) for number, value in classwise},
        }
        exported = model.export(format="onnx", imgsz=SIZE_PX, batch=BATCH, simplify=False, opset=17, device="cpu")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(exported), target)
    write_sidecar(target, {
        "note": "camloop demo detector: YOLOv8 layout at width 0.125, from random weights, on the simulated world",
        "licence": LICENCE, "classes": list(CLASSES), "size_px": SIZE_PX, "batch": BATCH, "seed": seed, "scores": scores,
        "scored_on": f"{n_score} frames of sites it never saw", "learned_from": f"{n_learn} frames", "epochs": epochs,
        "filmed_s": round(filmed_s), "trained_s": round(time.monotonic() - started - filmed_s), "threads": threads,
        "made_by": f"{COMMAND} --only detector --seed {seed} --recordings {n_recordings} --epochs {epochs}",
    })  # fmt: skip
    return scores


def main(arguments: list[str] | None = None) -> int:
    """Build the demo models; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo.build_models", description="Train the demo models.")
    parser.add_argument("--only", choices=("detector", "openclip"), help="build one of them")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder for the weights and their sidecars")
    parser.add_argument("--seed", type=int, default=17, help="world seed; another than the demo's")
    parser.add_argument("--recordings", type=int, default=400, help="recordings of 5 s to learn from")
    parser.add_argument("--epochs", type=int, default=None, help="passes over the footage (detector 12, openclip 16)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args(arguments)
    if options.only != "openclip":
        scores = build_detector(
            options.out / DETECTOR.name, seed=options.seed, n_recordings=options.recordings, frames_each=4,
            epochs=options.epochs or 12, threads=options.threads,
        )  # fmt: skip
        sys.stdout.write(f"detector: {scores}\n")
    if options.only != "detector":
        from infra.demo.image_text import build_image_text

        scores = build_image_text(
            options.out / OPENCLIP.name, seed=options.seed, n_recordings=options.recordings, frames_each=8,
            epochs=options.epochs or 16, threads=options.threads,
        )  # fmt: skip
        sys.stdout.write(f"openclip: {scores}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
