"""The ledger on the host's disk: why a number of the sequence did not become a delivered clip. Files only, no database.

    <folder>/<boot_id>/<n>.open.jsonl      entries as they come, appended and fsynced: an entry that returned is durable
    <folder>/<boot_id>/<n>.json            a page: sealed, signed, to be delivered
    <folder>/<boot_id>/<n>.delivered.json  the newest page that the store has; older ones are deleted

Page n is made of `<n>.open.jsonl`, which is removed afterwards; where a crash left both, the page is right. What is too
much for one page goes to `<n+1>.open.jsonl` first: it counts once page n is there. A torn last
line is an entry that never returned: it is dropped. The caller holds the spool's lock meanwhile: one writer at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from infra import durable, keys
from infra.errors import ArtefactError
from infra.log import Log
from infra.sequence import LedgerEntry, LedgerPage

Sign = Callable[[Mapping[str, Any]], Any]
MAX_ENTRIES = 4_000  # of one page: about 1 MB; a broker takes 4 MiB
STATEMENT_EVERY = 64  # numbers given out before a page says so although nothing else is to be told
_FILE = re.compile(r"(?P<number>\d{8})\.(?P<kind>open\.jsonl|json|delivered\.json)")
_log = Log("ingest.ledger")


@dataclass(frozen=True, slots=True)
class SealedPage:
    """A page that waits for its delivery under `keys.ledger_key(host_id, boot_id, number)`; `path` holds its bytes."""

    host_id: str
    boot_id: str
    number: int
    path: Path

    @property
    def key(self) -> str:
        """Where it belongs in the store."""
        return keys.ledger_key(self.host_id, self.boot_id, self.number)


class Ledger:
    """The pages of one host.

    Args:
        folder: made when the first entry comes.
        host_id: whose pages these are.
        sign: returns the host's signature over a document, as JSON can hold it; None: pages are unsigned and say so.
    """

    def __init__(self, folder: Path, host_id: str, sign: Sign | None = None) -> None:
        self.folder, self._host_id, self._sign = folder, host_id, sign

    def add(self, entries: Iterable[LedgerEntry]) -> None:
        """Append entries; when this returns they survive a power cut."""
        for boot_id, group in groupby(sorted(entries, key=lambda entry: entry.boot_id), key=lambda entry: entry.boot_id):
            lines = b"".join(entry.to_json() + b"\n" for entry in group)
            path = self._open_path(boot_id)
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                lines = b"\n" + lines  # closes what a crash tore
            durable.append(path, lines)

    def entries(self) -> Iterator[LedgerEntry]:
        """Yield what is still here, sealed or not."""
        for boot_id in self._boots():
            for number, kind, path in self._files(boot_id):
                if kind != "open.jsonl":
                    yield from self._read(path).entries
                elif number == self._next_number(boot_id):
                    yield from _lines(path)

    def next_seq(self) -> dict[tuple[str, str], int]:
        """Return the first number after all that are named here, by (camera, boot)."""
        found: dict[tuple[str, str], int] = {}
        for entry in self.entries():
            key = (entry.camera_id, entry.boot_id)
            found[key] = max(found.get(key, 0), entry.seq + entry.n)
        return found

    def seal(self, next_seq: Mapping[str, Mapping[str, int]], over: Iterable[str] = ()) -> None:
        """Make pages: of every open file, and of a boot whose numbers went on without anything else to tell.

        Args:
            next_seq: by boot, then camera: the first number not given out yet.
            over: boots in which nothing is under way or waiting: their last numbers are stated at once.
        """
        finished = set(over)
        for boot_id in sorted({*self._boots(), *next_seq}):
            numbers = dict(next_seq.get(boot_id, {}))
            files = self._files(boot_id)
            for number, kind, path in files:
                if kind == "open.jsonl" and self._is_sealed(boot_id, number):
                    durable.remove(path)
            while len(entries := self._open_entries(boot_id)) > MAX_ENTRIES:
                path, number = self._open_path(boot_id), self._next_number(boot_id)
                rest = b"".join(entry.to_json() + b"\n" for entry in entries[MAX_ENTRIES:])
                durable.write(path.with_name(f"{number + 1:08d}.open.jsonl"), rest)
                self._write(boot_id, entries[:MAX_ENTRIES], self._stated(boot_id))
                durable.remove(path)
            path, stated = self._open_path(boot_id), self._stated(boot_id)
            ahead = max((seq - stated.get(camera, 0) for camera, seq in numbers.items()), default=0)
            if entries or ahead >= STATEMENT_EVERY or (ahead > 0 and boot_id in finished):
                self._write(boot_id, entries, stated | numbers)
            if path.exists():
                durable.remove(path)

    def pages(self) -> list[SealedPage]:
        """Return the pages that wait for their delivery, in order."""
        return [
            SealedPage(self._host_id, boot_id, number, path)
            for boot_id in self._boots()
            for number, kind, path in self._files(boot_id)
            if kind == "json"
        ]

    def delivered(self, page: SealedPage) -> None:
        """Keep this page as the last that the store has; delete older ones."""
        durable.adopt(page.path, page.path.with_name(f"{page.number:08d}.delivered.json"))
        for number, kind, path in self._files(page.boot_id):
            if kind == "delivered.json" and number < page.number:
                durable.remove(path)

    def _write(self, boot_id: str, entries: tuple[LedgerEntry, ...], next_seq: Mapping[str, int]) -> None:
        number = self._next_number(boot_id)
        before = self._newest(boot_id)
        page = LedgerPage(
            host_id=self._host_id, boot_id=boot_id, number=number, entries=entries, next_seq=next_seq,
            previous=None if before is None else keys.sha256_hex(before.read_bytes()),
        )  # fmt: skip
        signature = None if self._sign is None else self._sign(page.document())
        signed = LedgerPage.from_json(json.dumps({**page.document(), "signature": signature}).encode())
        durable.write(self.folder / boot_id / f"{number:08d}.json", signed.to_json())

    def _boots(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir()) if self.folder.is_dir() else []

    def _files(self, boot_id: str) -> list[tuple[int, str, Path]]:
        folder = self.folder / keys.check_name(boot_id, "boot")
        found = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if match := _FILE.fullmatch(path.name):
                found.append((int(match["number"]), match["kind"], path))
        return found

    def _is_sealed(self, boot_id: str, number: int) -> bool:
        return number < self._next_number(boot_id)

    def _next_number(self, boot_id: str) -> int:
        return 1 + max((number for number, kind, _ in self._files(boot_id) if kind != "open.jsonl"), default=-1)

    def _newest(self, boot_id: str) -> Path | None:
        return next((path for _, kind, path in reversed(self._files(boot_id)) if kind != "open.jsonl"), None)

    def _open_path(self, boot_id: str) -> Path:
        return self.folder / keys.check_name(boot_id, "boot") / f"{self._next_number(boot_id):08d}.open.jsonl"

    def _open_entries(self, boot_id: str) -> tuple[LedgerEntry, ...]:
        path = self._open_path(boot_id)
        return tuple(_lines(path)) if path.exists() else ()

    def _stated(self, boot_id: str) -> dict[str, int]:
        newest = self._newest(boot_id)
        return {} if newest is None else dict(self._read(newest).next_seq)

    def _read(self, path: Path) -> LedgerPage:
        try:
            return LedgerPage.from_json(path.read_bytes())
        except ArtefactError as error:  # rot; its number stays taken, the store's audit will see that the chain broke
            _log.error("ledger_page_damaged", path=path, error=str(error))
            number = int(path.name.split(".")[0])
            return LedgerPage(
                host_id=self._host_id, boot_id=path.parent.name, number=number, entries=(), next_seq={}, previous=None
            )


def _lines(path: Path) -> Iterator[LedgerEntry]:
    """Yield the entries of an open file; a line that cannot be read was torn by a crash and never returned."""
    for line in path.read_bytes().splitlines():
        try:
            yield LedgerEntry.from_document(json.loads(line))
        except (ValueError, TypeError, ArtefactError) as error:
            if line:
                _log.warning("ledger_line_torn", path=path, n_bytes=len(line), error=str(error))
