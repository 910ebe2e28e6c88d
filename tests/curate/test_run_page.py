"""What a run says before, while and after it works: the estimate, the funnel, the page, and clips that arrive meanwhile."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate import cascade, estimate, factors, follow, pipeline, plan, run_page
from curate.collect import Tally
from curate.detect import read_weights
from curate.estimate import Prices, Rate
from curate.funnel import funnel
from curate.plan import Options
from curate.query import open_catalog as open_footage
from curate.run import Result, curate
from infra import keys
from infra.catalog import Catalog, Done
from infra.cli import main
from infra.clock import FakeClock
from infra.demo import card
from infra.errors import UsageError
from infra.records import Sidecar
from infra.settings import Settings
from tests.curate.conftest import write_clip

AddClip = Callable[..., str]
GUIDE = Path(__file__).resolve().parents[2] / "infra" / "docs" / "guides" / "curate.md"
FLASHING = ([20] * 5 + [220] * 5) * 3


def options(detector: Path | None, **more: Any) -> Options:
    steps: tuple[plan.Step, ...] = ("scan", "detect", "tag") if detector else ("scan",)
    weights = read_weights(detector) if detector else None
    return Options(steps=steps, detector=weights, sheet=factors.parse(factors.DEFAULT), **more)


def made(catalog: Catalog, add_clip: AddClip) -> Catalog:
    """Two cameras: one bright clip of 3 s, one dark clip of 3 s."""
    add_clip(catalog, "bright", [200] * 30, camera_id="gate")
    add_clip(catalog, "dark", [5] * 30, camera_id="yard")
    return catalog


class TestFunnel:
    def test_it_narrows(self, catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
        """Six seconds of footage, all decoded and looked at, a person in half of them."""
        curate(made(catalog, add_clip), options(tiny_detector), Settings())
        found = {stage.name: stage for stage in funnel(open_footage(catalog.store))}
        assert [(name, stage.rows, round(stage.footage_s, 6)) for name, stage in found.items()] == [
            ("clips", 2, 6.0), ("scanned", 4, 6.0), ("decoded", 4, 6.0), ("moving", 0, 0.0), ("looked at", 6, 6.0),
            ("with person", 3, 3.0), ("tagged", 6, 6.0),
        ]  # fmt: skip
        gate = [stage for stage in funnel(open_footage(catalog.store), by_camera=True) if stage.camera_id == "gate"]
        assert gate[0].footage_s == pytest.approx(3.0) and gate[5].share == pytest.approx(1.0)

    def test_a_sample_stands_for_all(self, catalog: Catalog, add_clip: AddClip) -> None:
        """Of three GOPs that the gate did not believe to move one was looked at and moves: so do all three; never more."""
        clip_id = add_clip(catalog, "a", [20] * 40)
        gop = {"clip_id": clip_id, "start_pts": 0, "end_pts": 10, "n_bytes": 9, "packet_score": 0.1, "motion": None}
        rows = [
            gop | {"gop_index": number, "pts": list(range(10 * number, 10 * number + 10)), "decoded": False, "p_keep": 0.25}
            for number in range(4)
        ]
        rows[0] |= {"decoded": True, "motion": [None] + [0.5] * 9}
        rows[3] |= {"decoded": True, "motion": [0.0] * 9 + [0.5], "p_keep": 1.0}
        catalog.commit({"gops": rows}, [Done("clip", clip_id, "scan", "f", 40, 2)])
        found = {stage.name: stage for stage in funnel(open_footage(catalog.store))}
        assert found["scanned"].footage_s == pytest.approx(4.0) and found["decoded"].footage_s == pytest.approx(2.0)
        assert found["moving"].footage_s == pytest.approx(0.9 * 3 + 0.1)

    def test_an_empty_store(self, catalog: Catalog) -> None:
        """No footage has no shares."""
        assert {stage.share for stage in funnel(open_footage(catalog.store))} == {None}


class TestEstimate:
    def test_by_hand(self, catalog: Catalog, add_clip: AddClip) -> None:
        """Six seconds at half a core-second each: 3 s on one core; two cores do 1.6 of one; money by the core-hour."""
        todo = plan.make(made(catalog, add_clip), options(None))
        rate = Rate(core_s_per_s=0.5, says="by hand", stages={})
        prices = Prices(core_hour=3600.0, gb_month=2e5)
        alone = estimate.estimate(todo, rate, cores=1, prices=prices, stored_bytes=5000)
        assert alone.n_clips == 2 and [alone.footage_s, alone.seconds] == pytest.approx([6.0, 3.0])
        assert alone.compute == pytest.approx(3.0) and alone.month == pytest.approx(1.0)
        assert [alone.day_hours, alone.day_compute] == pytest.approx([12.0, 12 * 3600])
        two = estimate.estimate(todo, rate, cores=2, prices=prices, stored_bytes=5000)
        assert two.seconds == pytest.approx(3.0 / 1.6) and two.compute == pytest.approx(3.0 / 0.8)
        assert two.day_compute == pytest.approx(12 * 3600 / 0.8)
        unknown = estimate.estimate(todo, None, cores=1, prices=prices, stored_bytes=0)
        assert (unknown.seconds, unknown.compute, unknown.day_hours) == (None, None, None)

    def test_of_a_sample(self, catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
        """A rate is measured on clips of the plan, and nothing is kept of it."""
        wanted = options(tiny_detector)
        todo, before = plan.make(made(catalog, add_clip), wanted), catalog.snapshot()
        rate = estimate.of_sample(catalog, todo, wanted, Settings())
        assert rate is not None and rate.core_s_per_s > 0 and "2 of these clips" in rate.says
        assert catalog.snapshot() == before

    def test_opening_does_not_count(
        self, catalog: Catalog, add_clip: AddClip, tiny_detector: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two clips of 3 s, 3 s of work each: a core-second a second, however long models and decoders take to be there."""
        wanted, clock, calls = options(tiny_detector), FakeClock(), list[str]()

        def opens() -> Callable[[plan.Work], Iterator[dict[str, list[bytes]]]]:
            calls.append("open")
            clock.advance_s(100.0)

            def work_on(work: plan.Work) -> Iterator[dict[str, list[bytes]]]:
                calls.append("work")
                clock.advance_s(50.0 if calls.count("work") == 1 else 3.0)
                yield {"end": [b"{}"]}

            return work_on

        stage = pipeline.Stage(step="decode", make=opens, batch_size=1, num_cpus=1.0, workers=(1, 1))
        monkeypatch.setattr(pipeline, "table", lambda *_, **__: [stage])
        rate = estimate.of_sample(catalog, plan.make(made(catalog, add_clip), wanted), wanted, Settings(), clock=clock)
        assert rate is not None and rate.core_s_per_s == pytest.approx(1.0)
        assert calls == ["open", "work", "work", "work"]

    def test_of_an_earlier_run(self, catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
        """A run that was asked for the same says how long it took; one that was asked for something else does not."""
        made(catalog, add_clip)
        wanted = options(tiny_detector)
        result = Result(plan=plan.make(catalog, wanted), tally=Tally(footage_s=100.0), seconds={"pixels": 40.0})
        outputs = json.dumps(estimate.told(wanted, result, 2))
        row = {"run_id": "a" * 32, "command": "curate", "outputs": outputs, "start_ns": 1, "exit_code": 0}
        catalog.append("runs", [row])
        rate = estimate.of_earlier(catalog, wanted)
        assert rate is not None and rate.core_s_per_s == pytest.approx(40 * 1.6 / 100)
        assert estimate.of_earlier(catalog, options(tiny_detector, every_s=2.0)) is None
        staged = [
            cascade.parse(
                f'[[stage]]\nname = "one"\nstep = "detect"\nweights = "{tiny_detector}"\nwhen = "brightness > {level}"'
            )
            for level in (1, 150)
        ]
        asked = [estimate.asked(dataclasses.replace(wanted, detector=None, cascade=one)) for one in staged]
        assert asked[0] != asked[1] and asked[0]["weights"] == asked[1]["weights"]
        assert estimate.told(wanted, Result(plan=result.plan, tally=Tally(footage_s=1.0), seconds={"pixels": 1.0}), 1) == {}

    def test_a_price_below_nothing(self) -> None:
        """Prices are 0 or more."""
        with pytest.raises(UsageError, match="core_hour is -1; legal: 0 or more"):
            Prices(core_hour=-1)

    def test_the_command(
        self, catalog: Catalog, add_clip: AddClip, tiny_detector: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """--plan says bytes, time and money, and writes nothing; with --follow it is refused."""
        made(catalog, add_clip)
        before = catalog.snapshot()
        at = ["--store", catalog.store.url, "--local", "--without", "embed", "--weights", str(tiny_detector)]
        assert main(["curate", "--plan", "--core-hour", "0.05", "--json", *at]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["n_clips"] == 2 and document["seconds"] > 0 and document["compute"] > 0 and document["month"] is None
        assert catalog.snapshot() == before
        assert main(["curate", "--plan", "--follow", *at]) == 2
        assert "--follow goes on until it is stopped" in capsys.readouterr().err
        assert main(["curate", "--core-hour", "3", *at]) == 2 and "--plan" in capsys.readouterr().err
        for page, why in ((".", "--page .: not a file"), ("nowhere/page.html", "there is no folder nowhere")):
            assert main(["curate", "--page", page, *at]) == 2 and why in capsys.readouterr().err
        assert catalog.snapshot() == before


def test_the_page(catalog: Catalog, add_clip: AddClip, tiny_detector: Path, tmp_path: Path) -> None:
    """One document: funnel, each camera, stages, examples as pictures with boxes, failures; no link leads out of it."""
    made(catalog, add_clip)
    add_clip(catalog, "broken", b"this is no film")
    main_page = tmp_path / "run.html"
    at = ["--store", catalog.store.url, "--local", "--without", "embed", "--weights", str(tiny_detector)]
    assert main(["curate", "--page", str(main_page), *at]) == 0
    text = main_page.read_text()
    for said in ("Funnel", "Each camera", "gate", "yard", "core-hours a camera-day", "Kept: a person was found", "broken.mp4"):
        assert said in text, said
    assert text.count('<image href="data:image/jpeg') >= 3 and "person 0." in text
    assert 'src="http' not in text and 'href="http' not in text


def test_the_page_of_nothing(catalog: Catalog, add_clip: AddClip) -> None:
    """A run that did nothing still shows what stands."""
    made(catalog, add_clip)
    result = Result(plan=plan.make(catalog, options(None)), tally=Tally())
    assert "This run decoded nothing" in run_page.render(open_footage(catalog.store), result, clock=FakeClock())


class TestFollow:
    def test_what_arrives_is_registered(self, catalog: Catalog, add_clip: AddClip, tmp_path: Path) -> None:
        """A clip that a camera delivered has a row after the next pass; a pass with nothing new writes nothing."""
        made(catalog, add_clip)
        assert follow.register_arrived(catalog, clock=FakeClock()) is None
        path = write_clip(tmp_path / "new.mp4", [int(level) for level in np.linspace(0, 255, 20)])
        sha256 = keys.sha256_hex(path.read_bytes())
        sidecar = Sidecar(
            clip_id=keys.clip_id(sha256), camera_id="pond", host_id="pi", boot_id="boot", recording_id="r", seq=1,
            sha256=sha256, n_bytes=path.stat().st_size, container="mp4", start_ns=None, start_mono_ns=0, clock="unknown",
            sensor_ns=(),
        )  # fmt: skip
        key = keys.clip_key("pond", sidecar.clip_id, "mp4")
        catalog.store.put_if_absent(keys.sidecar_key(key), sidecar.to_json())
        catalog.store.put_file_if_absent(key, path, sha256=sha256)
        before = catalog.snapshot()
        outcome = follow.register_arrived(catalog, clock=FakeClock())
        assert outcome is not None and len(outcome.registered) == 1 and catalog.snapshot() != before
        assert sidecar.clip_id in catalog.scan("clips", ["clip_id"]).collect()["clip_id"].to_list()
        assert follow.register_arrived(catalog, clock=FakeClock()) is None
        shutil.rmtree(tmp_path / "store" / "clips" / "pond")  # a clip whose object is gone is left to `camloop ingest`
        assert follow.register_arrived(catalog, clock=FakeClock()) is None


def test_the_guide_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the guide of curation, in order, in one empty folder."""
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```console\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for argv in (shlex.split(line[2:]) for line in block.splitlines() if line.startswith("$ ")):
            if argv[0] == "python":
                card.fill(Path(argv[3]), 2, seed=3)
            else:
                assert argv[0] == "camloop" and main(argv[1:]) == 0, argv
    assert "Funnel" in Path("run.html").read_text()
