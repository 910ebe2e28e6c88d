"""Each command that writes leaves one row in table `runs`: what was asked, read and made, and how it ended.

    with recorded(catalog, "curate", vars(arguments)) as run:
        run.outputs["n_clips"] = 12

The row is appended when the block ends, whether it ends well, fails or is stopped; the exception goes on.
A process that is killed leaves no row: what it committed stands in `done`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from infra import keys
from infra.clock import Clock, SystemClock
from infra.errors import CamloopError
from infra.log import Log

if TYPE_CHECKING:
    from infra.catalog import Catalog

_log = Log("runs")
_PLAIN = (str, int, float, bool, type(None), list, tuple)


@dataclass(slots=True)
class Run:
    """What the block may add to its row; `exit_code` and `message` say how it ended."""

    run_id: str
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    message: str = ""


@contextmanager
def recorded(
    catalog: Catalog, command: str, arguments: Mapping[str, Any], *, trigger: str = "user", clock: Clock | None = None
) -> Iterator[Run]:
    """Record one run of a command.

    Args:
        catalog: where the row is written.
        command: the command's name.
        arguments: what it was called with; paths become text, values that are neither plain nor lists are left out.
        trigger: who called: a person, a schedule, the loop.
        clock: gives start_ns and end_ns.
    """
    clock = clock or SystemClock()
    run = Run(run_id=keys.new_id())
    start_ns = clock.now_ns()
    try:
        yield run
    finally:
        if (error := sys.exception()) is not None:
            run.exit_code, run.message = _ending(error)
        told = {name: str(value) if isinstance(value, PurePath) else value for name, value in arguments.items()}
        plain = {name: value for name, value in told.items() if isinstance(value, _PLAIN)}
        row = {
            "run_id": run.run_id,
            "command": command,
            "arguments": _text(plain),
            "inputs": _text(run.inputs),
            "outputs": _text(run.outputs),
            "trigger": trigger,
            "start_ns": start_ns,
            "end_ns": clock.now_ns(),
            "exit_code": run.exit_code,
            "message": run.message,
        }
        try:
            catalog.append("runs", [row], clock=clock)
        except CamloopError as failure:
            if error is None:
                raise
            _log.warning("runs row not written", command=command, why=str(failure))  # the command's own error matters more


def _ending(error: BaseException) -> tuple[int, str]:
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped"
    if isinstance(error, CamloopError):
        return error.exit_code, str(error)
    return 1, f"{type(error).__name__}: {error}"


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, default=str)
