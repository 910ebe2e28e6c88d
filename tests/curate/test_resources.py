"""Devices, providers and pools as arguments: what is not there is refused, nothing of it is in a fingerprint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate import cascade, factors, pipeline, plan, resources
from curate.detect import open_detector, read_weights
from curate.plan import Options
from curate.resources import Available, Resources, parse_workers
from infra.catalog import Catalog
from infra.cli import main
from infra.clock import FakeClock
from infra.errors import UsageError
from infra.settings import Settings
from tests.curate.test_detect import batch_of

AddClip = Callable[..., str]
FOUND = Available("this machine", ("cpu", "cuda:0", "cuda:1"), ("CUDAExecutionProvider", "CPUExecutionProvider"))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_what_is_there_is_taken(device: str) -> None:
    """With or without its number."""
    Resources(device=device, providers=("CPUExecutionProvider",)).check(FOUND)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"device": "cuda:2"}, "--device cuda:2 is not on this machine; available: auto, cpu, cuda:0, cuda:1"),
        ({"device": "gpu"}, "--device gpu is not on"),
        (
            {"providers": ("CPUExecutionProvider", "TensorrtExecutionProvider")},
            "--providers TensorrtExecutionProvider is not on",
        ),
    ],
)
def test_what_is_not_there_is_refused(asked: dict[str, Any], says: str) -> None:
    """By name, with what there is."""
    with pytest.raises(UsageError, match=says):
        Resources(**asked).check(FOUND)


def test_workers_are_read() -> None:
    """A number or a range."""
    assert parse_workers(["decode=2..8", "detect=3"]) == {"decode": (2, 8), "detect": (3, 3)}


@pytest.mark.parametrize(
    "word", ["decode", "decode=", "decode=0..2", "decode=3..2", "decode=-1", "=2", "decode=1.5", "decode=1..x"]
)
def test_other_workers_are_refused(word: str) -> None:
    """With what is legal; so is a stage that is named twice."""
    with pytest.raises(UsageError, match=r"legal: STAGE=N or STAGE=LEAST\.\.MOST"):
        parse_workers([word])
    with pytest.raises(UsageError, match="each stage once"):
        parse_workers(["decode=1", "decode=2"])


def options(detector: Path, asked: Resources) -> Options:
    """Return a run of scan and detect."""
    sheet = factors.parse(factors.DEFAULT)
    return Options(steps=("scan", "detect"), detector=read_weights(detector), sheet=sheet, resources=asked)


def test_the_table_has_the_pools_that_were_asked_for(tiny_detector: Path, tmp_path: Path) -> None:
    """The least of all stages fit the cores; others keep their own; without any, what was before."""
    asked = Resources(workers={"decode": (3, 9)}, device="cuda:0")
    wanted = options(tiny_detector, asked)
    seen = pipeline.looks(wanted, ("scan", "detect"))
    decode, found = pipeline.table(wanted, seen, Settings(), str(tmp_path), scans=True, cpus=2)
    assert (decode.workers, found.workers, decode.num_gpus, found.num_gpus) == ((3, 9), (1, 1), 0.0, 1.0)
    assert 3 * decode.num_cpus + found.num_cpus <= 2 and asked.are_apart
    two = [dataclasses.replace(seen[0], name=name, number=number) for number, name in enumerate("ab")]
    gpus = [stage.num_gpus for stage in pipeline.table(wanted, two, Settings(), str(tmp_path), scans=True, cpus=2)]
    assert gpus == [0.0, 0.5, 0.5]
    sized = options(tiny_detector, Resources(workers={"a": (2, 2)}, device="cuda:0"))  # three workers on one GPU
    gpus = [stage.num_gpus for stage in pipeline.table(sized, two, Settings(), str(tmp_path), scans=True, cpus=2)]
    assert 2 * gpus[1] + gpus[2] <= 1.0 and gpus[2] > 0
    plain = options(tiny_detector, Resources())
    assert not plain.resources.are_apart and not Resources(device="cpu", providers=("CPUExecutionProvider",)).are_apart
    (alone,) = pipeline.table(plain, (), Settings(), str(tmp_path), scans=True, cpus=4)
    assert alone.workers == (1, 4)


def test_pictures_that_would_not_fit_are_refused(tiny_detector: Path, tmp_path: Path) -> None:
    """Under the gate pictures wait for the audit: a hundred frames a second at 640 px are more than a decoder may hold."""
    wanted = dataclasses.replace(options(tiny_detector, Resources()), every_s=0.01, gate="packets", score=2)
    (look,) = pipeline.looks(wanted, ("scan", "detect"))
    look = dataclasses.replace(look, size_px=640)
    with pytest.raises(UsageError, match=r"--every-s 0\.01: pictures of 1\.2 MB a frame wait .* or --every-s 0\.1 or more"):
        pipeline.table(wanted, (look,), Settings(), str(tmp_path), scans=True, cpus=2)
    assert pipeline.table(wanted, (look,), Settings(), str(tmp_path), scans=False, cpus=2)


def test_no_fingerprint_depends_on_it(tiny_detector: Path) -> None:
    """Rows of another device are the same rows."""
    asked = Resources(device="cuda:0", providers=("CPUExecutionProvider",), workers={"detect": (1, 2)})
    for step in plan.STEPS:
        upstream = {"scan": "s", "detect": "d", "embed": None}
        assert options(tiny_detector, asked).fingerprint(step, upstream) == options(tiny_detector, Resources()).fingerprint(
            step, upstream
        )


def test_a_detector_opens_on_the_providers_that_are_named(tiny_detector: Path) -> None:
    """The same boxes; a provider that cannot start is refused, where onnxruntime would go on with the CPU in silence."""
    weights = read_weights(tiny_detector)
    given = batch_of([np.full((48, 64, 3), 200, np.uint8)], 64)
    named = open_detector(weights, resources=Resources(providers=("CPUExecutionProvider",)))
    assert list(named(given)["detections"]) == list(open_detector(weights)(given)["detections"])

    class Silent:
        def set_providers(self, providers: list[str]) -> None: ...
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    with pytest.raises(UsageError, match=r"CUDAExecutionProvider could not be started here; working: CPUExecutionProvider"):
        resources.use_providers(Silent(), ["CUDAExecutionProvider"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--device", "cuda:77"], "--device cuda:77 is not on this machine; available: auto, cpu"),
        (["--providers", "NoSuchProvider"], "--providers NoSuchProvider is not on this machine; available: "),
        (["--workers", "decode=2"], "--local is one loop"),
    ],
)
def test_the_command_refuses_before_it_decodes(
    argv: list[str], says: str, catalog: Catalog, add_clip: AddClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line, nothing done."""
    add_clip(catalog, "a", [100] * 10)
    assert main(["curate", "--local", "--only", "scan", *argv, "--store", str(tmp_path / "store")]) == 2
    assert says in capsys.readouterr().err and catalog.done("scan") == set()


def test_workers_for_a_stage_that_is_not_there(tmp_path: Path, catalog: Catalog, add_clip: AddClip, capsys: Any) -> None:
    """The stages of the run are named."""
    add_clip(catalog, "a", [100] * 10)
    assert main(["curate", "--only", "scan", "--workers", "detect=2", "--store", str(tmp_path / "store")]) == 2
    assert "--workers detect: no such stage in this run; legal: decode" in capsys.readouterr().err


def test_the_run_says_what_it_worked_on(tmp_path: Path, catalog: Catalog, add_clip: AddClip) -> None:
    """Its row has device and providers."""
    add_clip(catalog, "a", [100] * 10)
    asked = ["--device", "cpu", "--providers", "CPUExecutionProvider"]
    assert main(["curate", "--local", "--only", "scan", *asked, "--store", str(tmp_path / "store")]) == 0
    [inputs] = catalog.scan("runs", ["inputs"]).collect()["inputs"]
    assert json.loads(inputs)["resources"] == {"device": "cpu", "providers": ["CPUExecutionProvider"]}


class TestBatchesByTime:
    """A model that could work does not wait for rows that are long in coming."""

    def batches(self, script: list[tuple[float, int]], size: int, busy_s: float = 0.0) -> list[tuple[int, int]]:
        """Return (seconds, rows) of the batches, where parts come as (after so many seconds of decoding, rows)."""
        clock = FakeClock()
        start_ns = clock.mono_ns()

        def stream() -> Any:
            for after_s, n in script:
                clock.sleep_s(after_s)
                yield {"end": np.zeros(n)}

        made = []
        for batch in pipeline.rebatched(stream(), size, wait_s=5.0, clock=clock):
            made.append((round((clock.mono_ns() - start_ns) / 1e9), len(batch["end"])))
            clock.sleep_s(busy_s)
        return made

    def test_full_batches_while_rows_come(self) -> None:
        """A row a second, four make a batch: nobody waits for five seconds."""
        assert self.batches([(1, 1)] * 10, 4) == [(4, 4), (8, 4), (10, 2)]

    def test_what_is_there_after_five_seconds(self) -> None:
        """Rows every three seconds: with the third of them the first has waited for six."""
        assert self.batches([(3, 1)] * 7, 4) == [(9, 3), (18, 3), (21, 1)]

    def test_a_slow_model_still_gets_full_batches(self) -> None:
        """The time in which it was busy is not waiting."""
        assert [n for _, n in self.batches([(1, 3)] * 8, 4, busy_s=20.0)] == [4, 4, 4, 4, 4, 4]

    def test_nothing_is_lost_when_a_late_part_is_larger_than_a_batch(self) -> None:
        """Two full ones, and the rest with what comes next."""
        assert self.batches([(1, 1), (6, 9), (1, 1)], 4) == [(7, 4), (7, 4), (8, 3)]


def test_no_cascade_stage_is_called_decode(tiny_detector: Path) -> None:
    """So a pool's name says one thing."""
    text = f'[[stage]]\nname = "decode"\nstep = "detect"\nweights = "{tiny_detector.name}"'
    with pytest.raises(UsageError, match="give each its own"):
        cascade.parse(text, folder=tiny_detector.parent)
