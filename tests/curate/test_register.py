"""camloop ingest: from files, folders, image folders and uploaded objects to rows of `clips`, and what bad input gets."""

from __future__ import annotations

import argparse
import functools
import io
import json
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate import cli_ingest, labels, register
from infra import keys, video
from infra.catalog import Catalog, open_catalog
from infra.clock import FakeClock
from infra.console import Context, Output
from infra.errors import CamloopError, JobError, StoreError, UsageError
from infra.records import Gap, Sidecar
from infra.settings import load_settings
from infra.store import DirStore

HOUR_NS = 3_600_000_000_000


def film(path: Path, seed: int = 0, n_frames: int = 10) -> Path:
    """Write a small H.264 video of `n_frames` frames at 10 a second; different seeds give different bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_filmed(seed, n_frames))
    return path


@functools.cache
def _filmed(seed: int, n_frames: int) -> bytes:
    """Encode once: two copies of a file are the same bytes, whatever the encoder does."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.mp4"
        with video.Writer(path, 32, 32, Fraction(1, 10)) as writer:
            for pts in range(n_frames):
                writer.add(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), pts)
        return path.read_bytes()


def picture(path: Path, seed: int = 0, taken: str | None = None) -> Path:
    """Write a small picture, with EXIF DateTimeOriginal if `taken`."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if taken is not None:
        exif.get_ifd(0x8769)[0x9003] = taken
    rgb = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path, exif=exif)
    return path


class World:
    """A store in a folder and a way to run commands on it."""

    def __init__(self, folder: Path) -> None:
        self.footage, self.store, self.clock = folder / "footage", DirStore(folder / "store"), FakeClock()

    def command(self, configure: Callable[[argparse.ArgumentParser], None], *argv: object) -> dict[str, Any]:
        """Run a command with --json and return its document."""
        parser = argparse.ArgumentParser()
        configure(parser)
        text = io.StringIO()
        out = Output(as_json=True, quiet=True, stdout=text)
        self.clock.advance_s(1)
        args = parser.parse_args([str(word) for word in argv])
        code = args.run(args, Context(settings=load_settings(environ={}), out=out, clock=self.clock, _store=self.store))
        assert code == 0
        return dict(json.loads(text.getvalue()))

    def ingest(self, *argv: object) -> dict[str, Any]:
        """Run `camloop ingest`."""
        return self.command(cli_ingest.ingest, *argv)

    @property
    def catalog(self) -> Catalog:
        """The store's catalog, opened afresh."""
        return open_catalog(self.store, create=False)

    def rows(self, table: str, **where: object) -> list[dict[str, Any]]:
        """Return live rows of a table, by name where it has one."""
        frame = self.catalog.scan(table).filter(*(pl.col(name) == value for name, value in where.items())).collect()
        order = "source_name" if "source_name" in frame.columns else frame.columns[0]
        return frame.sort(order).to_dicts()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty world."""
    return World(tmp_path)


def test_folder_of_cameras(world: World) -> None:
    """Camera = first folder below PATH, a flat file's is PATH's own name; bytes lie under their hash; a rerun adds nothing."""
    a = film(world.footage / "gate" / "2024" / "VID_20240312_174500.MP4", 1)
    film(world.footage / "barn" / "x.mp4", 2)
    film(world.footage / "flat.mp4", 3)
    (world.footage / "notes.txt").write_text("x")
    done = world.ingest(world.footage)
    assert len(done["registered"]) == 3
    assert [row["camera_id"] for row in done["plan"]["cameras"]] == ["barn", "footage", "gate"]
    assert any("1 .txt" in note for note in done["plan"]["notes"])
    row = world.rows("clips", camera_id="gate")[0]
    sha = keys.sha256_hex(a.read_bytes())
    assert (row["clip_id"], row["sha256"], row["key"]) == (sha[:32], sha, f"clips/gate/{sha[:32]}.mp4")
    assert world.store.get(row["key"]) == a.read_bytes()
    assert (row["source_name"], row["n_frames"], row["end_pts"], row["index"]) == (
        "gate/2024/VID_20240312_174500.MP4",
        10,
        10,
        "packets",
    )
    assert (row["start_ns"], row["clock"], row["day"]) == (1_710_265_500_000_000_000, "file", "2024-03-12")
    assert row["recording_id"] == row["clip_id"]
    assert world.rows("clips", camera_id="barn")[0]["clock"] == "unknown"
    before = world.catalog.snapshot()
    again = world.ingest(world.footage)
    assert (len(again["known"]), again["registered"]) == (3, [])
    after = world.catalog.snapshot()
    assert {name for name in after if after[name] != before.get(name)} == {"runs"}
    assert len({row["camera_number"] for row in world.rows("cameras")}) == 3


def test_a_lost_object_comes_back(world: World) -> None:
    """Whoever still has the file mends a lost object by ingesting it again; the clip stays the same clip."""
    path = film(world.footage / "gate" / "a.mp4")
    world.ingest(world.footage)
    key = world.rows("clips")[0]["key"]
    world.store.delete(key)
    again = world.ingest(world.footage)
    assert (len(again["known"]), again["registered"]) == (1, [])
    assert world.store.get(key) == path.read_bytes() and any("restored" in remark for remark in again["remarks"])


def test_dry_run_writes_nothing(world: World) -> None:
    """--dry-run shows the plan and leaves no store behind."""
    film(world.footage / "gate" / "a.mp4")
    done = world.ingest(world.footage, "--dry-run")
    assert done["written"] is False
    assert done["plan"]["n_arrivals"] == 1
    assert not world.store.path.exists()


def test_copies_and_duplicates(world: World) -> None:
    """The same bytes in another camera's folder: one failures row with duplicate_of, once, whatever is repeated."""
    film(world.footage / "gate" / "a.mp4", 1)
    film(world.footage / "gate" / "copy.mp4", 1)
    film(world.footage / "barn" / "a.mp4", 1)
    for _ in range(2):
        done = world.ingest(world.footage)
        assert done["failed"] == []
    assert done["duplicates"] == [["gate/a.mp4", "barn/a.mp4"], ["gate/copy.mp4", "barn/a.mp4"]]
    assert len(world.rows("clips")) == 1
    failures = world.rows("failures")
    assert [row["error_class"] for row in failures] == ["Duplicate"]
    assert failures[0]["duplicate_of"] == world.rows("clips")[0]["clip_id"]


def test_copy_in_one_camera_is_a_no_op(world: World) -> None:
    """Two copies in one camera's folder are one clip and no failure; the same bytes at another start are a duplicate."""
    film(world.footage / "gate" / "a.mp4", 1)
    film(world.footage / "gate" / "b.mp4", 1)
    assert world.ingest(world.footage)["copies"] == [["gate/b.mp4", "gate/a.mp4"]]
    assert world.rows("failures") == []
    film(world.footage / "gate" / "cam_20240312_174500.mp4", 1)
    assert world.ingest(world.footage)["duplicates"] == [["gate/cam_20240312_174500.mp4", "gate/a.mp4"]]


def test_bad_files_are_failures_and_the_rest_goes_on(world: World) -> None:
    """Zero bytes, a text file, a cut video: one failures row each, once; exit 0 while something else was registered."""
    good = film(world.footage / "gate" / "a.mp4", 1, n_frames=40)
    (world.footage / "gate" / "empty.mp4").write_bytes(b"")
    (world.footage / "gate" / "text.mp4").write_text("this is not a video\n" * 40)
    (world.footage / "gate" / "cut.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    for _ in range(2):
        done = world.ingest(world.footage)
        assert sorted(row["source_name"] for row in done["failed"]) == ["gate/cut.mp4", "gate/empty.mp4", "gate/text.mp4"]
        assert world.catalog.scan("failures", live=False).collect().height == 3
        assert len(world.rows("clips")) == 1
    assert "0 bytes" in next(row["message"] for row in world.rows("failures") if row["source_uri"].endswith("empty.mp4"))
    with pytest.raises(JobError, match="3 of 4 could not be registered"):
        world.ingest(world.footage, "--max-failures", "0.5")


def test_all_failing_is_a_failed_job(world: World) -> None:
    """When nothing at all could be registered the exit code is 1 and the reason is said."""
    (world.footage / "gate").mkdir(parents=True)
    (world.footage / "gate" / "text.mp4").write_text("no video")
    with pytest.raises(JobError, match=r"1 of 1 .*text.mp4"):
        world.ingest(world.footage)
    assert len(world.rows("failures")) == 1


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p.mkdir(), (p / "a.txt").write_text("x"))])
def test_missing_and_empty_folders(world: World, make: Callable[[Path], object]) -> None:
    """A folder that is not there or holds nothing is wrong use, and no store is made."""
    make(world.footage)
    with pytest.raises(UsageError, match=r"no such folder|no video"):
        world.ingest(world.footage)
    assert not world.store.path.exists()


def test_folder_that_cannot_name_a_camera(world: World) -> None:
    """A folder name that no key can hold is refused with both remedies; --camera overrides."""
    film(world.footage / "Kamera Süd" / "a.mp4")
    with pytest.raises(UsageError, match=r"--camera ID.*folder = 'Kamera Süd'"):
        world.ingest(world.footage)
    world.ingest(world.footage, "--camera", "south")
    assert world.rows("clips")[0]["camera_id"] == "south"


def test_unknown_camera_in_registry(world: World, tmp_path: Path) -> None:
    """With cameras.toml a folder it does not know is refused, near names offered, nothing written."""
    film(world.footage / "CAM02" / "a.mp4")
    (tmp_path / "cameras.toml").write_text("[[camera]]\nid = 'creek'\nfolder = 'CAM01'\n")
    with pytest.raises(UsageError, match="CAM01"):
        world.ingest(world.footage, "--cameras", tmp_path / "cameras.toml")
    assert not world.store.path.exists()


def test_correction_is_a_new_row_never_a_new_clip(world: World, tmp_path: Path) -> None:
    """A zone and an offset learnt later move start_ns of the same clip_id, also without the files at hand."""
    path = film(world.footage / "CAM01" / "20240701_120000.mp4")
    world.ingest(world.footage)
    first = world.rows("clips")[0]
    registry = tmp_path / "cameras.toml"
    registry.write_text("[[camera]]\nid = 'CAM01'\nsite = 'creek'\ntime_zone = 'Europe/Berlin'\nclock_offset_s = 60\n")
    path.unlink()
    done = world.ingest("--cameras", registry)
    assert done["corrected"] == ["CAM01/20240701_120000.mp4"]
    second = world.rows("clips")
    assert len(second) == 1
    assert second[0]["start_ns"] == first["start_ns"] - 2 * HOUR_NS + 60_000_000_000
    assert (second[0]["clip_id"], second[0]["key"], second[0]["site"]) == (first["clip_id"], first["key"], "creek")
    assert len(world.rows("cameras")) == 2
    assert world.ingest("--cameras", registry)["corrected"] == []
    assert len(world.rows("cameras")) == 2
    registry.write_text("[[camera]]\nid = 'CAM01'\n")
    world.ingest("--cameras", registry)
    assert world.rows("clips")[0]["start_ns"] == first["start_ns"]


def test_time_pattern_is_remembered(world: World) -> None:
    """--time-pattern reads the names now and on later ingests that do not repeat it."""
    film(world.footage / "gate" / "12.03.24 17h45.mp4", 1)
    world.ingest(world.footage, "--time-pattern", "%d.%m.%y %Hh%M")
    film(world.footage / "gate" / "13.03.24 17h45.mp4", 2)
    assert len(world.ingest(world.footage)["known"]) == 1
    assert [row["day"] for row in world.rows("clips")] == ["2024-03-12", "2024-03-13"]


def test_in_place(world: World, tmp_path: Path) -> None:
    """--in-place registers free-form keys where they lie and copies nothing; a PATH outside the store is refused."""
    film(world.store.path / "cards" / "CAM 1" / "Video 1.mp4", 1)
    with pytest.raises(UsageError, match="cannot name a camera"):
        world.ingest(world.store.path / "cards", "--in-place")
    world.ingest(world.store.path / "cards", "--in-place", "--camera", "one")
    row = world.rows("clips")[0]
    assert (row["key"], row["source_name"]) == ("cards/CAM 1/Video 1.mp4", "CAM 1/Video 1.mp4")
    assert list(world.store.list("clips/")) == []
    assert len(world.ingest(world.store.path / "cards", "--in-place", "--camera", "one")["known"]) == 1
    film(world.store.path / "cards2" / "other.mp4", 3)
    film(world.store.path / "cards" / "CAM 1" / "Video 1.mp4", 2)
    with pytest.raises(JobError, match="clips are immutable"):
        world.ingest(world.store.path / "cards", "--in-place", "--camera", "one")
    film(world.footage / "a.mp4")
    with pytest.raises(UsageError, match="does not lie in the store"):
        world.ingest(world.footage, "--in-place")


def test_store_below_the_folder_is_not_ingested(world: World, tmp_path: Path) -> None:
    """`camloop ingest .` beside the store does not find the store's own clips."""
    film(world.footage / "gate" / "a.mp4")
    world.ingest(world.footage)
    done = world.ingest(tmp_path, "--dry-run")
    assert done["plan"]["n_arrivals"] == 1


def test_images_become_a_clip(world: World) -> None:
    """A folder of images is one tar with names and bytes kept, times from EXIF, the same bytes on a rerun."""
    for number, taken in ((2, "2024:03:12 17:45:00"), (10, "2024:03:12 17:45:05"), (11, "2024:03:12 17:45:05")):
        picture(world.footage / "CAM01" / f"IMG_{number}.jpg", number, taken)
    picture(world.footage / "CAM02" / "a.png", 5)
    world.ingest(world.footage)
    timed, untimed = world.rows("clips")
    assert (timed["container"], timed["n_frames"], timed["camera_id"], timed["source_name"]) == ("tar", 3, "CAM01", "CAM01")
    assert (timed["start_ns"], timed["clock"], timed["day"]) == (1_710_265_500_000_000_000, "file", "2024-03-12")
    with world.store.local(timed["key"]) as path:
        assert [packet.pts for packet in video.packets(path)] == [0, 5_000_000_000, 5_001_000_000]
    assert (untimed["start_ns"], untimed["time_base_num"], untimed["time_base_den"]) == (None, 1, 1)
    assert len(world.ingest(world.footage)["known"]) == 2


def test_class_folders_and_tables_give_labels_once(world: World, tmp_path: Path) -> None:
    """Folders by class and a table label the whole clip, set the group, and add nothing when repeated."""
    film(world.footage / "run" / "1.mp4", 1)
    picture(world.footage / "walk" / "1.png", 2)
    for n in (2, 0):
        assert world.ingest(world.footage, "--labels", "folders")["n_labels"] == n
    assert {row["camera_id"] for row in world.rows("clips")} == {"footage"}
    found = {row["name"]: (row["start_pts"], row["end_pts"], row["annotator"]) for row in world.rows("labels")}
    assert found == {"run": (0, 10, "folders"), "walk": (0, 1, "folders")}
    table = tmp_path / "t.csv"
    table.write_text("path,label,video,wx\nrun/1.mp4,jog,v1,rain\nwalk,stroll,unlisted,unlisted\n")
    columns = ("--table", table, "--columns", "path=path,label=label,group=video,weather=wx", "--null", "unlisted")
    assert world.ingest(world.footage, *columns)["n_labels"] == 3
    assert [row["source_group"] for row in world.rows("clips")] == ["v1", None]
    assert world.ingest(world.footage)["known"] == ["run/1.mp4", "walk"]
    assert [row["source_group"] for row in world.rows("clips")] == ["v1", None]
    from infra.views import clips_view

    seen = clips_view(world.catalog).sort("source_name").collect()
    assert seen["weather"].to_list() == ["rain", None]


def test_frame_labels(world: World) -> None:
    """Image folders with labels.csv(video,frame,label,split): label intervals by pts, orphans on both sides reported."""
    for number in range(1, 6):
        picture(world.footage / "V1" / f"V1_{number:05d}.jpg", number)
    (world.footage / "labels.csv").write_text("video,frame,label,split\n" + "".join(
        f"V1,{number},{label},train\n" for number, label in ((1, "ad"), (2, "ad"), (3, "show"), (9, "show"))
    ))  # fmt: skip
    done = world.ingest(world.footage, "--table", "labels.csv", "--image-rate", "2")
    assert any("V1 9" in note for note in done["plan"]["notes"])
    assert any("2 images have no row" in remark for remark in done["remarks"])
    spans = [(row["name"], row["factor"], row["start_pts"], row["end_pts"]) for row in world.rows("labels")]
    assert sorted(spans, key=str) == sorted([("ad", None, 0, 2), ("show", None, 2, 3), ("train", "split", 0, 5)], key=str)


def uploaded(world: World, path: Path, *, n_times: int = 10, **changes: Any) -> str:
    """Put a clip and its sidecar under clips/, as an uploader does, and return the clip_id."""
    data = path.read_bytes()
    sha = keys.sha256_hex(data)
    fields: dict[str, Any] = {
        "clip_id": sha[:32], "camera_id": "gate", "host_id": "pi", "boot_id": "b1", "recording_id": "r1", "seq": 7,
        "sha256": sha, "n_bytes": len(data), "container": "mp4", "start_ns": 5_000_000_000, "start_mono_ns": 77, "clock": "ntp",
        "sensor_ns": tuple(range(1000, 1000 + 100 * n_times, 100)),
        "gaps": (Gap(before_frame=4, n_missing=2, duration_ns=9, cause="slow"),),
        "controls": {"gain": (2.0,)}, "label": "Door", "source_group": "day1",
    }  # fmt: skip
    key = keys.clip_key("gate", sha[:32], "mp4")
    world.store.put_if_absent(keys.sidecar_key(key), Sidecar(**(fields | changes)).to_json())
    world.store.put_if_absent(key, data)
    return sha[:32]


def test_uploaded_clip_with_sidecar(world: World, tmp_path: Path) -> None:
    """`camloop ingest` without PATH registers what arrived: recording, captures, gaps and the label given at recording."""
    clip_id = uploaded(world, film(tmp_path / "x.mp4", 4))
    done = world.ingest()
    assert len(done["registered"]) == 1
    row = world.rows("clips")[0]
    assert (row["clip_id"], row["recording_id"], row["boot_id"], row["seq"], row["host_id"]) == (clip_id, "r1", "b1", 7, "pi")
    assert (row["start_ns"], row["clock"], row["start_mono_ns"], row["n_dropped"], row["source_group"]) == (
        5_000_000_000,
        "ntp",
        77,
        2,
        "day1",
    )
    captures = world.catalog.scan("captures").sort("pts").collect()
    assert captures["sensor_ns"].to_list() == list(range(1000, 2000, 100))
    assert json.loads(captures["controls"][3]) == {"gain": 2.0}
    assert world.rows("gaps")[0]["n_missing"] == 2
    assert [(row["name"], row["annotator"]) for row in world.rows("labels")] == [("Door", "recorder")]
    again = world.ingest()
    assert (again["registered"], again["n_labels"]) == ([], 0)


def test_untrusted_objects_are_not_registered(world: World, tmp_path: Path) -> None:
    """An object that does not hash to its name, or whose sidecar names another hash or is broken, is a failure, not a clip."""
    path = film(tmp_path / "x.mp4", 4)
    world.store.put_if_absent(keys.clip_key("gate", "0" * 32, "mp4"), path.read_bytes())
    uploaded(world, film(tmp_path / "y.mp4", 5), sha256="f" * 64)
    broken = film(tmp_path / "z.mp4", 6).read_bytes()
    key = keys.clip_key("gate", keys.clip_id(keys.sha256_hex(broken)), "mp4")
    world.store.put_if_absent(keys.sidecar_key(key), b'{"clip_id": 1, "sha256": 2, "camera_id": 3}')
    world.store.put_if_absent(key, broken)
    with pytest.raises(JobError, match="3 of 3"):
        world.ingest()
    assert world.rows("clips") == []
    assert len(world.rows("failures")) == 3


def test_sidecar_with_other_frames(world: World, tmp_path: Path) -> None:
    """Sensor times that do not fit the frames are left out and reported; the clip itself is registered."""
    clip_id = uploaded(world, film(tmp_path / "x.mp4", 4), n_times=9)
    done = world.ingest()
    assert len(done["registered"]) == 1
    assert "9 sensor times" in done["remarks"][0]
    assert world.rows("captures") == []
    assert world.rows("failures")[0]["clip_id"] == clip_id


def test_expired_object(world: World, tmp_path: Path) -> None:
    """A clip whose object is gone when its camera is corrected becomes state expired; its rows stay, nothing retries."""
    film(world.footage / "CAM01" / "a.mp4")
    world.ingest(world.footage)
    world.store.delete(world.rows("clips")[0]["key"])
    registry = tmp_path / "cameras.toml"
    registry.write_text("[[camera]]\nid = 'CAM01'\ntime_zone = 'Europe/Berlin'\n")
    assert world.ingest("--cameras", registry)["expired"] == ["CAM01/a.mp4"]
    assert [row["state"] for row in world.rows("clips")] == ["expired"]
    assert world.ingest("--cameras", registry)["expired"] == []


@pytest.mark.parametrize("name", ["CAM01/a.mp4", "CAM01/copy.mp4"])
def test_expired_and_brought_back(world: World, name: str) -> None:
    """`ingest` without a path sees that an object is gone; who ingests the file again, under any name, brings the clip back."""
    film(world.footage / "CAM01" / "a.mp4", 1)
    film(world.footage / "CAM01" / "b.mp4", 2)
    world.ingest(world.footage)
    (gone,) = [row for row in world.rows("clips") if row["source_name"] == "CAM01/a.mp4"]
    world.store.delete(gone["key"])
    assert world.ingest()["expired"] == ["CAM01/a.mp4"]
    states = {row["clip_id"]: row["state"] for row in world.rows("clips")}
    assert states[gone["clip_id"]] == "expired" and sorted(states.values()) == ["expired", "live"]
    assert world.ingest()["expired"] == []
    (world.footage / "CAM01" / "a.mp4").rename(world.footage / name)
    done = world.ingest(world.footage)
    assert done["corrected"] == [name] and "restored" in done["remarks"][0]
    assert world.store.head(gone["key"]) is not None
    assert [row["state"] for row in world.rows("clips")] == ["live", "live"]
    assert world.ingest(world.footage)["corrected"] == [] and world.ingest()["expired"] == []


def test_killed_run_is_completed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies between commits keeps what it committed; the same command does only the rest."""
    for seed in range(5):
        film(world.footage / "gate" / f"{seed}.mp4", seed)
    monkeypatch.setattr(register, "BATCH", 2)
    probe, calls = video.probe, []

    def dying(path: Path) -> video.Probe:
        calls.append(path)
        if len(calls) == 4:
            raise StoreError("the network is gone")
        return probe(path)

    catalog = open_catalog(world.store)
    from curate import arrivals, cameras

    found = arrivals.assign_cameras(arrivals.in_folder(world.footage), camera=None, registry=None, folders_are_classes=False)
    rows = cameras.wanted_rows(["gate"], {}, None, None, 1)
    with pytest.raises(StoreError):
        register.Registrar(catalog, {}, rows, clock=world.clock, probe=dying).run(found.arrivals)
    assert len(world.rows("clips")) == 2
    done = world.ingest(world.footage)
    assert (len(done["registered"]), len(done["known"])) == (3, 2)
    assert len(world.rows("clips")) == 5


def test_label_commands(world: World, tmp_path: Path) -> None:
    """label import refuses a file with an unknown clip as a whole, --skip-unknown takes the rest; list, export, retract."""
    film(world.footage / "gate" / "a.mp4")
    world.ingest(world.footage)
    table = tmp_path / "l.csv"
    table.write_text("clip,start_s,end_s,label\ngate/a.mp4,0,0.5,person\ngate/b.mp4,0,1,person\n")
    with pytest.raises(UsageError, match="nothing was imported"):
        world.command(cli_ingest.label, "import", table)
    assert world.rows("labels") == []
    done = world.command(cli_ingest.label, "import", table, "--skip-unknown", "--annotator", "me", "--rest", "none")
    assert (done["added"], len(done["not_understood"])) == (2, 1)
    world.command(cli_ingest.label, "export", tmp_path / "out.csv")
    assert world.command(cli_ingest.label, "import", tmp_path / "out.csv")["added"] == 0
    one = labels.live(labels.read_all(world.catalog))[0]
    world.command(cli_ingest.label, "retract", one.label_id[:12])
    assert len(labels.live(labels.read_all(world.catalog))) == 1


def test_class_folders_come_out_as_they_went_in(world: World, tmp_path: Path) -> None:
    """DIR/CLASS/file of videos and images makes the round trip byte for byte."""
    film(world.footage / "run" / "1.mp4", 1)
    film(world.footage / "sit" / "1.mp4", 2)
    for number in range(3):
        picture(world.footage / "walk" / f"{number}.png", number)
    world.ingest(world.footage, "--labels", "folders")
    done = world.command(cli_ingest.label, "export", tmp_path / "out")
    assert (done["n_files"], done["n_left_out"]) == (5, 0)
    before = {path.relative_to(world.footage): path.read_bytes() for path in world.footage.rglob("*.*")}
    after = {path.relative_to(tmp_path / "out"): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert before == after


def test_a_place_that_is_a_store(world: World) -> None:
    """A URL is listed as a store (file:// here, s3:// in the contract suite's manner): bytes are copied, names kept."""
    film(world.footage / "gate" / "a b.mp4", 1)
    picture(world.footage / "gate" / "x.jpg")
    done = world.ingest(f"file://{world.footage}")
    assert done["registered"] == ["gate/a b.mp4"]
    assert any("1 .jpg" in note for note in done["plan"]["notes"])
    assert world.rows("clips")[0]["key"].startswith("clips/gate/")


def test_nothing_has_arrived(world: World) -> None:
    """Without PATH and without a store nothing is made; with a store and nothing new it is said, exit code 0."""
    with pytest.raises(UsageError, match="nothing has arrived"):
        world.ingest()
    assert not world.store.path.exists()
    film(world.footage / "gate" / "a.mp4")
    world.ingest(world.footage)
    assert world.ingest()["registered"] == []


def test_options_that_do_not_fit(world: World) -> None:
    """Options that contradict each other are wrong use, said before anything is looked for."""
    for argv in (
        ["--columns", "path=path"],
        ["--rest", "x"],
        ["--labels", "folders", "--table", "t.csv"],
        ["--time-pattern", "%Y"],
    ):
        with pytest.raises(CamloopError):
            world.ingest(world.footage, *argv)


@pytest.mark.real
def test_real_fight_table(world: World, shared_data: Path) -> None:
    """The 80 fight clips come in with their labels and source videos; the one unlisted video has no group."""
    columns = ("--table", "labels.csv", "--columns", "path=path,label=label,group=source_video", "--null", "unlisted")
    done = world.ingest(shared_data / "actions" / "cctv_fight", *columns)
    assert (len(done["registered"]), done["n_labels"], done["failed"]) == (80, 80, [])
    clips = world.catalog.scan("clips").collect()
    assert clips["source_group"].null_count() == 1
    assert clips["source_group"].n_unique() >= 30
    assert clips["camera_id"].unique().to_list() == ["cctv_fight"]


@pytest.mark.real
def test_real_containers_that_lie(world: World, shared_data: Path) -> None:
    """All 46 real videos register; AVI with reordered frames is sequential, the variable-rate clip keeps its true times."""
    done = world.ingest(shared_data / "videos")
    assert (len(done["registered"]), done["failed"]) == (46, [])
    rows = {row["source_name"]: row for row in world.rows("clips")}
    for name in ("highway_trees_60fps.avi", "motorway_camera_osd.avi", "mall_corridor_caviar.avi"):
        assert rows[name]["index"] == "sequential"
    vfr = rows["highway_traffic_720p_vfr.mp4"]
    assert (vfr["index"], vfr["n_frames"]) == ("packets", 576)
    assert (vfr["end_pts"] - vfr["first_pts"]) * vfr["time_base_num"] / vfr["time_base_den"] == pytest.approx(
        576 / 16.72, rel=0.02
    )
    assert rows["car_overhead_day.mp4"]["clock"] == "file"
