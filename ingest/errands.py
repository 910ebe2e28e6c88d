"""What the uploader does beside clips: delivers ledger pages and health documents, gives up uploads nobody will finish."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from infra import durable, keys
from infra.errors import StoreForbidden
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
        self._conflicts: set[str] = set()

    def documents(self) -> int:
        """Deliver what waits and return how many arrived."""
        return self._ledger() + self._health()

    def _ledger(self) -> int:
        n_delivered = 0
        for page in self._spool.ledger_pages():
            if deliver_document(page.key, page.path, self._store, self._retry):
                if not self._keep:
                    self._spool.ledger_delivered(page)
                n_delivered += 1
            elif page.key not in self._conflicts:
                self._conflicts.add(page.key)
                _log.error("ledger_page_conflict", key=page.key, reason="the store holds another page; ours stays")
        return n_delivered

    def _health(self) -> int:
        n_delivered = 0
        for path in sorted((self._spool.folder / "health").glob("*/*.json")):
            if durable.is_temporary(path.name) or not path.stem.isdigit():
                continue
            key = keys.health_key(self._host_id, path.parent.name, int(path.stem))
            with contextlib.suppress(FileNotFoundError):  # the agent keeps a bounded number of them
                deliver_document(key, path, self._store, self._retry)
                if not self._keep:
                    durable.remove(path)
                n_delivered += 1
        return n_delivered

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
