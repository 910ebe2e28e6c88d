"""What does the training loader cost over decoding alone? Prints one table: where the time of a first and a later epoch goes.

    .venv/bin/python tests/bench/loader.py [--rounds 3] [--data ../shared/data]

The clips are the real action clips of `cctv_fight`, one row each, read with the built-in recipe `cctv_small`, as `train` reads
them. In CPU time, best of the rounds, so that neighbours on the machine matter less:
  decoding   every clip of the rows decoded whole by `infra.video.pictures` and scaled to the model's size, nothing kept
  loading    `train.footage.load`: the same, plus choosing each row's frames and keeping them
  batches    one epoch of windows drawn from the cache, as uint8 tensors, without augmentation or model
`loading / decoding` near 1 says that a first epoch costs the decoder and little else; `batches` is what every later one costs.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from infra import keys, video
from infra.artefacts import SelectionRow
from infra.records import Clip
from infra.store import DirStore
from train.dataset import epoch_order, window_set
from train.footage import load
from train.recipes import find

N_CLIPS = 60
T = TypeVar("T")


def best(rounds: int, work: Callable[[], T]) -> tuple[float, T]:
    """Return the least CPU seconds of several rounds, and what the last one gave."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        made = work()
        times.append(time.process_time() - start)
    return min(times), made


def clips_in(folder: Path, store: DirStore) -> tuple[dict[str, Clip], list[SelectionRow]]:
    """Put the clips into a store; return them by id, and a row over the whole of each."""
    clips: dict[str, Clip] = {}
    rows: list[SelectionRow] = []
    for row in list(csv.DictReader((folder / "labels.csv").open(encoding="utf-8")))[:N_CLIPS]:
        path = folder / row["path"]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        clip_id, probe = keys.clip_id(sha256), video.probe(path)
        key = keys.clip_key("cam", clip_id, probe.container)
        store.put(key, path.read_bytes())
        clips[clip_id] = Clip(
            clip_id=clip_id, key=key, source_name=row["path"], container=probe.container, camera_id="cam",
            recording_id=clip_id, time_base_num=probe.time_base.numerator, time_base_den=probe.time_base.denominator,
            first_pts=probe.first_pts, end_pts=probe.end_pts, n_frames=probe.n_frames, width_px=probe.width_px,
            height_px=probe.height_px, codec=probe.codec, index=probe.index, n_bytes=path.stat().st_size, sha256=sha256,
        )  # fmt: skip
        rows.append(
            SelectionRow(clip_id=clip_id, start_pts=probe.first_pts, end_pts=probe.end_pts, label=row["label"], group=clip_id,
                         split="train")
        )  # fmt: skip
    return clips, rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = dataclasses.replace(find("cctv_small"), cache_bytes=4 << 30)
    size_px = (recipe.model.width_px, recipe.model.height_px)
    with tempfile.TemporaryDirectory() as folder:
        store = DirStore(folder)
        clips, rows = clips_in(args.data / "actions" / "cctv_fight", store)
        n_frames = sum(clip.n_frames for clip in clips.values())
        paths = [store.path / clip.key for clip in clips.values()]

        def decoding() -> int:
            return sum(len(picture.rgb(size_px)) > 0 for path in paths for picture in video.pictures(path))

        decoding_s, n_decoded = best(args.rounds, decoding)
        loading_s, cache = best(args.rounds, lambda: load(store, clips, rows, recipe, advance=lambda n: None))
        labels = tuple(sorted({row.label for row in rows if row.label}))
        windows = window_set(cache, rows, "train", labels, recipe.window, balance=False)

        def batches() -> int:
            order, n = epoch_order(windows, None, torch.Generator().manual_seed(1)), 0
            for start in range(0, len(order), recipe.batch_windows):
                pictures, _ = windows.batch(order[start : start + recipe.batch_windows])
                n += pictures.shape[0] * pictures.shape[1]
            return n

        batches_s, n_shown = best(args.rounds, batches)
    print(f"{len(clips)} clips, {n_frames} frames, model size {size_px[0]}x{size_px[1]}, {len(windows)} windows")
    print(f"{'decoding':10} {decoding_s:7.2f} s CPU  {n_decoded / decoding_s:8.0f} frames/s")
    kept, share = len(cache.frames), decoding_s / loading_s
    print(f"{'loading':10} {loading_s:7.2f} s CPU  {n_decoded / loading_s:8.0f} frames/s  {share:.2f} of decoding, {kept} kept")
    print(f"{'batches':10} {batches_s:7.2f} s CPU  {n_shown / batches_s:8.0f} frames/s  {n_shown} frames in windows")


if __name__ == "__main__":
    main()
