"""The broker's web server: four addresses of the protocol, the PUTs of a folder store, and what cameras may fetch.

    GET /v1/hello   POST /v1/enroll   POST /v1/ask        serve/broker.py answers
    PUT /v1/objects/<grant>                               the bytes themselves, where the store is a folder
    GET /releases/<path>   GET /wanted/  /wanted/<name>   releases are signed (TUF) and wishes hold no secret: for anybody

Nobody is logged in here and no cookie is read: what is not signed by a host, or holds no grant, gets nothing. Plain HTTP keeps
no secrets: put it behind TLS where the network is not your own (infra/docs/guides/fleet.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from uvicorn.protocols.http.h11_impl import H11Protocol

from infra.errors import CamloopError, ObjectExists, ObjectMissing, StoreError, StoreForbidden, UsageError
from infra.log import Log
from infra.objects import Store
from infra.protocol import CHECKSUM_HEADER, MAX_ASK_BYTES, SIGNATURE_HEADER
from serve.broker import Answer, Broker, body_of
from serve.receiver import OBJECTS, FolderReceiver, Taken

_READABLE: Final = ("releases/", "wanted/")
STALL_S: Final = 60.0  # a PUT that brings no byte for so long is over
HEAD_S: Final = 10.0  # a line on which no request has come by then is closed
MAX_CONNECTIONS: Final = 4_096
BUSY_S: Final = 1.0  # how long the answer `busy` is held back
_PIECE_BYTES: Final = 1 << 20
_STATUS: Final[tuple[tuple[type[CamloopError], int], ...]] = (
    (Taken, 409), (StoreForbidden, 403), (ObjectExists, 412), (ObjectMissing, 404), (UsageError, 404), (StoreError, 503),
)  # fmt: skip
_SAID: Final = {
    403: "this address is not good for that, or no longer: ask the broker for another", 404: "no such object",
    409: "this very object is being sent already; wait for it", 412: "an object lies there: look",
}  # fmt: skip
_log = Log("serve.broker")


def make_app(broker: Broker, receiver: FolderReceiver | None, store: Store) -> FastAPI:
    """Return the web application.

    Args:
        broker: decides.
        receiver: takes the bytes where the store is a folder; None where they go to a bucket.
        store: releases and wishes are read from it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if receiver is not None:
            await run_in_threadpool(receiver.sweep)
        yield
        await run_in_threadpool(broker.save)

    app = FastAPI(title="camloop broker", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.get("/v1/hello")
    def hello() -> Response:
        return _sent(broker.hello())

    @app.post("/v1/enroll")
    async def enroll(request: Request) -> Response:
        return await _asked(request, broker.enroll)

    @app.post("/v1/ask")
    async def ask(request: Request) -> Response:
        return await _asked(request, broker.ask)

    @app.put(OBJECTS + "{grant}")
    async def put(grant: str, request: Request) -> Response:
        if receiver is None:
            return _refused(StoreForbidden("this broker's bytes go to a bucket"))
        return await _received(receiver, grant, request)

    @app.get("/wanted/")
    def wishes() -> Response:
        try:
            names = [stat.key.removeprefix("wanted/") for stat in store.list("wanted/") if stat.key.endswith(".json")]
        except CamloopError as error:
            return _refused(error)
        return JSONResponse({"wanted": names})

    @app.get("/{folder}/{path:path}")
    def readable(folder: str, path: str) -> Response:
        key = f"{folder}/{path}"
        try:
            found = store.head(key) if key.startswith(_READABLE) else None
        except CamloopError as error:
            return _refused(error)
        if found is None:
            return _refused(ObjectMissing("no such object"))
        headers = {"content-length": str(found.n_bytes)}
        return StreamingResponse(_pieces(store, key, found.n_bytes), media_type="application/octet-stream", headers=headers)

    return app


async def _asked(request: Request, answer: Callable[[bytes, str], Answer]) -> Response:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_ASK_BYTES:
            return JSONResponse({"error": "too_large", "message": f"a request has at most {MAX_ASK_BYTES} bytes"}, 413)
    made = await run_in_threadpool(answer, bytes(body), request.headers.get(SIGNATURE_HEADER, ""))
    if made.document.get("error") == "busy":  # who asks without end waits for each answer, and others do not notice
        await asyncio.sleep(BUSY_S)
    return _sent(made)


async def _received(receiver: FolderReceiver, grant: str, request: Request) -> Response:
    length = request.headers.get("content-length", "")
    incoming = None
    try:
        incoming = receiver.begin(grant, int(length) if length.isascii() and length.isdigit() else None)
        async with asyncio.timeout(STALL_S) as limit:
            async for piece in request.stream():
                incoming.write(piece)
                limit.reschedule(asyncio.get_running_loop().time() + STALL_S)
        await run_in_threadpool(incoming.finish)
        return Response(status_code=200, headers={CHECKSUM_HEADER: incoming.checksum})
    except TimeoutError:
        return JSONResponse({"error": "stalled", "message": f"no byte for {STALL_S:g} s"}, 408, {"connection": "close"})
    except CamloopError as error:
        return _refused(error)
    finally:  # also when the line is cut in the middle
        if incoming is not None:
            incoming.abandon()


def _pieces(store: Store, key: str, n_bytes: int) -> Iterator[bytes]:
    for start in range(0, n_bytes, _PIECE_BYTES):
        yield store.get_range(key, start, min(start + _PIECE_BYTES, n_bytes))


def _sent(answer: Answer) -> Response:
    headers = {}
    if answer.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(answer.retry_after_s))
    return Response(body_of(answer), answer.status, headers, "application/json")


def _refused(error: CamloopError) -> Response:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    log = _log.warning if status >= 500 else _log.info
    log("put_refused", status=status, error=str(error))  # which names paths and buckets: only the operator may know them
    return JSONResponse({"error": type(error).__name__, "message": _SAID.get(status, "try again later")}, status)


class _Line(H11Protocol):
    """A connection that is closed when no request comes on it: uvicorn alone would keep it, and count it, for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD_S, self._watch, self)

    def _watch(self, silent_after: object) -> None:
        """Close what has waited since the last look for the request after the same one, or for the first."""
        if self.transport.is_closing():
            return
        under_way = self.cycle is not None and not self.cycle.response_complete
        now = None if under_way else (self.cycle or self)
        if now is not None and now is silent_after:
            self.transport.close()
        else:
            self.loop.call_later(HEAD_S, self._watch, now)


def _most_connections() -> int:
    """Return how many lines may be open: half of what the process may have of files, which each clip needs as well."""
    return min(MAX_CONNECTIONS, max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def make_server(app: FastAPI, host: str, port: int, *, tls: tuple[str, str] | None = None) -> uvicorn.Server:
    """Return a server for the app, not yet running; `tls` are the files of certificate and key."""
    files: dict[str, Any] = {} if tls is None else {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]}
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False, http=_Line,
        limit_concurrency=_most_connections(), timeout_keep_alive=15, h11_max_incomplete_event_size=MAX_ASK_BYTES, **files,
    )  # fmt: skip
    return uvicorn.Server(config)
