"""Brings one clip, or one document, into the store: exactly once, and proven before anything here is deleted.

check the file's hash (a rotten clip is never sent) -> sidecar, put if absent -> clip, put if absent, resumed in parts when
it is big -> proof: the store's answer to the put itself (SHA-256 that it checked, MD5), else a look (its SHA-256, composite
of the parts or MD5), else every byte is read back.

`ObjectExists` means look: after a lost answer or a kill it is our own object. A store that cannot be reached is tried again
with jittered, growing pauses, or when it asked to be, up to a bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from infra import keys
from infra.clock import Clock, SystemClock
from infra.errors import ObjectExists, QuotaSpent, StoreBusy, StoreError, StoreForbidden, StoreIncapable
from infra.log import Log
from infra.objects import Destination, ResumeLog
from ingest.spool import SpooledClip, is_intact

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
LONGEST_WISH_S = 600.0  # a Retry-After is honoured up to here
UPLOADS = "uploads"
_PIECE_S = 0.5
_log = Log("ingest.upload")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often one request is tried and how long the pauses are; pauses double, each times a draw from [0.5, 1.5).

    `check` is called while waiting; it raises to stop.
    """

    max_tries: int = 4
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.Random)
    check: Callable[[], None] = lambda: None

    def __call__(self, act: Callable[[], _T], what: str) -> _T:
        """Do `act` until it succeeds or was tried `max_tries` times; what is answered, not failed, is not tried again:
        a condition that did not hold, a thing that may not be, a camera's quota.
        """
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, self.max_tries + 1):
            try:
                return act()
            except (ObjectExists, StoreForbidden, QuotaSpent, StoreIncapable):
                raise
            except StoreError as error:
                if attempt == self.max_tries:
                    raise
                wished_s = min(error.retry_after_s, LONGEST_WISH_S) if isinstance(error, StoreBusy) else 0.0
                jittered_s = max(pause_s, wished_s) * (0.5 + self.rng.random()) if wished_s < pause_s else wished_s
                _log.info("store_failed", what=what, attempt=attempt, pause_s=round(jittered_s, 2), error=str(error))
                self.sleep_s(jittered_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("max_tries is at least 1")

    def sleep_s(self, seconds: float) -> None:
        """Wait in short pieces, so that a stop is heard."""
        if isinstance(self.clock, SystemClock):
            while seconds > _PIECE_S:
                self.check()
                self.clock.sleep_s(_PIECE_S)
                seconds -= _PIECE_S
        self.check()
        self.clock.sleep_s(seconds)


def resume_path(spool_folder: Path, clip_id: str) -> Path:
    """Return where the note of a clip's unfinished upload lies."""
    return spool_folder / UPLOADS / f"{clip_id}.json"


def deliver(clip: SpooledClip, store: Destination, retry: Retry, resume: ResumeLog) -> str | None:
    """Bring one clip into the store, or return why it must not be sent.

    Raises:
        StoreIncapable: the store keeps other bytes than it was sent.
        StoreForbidden: the store does not take this clip from this host.
        StoreError: the store could not be reached after all tries; a big clip goes on from there next time.
    """
    try:
        return _deliver(clip, store, retry, resume)
    except OSError as error:
        if (reason := _unreadable(clip)) is not None:
            return reason
        raise StoreError(f"{clip.path}: sending failed here, not at the store: {error}") from error


def _unreadable(clip: SpooledClip) -> str | None:
    """Return why the disk does not give the clip's own files; None where it does: another file was at fault."""
    try:
        is_intact(clip)
        clip.path.with_suffix(".json").read_bytes()
    except OSError as error:
        return f"the disk does not give its bytes any more: {error.strerror or error}"
    return None


def _deliver(clip: SpooledClip, store: Destination, retry: Retry, resume: ResumeLog) -> str | None:
    sidecar = clip.sidecar
    if not is_intact(clip):
        return f"the file no longer has the {sidecar.n_bytes} bytes and SHA-256 {sidecar.sha256} that were recorded"
    if sidecar.clip_id != keys.clip_id(sidecar.sha256):
        return f"its id {sidecar.clip_id} is not the start of its SHA-256 {sidecar.sha256}"
    key = keys.clip_key(sidecar.camera_id, sidecar.clip_id, sidecar.container)
    document = clip.path.with_suffix(".json").read_bytes()
    _tell(resume, len(document))
    try:
        retry(lambda: store.put_if_absent(keys.sidecar_key(key), document), "sidecar")
    except ObjectExists:
        _log.debug("sidecar_exists", key=key)  # from an earlier try; the first one stays
    try:
        put = retry(lambda: store.put_file_if_absent(key, clip.path, sha256=sidecar.sha256, resume=resume), "clip")
    except ObjectExists:
        _log.debug("clip_exists", key=key)
        if _holds(clip, key, store, retry):
            return None
        return f"{store.url} holds other bytes under {key}, a name made from the clip's hash; somebody else put them there"
    if put.checked or _holds(clip, key, store, retry):
        return None
    raise StoreIncapable(
        f"store {store.url} altered the bytes of {key} on the way: no more is sent; mend the endpoint or the proxy before it, "
        "delete that object, and run it again"
    )


def _holds(clip: SpooledClip, key: str, store: Destination, retry: Retry) -> bool:
    return retry(lambda: store.holds_file(key, clip.path, sha256=clip.sidecar.sha256), "look")


def deliver_document(key: str, path: Path, store: Destination, retry: Retry) -> bool:
    """Put a small file under a key that only this host writes; False if other bytes lie there already: nothing is replaced."""
    data = path.read_bytes()
    try:
        retry(lambda: store.put_if_absent(key, data), "document")
    except ObjectExists:  # from an earlier try, or from a life of this host that it does not remember
        return retry(lambda: store.holds_file(key, path, sha256=keys.sha256_hex(data)), "look")
    return True


def _tell(resume: ResumeLog, n_bytes: int) -> None:
    if resume.on_bytes is not None:
        resume.on_bytes(n_bytes)
