"""Tells the spool what the store has, many clips with one commit and beside the link: a card's fsyncs are slow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ingest.spool import Spool, SpooledClip


class Clerk:
    """One thread that marks delivered clips as done.

    Args:
        spool: the caller holds its `upload` lock.
        lock: held while the spool is told.
        keep: copy only, nothing is marked.
        on_done: called in the caller's thread with clips that are marked.
    """

    def __init__(
        self, spool: Spool, lock: threading.Lock, keep: bool, on_done: Callable[[list[SpooledClip]], None]
    ) -> None:  # fmt: skip
        self._spool, self._lock, self._keep, self._on_done = spool, lock, keep, on_done
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._delivered: list[SpooledClip] = []
        self._settling: tuple[Future[None], list[SpooledClip]] | None = None

    def take(self, clip: SpooledClip) -> None:
        """The store has this clip."""
        self._delivered.append(clip)

    def settle(self, *, all_of_them: bool = False) -> None:
        """Go on with what was taken; `all_of_them` waits until the spool knows everything."""
        while self._delivered or self._settling is not None:
            if self._settling is not None:
                future, clips = self._settling
                if not (all_of_them or future.done()):
                    return
                future.result()
                self._settling = None
                self._on_done(clips)
            if self._delivered:
                clips, self._delivered = self._delivered, []
                self._settling = self._thread.submit(self._forget, clips), clips
                if not all_of_them:
                    return

    def close(self) -> None:
        """End after what is being written."""
        self._thread.shutdown(wait=True)

    def _forget(self, clips: list[SpooledClip]) -> None:
        if not self._keep:
            with self._lock:
                self._spool.done(*clips)
