"""The broker decides what a camera host may put into the store, and tells it where: one address for one object.

    hello -> the broker's time, epoch and pace        enroll: code + public key -> a host with cameras
    ask -> parse -> is it signed by this host, now, for the first time -> is the host in force -> is the camera its own
        -> `key_of` makes the key -> quota and turn -> the receiver signs an address, or does what the verb says

What cannot be asked for cannot be had: there is no verb to read, list, replace or delete. The broker keeps no secret of the
store's in an answer, and a refusal says no more than the host knows already. Counts of the day are kept in memory and written
to the store now and then; a crash forgives what was counted since. One broker serves one store.

Nothing here knows HTTP (serve/fleet_web.py) or waits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from infra.clock import Clock
from infra.errors import ArtefactError, CamloopError, ObjectExists, ObjectMissing, StoreError, UsageError
from infra.identity import verify_request
from infra.log import Log
from infra.protocol import (
    ADDRESS_S,
    MAX_CLIP_BYTES,
    MAX_SMALL_BYTES,
    WINDOW_S,
    Ask,
    Part,
    key_of,
    n_parts,
    part_span,
    read_object,
)
from serve.admission import Admission, Turn
from serve.quota import Quota
from serve.receiver import Receiver, check_complete
from serve.registry import Host, Registry

ASKS_A_SECOND: Final = 20.0  # of one host; a flood beyond is answered before anything is looked up
ASKS_BURST_S: Final = 10.0
RETRY_S: Final = 10.0  # where the store does not answer
COMPLETIONS: Final = 4  # of one host at a time: each takes one of the web server's 40 threads while it copies
ENROLMENTS_A_SECOND: Final = 0.5  # of all: guessing a code of 78 bits would take longer than the universe is old
ENROLMENTS_BURST: Final = 10.0
_log = Log("serve.broker")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: an HTTP status and a JSON document that always holds `time_ns` and `epoch`."""

    status: int
    document: Mapping[str, Any]

    @property
    def retry_after_s(self) -> float | None:
        """When to come back, where the answer says so."""
        after_s = self.document.get("after_s")
        return float(after_s) if self.status in (429, 503) and after_s is not None else None


class _Denied(Exception):
    def __init__(self, status: int, error: str, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.error, self.message, self.after_s = status, error, message, after_s


@dataclass(slots=True)
class _Bucket:
    """Tokens that come back with time."""

    rate: float
    most: float
    tokens: float
    at_s: float

    def take(self, now_s: float) -> float:
        """Take one token and return 0, or return how many seconds until there is one."""
        self.tokens = min(self.most, self.tokens + (now_s - self.at_s) * self.rate)
        self.at_s = now_s
        if self.tokens < 1:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return 0.0


@dataclass(slots=True)
class _Seen:
    """The sequence numbers of one host that were taken within the window, and how fast it asks."""

    bucket: _Bucket
    numbers: set[int] = field(default_factory=set)
    order: deque[tuple[float, int]] = field(default_factory=deque)


class Broker:
    """Answers the hosts of one store; safe between threads.

    Args:
        registry: who may.
        receiver: where bytes go.
        clock: UTC for sequence numbers and days, monotonic time for the pace.
        admission: who comes when; it holds how many clips a second the store may be given.
        asks_a_second: of one host; ten times as many at once.
    """

    def __init__(
        self, registry: Registry, receiver: Receiver, clock: Clock, *, admission: Admission | None = None,
        asks_a_second: float = ASKS_A_SECOND,
    ) -> None:  # fmt: skip
        self._registry = registry
        self._receiver = receiver
        self._clock = clock
        self._asks = asks_a_second
        self._admission = admission or Admission()
        self._quota = Quota(receiver.store, clock)
        self._lock = threading.Lock()
        self._completing: dict[str, str] = {}  # key -> host
        self._seen: dict[str, _Seen] = {}
        self._enrolments = _Bucket(ENROLMENTS_A_SECOND, ENROLMENTS_BURST, ENROLMENTS_BURST, self._now_s())
        self.epoch = secrets.token_hex(8)
        self._verbs: Mapping[str, Callable[[Ask, Host, str], Mapping[str, Any]]] = {
            "put": self._put, "create": self._create, "part": self._part, "parts": self._parts,
            "complete": self._complete, "abort": self._abort, "look": self._look,
        }  # fmt: skip

    def hello(self) -> Answer:
        """Tell the time, the epoch, how long to spread first requests, and what the store can do."""
        try:
            window_s = self._window_s()
            can = dataclasses.asdict(self._receiver.store.capabilities())
        except CamloopError as error:
            return self._store_failed(error)
        return self._answer(200, {"window_s": window_s, "capabilities": can})

    def enroll(self, body: bytes, signature: str) -> Answer:
        """Enrol a host by its one-time code; the request is signed with the key that it brings.

        Body: {"code": TEXT, "public_key": HEX}.
        """
        with self._lock:
            after_s = self._enrolments.take(self._now_s())
        if after_s:
            return self._refused(_Denied(429, "busy", "too many try to enrol; wait", after_s))
        try:
            document = read_object(body)
            code, public_key = document.get("code"), document.get("public_key")
            if not isinstance(code, str) or not isinstance(public_key, str) or len(code) > 64:
                raise UsageError("an enrolment has a code and a public_key")
            if not verify_request(public_key, body, signature):
                raise UsageError("the enrolment is not signed with the key that it brings")
            host = self._registry.accept(code, public_key)
        except UsageError as error:
            return self._refused(_Denied(403, "enrolment", str(error)))
        except (StoreError, ArtefactError) as error:
            return self._store_failed(error)
        _log.info("enrolled", host_id=host.host_id, cameras=list(host.cameras), key=public_key[:16])
        return self._answer(200, {"host_id": host.host_id, "cameras": list(host.cameras), "window_s": self._window_s()})

    def ask(self, body: bytes, signature: str) -> Answer:
        """Answer one signed request; never raises for what a stranger sent."""
        try:
            try:
                ask = Ask.from_bytes(body)
            except UsageError as error:
                raise _Denied(400, "malformed", str(error)) from error
            host = self._authenticated(ask, body, signature)
            key = self._key(ask, host)
            return self._answer(200, self._verbs[ask.verb](ask, host, key))
        except _Denied as denied:
            return self._refused(denied)
        except ObjectExists:
            return self._refused(_Denied(409, "exists", "an object lies there: look"))
        except ObjectMissing:
            return self._refused(_Denied(404, "missing", "nothing of that is there, or no longer; create it again"))
        except UsageError as error:
            return self._refused(_Denied(400, "malformed", str(error)))
        except (StoreError, ArtefactError) as error:
            return self._store_failed(error)

    def save(self) -> None:
        """Write the counts of the day to the store; the web app calls this when it ends."""
        self._quota.save()

    def _authenticated(self, ask: Ask, body: bytes, signature: str) -> Host:
        host = self._registry.hosts().get(ask.host_id)
        if host is None or host.public_key is None or not verify_request(host.public_key, body, signature):
            raise _Denied(401, "signature", "no such host, or not signed with its key; enrol it: camloop fleet enroll HOST")
        if host.revoked_ns is not None:
            raise _Denied(401, "revoked", f"host {host.host_id} was revoked by the operator of this fleet")
        if ask.epoch != self.epoch:
            raise _Denied(401, "stale", "signed for an earlier run of this broker; sign again")
        now_ns, now_s = self._clock.now_ns(), self._now_s()
        if abs(ask.sequence - now_ns) > WINDOW_S * 1e9:
            raise _Denied(401, "stale", "the sequence number is not near this broker's time; sign again")
        with self._lock:
            seen = self._seen.get(ask.host_id)
            if seen is None:
                burst = ASKS_BURST_S * self._asks
                seen = self._seen[ask.host_id] = _Seen(_Bucket(self._asks, burst, burst, now_s))
            while seen.order and seen.order[0][0] < now_s - 2 * WINDOW_S:  # by then they are too old to be taken
                seen.numbers.discard(seen.order.popleft()[1])
            if ask.sequence in seen.numbers:
                raise _Denied(401, "replayed", "this sequence number was taken before; sign again")
            if after_s := seen.bucket.take(now_s):
                raise _Denied(429, "busy", "this host asks too often", after_s)
            seen.numbers.add(ask.sequence)
            seen.order.append((now_s, ask.sequence))
        return host

    def _key(self, ask: Ask, host: Host) -> str:
        if ask.kind in ("clip", "sidecar") and ask.camera_id not in host.cameras:
            raise _Denied(403, "not_yours", f"this camera is none of host {host.host_id}'s: {', '.join(host.cameras)}")
        key = key_of(ask)
        if ask.verb in ("look", "parts", "abort"):
            return key
        most = MAX_CLIP_BYTES if ask.kind == "clip" else MAX_SMALL_BYTES
        if ask.n_bytes is None or ask.sha256 is None:
            raise UsageError(f"{ask.verb} needs n_bytes and sha256")
        if not 1 <= ask.n_bytes <= most:
            raise _Denied(413, "too_large", f"{ask.n_bytes} bytes; a {ask.kind} has 1 to {most}")
        if ask.kind == "clip" and ask.clip_id != ask.sha256[:32]:
            raise UsageError("a clip's id is the first 32 digits of its SHA-256")
        if ask.kind != "clip" and ask.verb != "put":
            raise UsageError(f"a {ask.kind} goes in one put")
        return key

    def _put(self, ask: Ask, host: Host, key: str) -> Mapping[str, Any]:
        n_bytes, sha256 = ask.n_bytes or 0, ask.sha256 or ""
        self._charge(ask, host, key, n_bytes)
        turn = self._turn(ask, host)
        address = self._receiver.put_address(key, n_bytes=n_bytes, sha256=sha256, expires_s=ADDRESS_S)
        return _addressed(address.url, address.headers) | _paced(turn)

    def _create(self, ask: Ask, host: Host, key: str) -> Mapping[str, Any]:
        n_bytes, sha256 = ask.n_bytes or 0, ask.sha256 or ""
        if self._receiver.look(key) is not None:
            raise ObjectExists(key)
        self._charge(ask, host, key, n_bytes)
        turn = self._turn(ask, host)
        upload = self._receiver.create(key, n_bytes=n_bytes, sha256=sha256)
        return {"upload": upload, "parts": _listed(self._receiver.parts(key, upload))} | _paced(turn)

    def _part(self, ask: Ask, host: Host, key: str) -> Mapping[str, Any]:
        if ask.upload is None or ask.part is None or ask.part_sha256 is None:
            raise UsageError("part needs upload, part and part_sha256")
        n_bytes = ask.n_bytes or 0
        start, stop = part_span(n_bytes, ask.part)
        self._charge(ask, host, key, n_bytes)  # as at the creation: counted once
        address = self._receiver.part_address(
            key, ask.upload, ask.part, n_bytes=stop - start, sha256=ask.part_sha256, expires_s=ADDRESS_S
        )
        return _addressed(address.url, address.headers)

    def _parts(self, ask: Ask, host: Host, key: str) -> Mapping[str, Any]:
        return {"parts": _listed(self._receiver.parts(key, _upload(ask)))}

    def _complete(self, ask: Ask, host: Host, key: str) -> Mapping[str, Any]:
        upload = _upload(ask)
        parts = self._receiver.parts(key, upload)
        check_complete(parts, ask.n_bytes or 0)
        with self._alone(host, key):  # some stores ignore the condition on a completion: we look ourselves
            if self._receiver.look(key) is not None:
                raise ObjectExists(key)
            self._receiver.complete(key, upload, parts, sha256=ask.sha256 or "")
        return {"completed": n_parts(ask.n_bytes or 0)}

    @contextlib.contextmanager
    def _alone(self, host: Host, key: str) -> Iterator[None]:
        """Let one completion of an object happen at a time, and few of one host: a folder copies the clip. Nobody waits."""
        with self._lock:
            if key in self._completing or list(self._completing.values()).count(host.host_id) >= COMPLETIONS:
                raise _Denied(503, "completing", "this clip is being put together; come again", RETRY_S)
            self._completing[key] = host.host_id
        try:
            yield
        finally:
            with self._lock:
                del self._completing[key]

    def _abort(self, ask: Ask, host: Host, key: str) -> Mapping[str, Any]:
        self._receiver.abort(key, _upload(ask))
        return {}

    def _look(self, ask: Ask, host: Host, key: str) -> Mapping[str, Any]:
        found = self._receiver.look(key)
        return {"found": None if found is None else dataclasses.asdict(found)}

    def _turn(self, ask: Ask, host: Host) -> Turn | None:
        if ask.kind != "clip":
            return None  # small, and few: the quota bounds them
        with self._lock:
            turn = self._admission.ask(host.host_id, ask.lane, self._now_s(), waiting=ask.waiting)
        if not turn.admitted:
            raise _Denied(429, "turn", "others are before you", turn.after_s)
        return turn

    def _charge(self, ask: Ask, host: Host, key: str, n_bytes: int) -> None:
        after_s = self._quota.charge(host, ask, key, n_bytes)
        if after_s is not None:
            what = f"camera {ask.camera_id}" if ask.kind in ("clip", "sidecar") else f"host {host.host_id}"
            raise _Denied(429, "quota", f"{what} has used up what it may send today", after_s)

    def _window_s(self) -> float:
        hosts = self._registry.hosts().values()
        return self._admission.window_s(sum(host.state == "enrolled" for host in hosts))

    def _now_s(self) -> float:
        return self._clock.mono_ns() / 1e9

    def _answer(self, status: int, document: Mapping[str, Any]) -> Answer:
        return Answer(status, {**document, "time_ns": self._clock.now_ns(), "epoch": self.epoch})

    def _store_failed(self, error: CamloopError) -> Answer:
        """Log the cause, which names paths and buckets: only the operator may know them."""
        _log.warning("store_failed", error=str(error))
        return self._refused(_Denied(503, "store", "the broker's store does not answer; try again later", RETRY_S))

    def _refused(self, denied: _Denied) -> Answer:
        document: dict[str, Any] = {"error": denied.error, "message": denied.message}
        if denied.after_s is not None:
            document["after_s"] = math.ceil(denied.after_s * 1000) / 1000
        return self._answer(denied.status, document)


def _upload(ask: Ask) -> str:
    if ask.upload is None:
        raise UsageError(f"{ask.verb} needs upload")
    return ask.upload


def _addressed(url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    return {"url": url, "headers": dict(headers)}


def _paced(turn: Turn | None) -> dict[str, Any]:
    return {} if turn is None else {"after_s": math.ceil(turn.after_s * 1000) / 1000}


def _listed(parts: list[Part]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(part) for part in parts]


def body_of(answer: Answer) -> bytes:
    """Return an answer's document as the JSON that is sent."""
    return json.dumps(answer.document, separators=(",", ":")).encode()
