"""The one connection of an RTSP stream: FFmpeg talks to this machine, and this connects to the number that was judged.

    FFmpeg  <->  127.0.0.1:port (one connection is taken)  Relay (a thread)  <->  the camera, TLS where it is rtsps

Three things FFmpeg does not do by itself, and all three follow from owning the connection:
- it goes nowhere else: an answer 3xx (a redirect, which FFmpeg would follow) ends the connection; media come interleaved in
  it (TCP), so no other socket is ever opened;
- it ends: FFmpeg hangs for ever on a server that froze. When no byte came for `stall_s`, or when `cut` is called, both ends
  are closed and FFmpeg's reader returns;
- it knows when the first picture's first byte arrived (`first_media_ns`), however long FFmpeg looks at the stream first.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Final

from infra.errors import DeviceError
from ingest.address import Address

_PIECE_BYTES: Final = 256 << 10
_MAX_HEAD_BYTES: Final = 64 << 10
_BATCH_S: Final = 0.01  # bytes of so long go on together: a camera sends hundreds of small packets a second


class Relay:
    """A thread that carries one RTSP connection; `port` is where FFmpeg finds it.

    Args:
        address: where to connect.
        stall_s: seconds without a byte from the camera after which the connection ends.
        answer_s: the same until media flow; None: as long.
        verify_tls: whether an rtsps camera must show a certificate for its name that this machine trusts.

    Raises:
        DeviceError: the camera does not answer at its port.
    """

    def __init__(
        self, address: Address, *, stall_s: float, answer_s: float | None = None, verify_tls: bool = True
    ) -> None:
        self._address, self._stall_s, self._answer_s = address, stall_s, answer_s or stall_s
        self.problem: str | None = None
        self.first_media_ns: int | None = None
        self._camera = self._connected(verify_tls)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self.port: int = self._listener.getsockname()[1]
        self._watch = _Watch()
        self._cut = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"relay {address.host}", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """End the connection; FFmpeg's reader returns. May be called at any time, from any thread, and again."""
        self._cut.set()
        for end in (self._camera, self._listener):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)

    def _connected(self, verify_tls: bool) -> socket.socket:
        address = self._address
        try:
            camera = socket.create_connection((address.ip, address.port), timeout=self._answer_s)
            if address.scheme == "rtsps":
                context = ssl.create_default_context()
                if not verify_tls:
                    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                camera = context.wrap_socket(camera, server_hostname=address.host)
        except ssl.SSLCertVerificationError as error:
            remedy = "let this machine trust it, or set options = {verify_tls = false} in a network of your own"
            reason = f"certificate verify failed ({error.verify_message})"
            raise DeviceError(f"camera {address.shown}: {reason}; {remedy}") from error
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise DeviceError(f"camera {address.shown}: {reason}; is it on, are address and port right?") from error
        return camera

    def _run(self) -> None:
        client: socket.socket | None = None
        try:
            self._listener.settimeout(self._answer_s)
            client, _ = self._listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.settimeout(self._stall_s)
            self._carry(client)
        except (OSError, ValueError) as error:
            self.problem = self.problem or (None if self._cut.is_set() else str(error) or type(error).__name__)
        finally:
            for end in (client, self._camera, self._listener):
                if end is not None:
                    end.close()

    def _carry(self, client: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._camera, selectors.EVENT_READ)
            selector.register(client, selectors.EVENT_READ)
            heard_s = time.monotonic()
            while not self._cut.is_set():
                silence_s = self._answer_s if self.first_media_ns is None else self._stall_s
                ready = [key.fileobj for key, _ in selector.select(max(0.0, heard_s + silence_s - time.monotonic()))]
                if client in ready:
                    asked = client.recv(_PIECE_BYTES)
                    if not asked:
                        return
                    self._camera.sendall(asked)
                    if b"PLAY " in asked:
                        heard_s = time.monotonic()
                if self._camera in ready:
                    data = self._received()
                    if data is None:
                        continue
                    if not data:
                        self.problem = None if self._cut.is_set() else "the camera ended the connection"
                        return
                    heard_s = time.monotonic()
                    self._check(data)
                    client.sendall(data)
                    if self.first_media_ns is not None:
                        time.sleep(_BATCH_S)
                elif time.monotonic() - heard_s >= silence_s:
                    self.problem = f"nothing came for {silence_s:g} s"
                    return

    def _received(self) -> bytes | None:
        """Return what came, empty at the end of the connection, None when it was only a matter of TLS itself."""
        if not isinstance(self._camera, ssl.SSLSocket):
            return self._camera.recv(_PIECE_BYTES)
        self._camera.settimeout(0)
        try:
            data = self._camera.recv(_PIECE_BYTES)
            while self._camera.pending():
                data += self._camera.recv(_PIECE_BYTES)
            return data
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        finally:
            self._camera.settimeout(self._stall_s)

    def _check(self, data: bytes) -> None:
        """Look at the answers until media flow: from then on FFmpeg follows nothing."""
        if self.first_media_ns is not None:
            return
        self._watch.feed(data)
        if self._watch.status is not None and 300 <= self._watch.status < 400:
            self.problem = f"it answers {self._watch.status}, which would lead elsewhere; give the address that it means"
            raise ValueError(self.problem)
        if self._watch.is_media:
            self.first_media_ns = time.monotonic_ns()


class _Watch:
    """Reads RTSP answers (RFC 2326) off a stream until its first interleaved packet; bytes in, status of the worst answer."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.is_media = False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what came.

        Raises:
            ValueError: it is no RTSP.
        """
        self._rest += data
        while self._rest and not self.is_media:
            if self._rest[:1] == b"$":
                self.is_media = True
                return
            head, found, body = self._rest.partition(b"\r\n\r\n")
            if not found:
                if len(self._rest) > _MAX_HEAD_BYTES or not self._rest[:1].isalpha():
                    raise ValueError("what answers there does not speak RTSP")
                return
            lines = head.decode("latin-1").split("\r\n")
            if lines[0].startswith("RTSP/"):
                status = lines[0].split(" ")[1:2]
                self.status = int(status[0]) if status and status[0].isdigit() else None
                if self.status is not None and 300 <= self.status < 400:
                    return
            fields = (line.partition(":") for line in lines[1:])
            lengths = [value.strip() for name, _, value in fields if name.strip().lower() == "content-length"]
            n_bytes = int(lengths[0]) if lengths and lengths[0].isdigit() else 0
            if len(body) < n_bytes:
                if n_bytes > _PIECE_BYTES:
                    raise ValueError(f"it announces {n_bytes} bytes of description")
                return
            self._rest = body[n_bytes:]
