"""A store with real footage, registered by hand: what `ingest`, `label import` and `dataset` would leave."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra import keys, video
from infra.artefacts import Selection, SelectionRow
from infra.catalog import Catalog, Done, open_catalog
from infra.store import DirStore


def register(catalog: Catalog, path: Path, *, recording_id: str, **fields: Any) -> str:
    """Put one clip into the store and its row into `clips`; return its id."""
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    clip_id = keys.clip_id(sha256)
    probe = video.probe(path)
    key = keys.clip_key("cam", clip_id, probe.container)
    catalog.store.put(key, data)
    row = {
        "clip_id": clip_id, "key": key, "source_name": path.name, "container": probe.container, "camera_id": "cam",
        "camera_number": 1, "recording_id": recording_id, "clock": "unknown", "time_base_num": probe.time_base.numerator,
        "time_base_den": probe.time_base.denominator, "first_pts": probe.first_pts, "end_pts": probe.end_pts,
        "n_frames": probe.n_frames, "width_px": probe.width_px, "height_px": probe.height_px, "codec": probe.codec,
        "rotation_deg": probe.rotation_deg, "index": probe.index, "n_dropped": 0, "n_bytes": len(data), "sha256": sha256,
        "state": "live", **fields,
    }  # fmt: skip
    done = Done(scope="clip", scope_id=clip_id, step="register", fingerprint="0" * 32, n_in=1, n_out=1)
    catalog.commit({"clips": [row]}, [done])
    return clip_id


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
        chosen = []
        for row in rows:
            clip_id = register(catalog, folder / row["path"], recording_id=row["path"].replace("/", "_"))
            probe = video.probe(folder / row["path"])
            group = row[group_column]
            made = SelectionRow(
                clip_id=clip_id, start_pts=probe.first_pts, end_pts=probe.end_pts, label=row["label"], group=group,
                split=splits[group],  # type: ignore[arg-type]
            )  # fmt: skip
            chosen.append(made)
        selection = Selection(name=name, purpose="train", rows=tuple(chosen), query="", unit="clip", group_by=group_column)
        catalog.store.put(keys.dataset_key(name), selection.to_bytes())
        return catalog, selection

    return make
