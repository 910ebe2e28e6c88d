"""A store as a camera host sees it through a broker: it can put what is not there yet, and look. Nothing else exists for it.

    identity = open_identity(folder, host_id)                    # under the name that `enroll` gave it (ingest/broker_wire.py)
    store = open_broker_store("https://broker.example", identity, clock)
    with store.lane("fresh", waiting=0): store.put_file_if_absent(key, path, sha256=...)

For each object: a signed request -> an address that is good for this object alone -> the bytes go there. A large file goes in
parts; the broker says which ones the store has, so that after any cut only the missing ones are sent, without a note on this
machine. A refused or lost answer means look. Requests are signed with the broker's time against the monotonic clock, so this
machine's date does not matter. Waiting for a turn happens here (`ingest/pace.py`), up to `PATIENCE_S`; then `StoreBusy`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.clock import Clock, SystemClock
from infra.errors import ObjectExists, ObjectMissing, QuotaSpent, StoreBusy, StoreError, StoreForbidden, UsageError
from infra.identity import Identity
from infra.objects import Capabilities, ResumeLog, Stat, Unfinished, UploadNote, check_readable, part_bytes_for
from infra.protocol import Ask, Lane, Look, Part, n_parts, named_by, part_span
from infra.s3_parts import Body
from ingest.broker_wire import Put, Wire, address_of, said, understood
from ingest.pace import LONGEST_TURN_S, Pace

MULTIPART_BYTES: Final = 16 << 20  # larger files go in parts
PATIENCE_S: Final = 900.0  # how long one clip waits for its turn before the caller hears of it
_ASK_TRIES: Final = 4
_PART_TRIES: Final = 4
_FRESH_STATES: Final = frozenset({"stale", "replayed"})


def open_broker_store(url: str, identity: Identity, clock: Clock | None = None, *, pace: Pace | None = None) -> BrokerStore:
    """Return the store behind the broker at `url`; nothing is reached yet.

    Args:
        url: https://host, or http://host on a network of your own.
        identity: this host, under the name that `enroll` returned.
        clock: for waiting and for sequence numbers.
        pace: this host's patience; without it the first request goes out at once.

    Raises:
        SettingsError: `url` is not such an address.
    """
    clock = clock or SystemClock()
    return BrokerStore(url, identity, clock, pace or Pace(clock.mono_ns() / 1e9, window_s=0.0))


class BrokerStore:
    """`infra.objects.Destination` through a broker; safe to share between threads. See the module's docstring."""

    def __init__(self, url: str, identity: Identity, clock: Clock, pace: Pace) -> None:
        self._wire = Wire(url)
        self.url = url.rstrip("/")
        self.pace = pace
        self._identity = identity
        self._clock = clock
        self._lock = threading.Lock()
        self._told: tuple[str, int, int] | None = None  # the broker's epoch, its UTC, our monotonic time then (ns)
        self._sequence = 0
        self._capabilities: Capabilities | None = None
        self._lane = threading.local()

    @property
    def clock_offset_s(self) -> float | None:
        """Broker's UTC minus this machine's, None before the first answer."""
        return None if self._told is None else (self._server_ns() - self._clock.now_ns()) / 1e9

    @contextlib.contextmanager
    def lane(self, lane: Lane, *, waiting: int = 0) -> Iterator[None]:
        """Say what this thread sends inside the `with`: clips made just now, or clips that waited; and how many more wait."""
        before = getattr(self._lane, "now", ("backlog", 1))
        self._lane.now = (lane, waiting)
        try:
            yield
        finally:
            self._lane.now = before

    def capabilities(self) -> Capabilities:
        """Return what the broker found its store to do."""
        if self._capabilities is None:
            self._hello()
        assert self._capabilities is not None
        return self._capabilities

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        sha256 = hashlib.sha256(data).hexdigest()
        return self._put(key, len(data), sha256, lambda: contextlib.nullcontext(data))

    def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
        if not path.is_file():
            raise StoreError(f"{path}: no such file to store")
        n_bytes = path.stat().st_size
        with path.open("rb") as file:
            if (found := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
                raise StoreError(f"{path}: its bytes hash to {found}, not {sha256}; nothing was stored")
        with contextlib.ExitStack() as lane:
            if resume is not None:
                lane.enter_context(self.lane("fresh" if resume.is_fresh else "backlog", waiting=resume.n_waiting))
            if n_bytes > MULTIPART_BYTES:
                return self._put_parts(key, path, n_bytes, sha256, resume)
            on_bytes = None if resume is None else resume.on_bytes
            made = self._put(key, n_bytes, sha256, lambda: Body(path, 0, n_bytes, sha256, on_bytes))
            _stored(resume, n_bytes)
            return made

    def holds_file(self, key: str, path: Path, *, sha256: str) -> bool:
        look = self._look(key)
        with understood(self.url):
            return look is not None and _is_file(look, path, sha256)

    def head(self, key: str) -> Stat | None:
        """Return size and version of one of this host's own objects, None if there is none."""
        look = self._look(key)
        return None if look is None else Stat(key, look.n_bytes, look.etag, 0)

    def get(self, key: str) -> bytes:
        """Return a wish or a piece of a release: all that a broker lets a host read."""
        check_readable(key)
        self._wait(None, self._now_s())
        status, data = self._wire.fetch("GET", key)
        if status == 404:
            raise ObjectMissing(f"no object {key!r} behind {self.url}, or none that a camera host may read")
        if status != 200:
            raise StoreError(f"broker {self.url}: {key!r}: answered {status}")
        return data

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """Yield the wishes; nothing else can be listed."""
        if prefix != "wanted/":
            raise StoreForbidden(f"broker {self.url}: a camera host may not list {prefix!r}; legal: wanted/")
        self._wait(None, self._now_s())
        status, document = self._wire.get("wanted/")
        if status != 200:
            raise StoreError(f"broker {self.url}: wanted/: {said(document)}")
        with understood(self.url):
            names = [str(name) for name in document["wanted"]]
        for name in names:
            yield Stat(f"wanted/{name}", 0, "", 0)

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """Yield nothing: the broker finds what was begun by its key and goes on with it."""
        return iter(())

    def abandon(self, key: str, upload_id: str) -> None:
        """Give up an object of parts."""
        self._ask("abort", key, upload=upload_id)

    def _put(self, key: str, n_bytes: int, sha256: str, body: Any) -> Stat:
        for _ in range(2):
            url, headers = self._addressed("put", key, n_bytes=n_bytes, sha256=sha256)
            with body() as sending:
                put = self._wire.put(url, headers, sending)
            if put.status == 200 and put.is_a_stores:
                proves = self.capabilities().checksum_verified
                if proves and not put.proves(sha256) and self._look(key) is None:
                    break  # that was not the store
                checked = "sha256" if proves and put.proves(sha256) else ""
                return Stat(key, n_bytes, "", self._server_ns(), checked)
            if put.status == 412:
                raise ObjectExists(f"object {key!r} exists behind {self.url}")
            if put.status != 403:  # 403: the address has expired meanwhile, or the broker was started again
                break
        raise StoreError(f"broker {self.url}: {key!r}: {_odd(put)}; try again later")

    def _put_parts(self, key: str, path: Path, n_bytes: int, sha256: str, resume: ResumeLog | None) -> Stat:
        whole = {"n_bytes": n_bytes, "sha256": sha256}
        upload, have = self._created(key, whole)
        if any(number > n_parts(n_bytes) for number in have):  # never to be completed
            self.abandon(key, upload)
            upload, have = self._created(key, whole)
        size = part_bytes_for(n_bytes)
        note = UploadNote(
            url=self.url, key=key, upload_id=upload, token="", sha256=sha256, n_bytes=n_bytes, part_bytes=size
        )  # fmt: skip
        if resume is not None and resume.load() != note:  # so that it can be given up; what has arrived the broker says
            resume.save(note)
        for number in range(1, n_parts(n_bytes) + 1):
            start, stop = part_span(n_bytes, number)
            digest = _digests(path, start, stop)
            if number in have and _is_part(have[number], stop - start, digest):
                continue
            self._send_part(key, path, upload, number, digest, whole, resume)
        self._ask("complete", key, upload=upload, **whole)
        if resume is not None:
            resume.clear()
        return Stat(key, n_bytes, "", self._server_ns())

    def _created(self, key: str, whole: Mapping[str, Any]) -> tuple[str, dict[int, Part]]:
        answer = self._ask("create", key, **whole)
        with understood(self.url):
            return str(answer["upload"]), {part.number: part for part in _parts(answer)}

    def _addressed(self, verb: str, key: str, **more: Any) -> tuple[str, dict[str, str]]:
        answer = self._ask(verb, key, **more)
        with understood(self.url):
            return address_of(answer)

    def _send_part(
        self, key: str, path: Path, upload: str, number: int, digest: _Digests, whole: Mapping[str, Any],
        resume: ResumeLog | None,
    ) -> None:  # fmt: skip
        start, stop = part_span(whole["n_bytes"], number)
        for attempt in range(1, _PART_TRIES + 1):
            url, headers = self._addressed("part", key, upload=upload, part=number, part_sha256=digest.sha256, **whole)
            try:
                with Body(path, start, stop - start, digest.sha256, None if resume is None else resume.on_bytes) as body:
                    put = self._wire.put(url, headers, body)
                if put.status == 200 and put.is_a_stores:
                    if resume is not None:
                        resume.stored(stop - start)
                    return
                error = StoreError(f"broker {self.url}: part {number} of {key!r}: {_odd(put)}")
            except StoreError as lost:
                error = lost
            if attempt == _PART_TRIES:
                raise error
            self._clock.sleep_s(self.pace.failed(self._now_s()))

    def _look(self, key: str) -> Look | None:
        answer = self._ask("look", key)
        with understood(self.url):
            found = answer["found"]
            return None if found is None else Look(int(found["n_bytes"]), found["checksum"], str(found["etag"]))

    def _ask(self, verb: str, key: str, **more: Any) -> dict[str, Any]:
        """Ask until the broker answers what was asked; wait for a turn; sign again where it says so."""
        named = named_by(key, self._identity.host_id) | more | {"verb": verb}
        lane: Lane | None = None
        if named["kind"] == "clip" and verb in ("put", "create"):
            lane, waiting = getattr(self._lane, "now", ("backlog", 1))
            named |= {"lane": lane, "waiting": waiting}
        began_s = self._now_s()
        signed = 0
        while True:
            self._wait(lane, began_s)
            if self._told is None:
                self._hello()
            body = self._signed(named)
            try:
                status, answer = self._wire.post("/v1/ask", body, self._identity.sign_request(body))
            except StoreError:
                self.pace.failed(self._now_s())
                raise
            self._heard(status, answer)
            if status == 200:
                if lane is not None:
                    self.pace.told(self._now_s(), self._after_s(answer, 0.0), lane)
                return answer
            error = answer.get("error")
            if error == "quota":  # one camera's: the host's others do not wait for it
                raise QuotaSpent(f"broker {self.url}: {said(answer)}", self._after_s(answer, LONGEST_TURN_S))
            if status == 429:
                self.pace.told(self._now_s(), self._after_s(answer, 1.0), lane)
                continue
            signed += 1
            if error in _FRESH_STATES and signed < _ASK_TRIES:
                continue
            raise self._refusal(status, key, answer)

    def _after_s(self, answer: Mapping[str, Any], otherwise: float) -> float:
        with understood(self.url):
            return float(answer.get("after_s", otherwise))

    def _refusal(self, status: int, key: str, answer: Mapping[str, Any]) -> StoreError | UsageError:
        message = f"broker {self.url}: {key!r}: {said(answer)}"
        if status == 409:
            return ObjectExists(message)
        if status == 404:
            return ObjectMissing(message)
        if status in (401, 403, 413):
            return StoreForbidden(message)
        if status >= 500:
            self.pace.failed(self._now_s())
            return StoreBusy(message, self.pace.due_s(self._now_s()))
        return StoreError(message)

    def _wait(self, lane: Lane | None, began_s: float) -> None:
        due_s = self.pace.due_s(self._now_s(), lane)
        if due_s <= 0:
            return
        if self._now_s() - began_s + due_s > PATIENCE_S:
            raise StoreBusy(f"broker {self.url}: it is this host's turn in {due_s:.0f} s", due_s)
        self._clock.sleep_s(due_s)

    def _hello(self) -> None:
        self._wait(None, self._now_s())
        try:
            status, answer = self._wire.get("/v1/hello")
        except StoreError:
            self.pace.failed(self._now_s())
            raise
        self._heard(status, answer)
        if status != 200:
            self.pace.failed(self._now_s())
            raise StoreBusy(f"broker {self.url}: {said(answer)}", self.pace.due_s(self._now_s()))
        with understood(self.url):
            self._capabilities = Capabilities(**answer["capabilities"])
            self.pace.answered(float(answer["window_s"]))

    def _heard(self, status: int, answer: Mapping[str, Any]) -> None:
        epoch, time_ns = answer.get("epoch"), answer.get("time_ns")
        if not isinstance(epoch, str) or not isinstance(time_ns, int):
            raise StoreError(f"broker {self.url}: an answer without time and epoch; is it a camloop broker?")
        with self._lock:
            self._told = (epoch, time_ns, self._clock.mono_ns())
        if status < 500:
            self.pace.answered()

    def _signed(self, named: Mapping[str, Any]) -> bytes:
        assert self._told is not None
        with self._lock:
            self._sequence = max(self._sequence + 1, self._server_ns())
            return Ask(host_id=self._identity.host_id, epoch=self._told[0], sequence=self._sequence, **named).to_bytes()

    def _server_ns(self) -> int:
        assert self._told is not None
        return self._told[1] + self._clock.mono_ns() - self._told[2]

    def _now_s(self) -> float:
        return self._clock.mono_ns() / 1e9


def _odd(put: Put) -> str:
    """Say what was wrong with an answer to a PUT."""
    if put.status == 200:
        return "answered 200, but not as a store does; is there a login page between this host and it?"
    return f"its store answered {put.status}"


def _stored(resume: ResumeLog | None, n_bytes: int) -> None:
    if resume is not None and resume.on_stored is not None:
        resume.on_stored(n_bytes)


@dataclass(frozen=True, slots=True)
class _Digests:
    sha256: str
    md5: str


def _digests(path: Path, start: int, stop: int) -> _Digests:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        file.seek(start)
        while start < stop and (piece := file.read(min(1 << 20, stop - start))):
            sha256.update(piece)
            md5.update(piece)
            start += len(piece)
    return _Digests(sha256.hexdigest(), md5.hexdigest())


def _is_part(part: Part, n_bytes: int, digest: _Digests) -> bool:
    if part.n_bytes != n_bytes:
        return False
    return part.sha256 == digest.sha256 if part.sha256 else part.etag == digest.md5


def _is_file(look: Look, path: Path, sha256: str) -> bool:
    """Compare by the strongest that the store told: full SHA-256, that of the parts, MD5, MD5 of the parts'."""
    n_bytes = path.stat().st_size
    if look.n_bytes != n_bytes:
        return False
    told = look.checksum or look.etag
    whole, _, parts = told.partition("-")
    if not parts:
        if look.checksum:
            return whole == base64.b64encode(bytes.fromhex(sha256)).decode()
        return whole == _digests(path, 0, n_bytes).md5
    if int(parts) != n_parts(n_bytes):
        return False
    each = [_digests(path, *part_span(n_bytes, number)) for number in range(1, n_parts(n_bytes) + 1)]
    if look.checksum:
        joined = hashlib.sha256(b"".join(bytes.fromhex(digest.sha256) for digest in each)).digest()
        return whole == base64.b64encode(joined).decode()
    return whole == hashlib.md5(b"".join(bytes.fromhex(digest.md5) for digest in each), usedforsecurity=False).hexdigest()


def _parts(answer: Mapping[str, Any]) -> list[Part]:
    return [Part(int(row["number"]), int(row["n_bytes"]), str(row["etag"]), row["sha256"]) for row in answer["parts"]]
