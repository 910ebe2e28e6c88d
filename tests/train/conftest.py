"""Stores with footage, real or made, registered by hand: what `ingest`, `label import` and `dataset` leave."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infra import keys, video
from infra.artefacts import Bundle, Selection, SelectionRow
from infra.catalog import Catalog, Done, open_catalog
from infra.shelf import put_bundle
from infra.store import DirStore, Store
from train import jobs
from train.augment import Augment
from train.checkpoint import Checkpoint
from train.export import export
from train.recipes import Recipe, gesture_gru
from train.windows import WindowSpec


def clip_row(store: Store, path: Path, *, recording_id: str, **fields: Any) -> dict[str, Any]:
    """Put one clip into the store; return its row of table `clips`."""
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    clip_id = keys.clip_id(sha256)
    probe = video.probe(path)
    key = keys.clip_key("cam", clip_id, probe.container)
    store.put(key, data)
    return {
        "clip_id": clip_id, "key": key, "source_name": path.name, "container": probe.container, "camera_id": "cam",
        "camera_number": 1, "recording_id": recording_id, "clock": "unknown", "time_base_num": probe.time_base.numerator,
        "time_base_den": probe.time_base.denominator, "first_pts": probe.first_pts, "end_pts": probe.end_pts,
        "n_frames": probe.n_frames, "width_px": probe.width_px, "height_px": probe.height_px, "codec": probe.codec,
        "rotation_deg": probe.rotation_deg, "index": probe.index, "n_dropped": 0, "n_bytes": len(data), "sha256": sha256,
        "state": "live", **fields,
    }  # fmt: skip


def commit(catalog: Catalog, table: str, step: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of one step, done for every clip they are about."""
    clips = sorted({row["clip_id"] for row in rows})
    done = [Done(scope="clip", scope_id=c, step=step, fingerprint="0" * 32, n_in=1, n_out=1) for c in clips]
    catalog.commit({table: list(rows)}, done)


def split_by_group(groups: Sequence[str], shares: tuple[int, int, int]) -> dict[str, str]:
    """Give whole groups to train, val, test in turn, in the order of their hashes."""
    order = sorted(set(groups), key=lambda g: hashlib.sha256(g.encode()).hexdigest())
    names = ["train"] * shares[0] + ["val"] * shares[1] + ["test"] * shares[2]
    return {group: names[i * len(names) // len(order)] for i, group in enumerate(order)}


@pytest.fixture(scope="session")
def action_store(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Catalog, Selection]]:
    """Return a function (folder, group column, shares, n) -> catalog and data set of real action clips."""

    def make(name: str, group_column: str, shares: tuple[int, int, int], n: int | None = None) -> tuple[Catalog, Selection]:
        folder = shared_data / "actions" / name
        rows = list(csv.DictReader((folder / "labels.csv").open(encoding="utf-8")))[:: 1 if n is None else max(1, 80 // n)]
        catalog = open_catalog(DirStore(tmp_path_factory.mktemp(name)))
        splits = split_by_group([row[group_column] for row in rows], shares)
        made = [clip_row(catalog.store, folder / r["path"], recording_id=r["path"].replace("/", "_")) for r in rows]
        commit(catalog, "clips", "register", made)
        chosen = tuple(
            SelectionRow(
                clip_id=clip["clip_id"], start_pts=clip["first_pts"], end_pts=clip["end_pts"], label=row["label"],
                group=row[group_column], split=splits[row[group_column]],  # type: ignore[arg-type]
            )
            for row, clip in zip(rows, made, strict=True)
        )  # fmt: skip
        selection = Selection(name=name, purpose="train", rows=chosen, query="", unit="clip", group_by=group_column)
        catalog.store.put(keys.dataset_key(name), selection.to_bytes())
        return catalog, selection

    return make


SEGMENT_MS, CLIP_SEGMENTS, N_RECORDINGS = 1500, 2, 24


def dot_frames(rng: np.random.Generator, labels: Sequence[str], brightness: int) -> list[NDArray[np.uint8]]:
    """Return 10 frames a second of a square that moves left or right, 48 x 64: no single frame tells which."""
    x, y, frames = int(rng.integers(0, 64)), int(rng.integers(4, 36)), []
    for label in labels:
        for _ in range(SEGMENT_MS // 100):
            x = (x + (4 if label == "right" else -4)) % 64
            frame = np.full((48, 64, 3), brightness // 4, np.uint8)
            frame[y : y + 8, np.arange(x, x + 8) % 64] = brightness
            frames.append(frame)
    return frames


@pytest.fixture(scope="session")
def dots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, Selection]:
    """Return a made world of 24 recordings of two clips each, half of them dark, with labels and a split by recording."""
    rng = np.random.default_rng(3)
    catalog = open_catalog(DirStore(tmp_path_factory.mktemp("dots")))
    clips, frames, rows = [], [], []
    for number in range(N_RECORDINGS):
        recording, brightness = f"rec{number:02d}", (230, 120)[number % 2]
        split = "train" if number < 10 else "val" if number < 12 else "test"
        for seq in range(2):
            labels = [str(label) for label in rng.permutation(["left", "right"])][:CLIP_SEGMENTS]
            path = tmp_path_factory.mktemp("clips") / f"{recording}-{seq}.mp4"
            with video.Writer(path, 64, 48, Fraction(1, 1000)) as writer:
                for i, frame in enumerate(dot_frames(rng, labels, brightness)):
                    writer.add(frame, i * 100)
            length_ms = SEGMENT_MS * CLIP_SEGMENTS
            clip = clip_row(catalog.store, path, recording_id=recording, seq=seq, start_mono_ns=seq * length_ms * 1_000_000)
            clips.append(clip)
            for i, label in enumerate(labels):
                start, end = i * SEGMENT_MS, (i + 1) * SEGMENT_MS
                at = {"clip_id": clip["clip_id"], "start_pts": start, "end_pts": end}
                rows.append(SelectionRow(**at, label=label, group=recording, split=split))  # type: ignore[arg-type]
                frames.append({"clip_id": clip["clip_id"], "pts": start + 700, "brightness": brightness / 255, "p_keep": 1.0})
    commit(catalog, "clips", "register", clips)
    commit(catalog, "frames", "scan", frames)
    selection = Selection(name="dots", purpose="train", rows=tuple(rows), query="", unit="interval", group_by="recording_id")
    catalog.store.put(keys.dataset_key("dots"), selection.to_bytes())
    return catalog, selection


def dots_recipe() -> Recipe:
    """Return a recipe that learns the made world in a few seconds on one core."""
    base = gesture_gru()
    return dataclasses.replace(
        base, name="dots", model=dataclasses.replace(base.model, width_px=32, height_px=32, follow_px=0, dropout=0.0),
        window=WindowSpec(n_frames=8, period_s=0.1, stride=3), augment=Augment(brightness=0.1, contrast=0.2, noise=0.02),
        epochs=6, warm_up=3, batch_windows=16,
    )  # fmt: skip


@pytest.fixture(scope="session")
def dots_run(dots: tuple[Catalog, Selection]) -> tuple[jobs.Plan, jobs.Footage, Checkpoint]:
    """Return the run that learned the made world."""
    catalog, selection = dots
    plan = jobs.plan("dots", selection, dots_recipe())
    footage = jobs.prepare(catalog, plan)
    return plan, footage, jobs.run(catalog.store, plan, footage)


@pytest.fixture(scope="session")
def dots_bundle(dots: tuple[Catalog, Selection], dots_run: tuple[jobs.Plan, jobs.Footage, Checkpoint]) -> Bundle:
    """Return the exported model of that run, in the store."""
    plan, _, last = dots_run
    bundle = export(last.best, plan.recipe, plan.labels, name="dots", lineage={"run_id": plan.run_id})
    put_bundle(dots[0].store, bundle)
    return bundle
