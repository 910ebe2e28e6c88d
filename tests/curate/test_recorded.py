"""What a camera host recorded as images, raw frames and features: ingest reads it back exactly, curate scans it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.openclip import unpack
from infra.catalog import open_catalog
from infra.cli import main
from infra.records import ClockQuality
from infra.store import DirStore
from infra.video import decode, resize
from ingest.features import Extractor, features
from ingest.frames import images
from ingest.raw import raw_frames
from ingest.recorder import Recorder
from ingest.segments import MakeSegment
from ingest.source import SourceFrame, open_source
from ingest.spool import Spool
from tests.ingest.extractors import write_extractor

UTC_NS = 1_764_000_000_000_000_000


class Small:
    """Two seconds of a simulated camera at 64x48, 10 frames a second, one frame lost."""

    camera_id, host_id, boot_id, recording_id = "yard", "pi", "boot", "rec"
    site: str | None = "farm"
    width_px, height_px = 64, 48
    clock: ClockQuality = "sensor"

    def __init__(self) -> None:
        self.frames = [
            SourceFrame(resize(frame.rgb, (64, 48)), 10**12 + frame.frame_number * 10**8, frame.frame_number)
            for frame in open_source("sim://7/harbour1-yard?seconds=2")
            if frame.frame_number != 7
        ]

    def utc_ns(self, sensor_ns: int) -> int | None:
        return UTC_NS + sensor_ns

    def __iter__(self) -> Iterator[SourceFrame]:
        yield from self.frames


@pytest.fixture
def camera() -> Small:
    """The camera."""
    return Small()


def stick(folder: Path, camera: Small, make: MakeSegment) -> Path:
    """Record the camera and return a memory stick with the clip and its sidecar, as `camloop upload --to` leaves them."""
    with Spool(folder / "spool") as spool:
        Recorder(camera, spool, make_segment=make, container="tar", label="Door", group="day1").record()
        target = folder / "stick" / "clips" / camera.camera_id
        target.mkdir(parents=True)
        for path in (folder / "spool" / "clips").iterdir():
            shutil.copy(path, target)
    return folder / "stick"


def ingest(folder: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run `camloop ingest` and return its document."""
    assert main(["ingest", *arguments, "--store", str(folder / "store"), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("kind", ["png", "raw"])
def test_pictures_come_back(kind: str, camera: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PNG and raw: the clip holds the very pictures, its rows times, gap, class and name; then it is scanned."""
    make = images(camera, ".png") if kind == "png" else raw_frames(camera)
    card = stick(tmp_path, camera, make)
    assert len(ingest(tmp_path, str(card), capsys=capsys)["registered"]) == 1
    again = ingest(tmp_path, str(card), capsys=capsys)
    assert (again["registered"], len(again["known"])) == ([], 1)
    store = DirStore(tmp_path / "store")
    catalog = open_catalog(store)
    clip = catalog.scan("clips").collect().row(0, named=True)
    expected = {
        "camera_id": "yard", "site": "farm", "container": "tar", "codec": {"png": "png", "raw": "rawvideo"}[kind],
        "n_frames": 19, "n_dropped": 1, "start_ns": UTC_NS + 10**12, "clock": "sensor", "source_group": "day1",
        "recording_id": "rec", "width_px": 64, "height_px": 48,
    }  # fmt: skip
    assert {name: clip[name] for name in expected} == expected
    with store.local(clip["key"]) as path:
        found = [part.rgb.copy() for part in decode(path, index=clip["index"])]
    assert np.array_equal(np.concatenate(found), np.stack([frame.rgb for frame in camera.frames]))
    captures = catalog.scan("captures").collect().sort("pts")
    assert captures["sensor_ns"].to_list() == [frame.sensor_ns for frame in camera.frames]
    assert catalog.scan("gaps").collect()["before_frame"].to_list() == [7]
    assert catalog.scan("labels").collect()["name"].to_list() == ["Door"]
    assert catalog.scan("embeddings").collect().is_empty()
    at = ["--store", str(tmp_path / "store")]
    assert main(["curate", "--local", "--only", "scan", *at]) == 0
    capsys.readouterr()
    frames = open_catalog(store).scan("frames").collect()
    assert frames.height > 0 and frames["brightness"].null_count() == 0
    gops = open_catalog(store).scan("gops").collect()
    assert sum(map(len, gops["pts"].to_list())) == 19


def test_class_folders_out(camera: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was recorded as PNG with a class leaves as CLASS/<time>.png (S0-4), and comes in again from there byte for byte."""
    ingest(tmp_path, str(stick(tmp_path, camera, images(camera, ".png"))), capsys=capsys)
    out = tmp_path / "out"
    assert main(["label", "export", str(out), "--store", str(tmp_path / "store")]) == 0
    files = sorted((out / "Door").iterdir())
    assert [path.name for path in files] == [f"{UTC_NS + frame.sensor_ns}.png" for frame in camera.frames]
    other = tmp_path / "again"
    capsys.readouterr()
    ingest(other, str(out), "--labels", "folders", capsys=capsys)
    assert main(["label", "export", str(other / "out"), "--store", str(other / "store")]) == 0
    copies = sorted((other / "out" / "Door").iterdir())
    assert [(path.name, path.read_bytes()) for path in copies] == [(path.name, path.read_bytes()) for path in files]


def test_features_become_embeddings(camera: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each vector is a row of `embeddings`, bit for bit, under name@hash; the thumbnails are the clip's pictures."""
    extractor = Extractor(write_extractor(tmp_path / "tiny.onnx", dim=32))
    ingest(tmp_path, str(stick(tmp_path, camera, features(camera, extractor, thumbnail_s=0.5))), capsys=capsys)
    store = DirStore(tmp_path / "store")
    catalog = open_catalog(store)
    clip = catalog.scan("clips").collect().row(0, named=True)
    assert (clip["container"], clip["codec"], clip["n_frames"]) == ("tar", "mjpeg", 4)
    rows = catalog.scan("embeddings").collect().sort("pts")
    assert rows["source"].unique().to_list() == [f"tiny@{extractor.sha256[:12]}"]
    assert rows["pts"].to_list() == [frame.sensor_ns - 10**12 for frame in camera.frames]
    vectors = np.stack([np.frombuffer(vector, "<f4") for vector in rows["vector"]])
    assert np.array_equal(vectors, np.stack([extractor(frame.rgb) for frame in camera.frames]))
    assert unpack(rows["vector"].to_list(), 32).shape == (19, 32)
    captures = catalog.scan("captures").collect().sort("pts")
    assert captures.select("pts").equals(rows.select("pts"))
    assert captures["sensor_ns"].to_list() == [frame.sensor_ns for frame in camera.frames]
    with store.local(clip["key"]) as path:
        assert sum(len(part) for part in decode(path)) == 4
    assert main(["curate", "--local", "--only", "scan", "--store", str(tmp_path / "store")]) == 0
    assert open_catalog(store).scan("frames").filter(pl.col("clip_id") == clip["clip_id"]).collect().height > 0


def test_damaged_features_are_a_failure(camera: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clip whose bytes changed is not registered: its hash is computed again."""
    extractor = Extractor(write_extractor(tmp_path / "tiny.onnx", dim=32))
    card = stick(tmp_path, camera, features(camera, extractor))
    (path,) = card.rglob("*.tar")
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)
    assert main(["ingest", str(card), "--store", str(tmp_path / "store")]) == 1
    failures = open_catalog(DirStore(tmp_path / "store")).scan("failures").collect()
    assert "not registered" in failures["message"].item()
