"""The commands train, export and evaluate, as a person calls them, on real and on made footage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import keys
from infra.artefacts import Bundle, Report, Selection
from infra.catalog import Catalog
from infra.cli import main
from infra.errors import UsageError
from infra.shelf import full_id, read_dataset

Commands = Callable[..., tuple[int, dict[str, object], str]]


@pytest.fixture
def camloop(capsys: pytest.CaptureFixture[str]) -> Commands:
    """Return a function that runs a command and gives exit code, JSON document and standard error."""

    def run(*argv: str) -> tuple[int, dict[str, object], str]:
        code = main([*argv, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else {}, err

    return run


def test_refusals_are_one_line(dots: tuple[Catalog, Selection], dots_bundle: Bundle, camloop: Commands) -> None:
    """Unknown data set, recipe, run and bundle: exit code 2 and a line that names what is there."""
    store = ("--store", dots[0].store.url)
    for argv, word in (
        (("train", "dogs"), "dots"),
        (("train",), "--resume"),
        (("train", "dots", "--recipe", "nothing"), "gesture_gru"),
        (("train", "--resume", "ffff"), "none of the"),
        (("export", "ffff"), "none of the"),
        (("evaluate", "ffff", "--dataset", "dots"), "none of the"),
        (("evaluate", dots_bundle.bundle_id, "--dataset", "dots", "--gate", "/no/such.toml"), "gate file"),
    ):
        code, document, err = camloop(*argv, *store)
        assert code == 2 and document == {} and word in err and err.count("\n") == 1, (argv, err)


def test_ids_may_be_cut_short(dots: tuple[Catalog, Selection], dots_bundle: Bundle) -> None:
    """A unique beginning names a bundle; an empty one does not."""
    store = dots[0].store
    assert full_id(store, "bundles/", dots_bundle.bundle_id[:9]) == dots_bundle.bundle_id
    with pytest.raises(UsageError):
        full_id(store, "bundles/", "")
    assert read_dataset(store, "dots") == dots[1]


@pytest.mark.real
def test_from_real_clips_to_a_verdict(
    action_store: Callable[..., tuple[Catalog, Selection]], camloop: Commands, tmp_path: Path
) -> None:
    """cctv_fight: train, go on, export, evaluate with gate and page; 12 or more groups; twice gives the same model."""
    catalog, _selection = action_store("cctv_fight", "source_video", (5, 1, 4))
    store = ("--store", catalog.store.url)
    (tmp_path / "brief.py").write_text(
        "import dataclasses\nfrom train.recipes import cctv_small\n"
        "def brief():\n    return dataclasses.replace(cctv_small(), name='brief', epochs=3)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        code, first, _ = camloop("train", "cctv_fight", "--recipe", "brief:brief", *store)
        assert code == 0 and len(first["history"]) == 3  # type: ignore[arg-type]
        again = camloop("train", "cctv_fight", "--recipe", "brief:brief", *store)
        assert again[1]["history"] == first["history"] and "3 epochs are done" in again[2]
    run_id = str(first["run_id"])
    assert camloop("train", "--resume", run_id, *store)[1]["run_id"] == run_id
    code, made, _ = camloop("export", run_id, *store)
    bundle_id = str(made["bundle_id"])
    assert code == 0 and camloop("export", run_id, *store)[1]["bundle_id"] == bundle_id
    gate = tmp_path / "gate.toml"
    gate.write_text('[[slice]]\nname = "all"\nwhere = ""\nthreshold = 0.99\n')
    html = tmp_path / "report.html"
    code, judged, _ = camloop(
        "evaluate", bundle_id, "--dataset", "cctv_fight", "--gate", str(gate), "--html", str(html), *store
    )
    report = Report.from_bytes(catalog.store.get(keys.report_key(str(judged["report_id"]))))
    assert code == 1 and report.verdict == "failed" and report.cells[0].n_groups >= 12
    assert html.read_text().startswith("<!doctype html>") and report.detail["single_class_groups"] is False
    runs = catalog.scan("runs").collect()
    assert {"train", "export", "evaluate"} <= set(runs["command"].to_list())


@pytest.mark.slow  # tests/test_real_footage.py asks the same of the same clips, from the memory card on
@pytest.mark.real
def test_groups_of_one_class_are_unknown_and_said(
    action_store: Callable[..., tuple[Catalog, Selection]], camloop: Commands, tmp_path: Path
) -> None:
    """arid6_dark: each scene group holds one class, so no gate can be passed or failed, and the report says why."""
    catalog, _ = action_store("arid6_dark", "scene_group", (5, 1, 4))
    store = ("--store", catalog.store.url)
    (tmp_path / "once.py").write_text(
        "import dataclasses\nfrom train.recipes import cctv_frame\n"
        "def once():\n    return dataclasses.replace(cctv_frame(), name='once', epochs=1)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        run_id = str(camloop("train", "arid6_dark", "--recipe", "once:once", *store)[1]["run_id"])
    bundle_id = str(camloop("export", run_id, *store)[1]["bundle_id"])
    gate = tmp_path / "gate.toml"
    gate.write_text('[[slice]]\nname = "all"\nwhere = ""\nthreshold = 0.6\n')
    code, judged, _ = camloop("evaluate", bundle_id, "--dataset", "arid6_dark", "--gate", str(gate), *store)
    report = Report.from_bytes(catalog.store.get(keys.report_key(str(judged["report_id"]))))
    assert code == 1 and report.verdict == "unknown" and report.detail["single_class_groups"] is True
    assert "each of its groups holds one class" in report.cells[0].why
