"""Where something stands in a TOML text, so that a refusal can name the line: tomllib gives values, not places.

`Lines(text, "factors.toml").at("factor", "weather", "prompts", "rain")` is "factors.toml line 12": the line of the table's
header, then, below it, of each further word. A word that is not found leaves the line of the last one that was.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence


class Lines:
    """Places in one TOML text that `tomllib` has read without complaint.

    Args:
        text: the text.
        name: what messages call it, such as its file name.
    """

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._lines = text.splitlines()
        self._headers = [(number, path) for number, line in enumerate(self._lines) if (path := _header(line))]

    def at(self, *path: str, nth: int = 0) -> str:
        """Return "NAME line N" of a table, or of words in it.

        Args:
            path: keys from the top down; the last may be a value.
            nth: which of several tables of the same name (`[[table]]`), from 0.
        """
        start, end, rest = self._section(path, nth)
        for word in rest:
            found = self._first(rf"""(^|[{{,])\s*["']?{re.escape(word)}["']?\s*=""", start, end)  # as a key, else anywhere
            if found is None:
                found = self._first(rf"(?<![\w-]){re.escape(word)}(?![\w-])", start, end)
            if found is None:
                break
            start = found
        return f"{self._name} line {start + 1}"

    def _first(self, pattern: str, start: int, end: int) -> int | None:
        return next((n for n in range(start, end) if re.search(pattern, self._lines[n].partition("#")[0])), None)

    def _section(self, path: Sequence[str], nth: int) -> tuple[int, int, Sequence[str]]:
        """Return the first line and the end of the nearest table that holds `path`, and the words still to be found."""
        for length in range(len(path), 0, -1):
            mine = [number for number, header in self._headers if header == tuple(path[:length])]
            if mine:
                start = mine[min(nth, len(mine) - 1)]
                end = next((n for n, header in self._headers if n > start and header[:length] != tuple(path[:length])), None)
                return start, len(self._lines) if end is None else end, path[length:]
        return 0, len(self._lines), path


def _header(line: str) -> tuple[str, ...]:
    """Return the keys of a table's header line, none for any other line."""
    if not line.lstrip().startswith("["):
        return ()
    try:
        inner: object = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    keys = []
    while isinstance(inner, list | dict) and inner:
        if isinstance(inner, list):
            inner = inner[0]
            continue
        key, inner = next(iter(inner.items()))
        keys.append(key)
    return tuple(keys)
