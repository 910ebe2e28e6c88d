"""An engineer's path with a bucket for a store: the same commands as on a folder, and the same answers.

ministack with signature checks stands for S3; the credentials come from the environment, as on a person's machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.artefacts import Selection
from infra.cli import main
from infra.demo.card import fill
from infra.keys import dataset_key
from infra.settings import load_settings
from infra.store import Store, open_store
from tests.ministack_server import Ministack, ministack


@pytest.fixture(scope="module")
def server() -> Iterator[Ministack]:
    """One S3 server for this file."""
    with ministack() as running:
        yield running


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A memory card with eight recordings, and how many labels lie on it."""
    folder = tmp_path_factory.mktemp("card")
    return folder, fill(folder, 8, seed=5)


@pytest.fixture
def bucket(server: Ministack, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place in a bucket; its credentials are in the environment."""
    assert server.s3.endpoint_url and server.s3.access_key_id and server.s3.secret_access_key
    monkeypatch.setenv("CAMLOOP_S3_ENDPOINT", server.s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.s3.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.s3.secret_access_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    return f"s3://{server.new_bucket()}/farm"


def story(store: str, folder: Path, card: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], Selection]:
    """Type the commands on a store; return what a person would compare, and the frozen selection."""

    def types(*arguments: str) -> Any:
        capsys.readouterr()
        code = main([*arguments, "--store", store, "--json"])
        said = capsys.readouterr()
        assert code == 0, f"camloop {' '.join(arguments)}: {code}\n{said.out}\n{said.err}"
        return json.loads(said.out)

    spool = str(folder / "spool")
    types("record", "sim://5/harbour1-hall?seconds=8&batch=mine", "--spool", spool)
    uploaded = types("upload", spool)
    sent, registered = types("ingest"), types("ingest", str(card))
    again = types("ingest", str(card))
    curated = types("curate", "--local", "--without", "detect", "embed")
    done = types("curate", "--local", "--without", "detect", "embed")
    query = types("query", "--by", "lighting,camera_id")
    labels = types("label", "import", str(card / "labels.csv"), "--annotator", "anna")
    drawn = types("sample", "gestures", "all", "--split", "train=.5,val=.25,test=.25", "--split-by", "recording_id")
    types("dataset", "gestures", "--selection", "gestures")
    doctor = types("doctor")
    assert again["registered"] == [] and done["clips"] == {}
    selection = Selection.from_bytes(open_store(store, load_settings()).get(dataset_key("gestures")))
    counts = {
        "uploaded": (uploaded["n_clips"], uploaded["n_bytes"], uploaded["spool"]),
        "registered": (len(sent["registered"]), sorted(registered["registered"]), registered["failed"]),
        "curated": (curated["clips"], curated["failed"]),
        "distribution": sorted(query["distribution"], key=str),
        "labels": labels["added"],
        "drawn": (drawn["n_rows"], drawn["leaks"], drawn["shortages"]),
        "doctor": (doctor["problems"], doctor["gone"]),
    }
    return counts, selection


def content(store: Store) -> dict[str, int]:
    """Return the objects that people's footage and selections are made of, by key, with their sizes."""
    return {stat.key: stat.n_bytes for stat in store.list() if stat.key.startswith(("clips/", "datasets/"))}


def test_a_bucket_is_a_store_like_a_folder(
    bucket: str, card: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a recording and a card to a frozen data set: the same counts, rows and objects in a bucket as in a folder."""
    folder, n_labels = card
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here, in_folder = story(str(tmp_path / "store"), tmp_path / "here", folder, capsys)
    there, in_bucket = story(bucket, tmp_path / "there", folder, capsys)
    assert there == here
    assert there["labels"] == there["drawn"][0] == n_labels and there["registered"][0] == 1
    assert there["curated"][0]["scan"] == 9
    assert in_bucket.rows == in_folder.rows
    settings = load_settings()
    objects = content(open_store(bucket, settings))
    assert objects.keys() == content(open_store(str(tmp_path / "store"), settings)).keys()
    assert sum(key.startswith("clips/") and key.endswith(".mp4") for key in objects) == 9
    assert not list(open_store(bucket, settings).list("selftest-"))


def test_a_model_comes_from_a_bucket_and_runs(
    bucket: str, card: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, exported, judged, released by force and run, with everything in the bucket; unsure moments go back into it."""

    def types(*arguments: str, exits: int = 0) -> Any:
        capsys.readouterr()
        code = main([*arguments, "--store", bucket, "--json"])
        said = capsys.readouterr()
        assert code == exits, f"camloop {' '.join(arguments)}: {code}\n{said.out}\n{said.err}"
        return json.loads(said.out) if said.out.strip() else said.err

    types("ingest", str(card[0]))
    types("curate", "--local", "--without", "detect", "embed")
    types("label", "import", str(card[0] / "labels.csv"), "--annotator", "anna")
    types("sample", "gestures", "all", "--split", "train=.5,val=.25,test=.25", "--split-by", "recording_id")
    types("dataset", "gestures", "--selection", "gestures")
    run_id = types("train", "gestures", "--recipe", "quick")["run_id"]
    assert types("train", "gestures", "--recipe", "quick")["run_id"] == run_id
    bundle_id = types("export", run_id, "--name", "gestures")["bundle_id"]
    judged = types("evaluate", bundle_id, "--dataset", "gestures")
    keys_folder = str(tmp_path / "keys")
    assert "--force" in types("release", bundle_id, "--keys", keys_folder, exits=1)
    released = types("release", bundle_id, "--keys", keys_folder, "--force", "to see it run")
    assert released["report_id"] == judged["report_id"]
    device, outbox = str(tmp_path / "device"), str(tmp_path / "outbox")
    ran = types(
        "run", "sim://5/harbour1-yard?seconds=4&batch=live", "--from", bucket, "--root-sha256", released["root_sha256"],
        "--home", device, "--outbox", outbox, "--all-frames",
    )  # fmt: skip
    assert ran["bundle_id"] == bundle_id and ran["forced"] and ran["n_predictions"] == 21
    n_back = types("upload", str(tmp_path / "spool"), "--outbox", outbox)["n_clips"]
    assert len(types("ingest")["registered"]) == n_back
    stored = {stat.key.split("/")[0] for stat in open_store(bucket, load_settings()).list()}
    assert {"clips", "tables", "selections", "datasets", "runs", "bundles", "reports", "releases"} <= stored
