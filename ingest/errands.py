"""What the uploader does beside clips: delivers ledger pages and health documents, gives up uploads nobody will finish."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from infra import durable, keys
from infra.errors import QuotaSpent, StoreError, StoreForbidden
from infra.log import Log
from infra.objects import Destination, ResumeLog, Unfinished
from ingest.spool import Spool
from ingest.transfer import UPLOADS, Retry, deliver_document

ORPHAN_S = 86_400.0  # an upload in parts that nobody here remembers is given up after so long
_log = Log("ingest.upload")


class Errands:
    """The errands of one uploader.

    Args:
        spool: the caller holds its `upload` lock.
        store: where to.
        retry: how patient to be; its clock tells the age of an orphan.
        host_id: whose health documents these are.
        keep: copy only, nothing is marked or removed here.
    """

    def __init__(self, spool: Spool, store: Destination, retry: Retry, host_id: str, keep: bool) -> None:
        self._spool, self._store, self._retry, self._host_id, self._keep = spool, store, retry, host_id, keep
        self._said: set[str] = set()  # keys of documents that cannot arrive

    def documents(self) -> tuple[int, StoreError | None]:
        """Deliver what waits; return how many arrived, and what the store failed with, if it did.

        One that the store does not take is told once and stays here; the others go on.
        """
        n_delivered = 0
        try:
            for arrived in chain(self._ledger(), self._health()):
                n_delivered += arrived
        except StoreError as error:
            return n_delivered, error
        return n_delivered, None

    def _ledger(self) -> Iterator[bool]:
        for page in self._spool.ledger_pages():
            arrived = self._bring(page.key, page.path)
            if arrived and not self._keep:
                self._spool.ledger_delivered(page)
            yield arrived

    def _health(self) -> Iterator[bool]:
        for path in sorted((self._spool.folder / "health").glob("*/*.json")):
            if durable.is_temporary(path.name) or not path.stem.isdigit():
                continue
            key = keys.health_key(self._host_id, path.parent.name, int(path.stem))
            with contextlib.suppress(FileNotFoundError):  # the agent keeps a bounded number of them
                arrived = self._bring(key, path, or_another=True)
                if arrived and not self._keep:
                    durable.remove(path)
                yield arrived

    def _bring(self, key: str, path: Path, *, or_another: bool = False) -> bool:
        try:
            if deliver_document(key, path, self._store, self._retry) or or_another:
                return True
            reason = "the store holds another document; ours stays"
        except (StoreForbidden, QuotaSpent) as error:
            reason = str(error)
        if key not in self._said:
            self._said.add(key)
            _log.error("document_refused", key=key, reason=reason)
        return False

    def sweep(self) -> None:
        """Give up the uploads in parts of clips that wait no more, and those of our cameras that nobody remembers."""
        waiting = {candidate.clip_id: candidate.camera_id for candidate in self._spool.waiting()}
        remembered = set()
        for path in sorted((self._spool.folder / UPLOADS).glob("*.json")):
            log = ResumeLog(path)
            note = log.load()
            if path.stem in waiting and note is not None:
                remembered.add(note.upload_id)
                continue
            if note is not None and note.url == self._store.url:
                with contextlib.suppress(StoreForbidden):  # of a camera that is another host's by now
                    self._store.abandon(note.key, note.upload_id)
            log.clear()
        for camera_id in sorted({camera_id for camera_id in waiting.values() if camera_id}):
            for found in self._unfinished(f"{keys.CLIPS}{camera_id}/"):
                age_s = (self._retry.clock.now_ns() - found.started_ns) / 1e9 + (self._store.clock_offset_s or 0.0)
                if age_s > ORPHAN_S and found.upload_id not in remembered:
                    _log.info("orphan_abandoned", key=found.key, upload_id=found.upload_id)
                    self._store.abandon(found.key, found.upload_id)

    def _unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """Yield the store's unfinished uploads; none where the host may not ask: the bucket's rule ends those."""
        try:
            yield from self._store.unfinished(prefix)
        except StoreForbidden:
            _log.debug("unfinished_forbidden", prefix=prefix)
