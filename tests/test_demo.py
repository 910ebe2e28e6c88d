"""The demo: its plan, how it goes on after a kill, and (slow) the whole of it, twice, once killed in the middle of steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infra.artefacts import Wanted, read_gate
from infra.clock import FakeClock
from infra.console import Output
from infra.demo import plot
from infra.demo.story import Facts, Story
from infra.demo.world import World
from infra.errors import UsageError


def test_the_evaluation_part_holds_enough_of_every_gated_slice() -> None:
    """At least 12 recordings by day and at night, of other sites than training, each with a person of its own."""
    world = World(1)
    reels = plot.first_reels()
    judging = [plan for reel in reels if reel.part == "evaluate" for _, plan in reel.recordings(world)]
    training = [plan for reel in reels if reel.part == "train" for _, plan in reel.recordings(world)]
    for light in ("day", "night"):
        assert sum(plan.lighting == light for plan in judging) >= 12
    assert not any(plan.lighting in ("night", "infrared") for plan in training)
    assert {plan.camera.site for plan in judging}.isdisjoint(plan.camera.site for plan in training)
    assert {plan.camera.layout_seed for plan in judging}.isdisjoint(plan.camera.layout_seed for plan in training)
    every = [*judging, *training]
    assert len({plan.recording_id for plan in every}) == len(every) == len({plan.seed for plan in every})
    assert len({plan.camera.camera_id for plan in every if plan.camera.kind != "street"}) >= 3


def test_cameras_answer_a_wish_with_what_they_can_film() -> None:
    """Only lights and places that the wish names, its quota and no more, split over the cameras that can."""
    wanted = Wanted(wanted_id="w", where="lighting = 'night' and place in ('hall', 'yard')", quota=5, expires_ns=0, reason="")
    reels = plot.meeting(wanted, World(1), "night")
    assert {(reel.kind, reel.lightings) for reel in reels} == {("hall", ("night",)), ("yard", ("night",))}
    assert sorted(reel.n for reel in reels) == [2, 3] and {reel.part for reel in reels} == {"train"}


def test_the_gate_is_the_one_that_was_frozen() -> None:
    """Thresholds, metric and slices as ADR 0011 has them."""
    judged, slices = read_gate(plot.GATE)
    assert judged == "raw"
    assert [(s["name"], s["metric"], s["threshold"]) for s in slices] == [
        ("day", "macro_recall", 0.6), ("night", "macro_recall", 0.6),
    ]  # fmt: skip
    page = (Path(__file__).parent.parent / "infra" / "docs" / "adr" / "0011-the-demo-frozen.md").read_text(encoding="utf-8")
    for s in slices:
        assert f"| {s['name']} | `{s['where']}` | {s['threshold']:.2f} |" in page


def test_a_killed_story_goes_on_and_an_ended_one_begins_anew(tmp_path: Path) -> None:
    """Finished steps are taken from the file; after the end, or for another seed, everything is done again."""
    done: list[str] = []

    def work(name: str) -> Any:
        def step(story: Story) -> Facts:
            done.append(name)
            return {"found": name}

        return step

    def begin(seed: int) -> Story:
        return Story.begin(tmp_path / "demo", seed, Output(as_json=True), FakeClock())

    first = begin(1)
    first.step("a", "A", work("a"))
    second = begin(1)  # as after a kill
    assert second.step("a", "A", work("a"))["found"] == "a"
    second.step("b", "B", work("b"))
    assert done == ["a", "b"]
    second.save(ended=True)
    third = begin(1)
    third.step("a", "A", work("a"))
    assert done == ["a", "b", "a"]
    begin(2).step("a", "A", work("a"))
    assert done == ["a", "b", "a", "a"]


KILLED_IN = ("film", "register", "learn", "register-2", "learn-2")  # in the middle of these steps, children and all


def kill_in(step: str, command: list[str], story: Path) -> None:
    """Run the demo and kill its whole process group a moment after `step` began."""
    before = {"film": None, "register": "film", "learn": "select", "register-2": "wish", "learn-2": "select-2"}[step]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end_s = time.monotonic() + 600
    while before is not None and not (story.exists() and before in json.loads(story.read_bytes())["facts"]):
        assert process.poll() is None and time.monotonic() < end_s
        time.sleep(0.1)
    time.sleep(3)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("name", ["story.json", "holiday.mp4"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    """A folder that holds no demo of ours is refused, and nothing in it is touched."""
    (tmp_path / name).write_text('{"chapter": 1}')
    with pytest.raises(UsageError, match="name another --folder"):
        Story.begin(tmp_path, 1, Output(as_json=True), FakeClock())
    assert (tmp_path / name).read_text() == '{"chapter": 1}'


@pytest.mark.slow
def test_the_whole_demo_twice(tmp_path: Path) -> None:
    """It ends well, in time, refuses the first model for its night, and gives the same figures after kills."""
    figures = []
    command = [sys.executable, "-m", "infra.cli", "demo", "--folder", str(tmp_path / "demo")]
    for killed_in in ((), KILLED_IN):
        for step in killed_in:
            kill_in(step, command, tmp_path / "demo" / "story.json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        report = Path(done.stdout.strip().splitlines()[-1])
        assert report.name == "report.html" and report.stat().st_size > 50_000
        facts = json.loads((tmp_path / "demo" / "story.json").read_bytes())["facts"]
        cells = {cell["slice"]: cell for cell in facts["judge"]["report"]["cells"]}
        assert cells["night"]["verdict"] == "failed" and cells["night"]["high"] < cells["night"]["threshold"]
        assert all(cells[name]["n_groups"] >= 12 for name in ("day", "night"))
        assert facts["judge"]["report"]["detail"]["reuse_count"] == 0
        assert facts["judge-2"]["report"]["detail"]["reuse_count"] == 1
        again = {cell["slice"]: cell for cell in facts["judge-2"]["report"]["cells"]}
        figures.append([(c["value"], c["low"], c["high"], c["n"]) for c in (*cells.values(), *again.values())])
        print(f"demo: {sum(one['seconds'] for one in facts.values()):.0f} s, {facts['judge-2']['verdict']}")
    assert figures[0] == figures[1]
