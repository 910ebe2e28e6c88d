"""What a command talks through: `Context` (settings, store, clock) and `Output` (people, programs, progress).

For people: aligned tables and lines on standard output, progress on standard error and only for work longer than two
seconds. A bar is shown on a terminal only; a board (many lines that change) is one plain line every half minute elsewhere.
For programs: `--json` prints exactly one JSON document on standard output.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from infra.clock import Clock, SystemClock

if TYPE_CHECKING:
    from infra.settings import Settings
    from infra.store import Store

PROGRESS_AFTER_S = 2.0  # shorter work gets no bar
BOARD_EVERY_S = 0.5  # on a terminal
BOARD_LINE_EVERY_S = 30.0  # elsewhere
WIDTH_IN_A_PIPE = 160  # columns; nobody's terminal is asked there


class Task:
    """One running progress bar; `advance` is cheap and does nothing where there is no terminal."""

    def __init__(self, output: Output, total: int | None, description: str) -> None:
        self._output = output
        self._description = description
        self._total = total
        self._done = 0
        self._start_ns = output.clock.mono_ns()
        self._progress: Progress | None = None
        self._bar: Any = None

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units done; `note` is shown beside the bar."""
        self._done += n
        if not self._output.bars:
            return
        if self._progress is None:
            if self._output.clock.mono_ns() - self._start_ns < PROGRESS_AFTER_S * 1e9:
                return
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self._output.errors, transient=True
            )
            self._progress.start()
            self._bar = self._progress.add_task(self._description, total=self._total, note="")
        self._progress.update(self._bar, completed=self._done, note=note)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


class Board:
    """Lines about a long piece of work, written anew while it goes on; `touch` may be called for every step of it.

    Args:
        output: whose standard error they go to.
        lines: returns what a terminal shows, in place, and takes away at the end.
        line: returns what anything else gets now and then.
    """

    def __init__(self, output: Output, lines: Callable[[], Sequence[str]], line: Callable[[], str]) -> None:
        self._output, self._lines, self._line = output, lines, line
        self._live: Live | None = None
        self._every_ns = round((BOARD_EVERY_S if output.bars else BOARD_LINE_EVERY_S) * 1e9)
        first_s = PROGRESS_AFTER_S if output.bars else BOARD_LINE_EVERY_S
        self._due_ns = output.clock.mono_ns() + round(first_s * 1e9)

    def touch(self) -> None:
        """Show how it stands, if it is time."""
        now_ns = self._output.clock.mono_ns()
        if now_ns < self._due_ns or self._output.quiet:
            return
        self._due_ns = now_ns + self._every_ns
        if not self._output.bars:
            self._output.errors.print(_plain(self._line()), markup=False, soft_wrap=True)
            return
        if self._live is None:
            self._live = Live(console=self._output.errors, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(Text(_plain("\n".join(self._lines())), no_wrap=True, overflow="crop"), refresh=True)

    def close(self) -> None:
        """Take the lines away."""
        if self._live is not None:
            self._live.stop()


class Output:
    """Where a command's words go.

    Args:
        as_json: print one JSON document instead of tables and lines.
        quiet: no progress.
        stdout: where results go; the process's standard output by default.
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, stdout: IO[str] | None = None, clock: Clock | None = None
    ) -> None:
        self.as_json = as_json
        self.clock = clock or SystemClock()
        self.console = Console(file=stdout or sys.stdout, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = WIDTH_IN_A_PIPE
        self.errors = Console(file=sys.stderr, highlight=False)
        self.quiet = quiet
        self.bars = not quiet and self.errors.is_terminal

    def line(self, text: str = "", style: str | None = None) -> None:
        """Print one line for people; nothing with --json."""
        if not self.as_json:
            self.console.print(_plain(text), style=style, markup=False)

    def note(self, text: str) -> None:
        """Print a remark on standard error, so that it never gets into a pipe."""
        self.errors.print(_plain(text), style="dim", markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print an aligned table for people; numbers to the right, None as a dash; nothing with --json."""
        if self.as_json:
            return
        made = [list(row) for row in rows]
        table = Table(title=title or None, title_justify="left", title_style="bold", header_style="dim", box=None)
        for number, column in enumerate(columns):
            numeric = bool(made) and all(isinstance(row[number], int | float | type(None)) for row in made)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in made:
            table.add_row(*(_plain(_cell(value)) for value in row))
        self.console.print(table)

    def document(self, document: object) -> None:
        """Print the one JSON document of this command, NaN and infinities as null; nothing without --json."""
        if self.as_json:
            finite = json.loads(json.dumps(document, default=str), parse_constant=lambda name: None)
            self.console.file.write(json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @contextmanager
    def progress(self, total: int | None, description: str) -> Iterator[Task]:
        """Show how far a long piece of work is, on standard error."""
        task = Task(self, total, description)
        try:
            yield task
        finally:
            task.close()

    @contextmanager
    def board(self, lines: Callable[[], Sequence[str]], line: Callable[[], str]) -> Iterator[Board]:
        """Show how a long piece of work stands, on standard error; see `Board`."""
        board = Board(self, lines, line)
        try:
            yield board
        finally:
            board.close()


def _plain(text: str) -> str:
    """Return `text` without what moves a terminal's cursor, paints its title or types for its user: shown as U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    harmful = {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in "\n\t"}
    return text.translate(dict.fromkeys(map(ord, harmful), "\ufffd"))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


@dataclass(slots=True)
class Context:
    """What every command gets beside its own arguments."""

    settings: Settings
    out: Output
    clock: Clock = field(default_factory=SystemClock)
    store_url: str | None = None
    argv: Sequence[str] = ()
    _store: Store | None = None

    @property
    def store(self) -> Store:
        """The store named by --store, else by camloop.toml or CAMLOOP_STORE, else ./camloop-data; opened on first use."""
        if self._store is None:
            from infra.store import open_store

            self._store = open_store(self.store_url or self.settings.store_url, self.settings)
        return self._store
