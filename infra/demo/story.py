"""How the demo is told: steps with their seconds, commands with their output, and a file that lets a killed demo go on.

Every step is a `camloop` command in a process of its own, or something that a person or a camera does (filming,
labelling). What a step found is kept in `story.json`, written when the step has ended, so a killed demo goes on with
the step in which it was killed. `infra.demo.plot` has the steps; the figures are for `infra.demo.report`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra import durable, keys
from infra.clock import Clock
from infra.console import Output
from infra.errors import JobError, UsageError

Facts = dict[str, Any]


@dataclass(slots=True)
class Story:
    """Where the demo is: its folder, its steps so far, and how it talks.

    Attributes:
        folder: holds store, spool, truth, device, story.json and the report.
        seed: of the simulated world.
        facts: step name -> what it found, with `seconds`.
    """

    folder: Path
    seed: int
    out: Output
    clock: Clock
    facts: dict[str, Facts] = field(default_factory=dict)
    _number: int = 0

    @property
    def store(self) -> Path:
        """The demo's store."""
        return self.folder / "store"

    @property
    def path(self) -> Path:
        """Where the story so far is kept."""
        return self.folder / "story.json"

    @classmethod
    def begin(cls, folder: Path, seed: int, out: Output, clock: Clock) -> Story:
        """Go on with a demo that was stopped; start afresh after one that ended, or one of another seed.

        Raises:
            UsageError: the folder holds something, and no demo's story beside it: nothing is removed that is not ours.
        """
        story = cls(folder=folder, seed=seed, out=out, clock=clock)
        kept = _read(story.path)
        if kept is None and folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no demo of ours ({story.path.name}): name another --folder")
        if kept is not None:
            if kept["seed"] == seed and not kept["ended"]:
                story.facts = kept["facts"]
                out.line(f"going on after {len(story.facts)} finished steps in {folder}", style="dim")
                return story
            shutil.rmtree(folder)
        durable.make_dirs(folder)
        story.save(ended=False)
        return story

    def save(self, *, ended: bool) -> None:
        """Keep the story so far."""
        document = {"seed": self.seed, "ended": ended, "facts": self.facts}
        durable.write(self.path, json.dumps(document, indent=1).encode())

    def step(self, name: str, title: str, work: Callable[[Story], Facts]) -> Facts:
        """Do one step, or take what it found before; print its title, its lines and its seconds."""
        self._number += 1
        self.out.line()
        self.out.line(f"{self._number:>2}  {title}", style="bold")
        if name in self.facts:
            self.say("done before")
            return self.facts[name]
        start_ns = self.clock.mono_ns()
        found = work(self)
        found["title"] = title
        found["seconds"] = round((self.clock.mono_ns() - start_ns) / 1e9, 1)
        self.facts[name] = found
        self.save(ended=False)
        self.out.line(f"    {found['seconds']:.1f} s", style="dim")
        return found

    def say(self, *lines: str) -> None:
        """Print lines below the step's title."""
        for line in lines:
            self.out.line(f"    {line}")

    def camloop(self, *arguments: str, exits: Sequence[int] = (0,), show: bool = True, store: bool = True) -> Any:
        """Run one command on the demo's store and return its JSON document.

        Raises:
            JobError: it ended with a code that is not in `exits`.
        """
        if show:
            self.say(f"$ camloop {' '.join(_quoted(argument) for argument in arguments)}")
        argv = [sys.executable, "-m", "infra.cli", *arguments, *(["--store", str(self.store)] if store else []), "--json"]
        log = self.folder / "commands.log"
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(argv[3:])}\n{done.stderr}\n")
        if done.returncode not in exits:
            last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise JobError(f"{arguments[0]} ended with exit code {done.returncode}: {last} (all of it: {log})")
        document = json.loads(done.stdout) if done.stdout.strip() else {}
        if isinstance(document, dict):
            document["exit_code"] = done.returncode
        return document

    def both(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Do two things at the same time (one per core) and return what both found."""
        with ThreadPoolExecutor(2) as pool:
            pair = pool.submit(first), pool.submit(second)
            return pair[0].result(), pair[1].result()


def _read(path: Path) -> dict[str, Any] | None:
    """Return a demo's story, None where there is none, or another document of that name."""
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
        return kept if {"seed", "ended", "facts"} <= kept.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _quoted(argument: str) -> str:
    return f'"{argument}"' if " " in argument else argument


def shares(rows: Sequence[Mapping[str, Any]], by: str, value: str = "share_footage") -> dict[str, float]:
    """Return value of `by` -> share, from the rows of a distribution; unknown is a value."""
    found: dict[str, float] = {}
    for row in rows:
        name = "unknown" if row[by] is None else str(row[by])
        found[name] = found.get(name, 0.0) + float(row[value])
    return found


def wanted_id(where: str, quota: int) -> str:
    """Return the id of a wish: the same wish again is the same object."""
    return keys.derived_id("wanted", where, quota)
