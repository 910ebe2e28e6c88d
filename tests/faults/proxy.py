"""A proxy between a client and an HTTP server that loses answers: the request is carried out, then the line is cut.

It runs on a thread of the test and answers `Expect: 100-continue` itself, which boto3 sends with every put.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate

_EXPECT = re.compile(rb"(?i)\r\nexpect: *100-continue")


@dataclass
class Proxy:
    """A running proxy. `cut(request_line)` says whether the answer to this successful request is lost.

    `mutate(head)` may change the head of a request before it is sent on, for example strip a condition.
    `alter(head, body)` may change its body, `spoil(line, reply, body)` the server's answer; an answer that ends before its
    promised length is cut there.
    `refuse(head)` may answer in the server's place with (status, S3 error code), with
    `refusal_headers` beside the date.
    """

    upstream_port: int
    cut: Callable[[str], bool] = lambda line: False
    mutate: Callable[[bytes], bytes] = lambda head: head
    refuse: Callable[[bytes], tuple[int, str] | None] = lambda head: None
    alter: Callable[[bytes, bytes], bytes] = lambda head, body: body
    spoil: Callable[[str, bytes, bytes], tuple[bytes, bytes]] = lambda line, reply, body: (reply, body)
    port: int = 0
    lost: list[str] = field(default_factory=list)
    refusal_headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"http://127.0.0.1:{self.port}"

    async def _handle(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        server_writer = None
        try:
            server, server_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=1 << 24)
            while True:
                head = await client.readuntil(b"\r\n\r\n")
                if _EXPECT.search(head):
                    answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    await answer.drain()
                    head = _EXPECT.sub(b"", head)
                line = head.split(b"\r\n")[0].decode()
                payload = await _body(client, head)
                if refused := self.refuse(head):
                    answer.write(_refusal(*refused, self.refusal_headers, empty=line.startswith("HEAD")))
                    await answer.drain()
                    continue
                server_writer.write(self.mutate(head) + self.alter(head, payload))
                await server_writer.drain()
                reply = await server.readuntil(b"\r\n\r\n")
                body = b"" if line.startswith("HEAD") else await _body(server, reply)
                if b" 200" in reply.split(b"\r\n")[0] and self.cut(line):
                    self.lost.append(line)
                    answer.transport.abort()
                    return
                reply, spoiled = self.spoil(line, reply, body)
                answer.write(reply + spoiled)
                await answer.drain()
                if len(spoiled) < len(body):
                    answer.transport.close()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            answer.close()
            if server_writer is not None:
                server_writer.close()


def _refusal(status: int, code: str, headers: dict[str, str], *, empty: bool) -> bytes:
    body = b"" if empty else f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>".encode()
    said = {"Content-Type": "application/xml", "Date": formatdate(usegmt=True), "Content-Length": str(len(body))} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    return f"HTTP/1.1 {status} Refused\r\n{lines}\r\n".encode() + body


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if re.search(rb"(?i)transfer-encoding: *chunked", head):
        body = b""
        while True:
            size = await reader.readuntil(b"\r\n")
            n_bytes = int(size.strip().split(b";")[0], 16)
            body += size + await reader.readexactly(n_bytes + 2)
            if n_bytes == 0:
                return body
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return await reader.readexactly(int(length[1])) if length else b""


@contextlib.contextmanager
def proxy(upstream_port: int) -> Iterator[Proxy]:
    """Run a proxy in front of 127.0.0.1:`upstream_port` for the length of the `with`; it passes everything until told."""
    made = Proxy(upstream_port)
    loop = asyncio.new_event_loop()
    listening = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(made._handle, "127.0.0.1", 0, limit=1 << 24)
        made.port = server.sockets[0].getsockname()[1]
        listening.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    listening.wait(10)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
