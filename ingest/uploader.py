"""Carries clips from the spool to the store, each exactly once, whatever is cut in between.

One thread talks to the spool and decides what goes next (`schedule.py`); worker threads bring one clip each into the store
(`transfer.py`), as many as were measured to help. For each clip: sent and proven -> marked done -> deleted, all by the spool.
With them go the host's ledger pages and health documents. `upload` empties the spool once; `watch` does it for ever.

What it remembers between two lives lies in the spool: `uploads/<clip_id>.json` (an upload in parts that was begun),
`metered.json` (what this day cost), `uplink.json` (how fast the link is, for the recorders and the agent).

No decoder, no numpy: a camera host may run this beside anything.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from infra.clock import Clock
from infra.errors import ArtefactError, QuotaSpent, StoreError, StoreForbidden, StoreIncapable
from infra.log import Log
from infra.objects import Destination, ResumeLog, require
from ingest.clerk import Clerk
from ingest.errands import Errands
from ingest.schedule import Allowance, Closed, Lanes, Meter, RateLimit, Turns, UploadSettings, read_spent, write_spent
from ingest.spool import Spool, SpooledClip
from ingest.transfer import Retry, deliver, resume_path
from ingest.uplink import Uplink, write_uplink

POLL_S = 1.5
DOCUMENTS_EVERY_S = 60.0
UPLINK_EVERY_S = 60.0
SWEEP_EVERY_S = 86_400.0
FIRST_REST_S, LONGEST_REST_S = 5.0, 300.0  # between two passes while the store cannot be reached
FAILURES_END_A_PASS = 2
FORBIDDEN_END_A_PASS, FORBIDDEN_REST_S = 100, 3600.0  # one after another; a clip that may not go is tried again so late
END_S = 2.0  # what was under way may hear of a stop so long; it is safe to cut
_log = Log("ingest.upload")


class Stopped(BaseException):
    """Somebody asked the uploader to end; what was under way goes on next time. No error: nothing may catch it as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """What one run of the uploader did: clips delivered, bytes of them, clips put aside, documents delivered."""

    n_clips: int
    n_bytes: int
    n_quarantined: int
    n_documents: int = 0


def upload(
    spool: Spool,
    store: Destination,
    *,
    settings: UploadSettings | None = None,
    retry: Retry | None = None,
    host_id: str = "host",
    keep: bool = False,
    on_clip: Callable[[SpooledClip], None] = lambda clip: None,
) -> Uploaded:
    """Deliver all clips and documents that wait in the spool, within the hours and the allowance; safe to kill and to repeat.

    Args:
        spool: its `upload` lock is held meanwhile.
        store: must honour put-if-absent.
        settings: the table `[upload]`.
        retry: how patient to be.
        host_id: whose health documents these are.
        keep: copy only: everything stays in the spool and is sent again (a stick may be lost on its way).
        on_clip: called after each clip that was delivered or put aside.

    Raises:
        StoreIncapable: the store ignores put-if-absent, or alters bytes.
        StoreError: the store could not be reached after all tries; what remains is still in the spool.
        DeviceError: another process is uploading this spool, or its disk fails.
    """
    with spool.locked("upload"):
        uploader = Uploader(
            spool, store, settings or UploadSettings(), retry=retry, host_id=host_id, keep=keep, on_clip=on_clip
        )
        try:
            uploader.one_pass()
            if uploader.refused is not None:
                raise uploader.refused
        except StoreIncapable:
            raise
        except StoreError as error:
            left = spool.counts().get("pending", 0)
            n_clips = uploader.result.n_clips
            raise StoreError(f"{error}; {n_clips} clips delivered, {left} wait in {spool.folder}; run it again") from error
        finally:
            uploader.close()
    return uploader.result


def watch(
    spool: Spool,
    store: Destination,
    *,
    settings: UploadSettings,
    host_id: str,
    stop: threading.Event,
    retry: Retry | None = None,
    rng: random.Random | None = None,
    poll_s: float = POLL_S,
    between: Callable[[], None] = lambda: None,
) -> Uploaded:
    """Deliver what comes until `stop` is set; a store that cannot be reached is tried again for ever, with growing rests.

    `between` is called after each pass that reached the store.

    Raises:
        DeviceError: another process is uploading this spool, or its disk fails.
    """
    rng, rest_s = rng or random.Random(), FIRST_REST_S
    with spool.locked("upload"):
        uploader = Uploader(spool, store, settings, retry=retry, host_id=host_id, stop=stop)
        try:
            while not stop.is_set():
                try:
                    uploader.one_pass()
                    rest_s = FIRST_REST_S
                    between()
                    stop.wait(poll_s)
                except StoreError as error:
                    uploader.tell(str(error))
                    _log.warning("upload_rests", seconds=round(rest_s), reason=str(error))
                    stop.wait(rest_s * (0.5 + rng.random()))
                    rest_s = min(2 * rest_s, LONGEST_REST_S)
        except Stopped:
            pass
        finally:
            uploader.close()
    return uploader.result


@dataclass(slots=True)
class _Flight:
    clip: SpooledClip
    held: contextlib.ExitStack


class Uploader:
    """One process's uploading; the caller holds the spool's `upload` lock.

    Args: see `upload` and `watch`.
    """

    def __init__(
        self, spool: Spool, store: Destination, settings: UploadSettings, *, retry: Retry | None = None, host_id: str = "host",
        keep: bool = False, on_clip: Callable[[SpooledClip], None] = lambda clip: None, stop: threading.Event | None = None,
    ) -> None:  # fmt: skip
        self._spool, self._store, self._settings, self._on_clip = spool, store, settings, on_clip
        self._stop = stop or threading.Event()
        given = retry or Retry(max_tries=settings.tries)
        self._clock: Clock = given.clock
        self._retry = Retry(max_tries=given.max_tries, clock=given.clock, rng=given.rng, check=self._check)
        self._rate = RateLimit(settings.bytes_per_s, self._clock, self._check)
        self._meter, self._lanes = Meter(self._clock), Lanes(settings.connections, self._clock)
        self._turns = Turns(settings.fresh_share, self._clock)
        self._metered_path = spool.folder / "metered.json"
        self._allowance = Allowance(settings.metered_bytes_per_day, self._today, read_spent(self._metered_path))
        self._flights: dict[Future[str | None], _Flight] = {}
        self._pool = ThreadPoolExecutor(settings.connections, thread_name_prefix="upload")
        self._spool_lock = threading.Lock()
        self._clerk = Clerk(spool, self._spool_lock, keep, self._count)
        self._tested = False
        self._errands = Errands(spool, store, self._retry, host_id, keep)
        self._due_ns: dict[str, int] = {}
        self._uplink = Uplink()
        self._told: set[str] = set()  # clips of which it was said why they may not go
        self.refused: StoreForbidden | QuotaSpent | None = None  # the last such answer
        self.result = Uploaded(n_clips=0, n_bytes=0, n_quarantined=0)

    def close(self) -> None:
        """Leave what was measured; a transfer under way is stopped within its next bytes, or ends with the process."""
        self._stop.set()
        wait(self._flights, timeout=END_S)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._clerk.close()
        for flight in self._flights.values():
            flight.held.close()
        self._remember(at_once=True)

    def one_pass(self) -> None:
        """Deliver everything that waits and comes meanwhile; returns when nothing (more) may go now.

        Clips go first, documents beside and after them. A clip that the store does not take is set aside (`refused`).
        """
        error: StoreError | None = None
        failures, forbidden, lost, n_before = 0, 0, list[str](), self.result.n_clips
        self._see()
        if self._closed_reason() is not None:
            self._remember()
            return
        self._prepare()
        while True:
            if polls := self._is_due("poll", POLL_S):
                self._see()
            if failures < FAILURES_END_A_PASS and forbidden < FORBIDDEN_END_A_PASS:
                self._fill()
            if not self._flights:
                break
            if polls:
                error = self._documents() or error
            for clip, outcome in self._landed(timeout_s=POLL_S):
                if isinstance(outcome, StoreForbidden | QuotaSpent):
                    forbidden += isinstance(outcome, StoreForbidden)
                    self._set_aside(clip, outcome)
                elif isinstance(outcome, StoreError):
                    error, failures = outcome, failures + 1
                    lost.append(clip.sidecar.clip_id)
                elif outcome is not None:
                    self._put_aside(clip, outcome)
                else:
                    failures = forbidden = 0
                    self._clerk.take(clip)
            self._clerk.settle()
            self._remember()
        self._lanes.idle()
        self._clerk.settle(all_of_them=True)
        if error is None:  # of clips that have just left: how far the numbers went
            error = self._documents(at_once=self.result.n_clips > n_before)
        self._turns.put_last(lost)
        if error is None and forbidden >= FORBIDDEN_END_A_PASS:
            error = self.refused
        if error is not None:
            raise error

    def tell(self, reason: str | None) -> None:
        """Leave a reason why nothing goes, for the agent."""
        self._uplink = Uplink(
            last_success_ns=self._uplink.last_success_ns, bytes_per_s=self._meter.bytes_per_s(),
            is_open=self._settings.closed_s(self._clock.now_ns()) == 0, reason=reason,
            clock_offset_s=self._store.clock_offset_s,
        )  # fmt: skip
        self._remember()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _today(self) -> str:
        return self._settings.local(self._clock.now_ns()).date().isoformat()

    def _is_due(self, what: str, every_s: float) -> bool:
        now_ns = self._clock.mono_ns()
        if now_ns < self._due_ns.get(what, now_ns):
            return False
        self._due_ns[what] = now_ns + round(every_s * 1e9)
        return True

    def _closed_reason(self) -> str | None:
        if closed_s := self._settings.closed_s(self._clock.now_ns()):
            reason = f"outside the hours {', '.join(self._settings.hours)}; opens in {closed_s / 60:.0f} min"
        elif not self._allowance.admits(1):
            reason = f"the {self._settings.metered_bytes_per_day:,} bytes of today are spent"
        else:
            return None
        self.tell(reason)
        return reason

    def _prepare(self) -> None:
        """Try the store once; give up uploads in parts that nobody will finish."""
        if not self._tested:
            asked = self._pool.submit(self._retry, lambda: require(self._store, "put_if_absent"), "self-test")
            while not wait((asked,), timeout=POLL_S).done:  # a broker's first turn may be minutes away: a stop is heard
                self._check()
            self._tested = asked.result() is None
        if self._is_due("sweep", SWEEP_EVERY_S):
            with contextlib.suppress(StoreForbidden, StoreIncapable):  # the bucket's lifecycle rule does it then
                self._errands.sweep()

    def _dispatch(self) -> bool:
        """Start the next transfer; False if none waits or none may go now."""
        if self._stop.is_set() or self._settings.closed_s(self._clock.now_ns()):
            return False
        clip_id = self._turns.next()
        if clip_id is None:
            return False
        clip = self._read(clip_id)
        if clip is None:
            return True  # given up, or set aside, since it was seen
        under_way = sum(flight.clip.sidecar.n_bytes for flight in self._flights.values())
        if not self._allowance.admits(clip.sidecar.n_bytes, under_way):
            self._turns.give_back(clip_id)
            self.tell("what is left of today's bytes is less than the next clip")
            return False
        held = contextlib.ExitStack()
        if not held.enter_context(self._spool.sending(clip)):
            held.close()
            return True
        self._lanes.begin()
        self._meter.begin()
        log, turn = resume_path(self._spool.folder, clip_id), (self._turns.was_fresh, len(self._turns))
        resume = ResumeLog(log, self._settings.part_bytes, self._on_bytes, self._on_stored, *turn)
        future = self._pool.submit(deliver, clip, self._store, self._retry, resume)
        self._flights[future] = _Flight(clip, held)
        self._keep_metered(under_way + clip.sidecar.n_bytes)
        return True

    def _read(self, clip_id: str) -> SpooledClip | None:
        try:
            return self._spool.read(self._spool.clips / f"{clip_id}.json")
        except ArtefactError:
            with self._spool_lock:
                is_aside = self._spool.set_aside_damaged(clip_id)
            self.result = replace(self.result, n_quarantined=self.result.n_quarantined + is_aside)
            return None

    def _on_bytes(self, n_bytes: int) -> None:
        if self._settings.closed_s(self._clock.now_ns()):
            raise Closed
        self._rate.take(n_bytes)
        self._allowance.add(n_bytes)

    def _on_stored(self, n_bytes: int) -> None:
        self._meter.stored(n_bytes)
        self._lanes.stored(n_bytes)

    def _landed(self, timeout_s: float) -> Iterator[tuple[SpooledClip, str | StoreError | None]]:
        done, _ = wait(self._flights, timeout=timeout_s, return_when=FIRST_COMPLETED)
        for future in done:
            flight = self._flights.pop(future)
            flight.held.close()
            error = future.exception()
            self._meter.end()
            if isinstance(error, Closed):
                self._turns.give_back(flight.clip.sidecar.clip_id)
            elif isinstance(error, StoreError) and not isinstance(error, StoreIncapable):
                yield flight.clip, error
            else:
                yield flight.clip, future.result()

    def _see(self) -> None:
        with self._spool_lock:
            self._turns.see(candidate.clip_id for candidate in self._spool.waiting())

    def _fill(self) -> None:
        while len(self._flights) < self._lanes.n and self._dispatch():
            pass

    def _count(self, clips: list[SpooledClip]) -> None:
        for clip in clips:
            done, n_bytes = self.result, clip.sidecar.n_bytes
            self.result = replace(done, n_clips=done.n_clips + 1, n_bytes=done.n_bytes + n_bytes)
            _log.info("delivered", clip_id=clip.sidecar.clip_id, n_bytes=n_bytes)
            self._on_clip(clip)
        now_ns, offset_s = self._clock.now_ns(), self._store.clock_offset_s
        self._uplink = Uplink(last_success_ns=now_ns, bytes_per_s=self._meter.bytes_per_s(), clock_offset_s=offset_s)

    def _put_aside(self, clip: SpooledClip, reason: str) -> None:
        with self._spool_lock:
            self._spool.quarantine(clip, reason)
        self.result = replace(self.result, n_quarantined=self.result.n_quarantined + 1)
        self._on_clip(clip)

    def _set_aside(self, clip: SpooledClip, refusal: StoreForbidden | QuotaSpent) -> None:
        """Give a clip that the store does not take no turn for a while, or all of a camera that has used up its quota."""
        clip_id, camera_id = clip.sidecar.clip_id, clip.sidecar.camera_id
        self.refused = refusal
        if isinstance(refusal, StoreForbidden):
            self._turns.set_aside([clip_id], FORBIDDEN_REST_S)
        else:
            with self._spool_lock:
                own = [candidate.clip_id for candidate in self._spool.waiting() if candidate.camera_id == camera_id]
            self._turns.set_aside([clip_id, *own], refusal.retry_after_s)
        if clip_id not in self._told:
            self._told.add(clip_id)
            _log.warning("clip_refused", clip_id=clip_id, camera_id=camera_id, reason=str(refusal))
        self.tell(str(refusal))

    def _documents(self, *, at_once: bool = False) -> StoreError | None:
        if self._is_due("documents", DOCUMENTS_EVERY_S) or at_once:
            with self._spool_lock:
                n_documents, error = self._errands.documents()
            self.result = replace(self.result, n_documents=self.result.n_documents + n_documents)
            return error
        return None

    def _remember(self, *, at_once: bool = False) -> None:
        """Write what the next life and the neighbours want to know, once a minute: it must not wear the card."""
        if at_once or self._is_due("uplink", UPLINK_EVERY_S):
            with contextlib.suppress(OSError):  # a full disk costs only this
                write_uplink(self._spool.folder, self._uplink)
                self._keep_metered(0)

    def _keep_metered(self, under_way: int) -> None:
        """Write down what today has cost, with what was begun: a kill must not forget it."""
        if self._settings.metered_bytes_per_day is not None:
            write_spent(self._metered_path, self._allowance.spent, under_way)
