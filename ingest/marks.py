"""High-water marks of the sequences, in files of their own: what keeps numbers from being given out twice without a database.

`<folder>/<boot_id>/<camera_id>.json` holds {"below": 128, "boot_number": 3}: no number of 128 or more was given out. It is
written ahead of the database, once for `STRIDE` numbers, so it costs a card next to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from infra import durable
from infra.keys import check_name
from infra.log import Log

STRIDE = 64
_log = Log("ingest.spool")


class Mark(NamedTuple):
    """No number from `below` on was given out in this boot, which was the host's `boot_number`-th."""

    camera_id: str
    boot_id: str
    below: int
    boot_number: int


class Marks:
    """The marks of one spool; the caller holds its lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[Mark]:
        for path in sorted(self._folder.glob("*/[!.]*.json")):
            try:
                document = json.loads(path.read_bytes())
                yield Mark(path.stem, path.parent.name, int(document["below"]), int(document["boot_number"]))
            except (ValueError, TypeError, KeyError) as error:
                _log.error("mark_damaged", path=path, error=str(error))

    def raise_over(self, camera_id: str, boot_id: str, seq: int, boot_number: int) -> None:
        """Make the mark durable that allows `seq`; most of the time it is there already."""
        if seq % STRIDE == 0:
            document = {"below": seq + STRIDE, "boot_number": boot_number}
            path = self._folder / check_name(boot_id, "boot") / f"{check_name(camera_id, 'camera')}.json"
            durable.write(path, json.dumps(document).encode())
