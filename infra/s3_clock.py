"""Signing with the server's time when this machine's clock is wrong, and waiting as long as the server asks.

A request whose date is more than 15 minutes off is answered 403 `RequestTimeTooSkewed`, for ever: boto3 does not correct it
(boto3 #1252), and a camera host without a battery wakes up in 1970. The answer itself carries the server's `Date`: it is
remembered against the *monotonic* clock, the request is signed anew and sent again, and so are all that follow, also after
somebody has set this machine's clock. `offset_s` says how far the clock is off, for the host's health report.
A server that lies about the time can only make its own signatures invalid.

The hooks are botocore's own events, on one client: nothing of botocore is replaced.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.auth import AUTH_TYPE_MAPS, SIGV4_TIMESTAMP, S3SigV4Auth, S3SigV4QueryAuth

from infra.clock import Clock
from infra.log import Log
from infra.s3_errors import BUSY, retry_after_s

SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
TOLERATED_S = 240.0  # a 403 without a code (HEAD has no body) is about time only where the clocks differ by more than this
LONGEST_WAIT_S = 30.0  # inside one request; a longer Retry-After is for the caller, who may do something else meanwhile
EXPECT_ABOVE_BYTES = 1 << 20  # a smaller body, or a part, is sent at once: to wait for `100 Continue` is a round trip
_SIGNERS = {"s3v4": "camloop-s3v4", "s3v4-query": "camloop-s3v4-query"}
_NOW = "camloop_now"
_log = Log("infra.s3")


class ServerClock:
    """The store's time, as far as a refusal made us ask for it; this machine's own until then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._learned: tuple[int, int] | None = None  # the server's UTC, our monotonic time then (ns)
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        """Return the UTC nanoseconds to sign with."""
        with self._lock:
            if self._learned is None:
                return self._clock.now_ns()
            server_ns, mono_ns = self._learned
            return server_ns + self._clock.mono_ns() - mono_ns

    def offset_s(self) -> float | None:
        """Return server minus machine in seconds, None while no server had to correct us."""
        return None if self._learned is None else (self.now_ns() - self._clock.now_ns()) / 1e9

    def learn(self, date: str) -> bool:
        """Take the server's time from a Date header; False when it is none, or says nothing new."""
        try:
            server_ns = int(parsedate_to_datetime(date).timestamp() * 1e9)
        except (TypeError, ValueError, OverflowError):
            return False
        if abs(server_ns - self.now_ns()) < TOLERATED_S * 1e9:
            return False
        with self._lock:
            self._learned = (server_ns, self._clock.mono_ns())
        _log.warning("clock_wrong", offset_s=round(self.offset_s() or 0.0), remedy="requests are signed with the store's time")
        return True

    def attach(self, client: Any) -> None:
        """Sign all requests of a boto3 client with this clock; repeat what was refused for its date, or asked to come later."""
        AUTH_TYPE_MAPS.update({"camloop-s3v4": _TimedAuth, "camloop-s3v4-query": _TimedQueryAuth})
        events = client.meta.events
        events.register("choose-signer.s3", _choose)
        events.register("before-sign.s3", self._stamp)
        events.register("before-call.s3", _expect_only_for_big_bodies)
        events.register_first("needs-retry.s3", self._judge)

    def _stamp(self, request: Any, **_: object) -> None:
        request.context[_NOW] = datetime.fromtimestamp(self.now_ns() / 1e9, UTC).strftime(SIGV4_TIMESTAMP)

    def _judge(self, response: Any, attempts: int, **_: object) -> float | None:
        """Return a wait in seconds before the request is repeated; None leaves it to botocore."""
        if response is None or attempts > 3:
            return None
        http, parsed = response
        code = str(parsed.get("Error", {}).get("Code", ""))
        if http.status_code in (400, 403) and (code in SKEWED or code == "403"):
            return 0.0 if self.learn(http.headers.get("date", "")) else None
        wait_s = retry_after_s(http.headers) if http.status_code in BUSY else None
        return wait_s if wait_s is not None and wait_s <= LONGEST_WAIT_S else None


def _choose(signature_version: str, **_: object) -> str | None:
    return _SIGNERS.get(signature_version)


def _expect_only_for_big_bodies(params: dict[str, Any], model: Any, **_: object) -> None:
    body = params["body"]
    if model.name == "UploadPart" or (hasattr(body, "__len__") and len(body) <= EXPECT_ABOVE_BYTES):
        params["headers"].pop("Expect", None)


class _TimedAuth(S3SigV4Auth):  # type: ignore[misc]
    """Signature 4 with the store's time; a body that knows its SHA-256 is signed with it, over TLS too, and not read again."""

    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = request.context[_NOW]
        super()._modify_request_before_signing(request)

    def payload(self, request: Any) -> str:
        return str(getattr(request.body, "sha256", "") or super().payload(request))


class _TimedQueryAuth(S3SigV4QueryAuth):  # type: ignore[misc]
    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = request.context[_NOW]
        super()._modify_request_before_signing(request)
