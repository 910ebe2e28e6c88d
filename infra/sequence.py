"""Sequence numbers without holes: what a host says it made, set against what the store got.

A camera host numbers the clips of each (camera, boot) 0, 1, 2, ... before it films them. Each number ends as a delivered
clip or as a `LedgerEntry` with a reason, in a page of the host's ledger (`ledger/<host_id>/<boot_id>/<n>.json`). A page also
says which numbers had been given out when it was written, so that a tail that never came is seen as well, and holds the
SHA-256 of the page before it. `audit` compares; it is pure, and never believes a page that its `trusted` refuses.

A clip that a model sent back (`camloop run --outbox`) is numbered by its time, from `SENT_BACK_SEQ` on: those numbers have
holes by nature and are counted apart. What the spool accepted of them and did not deliver has its ledger entry all the same.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Self, get_args

from infra import keys
from infra.errors import ArtefactError, CamloopError, StoreError
from infra.log import Log
from infra.objects import Store
from infra.records import Sidecar

PAGE_VERSION = 1
_log = Log("infra.sequence")
SENT_BACK_SEQ = 1 << 40
Kind = Literal["evicted", "forfeited", "quarantined", "lost", "unknown"]


class Numbered(NamedTuple):
    """One numbered clip: what the audit needs of a sidecar."""

    camera_id: str
    boot_id: str
    seq: int
    clip_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """Why `n` numbers from `seq` on are not, or may not be, in the store.

    `kind`: evicted (deleted for room by the owner's policy), forfeited (no clip came of it), quarantined (must not be
    sent), lost (its file is gone), unknown (the spool's database was lost: the host cannot say; it may be delivered).
    `at_mono_ns` is the host's monotonic clock when it was written.
    """

    camera_id: str
    boot_id: str
    seq: int
    n: int = 1
    clip_id: str | None = None
    kind: Kind
    reason: str
    n_bytes: int = 0
    at_mono_ns: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.n < 1 or self.seq < 0:
            raise ArtefactError(f"ledger entry of {self.camera_id}: kind {self.kind!r}, seq {self.seq}, n {self.n} is not one")

    def to_json(self) -> bytes:
        """Return the entry as one line of canonical JSON, without its newline."""
        return _canonical(asdict(self))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read an entry; ArtefactError when a field is missing, unknown or of the wrong type."""
        try:
            entry = cls(**document)
            if not all(isinstance(value, int) for value in (entry.seq, entry.n, entry.n_bytes, entry.at_mono_ns)):
                raise TypeError("seq, n, n_bytes and at_mono_ns are whole numbers")
        except TypeError as error:
            raise ArtefactError(f"not a ledger entry: {error}") from error
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPage:
    """One page: entries, and the first number not given out yet for each camera of that boot.

    `previous` is the SHA-256 of the page before (None on page 0), `signature` the host's over `document()`, None unsigned.
    """

    host_id: str
    boot_id: str
    number: int
    entries: tuple[LedgerEntry, ...]
    next_seq: Mapping[str, int]
    previous: str | None
    signature: Any = None
    version: int = PAGE_VERSION

    def document(self) -> dict[str, Any]:
        """Return what is signed: everything but the signature."""
        made = asdict(self)
        del made["signature"]
        return made

    def to_json(self) -> bytes:
        """Return the page as canonical JSON."""
        return _canonical({**self.document(), "signature": self.signature})

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a page; ArtefactError when it is not one of this version."""
        try:
            document = json.loads(data)
            if document["version"] != PAGE_VERSION:
                raise ArtefactError(f"ledger page version {document['version']!r}; this camloop reads {PAGE_VERSION}")
            document["entries"] = tuple(LedgerEntry.from_document(entry) for entry in document["entries"])
            document["next_seq"] = {str(camera): int(seq) for camera, seq in document["next_seq"].items()}
            return cls(**document)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtefactError(f"not a ledger page: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRow:
    """What became of the numbers of one camera in one boot; `n_expected` = delivered + explained + waiting + in holes.

    `explained` counts numbers by the kind of their entry; a delivered number is delivered, whatever an entry says.
    `holes` are half-open ranges (start, stop) of numbers with neither clip nor reason; `duplicates` are numbers that more
    than one clip bears.
    """

    camera_id: str
    boot_id: str
    n_expected: int
    n_delivered: int
    n_waiting: int
    explained: Mapping[str, int]
    holes: tuple[tuple[int, int], ...]
    duplicates: tuple[int, ...]

    @property
    def n_missing(self) -> int:
        """How many numbers are in holes."""
        return sum(stop - start for start, stop in self.holes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The answer: a row for each (camera, boot), and what is wrong with the ledger itself.

    `missing_pages` and `broken_pages` are (host_id, boot_id, number): never came; does not follow from the page before.
    `refused_pages` were not trusted and not counted. `n_sent_back` clips are numbered by time, not in sequence.
    """

    rows: tuple[SequenceRow, ...]
    missing_pages: tuple[tuple[str, str, int], ...] = ()
    broken_pages: tuple[tuple[str, str, int], ...] = ()
    refused_pages: tuple[tuple[str, str, int], ...] = ()
    n_sent_back: int = 0

    @property
    def n_missing(self) -> int:
        """How many numbers have neither clip nor reason."""
        return sum(row.n_missing for row in self.rows)


@dataclass(slots=True)
class _Sequence:
    delivered: Counter[int] = field(default_factory=Counter)
    entries: list[LedgerEntry] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)
    next_seq: int = 0


def audit(
    delivered: Iterable[Numbered],
    pages: Iterable[LedgerPage] = (),
    *,
    waiting: Iterable[Numbered] = (),
    trusted: Callable[[LedgerPage], bool] = lambda page: True,
) -> Audit:
    """Find every number that is neither delivered, explained nor waiting.

    Args:
        delivered: the clips in the store (see `delivered_in`), in any order.
        pages: of the hosts' ledgers, in any order.
        waiting: clips that a host says it still holds.
        trusted: says whether a page's signature is its host's; what it refuses is named and not counted.
    """
    sequences: defaultdict[tuple[str, str], _Sequence] = defaultdict(_Sequence)
    by_boot: defaultdict[tuple[str, str], dict[int, LedgerPage]] = defaultdict(dict)
    refused, n_sent_back = [], 0
    for clip in delivered:
        if clip.seq >= SENT_BACK_SEQ:
            n_sent_back += 1
        else:
            sequences[clip.camera_id, clip.boot_id].delivered[clip.seq] += 1
    for clip in waiting:
        if clip.seq < SENT_BACK_SEQ:
            sequences[clip.camera_id, clip.boot_id].waiting.add(clip.seq)
    for page in pages:
        if not trusted(page):
            refused.append((page.host_id, page.boot_id, page.number))
            continue
        by_boot[page.host_id, page.boot_id][page.number] = page
        for camera_id, next_seq in page.next_seq.items():
            sequence = sequences[camera_id, page.boot_id]
            sequence.next_seq = max(sequence.next_seq, next_seq)
        for entry in page.entries:
            if entry.seq < SENT_BACK_SEQ:
                sequences[entry.camera_id, entry.boot_id].entries.append(entry)
    missing, broken = _chain(by_boot)
    rows = tuple(_row(camera_id, boot_id, found) for (camera_id, boot_id), found in sorted(sequences.items()))
    return Audit(
        rows=rows, missing_pages=missing, broken_pages=broken, refused_pages=tuple(sorted(refused)), n_sent_back=n_sent_back
    )


def _row(camera_id: str, boot_id: str, found: _Sequence) -> SequenceRow:
    known = dict.fromkeys(found.delivered, "delivered")
    for entry in found.entries:
        for number in range(entry.seq, entry.seq + entry.n):
            known.setdefault(number, entry.kind)
    for number in found.waiting:
        known.setdefault(number, "waiting")
    n_expected = max([found.next_seq, *(number + 1 for number in known)])
    counts = Counter(known.values())
    n_delivered, n_waiting = counts.pop("delivered", 0), counts.pop("waiting", 0)
    return SequenceRow(
        camera_id=camera_id, boot_id=boot_id, n_expected=n_expected, n_delivered=n_delivered, n_waiting=n_waiting,
        explained=dict(sorted(counts.items())), holes=tuple(_holes(sorted(known), n_expected)),
        duplicates=tuple(sorted(number for number, n in found.delivered.items() if n > 1)),
    )  # fmt: skip


def _holes(known: list[int], n_expected: int) -> Iterator[tuple[int, int]]:
    start = 0
    for number in (*known, n_expected):
        if number > start:
            yield start, number
        start = number + 1


def _chain(by_boot: Mapping[tuple[str, str], Mapping[int, LedgerPage]]) -> tuple[tuple[tuple[str, str, int], ...], ...]:
    missing, broken = [], []
    for (host_id, boot_id), pages in sorted(by_boot.items()):
        for number in range(max(pages) + 1):
            if number not in pages:
                missing.append((host_id, boot_id, number))
            elif number == 0 or number - 1 in pages:
                before = keys.sha256_hex(pages[number - 1].to_json()) if number else None
                if pages[number].previous != before:
                    broken.append((host_id, boot_id, number))
    return tuple(missing), tuple(broken)


def delivered_in(store: Store) -> Iterator[Numbered]:
    """Yield the clips of a store that have a sidecar, and yield none whose sidecar came without its clip.

    Reads every sidecar under `clips/`; a sidecar that cannot be read counts as not delivered.

    Raises:
        StoreError: the store cannot be read.
    """
    stems: dict[str, set[str]] = defaultdict(set)
    for stat in store.list(keys.CLIPS):
        stem, _, suffix = stat.key.rpartition(".")
        stems[stem].add(suffix)
    for stem, suffixes in sorted(stems.items()):
        if "json" in suffixes:
            try:
                sidecar = Sidecar.from_json(store.get(f"{stem}.json"))
            except ArtefactError:
                continue
            if sidecar.container in suffixes:
                yield numbered(sidecar)


def pages_in(store: Store, host_id: str = "") -> Iterator[LedgerPage]:
    """Yield the ledger pages of a store, of one host if it is named; what is no page, or not the one of its key, is skipped.

    A skipped page shows in the audit as one that is missing.

    Raises:
        StoreError: the store cannot be read.
    """
    for stat in store.list(f"ledger/{host_id}/" if host_id else "ledger/"):
        try:
            page = LedgerPage.from_json(store.get(stat.key))
            if stat.key != keys.ledger_key(page.host_id, page.boot_id, page.number):
                raise ArtefactError(f"it is page {page.number} of host {page.host_id!r}, boot {page.boot_id!r}")
        except StoreError:
            raise
        except CamloopError as error:
            _log.warning("ledger_page_refused", key=stat.key, error=str(error))
            continue
        yield page


def numbered(sidecar: Sidecar) -> Numbered:
    """Return what the audit needs of a sidecar."""
    return Numbered(sidecar.camera_id, sidecar.boot_id, sidecar.seq, sidecar.clip_id)


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
