"""Carries clips from the spool to the store, each exactly once, whatever is cut in between.

For each clip, oldest first: check the file's hash (a rotten clip is quarantined, never sent) -> sidecar, put if absent ->
clip, put if absent -> look at what the store holds (size and checksum) -> mark done -> delete. `ObjectExists` means look:
after a lost answer or a kill it is our own object. A store that cannot be reached is tried again with jittered, growing
pauses, up to a bound; then the upload stops with one line, and everything that was not delivered is still in the spool.

No decoder, no numpy: a camera host may run this beside anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from infra import keys
from infra.clock import Clock, SystemClock
from infra.errors import ObjectExists, StoreError, StoreIncapable
from infra.log import Log
from infra.objects import Store, require
from ingest.spool import Spool, SpooledClip, is_intact

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
_log = Log("ingest.upload")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """What one run of the uploader did: clips delivered, bytes of them, clips put aside."""

    n_clips: int
    n_bytes: int
    n_quarantined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often one request is tried and how long the pauses are; pauses double, each times a draw from [0.5, 1.5)."""

    max_tries: int = 4
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.Random)

    def __call__(self, act: Callable[[], _T], what: str) -> _T:
        """Do `act` until it succeeds or was tried `max_tries` times; conditions that did not hold are answers, not failures."""
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, self.max_tries + 1):
            try:
                return act()
            except (ObjectExists, StoreIncapable):
                raise
            except StoreError as error:
                if attempt == self.max_tries:
                    raise
                jittered_s = pause_s * (0.5 + self.rng.random())
                _log.info("store_failed", what=what, attempt=attempt, pause_s=round(jittered_s, 2), error=str(error))
                self.clock.sleep_s(jittered_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("max_tries is at least 1")


def upload(
    spool: Spool, store: Store, *, retry: Retry | None = None, on_clip: Callable[[SpooledClip], None] = lambda clip: None
) -> Uploaded:
    """Deliver all clips that wait in the spool; safe to kill and to run again.

    Args:
        spool: its `upload` lock is held meanwhile.
        store: must honour put-if-absent.
        retry: how patient to be.
        on_clip: called after each clip that left the spool.

    Raises:
        StoreIncapable: the store ignores put-if-absent.
        StoreError: the store could not be reached after all tries; what remains is still in the spool.
        DeviceError: another process is uploading this spool, or its disk fails.
    """
    retry = retry or Retry()
    n_clips = n_bytes = n_quarantined = 0
    with spool.locked("upload"):
        waiting = spool.pending()
        try:
            retry(lambda: require(store, "put_if_absent"), "self-test")
            for clip in waiting:
                reason = _deliver(clip, store, retry)
                if reason is None:
                    spool.done(clip)
                    n_clips, n_bytes = n_clips + 1, n_bytes + clip.sidecar.n_bytes
                    _log.info("delivered", clip_id=clip.sidecar.clip_id, n_bytes=clip.sidecar.n_bytes)
                else:
                    spool.quarantine(clip, reason)
                    n_quarantined += 1
                on_clip(clip)
        except StoreIncapable:
            raise
        except StoreError as error:
            left = len(waiting) - n_clips - n_quarantined
            raise StoreError(f"{error}; {n_clips} clips delivered, {left} wait in {spool.folder}; run it again") from error
    return Uploaded(n_clips=n_clips, n_bytes=n_bytes, n_quarantined=n_quarantined)


def _deliver(clip: SpooledClip, store: Store, retry: Retry) -> str | None:
    """Bring one clip into the store, or return why it must not be sent."""
    sidecar = clip.sidecar
    if not is_intact(clip):
        return f"the file no longer has the {sidecar.n_bytes} bytes and SHA-256 {sidecar.sha256} that were recorded"
    if sidecar.clip_id != keys.clip_id(sidecar.sha256):
        return f"its id {sidecar.clip_id} is not the start of its SHA-256 {sidecar.sha256}"
    key = keys.clip_key(sidecar.camera_id, sidecar.clip_id, sidecar.container)
    try:
        retry(lambda: store.put_if_absent(keys.sidecar_key(key), sidecar.to_json()), "sidecar")
    except ObjectExists:
        _log.debug("sidecar_exists", key=key)  # from an earlier try; the first one stays
    try:
        retry(lambda: store.put_file_if_absent(key, clip.path, sha256=sidecar.sha256), "clip")
    except ObjectExists:
        _log.debug("clip_exists", key=key)
    if not retry(lambda: store.holds_file(key, clip.path, sha256=sidecar.sha256), "look"):
        return f"{store.url} holds other bytes under {key}, a name made from the clip's hash; the endpoint alters bytes"
    return None
