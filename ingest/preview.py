"""What a person who sets up a camera needs to see: rate, exposure, focus; and the picture itself, on a page.

`Meter` reads frames and says the figures in one line. `LivePage` shows the newest picture to a browser as MJPEG, for a host
without a screen: standard library only, loopback unless told otherwise, a picture is encoded only while somebody looks,
and nobody who looks slowly holds anything up: each viewer gets the newest picture, not the next one.

Neither opens a camera or hides anything: whoever calls them has put privacy before them.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from infra.errors import UsageError
from ingest.source import SourceFrame

if TYPE_CHECKING:
    from infra.images import ImageEncoder
    from infra.picture import Rgb

WINDOW_NS = 2_000_000_000  # over which the rate is said
FOCUS_WIDTH_PX = 640  # where focus is measured: on a smaller picture every lens is sharp, on a larger one noise is edges
PAGE_WIDTH_PX = 960
MAX_VIEWERS = 8
SEND_TIMEOUT_S = 10.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_BOUNDARY = "frame"
_STYLE = "body{margin:0;background:#111;color:#eee;font:15px system-ui}img{width:100%;max-height:90vh;object-fit:contain}"
_POLICY = "default-src 'none'; img-src 'self'; frame-src 'self'; frame-ancestors 'self'; style-src 'unsafe-inline'"


def focus_of(rgb: Rgb) -> float:
    """Return how sharp a picture is: the variance of the Laplacian of its luma, 0 upwards; compare within one scene only.

    Args:
        rgb: uint8 (H, W, 3) RGB, 3 pixels or more each way.
    """
    import numpy as np

    luma = rgb.astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], np.float32)  # BT.601
    middle = luma[1:-1, 1:-1]
    edges = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(edges.var())


@dataclass(slots=True)
class Meter:
    """The figures of a camera that is being set up.

    Attributes:
        n_frames, n_dropped: since the beginning.
        focus, best_focus: of the newest measured picture, and the best so far: turn the lens until they are equal again.
        focus_by: `camera` (its own figure of merit, FocusFoM) or `laplacian` (ours).
        controls: what the newest picture was taken with.
    """

    n_frames: int = 0
    n_dropped: int = 0
    focus: float | None = None
    best_focus: float = 0.0
    focus_by: str = "laplacian"
    size_px: tuple[int, int] = (0, 0)
    controls: Mapping[str, float] = field(default_factory=dict)
    _recent: deque[int] = field(default_factory=deque)
    _number: int | None = None

    def see(self, frame: SourceFrame) -> None:
        """Count a frame; cheap."""
        if self._number is not None:
            self.n_dropped += max(0, frame.frame_number - self._number - 1)
        self._number, self.n_frames, self.controls = frame.frame_number, self.n_frames + 1, frame.controls
        self.size_px = (frame.rgb.shape[1], frame.rgb.shape[0])
        self._recent.append(frame.sensor_ns)
        while self._recent[0] < frame.sensor_ns - WINDOW_NS:
            self._recent.popleft()

    def measure(self, frame: SourceFrame) -> None:
        """Measure how sharp a frame is; a millisecond or two, so not for every one."""
        if "focus" in frame.controls:
            self.focus, self.focus_by = frame.controls["focus"], "camera"
        else:
            self.focus, self.focus_by = focus_of(_at_most(frame.rgb, FOCUS_WIDTH_PX)), "laplacian"
        self.best_focus = max(self.best_focus, self.focus)

    @property
    def fps(self) -> float | None:
        """Frames a second over the last two seconds of sensor time; None before the second frame."""
        span_ns = self._recent[-1] - self._recent[0] if len(self._recent) > 1 else 0
        return (len(self._recent) - 1) / span_ns * 1e9 if span_ns else None

    def document(self) -> dict[str, object]:
        """Return all figures by name, for programs."""
        return {
            "width_px": self.size_px[0], "height_px": self.size_px[1], "n_frames": self.n_frames, "n_dropped": self.n_dropped,
            "fps": self.fps, "focus": self.focus, "best_focus": self.best_focus, "focus_by": self.focus_by,
            "controls": dict(self.controls),
        }  # fmt: skip

    def text(self) -> str:
        """Return the figures in one line for people."""
        set_to = self.controls
        parts = ["no rate yet" if self.fps is None else f"{self.fps:.2f} fps", f"{self.n_dropped:,} dropped"]
        if "exposure_us" in set_to:
            parts.append(f"exposure {set_to['exposure_us'] / 1000:.4g} ms")
        if "gain" in set_to:
            parts.append(f"gain {set_to['gain']:.2f}")
        if "red_gain" in set_to:
            parts.append(f"white balance {set_to['red_gain']:.2f}/{set_to['blue_gain']:.2f}")
        if "lux" in set_to:
            parts.append(f"{set_to['lux']:.4g} lux")
        if self.focus is not None:
            parts.append(f"focus {self.focus:.4g} (best {self.best_focus:.4g})")
        return "  ".join([f"{self.size_px[0]}x{self.size_px[1]}", *parts])


def _at_most(rgb: Rgb, width_px: int) -> Rgb:
    """Return a picture not wider than `width_px`, even sides: a copy, uint8 (H, W, 3) RGB."""
    from infra.picture import resize

    width = min(width_px, rgb.shape[1]) // 2 * 2
    return resize(rgb, (max(2, width), max(2, round(rgb.shape[0] * width / rgb.shape[1] / 2) * 2)))


class LivePage:
    """Serves the newest picture of a camera to browsers.

    Beyond loopback the page lies under a random path, which its address holds: who does not know it sees nothing.

    Args:
        title: the camera's name.
        meter: what the line under the picture says.
        address: the interface to listen on.
        port: 0 takes a free one.

    Raises:
        UsageError: the address or the port cannot be had.
    """

    def __init__(self, title: str, meter: Meter, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.title, self.meter = title, meter
        self._changed = threading.Condition()
        self._newest: tuple[int, Rgb] | None = None
        self._number = self._n_viewers = 0
        self._jpeg: tuple[int, bytes] = (0, b"")
        self._encoder: tuple[tuple[int, ...], ImageEncoder] | None = None
        self._encoding = threading.Lock()
        self.is_closed = False
        self.is_open_to_others = address not in _LOOPBACK
        self.root = f"/{secrets.token_urlsafe(9)}/" if self.is_open_to_others else "/"
        try:
            self._server = _Server((address, port), self)
        except (OSError, OverflowError) as error:
            raise UsageError(f"page on {address} port {port}: {error}; choose another --http PORT or --address") from error
        shown = socket.gethostname() if address in ("0.0.0.0", "::") else address
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self._server.server_address[1]}{self.root}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="preview-page", daemon=True)
        self._thread.start()

    def show(self, rgb: Rgb) -> None:
        """Make a picture the newest one; free while nobody looks."""
        with self._changed:
            if self._n_viewers or self._newest is None:
                self._number += 1
                self._newest = (self._number, _at_most(rgb, PAGE_WIDTH_PX))
                self._changed.notify_all()

    def newest(self, after: int, timeout_s: float) -> tuple[int, bytes] | None:
        """Return (number, JPEG file) of the newest picture once it is newer than `after`; None if none came in time."""
        with self._changed:
            fresh = self._changed.wait_for(lambda: self.is_closed or self._number > after, timeout_s)
            if not fresh or self.is_closed or self._newest is None:
                return None
            number, rgb = self._newest
        with self._encoding:  # one viewer encodes, the others take what it made
            if self._jpeg[0] < number:
                self._jpeg = (number, self._encode(rgb))
            return self._jpeg

    def _encode(self, rgb: Rgb) -> bytes:
        from infra.images import ImageEncoder

        if self._encoder is None or self._encoder[0] != rgb.shape:
            self._encoder = (rgb.shape, ImageEncoder(".jpg", rgb.shape[1], rgb.shape[0]))
        return self._encoder[1].encode(rgb)

    def enter(self) -> bool:
        """Count a viewer in; False when there are too many."""
        with self._changed:
            if self._n_viewers >= MAX_VIEWERS:
                return False
            self._n_viewers += 1
            return True

    def leave(self) -> None:
        """Count a viewer out."""
        with self._changed:
            self._n_viewers -= 1

    def close(self) -> None:
        """Let all viewers go and free the port."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], live: LivePage) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.live = live
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A viewer that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = SEND_TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        live = self.server.live
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0].strip("[]")
        if not live.is_open_to_others and host not in _LOOPBACK:  # another site's page in the same browser
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this page is for this machine\n")
            return
        name = self.path.partition("?")[0].removeprefix(live.root) if self.path.startswith(live.root) else None
        if name == "":
            self._answer(HTTPStatus.OK, "text/html", _page(live).encode())
        elif name == "status":
            self._answer(HTTPStatus.OK, "text/html", _status(live).encode())
        elif name == "status.json":
            self._answer(HTTPStatus.OK, "application/json", json.dumps(live.meter.document()).encode())
        elif name in ("stream.mjpg", "frame.jpg"):
            if not live.enter():
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{MAX_VIEWERS} look already\n".encode())
                return
            try:
                self._frame() if name == "frame.jpg" else self._stream()
            finally:
                live.leave()
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")

    def _frame(self) -> None:
        made = self.server.live.newest(self.server.live._number, SEND_TIMEOUT_S)
        if made is None:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"no picture came\n")
        else:
            self._answer(HTTPStatus.OK, "image/jpeg", made[1])

    def _stream(self) -> None:
        self.send_response(HTTPStatus.OK)
        self._no_store(f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.end_headers()
        number = 0
        while (made := self.server.live.newest(number, SEND_TIMEOUT_S)) is not None:
            number, jpeg = made
            head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self._no_store(kind if kind.startswith("image") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _no_store(self, kind: str) -> None:
        for name, value in (
            ("Content-Type", kind), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", _POLICY), ("Referrer-Policy", "no-referrer"),
        ):  # fmt: skip
            self.send_header(name, value)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are no events of ours."""


def _page(live: LivePage) -> str:
    from infra.page import text

    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(live.title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<style>{_STYLE}</style></head><body><img src="stream.mjpg" alt="live picture of {text(live.title)}">'
        '<iframe src="status" title="figures" style="width:100%;height:3em;border:0"></iframe></body></html>'
    )


def _status(live: LivePage) -> str:
    from infra.page import text

    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="1">'
        f"<title>figures</title><style>{_STYLE}body{{padding:.5em}}</style></head>"
        f"<body>{text(live.title)}: {text(live.meter.text())}</body></html>"
    )
