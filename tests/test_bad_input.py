"""What bad input gets: each as a command on a small store that already holds somebody's work.

The exit code is right (2: wrong use, 1: a failed job or gate, 0: what could not be met is data), standard error is one line
with the value and the remedy, no traceback, and nothing that was there is lost. More of each case, in its room:

- files that are no videos, copies, cameras, expired objects: tests/curate/test_register.py; in a bucket: test_register_s3.py
- unknown columns, shortages, leaks: tests/curate/test_query.py, test_sample.py, test_split.py
- gates without support: tests/train/test_cli.py, test_evaluate.py; on real footage: tests/test_real_footage.py
- changed bundles and releases: tests/serve/test_puller.py, test_attacks.py, test_live.py
- full disks, at every primitive and on a small file system: tests/ingest/test_recorder.py, test_spool.py;
  tests/infra/test_durable.py
- unreachable, forbidden and lying stores: tests/contract/test_s3.py, tests/ingest/test_uploader.py, tests/infra/test_deploy.py
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import durable
from infra.artefacts import Report
from infra.catalog import open_catalog
from infra.cli import main
from infra.demo.card import fill
from infra.keys import bundle_prefix, report_key, sha256_hex
from infra.store import DirStore
from tests.faults.disk import CountingDisk
from tests.ministack_server import free_port
from tests.serve.conftest import brightness_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card, and a store with its six recordings, scanned, tagged and labelled."""
    folder = tmp_path_factory.mktemp("made")
    fill(folder / "card", 6, seed=5)
    for command in (
        ("ingest", str(folder / "card")), ("curate", "--local", "--without", "detect", "embed"),
        ("label", "import", str(folder / "card" / "labels.csv"), "--annotator", "anna"),
    ):  # fmt: skip
        assert main([*command, "--store", str(folder / "store"), "--quiet"]) == 0
    return folder


class Person:
    """Types commands on a copy of the store, and looks at what is left of it afterwards."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.card, self.store, self._capsys = folder, folder / "card", DirStore(folder / "store"), capsys
        self.before = self.objects()

    def objects(self) -> dict[str, str]:
        """Return the hash of every object that is not a table's."""
        keys = [stat.key for stat in self.store.list() if not stat.key.startswith("tables/")]
        return {key: sha256_hex(self.store.get(key)) for key in keys}

    def rows(self, table: str) -> int:
        """Return the number of live rows."""
        return open_catalog(self.store, create=False).scan(table).collect().height

    def types(self, *argv: str, store: str | None = None, exits: int = 0) -> Any:
        """Run a command that ends with this exit code; return its document."""
        self._capsys.readouterr()
        code = main([*argv, "--store", store or self.store.url, "--json", "--quiet"])
        said = self._capsys.readouterr()
        assert code == exits, f"camloop {' '.join(argv)}: {code}\n{said.err}"
        return json.loads(said.out)

    def is_refused(self, *argv: str, exits: int, store: str | None = None) -> str:
        """Run a command that must fail with this exit code and one line, without any loss; return the line."""
        self._capsys.readouterr()
        code = main([*argv, "--store", store or self.store.url, "--quiet"])
        said = self._capsys.readouterr()
        assert code == exits, f"camloop {' '.join(argv)}: {code}\n{said.out}{said.err}"
        lines = [line for line in said.err.splitlines() if line.strip() and not line.startswith("unsigned bundle")]
        assert [line.startswith(f"camloop {argv[0]}: ") for line in lines] == [True], said.err
        line, after = lines[0], self.objects()
        assert {key: after.get(key) for key in self.before} == self.before, "an object was lost or changed"
        return line


@pytest.fixture
def person(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Person:
    """A person before a copy of the store, in an empty folder."""
    shutil.copytree(made, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    return Person(tmp_path / "mine", capsys)


@pytest.fixture
def real_disk() -> Iterator[None]:
    """Put the real disk back."""
    before = durable.disk
    yield
    durable.disk = before


def test_a_missing_and_an_empty_folder(person: Person) -> None:
    """The path is named; nothing is registered."""
    missing, empty = person.folder / "nowhere", person.folder / "empty"
    empty.mkdir()
    line = person.is_refused("ingest", str(missing), exits=2)
    assert str(missing) in line and "no such folder" in line
    line = person.is_refused("ingest", str(empty), exits=2)
    assert str(empty) in line and "no video" in line
    assert person.rows("clips") == 6


@pytest.mark.parametrize("kind", ["truncated", "zero", "text"])
def test_a_file_that_is_no_video(person: Person, kind: str) -> None:
    """Alone it fails the job; among good clips it is a row of failures and the good ones come in."""
    whole = next(person.card.glob("*/*.mp4")).read_bytes()
    data = {"truncated": whole[: len(whole) // 2], "zero": b"", "text": b"no video at all\n" * 50}[kind]
    bad = person.folder / "more" / "gate" / f"{kind}.mp4"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(data)
    line = person.is_refused("ingest", str(person.folder / "more"), exits=1)
    assert f"gate/{kind}.mp4" in line
    assert person.rows("failures") == 1 and person.rows("clips") == 6
    fill(person.folder / "more", 1, seed=9)
    done = person.types("ingest", str(person.folder / "more"))
    assert len(done["registered"]) == 1 and [row["source_name"] for row in done["failed"]] == [f"gate/{kind}.mp4"]
    assert person.rows("failures") == 1 and person.rows("clips") == 7 and bad.read_bytes() == data


def test_two_copies_of_a_clip(person: Person) -> None:
    """A copy in the same folder is the same clip; in another camera's folder it is reported; no second clip either way."""
    clip = next(person.card.glob("*/*.mp4"))
    shutil.copy(clip, clip.with_name("copy.mp4"))
    other = person.card / "other" / "copy.mp4"
    other.parent.mkdir()
    shutil.copy(clip, other)
    done = person.types("ingest", str(person.card))
    assert done["registered"] == [] and "other/copy.mp4" in json.dumps(done["duplicates"])
    assert person.rows("clips") == 6


def test_an_unknown_camera(person: Person) -> None:
    """A folder that cameras.toml does not know is named with those it knows; so is a camera no simulated world has."""
    registry = person.folder / "cameras.toml"
    registry.write_text('[[camera]]\nid = "harbour1-hal"\n')
    line = person.is_refused("ingest", str(person.card), "--cameras", str(registry), exits=2)
    assert "harbour1-hal" in line and "--camera ID" in line
    line = person.is_refused("record", "sim://3/harbour1-hal", "--spool", "spool", exits=2)
    assert "harbour1-hall" in line
    line = person.is_refused("record", "nowhere.mp4", "--spool", "spool", exits=2)
    assert "nowhere.mp4" in line


def test_an_unknown_column(person: Person) -> None:
    """Near names are offered, in a condition and in --by."""
    assert "brightness" in person.is_refused("query", "brightnes > 100", exits=2)
    assert "camera_id" in person.is_refused("query", "--by", "camera", exits=2)
    assert "lighting" in person.is_refused("sample", "night", "10", "--where", "lightning = 'night'", exits=2)
    assert person.rows("selections") == 0


def test_a_sample_that_cannot_be_met(person: Person) -> None:
    """What is there is drawn, what is missing is said cell by cell, and it is no error."""
    drawn = person.types("sample", "big", "5000", "--unit", "frame", "--by", "lighting")
    assert 0 < drawn["n_rows"] < 5000 and drawn["shortages"]
    assert person.rows("selections") == 1


def test_a_split_that_would_leak(person: Person) -> None:
    """Frames of one recording in two parts are refused with the recording's name and what to split by."""
    split = ("--unit", "frame", "--split", "train=.5,val=.25,test=.25")
    line = person.is_refused("sample", "leaky", "all", *split, "--split-by", "brightness", exits=2)
    assert "would leak" in line and "recording_id" in line
    assert person.rows("selections") == 0
    assert person.types("sample", "whole", "all", *split, "--split-by", "recording_id")["leaks"] == []


def test_a_gate_without_support(person: Person) -> None:
    """A slice with too few recordings is unknown: exit code 1 at evaluate, and no release without force."""
    gate = person.folder / "gate.toml"
    gate.write_text('[[slice]]\nname = "night"\nwhere = "lighting = \'night\'"\nthreshold = 0.5\nmin_groups = 12\n')
    split = ("--split", "train=.6,val=.2,test=.2", "--split-by", "recording_id")
    person.types("sample", "few", "all", *split)
    person.types("dataset", "few", "--selection", "few")
    run_id = person.types("train", "few", "--recipe", "quick")["run_id"]
    bundle_id = person.types("export", run_id)["bundle_id"]
    judged = person.types("evaluate", bundle_id, "--dataset", "few", "--gate", str(gate), exits=1)
    report = Report.from_bytes(person.store.get(report_key(judged["report_id"])))
    (night,) = [cell for cell in report.cells if cell.slice == "night"]
    assert report.verdict == night.verdict == "unknown" and night.n_groups < 12
    line = person.is_refused("release", bundle_id, "--keys", str(person.folder / "keys"), exits=1)
    assert "unknown" in line and "night" in line and "--force" in line and not (person.folder / "keys").exists()


def test_a_bundle_of_the_wrong_hash(person: Person) -> None:
    """One changed byte in the model: release, even forced, and run refuse the bundle and say which file it is."""
    bundle = brightness_bundle()
    prefix = bundle_prefix(bundle.bundle_id)
    changed = bytearray(bundle.model)
    changed[len(changed) // 2] ^= 1
    person.store.put(prefix + "bundle.json", bundle.spec_bytes())
    person.store.put(prefix + "model.onnx", bytes(changed))
    line = person.is_refused("release", bundle.bundle_id, "--keys", str(person.folder / "keys"), "--force", "x", exits=1)
    assert "model.onnx hashes to" in line
    folder = person.folder / "store" / prefix
    line = person.is_refused("run", "sim://3/harbour1-hall?seconds=1", "--bundle", str(folder), "--home", "device", exits=1)
    assert "model.onnx hashes to" in line


def test_a_full_disk_while_recording(person: Person, real_disk: None) -> None:
    """It stops with the remedy; clips before it are safe; with space again the same command brings in all of them."""
    record = ("record", "sim://3/harbour1-hall?seconds=6", "--spool", "spool", "--segment-s", "2")
    durable.disk = full = CountingDisk(30, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    line = person.is_refused(*record, exits=1)
    assert full.n_calls >= 30 and "No space left" in line and "free space" in line and "clips before it are safe" in line
    durable.disk = durable.Disk()
    n_safe = len(list(Path("spool/clips").glob("*.mp4")))
    assert n_safe >= 1 and not list(Path("spool/recording").iterdir())
    assert person.types(*record)["pending"] == 3
    assert person.types("upload", "spool")["n_clips"] == 3


def test_an_unreachable_store(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is named with what to check; a clip that could not be sent waits in the spool."""
    address = f"http://127.0.0.1:{free_port()}"
    Path("camloop.toml").write_text(f'[s3]\nendpoint_url = "{address}"\nmax_attempts = 1\n')
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.delenv("CAMLOOP_S3_ENDPOINT", raising=False)
    person.types("record", "sim://3/harbour1-hall?seconds=1", "--spool", "spool")
    for argv in (("query",), ("ingest",), ("upload", "spool", "--tries", "1")):
        line = person.is_refused(*argv, exits=1, store="s3://farm/a")
        assert f"cannot be reached at {address}" in line and "check the network" in line
    assert person.types("upload", "spool")["n_clips"] == 1


def test_a_store_that_is_none(person: Person) -> None:
    """A store of an unknown kind, and a folder in which there is none yet, are named with the legal ones or the first step."""
    assert "s3://bucket/prefix" in person.is_refused("query", exits=2, store="ftp://farm")
    line = person.is_refused("query", exits=1, store=str(person.folder / "none"))
    assert "none" in line and not (person.folder / "none").exists()


def test_an_expired_object(person: Person) -> None:
    """Rows stay and can be asked; work that would need the pixels says which clip is gone and does the rest."""
    clips = open_catalog(person.store, create=False).scan("clips").collect()
    gone = clips.sort("clip_id").row(0, named=True)
    n_frames = person.rows("frames")
    person.store.delete(gone["key"])
    person.before.pop(gone["key"])
    assert person.types("query")["count"] == n_frames
    done = person.types("curate", "--local", "--without", "detect", "embed", "--every-s", "0.5")
    assert done["clips"]["scan"] == 5
    (failed,) = done["failed"]
    assert failed["clip"] == gone["source_name"] and gone["key"] in failed["why"] and "no object" in failed["why"]
    assert person.rows("clips") == 6 and person.rows("failures") == 1
    kept = open_catalog(person.store, create=False).scan("frames").collect()
    assert gone["clip_id"] in set(kept["clip_id"])
    assert person.types("doctor")["gone"] == [gone["key"]]
    again = person.types("curate", "--local", "--without", "detect", "embed", "--every-s", "0.5")
    assert again["clips"] == {} and again["quarantined"] == [gone["clip_id"]]  # not tried for ever
