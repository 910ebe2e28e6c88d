"""Sequence numbers without holes: what a host says it made, set against what the store got.

A camera host numbers the clips of each (camera, boot) 0, 1, 2, ... before it films them. Each number ends as a delivered
clip or as a `LedgerEntry` with a reason, in a page of the host's ledger (`ledger/<host_id>/<boot_id>/<n>.json`). A page also
says which numbers had been given out when it was written, so that a tail that never came is seen as well, and holds the
SHA-256 of the page before it. `audit` compares; it is pure, and never believes a page that its `trusted` refuses.

A clip that a model sent back (`camloop run --outbox`) is numbered by its time, from `SENT_BACK_SEQ` on: those numbers have
holes by nature and are counted apart. What the spool accepted of them and did not deliver has its ledger entry all the same.

One of the hosts may be a thief's: every field is checked, what cannot be read is named and passed over, and numbers are
counted as ranges, so that a page costs what its bytes cost, whatever they say.
"""

from __future__ import annotations

import heapq
import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from infra import keys
from infra.errors import ArtefactError, ObjectMissing, UsageError
from infra.log import Log
from infra.objects import Store
from infra.records import Sidecar

PAGE_VERSION = 1
SENT_BACK_SEQ = 1 << 40
Kind = Literal["evicted", "forfeited", "quarantined", "lost", "unknown"]
PageName = tuple[str, str, int]  # host_id, boot_id, number
N_NUMBERS: Final = 1 << 24  # of one entry: a clip a second for half a year
N_CAMERAS: Final = 1024  # that a page may speak of
N_MISSING_PAGES: Final = 1000  # named of one boot: a host that jumps to page 99,999,999 is not listed page by page
MAX_DOCUMENT_BYTES: Final = 16 << 20  # a page or sidecar that is longer is none
READERS: Final = 16  # sidecars read at once
_log = Log("infra.sequence")
_PAGE_KEY = re.compile(r"ledger/([^/]+)/([^/]+)/(\d{8})\.json")


class Numbered(NamedTuple):
    """One numbered clip: what the audit needs of a sidecar."""

    camera_id: str
    boot_id: str
    seq: int
    clip_id: str
    host_id: str = ""


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
        _check_names(camera=self.camera_id, boot=self.boot_id)
        if not _is_text(self.reason) or not (self.clip_id is None or _is_text(self.clip_id)):
            raise ArtefactError(f"ledger entry of {self.camera_id}: reason or clip_id is not text")
        if not all(_is_whole(value) for value in (self.seq, self.n, self.n_bytes, self.at_mono_ns)):
            raise ArtefactError(f"ledger entry of {self.camera_id}: seq, n, n_bytes and at_mono_ns are whole numbers from 0 on")
        if self.kind not in get_args(Kind) or not 1 <= self.n <= N_NUMBERS:
            raise ArtefactError(f"ledger entry of {self.camera_id}: kind {self.kind!r}, seq {self.seq}, n {self.n} is not one")

    def to_json(self) -> bytes:
        """Return the entry as one line of canonical JSON, without its newline."""
        return _canonical(asdict(self))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read an entry; ArtefactError when a field is missing, unknown or of the wrong type."""
        try:
            return cls(**document)
        except TypeError as error:
            raise ArtefactError(f"not a ledger entry: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPage:
    """One page: entries of its boot, and the first number not given out yet for each camera of that boot.

    `previous` is the SHA-256 of the page before (None on page 0), `signature` the host's over `document()`, None unsigned.
    """

    host_id: str
    boot_id: str
    number: int
    entries: tuple[LedgerEntry, ...]
    next_seq: Mapping[str, int]
    previous: str | None
    signature: str | None = None
    version: int = PAGE_VERSION

    def __post_init__(self) -> None:
        _check_names(host=self.host_id, boot=self.boot_id)
        if not _is_whole(self.number) or self.number > 99_999_999:
            raise ArtefactError(f"ledger page of {self.host_id}: {str(self.number)[:40]!r} is not a page number")
        if not all(text is None or _is_text(text) for text in (self.previous, self.signature)):
            raise ArtefactError(f"ledger page {self.number} of {self.host_id}: previous or signature is not text")
        if len(self.next_seq) > N_CAMERAS:
            raise ArtefactError(f"ledger page {self.number} of {self.host_id}: more than {N_CAMERAS} cameras")
        for camera_id, seq in self.next_seq.items():
            _check_names(camera=camera_id)
            if not _is_whole(seq) or seq > SENT_BACK_SEQ:
                raise ArtefactError(f"ledger page {self.number} of {self.host_id}: next_seq of {camera_id} is no number")
        if any(entry.boot_id != self.boot_id for entry in self.entries):
            raise ArtefactError(f"ledger page {self.number} of {self.host_id}: an entry is of another boot than {self.boot_id}")

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
            document["next_seq"] = dict(document["next_seq"].items())
            return cls(**document)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ArtefactError(f"not a ledger page: {type(error).__name__}: {str(error)[:200]}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRow:
    """What became of the numbers of one camera in one boot; `n_expected` = delivered + explained + waiting + in holes.

    `explained` counts numbers by the kind of their entry; a delivered number is delivered, whatever an entry says.
    `holes` are half-open ranges (start, stop) of numbers with neither clip nor reason; `duplicates` have several clips.
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

    `missing_pages` and `broken_pages` are (host_id, boot_id, number): never came (the first `N_MISSING_PAGES` of a boot); does
    not follow from the page before. `refused_pages` cannot be read or were not trusted, and were not counted.
    `refused_sidecars` are the keys of sidecars that cannot be read or speak of another clip: theirs is not delivered.
    `n_sent_back` clips are numbered by time, not in sequence.
    """

    rows: tuple[SequenceRow, ...]
    missing_pages: tuple[PageName, ...] = ()
    broken_pages: tuple[PageName, ...] = ()
    refused_pages: tuple[PageName, ...] = ()
    refused_sidecars: tuple[str, ...] = ()
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
    delivered = sorted(found.delivered)
    counts, explained = _explained(found.entries, delivered)
    starts = [start for start, _ in explained]
    waiting = [
        number
        for number in sorted(found.waiting - found.delivered.keys())
        if not (at := bisect_right(starts, number)) or explained[at - 1][1] <= number
    ]
    known = sorted([*((number, number + 1) for number in (*delivered, *waiting)), *explained])
    n_expected = max([found.next_seq, *(stop for _, stop in known)])
    return SequenceRow(
        camera_id=camera_id, boot_id=boot_id, n_expected=n_expected, n_delivered=len(delivered), n_waiting=len(waiting),
        explained=dict(sorted(counts.items())), holes=tuple(_holes(known, n_expected)),
        duplicates=tuple(sorted(number for number, n in found.delivered.items() if n > 1)),
    )  # fmt: skip


def _explained(entries: list[LedgerEntry], delivered: list[int]) -> tuple[Counter[str], list[tuple[int, int]]]:
    """Return how many numbers each kind explains, and the ranges that are explained or delivered, apart and in order.

    Of two entries about one number the first one counts; a delivered number counts for none.
    """
    coming = sorted(range(len(entries)), key=lambda at: entries[at].seq, reverse=True)
    edges = sorted({edge for entry in entries for edge in (entry.seq, entry.seq + entry.n)})
    counts: Counter[str] = Counter()
    ranges: list[tuple[int, int]] = []
    open_now: list[int] = []
    for start, stop in zip(edges, edges[1:], strict=False):
        while coming and entries[coming[-1]].seq == start:
            heapq.heappush(open_now, coming.pop())
        while open_now and entries[open_now[0]].seq + entries[open_now[0]].n <= start:
            heapq.heappop(open_now)
        if open_now:
            n_delivered = bisect_left(delivered, stop) - bisect_left(delivered, start)
            if n := stop - start - n_delivered:
                counts[entries[open_now[0]].kind] += n
            ranges.append((start, stop))
    return counts, ranges


def _holes(known: list[tuple[int, int]], n_expected: int) -> Iterator[tuple[int, int]]:
    reached = 0
    for start, stop in (*known, (n_expected, n_expected)):
        if start > reached:
            yield reached, start
        reached = max(reached, stop)


def _chain(by_boot: Mapping[tuple[str, str], Mapping[int, LedgerPage]]) -> tuple[tuple[PageName, ...], ...]:
    missing, broken = [], []
    for (host_id, boot_id), pages in sorted(by_boot.items()):
        spans = [(number, number + 1) for number in sorted(pages)]
        absent = (number for start, stop in _holes(spans, 0) for number in range(start, stop))
        missing += [(host_id, boot_id, number) for number, _ in zip(absent, range(N_MISSING_PAGES), strict=False)]
        for number in sorted(pages):
            if number == 0 or number - 1 in pages:
                before = keys.sha256_hex(pages[number - 1].to_json()) if number else None
                if pages[number].previous != before:
                    broken.append((host_id, boot_id, number))
    return tuple(missing), tuple(broken)


def delivered_in(
    store: Store, on_read: Callable[[], object] = lambda: None, on_refused: Callable[[str], object] = lambda key: None
) -> Iterator[Numbered]:
    """Yield the clips of a store that have a sidecar of their own, and none whose sidecar came without its clip.

    Every sidecar under `clips/` is read, sixteen at a time; `on_read` is called for each, `on_refused` with the key of one that
    cannot be read, or that speaks of another clip than it lies beside.

    Raises:
        StoreError: the store cannot be read.
    """
    suffixes: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for stat in store.list(keys.CLIPS):
        stem, _, suffix = stat.key.rpartition(".")
        suffixes[stem][suffix] = stat.n_bytes
    stems = sorted(stem for stem, found in suffixes.items() if "json" in found)

    def read(stem: str) -> Numbered | None:
        try:
            if suffixes[stem]["json"] > MAX_DOCUMENT_BYTES:
                raise ArtefactError(f"sidecar of {suffixes[stem]['json']} bytes")
            sidecar = Sidecar.from_json(store.get(f"{stem}.json"))
            _check_names(camera=sidecar.camera_id, boot=sidecar.boot_id, host=sidecar.host_id)
            if stem != f"{keys.CLIPS}{sidecar.camera_id}/{sidecar.clip_id}":
                raise ArtefactError(f"it is of clip {sidecar.clip_id[:40]!r} of camera {sidecar.camera_id}")
        except ObjectMissing:
            return None
        except (ArtefactError, UsageError) as error:
            _log.warning("sidecar_refused", key=f"{stem}.json", error=str(error))
            on_refused(f"{stem}.json")
            return None
        return numbered(sidecar) if sidecar.container in suffixes[stem] else None

    with ThreadPoolExecutor(READERS) as pool:
        for clip in pool.map(read, stems):
            on_read()
            if clip is not None:
                yield clip


def pages_in(
    store: Store, host_id: str = "", on_refused: Callable[[PageName], object] = lambda name: None
) -> Iterator[LedgerPage]:
    """Yield a store's pages, or one host's; what is none, or not the one of its key, goes to `on_refused` by its key.

    Raises:
        StoreError: the store cannot be read.
    """
    for stat in store.list(f"ledger/{host_id}/" if host_id else "ledger/"):
        try:
            if stat.n_bytes > MAX_DOCUMENT_BYTES:
                raise ArtefactError(f"page of {stat.n_bytes} bytes")
            page = LedgerPage.from_json(store.get(stat.key))
            if stat.key != keys.ledger_key(page.host_id, page.boot_id, page.number):
                raise ArtefactError(f"it is page {page.number} of host {page.host_id!r}, boot {page.boot_id!r}")
        except (ArtefactError, UsageError) as error:
            _log.warning("ledger_page_refused", key=stat.key, error=str(error))
            if named := _PAGE_KEY.fullmatch(stat.key):
                on_refused((named[1], named[2], int(named[3])))
            continue
        yield page


def numbered(sidecar: Sidecar) -> Numbered:
    """Return what the audit needs of a sidecar."""
    return Numbered(sidecar.camera_id, sidecar.boot_id, sidecar.seq, sidecar.clip_id, sidecar.host_id)


def _check_names(**names: object) -> None:
    for what, name in names.items():
        if not isinstance(name, str):
            raise ArtefactError(f"{what} {str(name)[:40]!r} is not text")
        try:
            keys.check_name(name, what)
        except UsageError as error:
            raise ArtefactError(str(error)) from error


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)  # which cannot be signed


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
