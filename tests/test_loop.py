"""The whole loop as a story: cameras film, people label, a model is trained, judged, refused, forced, run, and answers.

Each step is a command as a person types it; each assertion is what that person would look at. Small and simulated: two
epochs teach nothing, so no figure of the model is asserted, only where figures come from and go to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra.artefacts import Bundle, Outbox, Report, Selection
from infra.catalog import open_catalog
from infra.cli import main
from infra.demo.card import fill
from infra.keys import bundle_prefix, dataset_key, report_key, sha256_hex
from infra.store import DirStore

GATE = """
judged = "raw"
[[slice]]
name = "everything"
where = "brightness >= 0"
metric = "accuracy"
threshold = 0.999
min_groups = 10
"""


class Person:
    """Types commands on one store and reads what they print."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.store, self._capsys = folder, folder / "store", capsys

    def types(self, *arguments: str, exits: int = 0) -> Any:
        """Run a command; return its JSON document, or its error line."""
        self._capsys.readouterr()
        code = main([*arguments, "--store", str(self.store), "--json"])
        said = self._capsys.readouterr()
        assert code == exits, f"camloop {' '.join(arguments)}: {code}\n{said.out}\n{said.err}"
        return json.loads(said.out) if said.out.strip() else said.err.strip()


@pytest.fixture
def person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Person:
    """Return a person in front of an empty folder."""
    return Person(tmp_path, capsys)


def test_the_loop(person: Person) -> None:
    """From a memory card to a signed model on a camera host, and back with what it was unsure about."""
    folder, store = person.folder, DirStore(person.store)

    # Footage arrives: a card, and a camera host's own spool.
    n_words = fill(folder / "card", 24, seed=5)
    arrived = person.types("ingest", str(folder / "card"))
    assert len(arrived["registered"]) == 24 and arrived["failed"] == []
    source = "sim://5/harbour1-hall?seconds=8&batch=mine"
    recorded = person.types("record", source, "--spool", str(folder / "spool"))
    assert recorded["recorded"][0]["n_frames"] == 80 and recorded["recorded"][0]["n_dropped"] == 0
    assert person.types("upload", str(folder / "spool"))["n_clips"] == 1
    assert len(person.types("ingest")["registered"]) == 1
    assert person.types("ingest", str(folder / "card"))["registered"] == []  # twice is once

    # It is scanned and tagged; a question gets an answer.
    curated = person.types("curate", "--local", "--without", "detect", "embed")
    assert curated["clips"]["scan"] == 25 and curated["failed"] == []
    assert person.types("curate", "--local", "--without", "detect", "embed")["clips"] == {}
    lights = person.types("query", "--by", "lighting")
    assert {row["lighting"] for row in lights["distribution"]} & {"night", "infrared"}
    assert abs(sum(row["share_footage"] for row in lights["distribution"]) - 1) < 1e-6

    # People label; a selection is drawn, split by recording, and frozen.
    assert person.types("label", "import", str(folder / "card" / "labels.csv"), "--annotator", "anna")["added"] == n_words
    drawn = person.types(
        "sample", "gestures", "all", "--split", "train=.4,val=.1,test=.5", "--split-by", "recording_id"
    )
    assert drawn["n_rows"] == n_words and drawn["leaks"] == []
    person.types("dataset", "gestures", "--selection", "gestures")
    selection = Selection.from_bytes(store.get(dataset_key("gestures")), selection_id=drawn["selection_id"])
    parts = {name: {row.group for row in selection.split(name)} for name in ("train", "val", "test")}
    assert not parts["train"] & parts["test"] and not parts["train"] & parts["val"] and all(parts.values())

    # A model is trained and exported; the exported file is judged; the gate says no, by exit code.
    run_id = person.types("train", "gestures", "--recipe", "quick")["run_id"]
    assert person.types("train", "gestures", "--recipe", "quick")["run_id"] == run_id  # finished: nothing is done again
    bundle_id = person.types("export", run_id, "--name", "gestures")["bundle_id"]
    prefix = bundle_prefix(bundle_id)
    bundle = Bundle.from_bytes(store.get(prefix + "bundle.json"), store.get(prefix + "model.onnx"))
    assert bundle.bundle_id == bundle_id and set(bundle.spec.labels) == {row.label for row in selection.rows}
    (folder / "gate.toml").write_text(GATE)
    page = folder / "report.html"
    judged = person.types(
        "evaluate", bundle_id, "--dataset", "gestures", "--gate", str(folder / "gate.toml"), "--html", str(page), exits=1
    )
    report = Report.from_bytes(store.get(report_key(judged["report_id"])))
    assert report.verdict == "failed" and report.bundle_id == bundle_id and report.selection_id == selection.selection_id
    assert "everything" in page.read_text()

    # It is not released, unless by force, and then it says so for ever.
    refused = person.types("release", bundle_id, "--keys", str(folder / "keys"), exits=1)
    assert "everything" in refused and not (folder / "keys").exists()
    released = person.types("release", bundle_id, "--keys", str(folder / "keys"), "--force", "to see it run")
    assert released["forced"] and released["report_id"] == judged["report_id"]

    # A camera host fetches, verifies and runs it, and sends back what it is unsure about.
    ran = person.types(
        "run", "sim://5/harbour1-yard?seconds=8&batch=live", "--from", str(person.store), "--root-sha256",
        released["root_sha256"], "--home", str(folder / "device"), "--outbox", str(folder / "outbox"), "--all-frames",
    )  # fmt: skip
    # Eight seconds, five a second; the frame half a period after the first counts as due as well.
    assert ran["forced"] and ran["bundle_id"] == bundle_id and ran["n_predictions"] == 41
    kept = Outbox(folder / "outbox").finished()
    assert kept, "two epochs leave a model unsure"
    assert person.types("upload", str(folder / "spool"), "--outbox", str(folder / "outbox"))["n_clips"] == len(kept)
    back = person.types("ingest")["registered"]
    assert sorted(Path(name).stem for name in back) == sorted(sidecar.clip_id for _, sidecar in kept)
    assert Outbox(folder / "outbox").finished() == []

    # Every number can be traced: the clip that came back, its sensor times, the bundle that was unsure.
    catalog = open_catalog(store, create=False)
    clip_path, sidecar = kept[0]
    assert sidecar.outbox is not None and sidecar.outbox["bundle_id"] == bundle_id
    captures = catalog.scan("captures").filter(pl.col("clip_id") == sidecar.clip_id).sort("pts").collect()
    assert captures["sensor_ns"].to_list() == list(sidecar.sensor_ns)
    stored = catalog.scan("clips").filter(pl.col("clip_id") == sidecar.clip_id).collect().row(0, named=True)
    assert sha256_hex(store.get(stored["key"])) == stored["sha256"] and not clip_path.exists()
    commands = set(catalog.scan("runs", ["command"]).collect()["command"])
    assert {"ingest", "curate", "label import", "sample", "dataset", "train", "export", "evaluate"} <= commands
