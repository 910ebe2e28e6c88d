"""`camloop preview`: set up a camera. Rate, exposure and focus in the terminal, the picture on a page for a headless Pi.

Nothing is stored, and what privacy hides in recordings is hidden here too, before the figures and before the page.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from infra.console import Context
from infra.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ingest.source import Source, SourceFrame
    from ingest.take import Stop

DEFAULT_PORT = 8800
EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    url: str
    camera_id: str | None
    allow: tuple[str, ...]
    options: Mapping[str, Any]


def preview(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop preview`."""
    source = "id of a [[camera]] in camloop.toml, picam://0, rtsp://.., v4l2:///dev/video0, sim://.. or a video file"
    parser.add_argument("source", metavar="SOURCE", help=source)
    parser.add_argument("--http", type=int, nargs="?", const=DEFAULT_PORT, metavar="PORT", help="show the picture on a page")
    parser.add_argument("--address", default="127.0.0.1", help="interface of the page (default: this machine only)")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds of pictures")
    parser.set_defaults(run=_preview)


def _preview(arguments: argparse.Namespace, context: Context) -> int:
    from ingest import take
    from ingest.preview import LivePage, Meter

    if arguments.seconds is not None and arguments.seconds <= 0:
        raise UsageError(f"--seconds {arguments.seconds:g}; legal: more than 0")
    if arguments.address != "127.0.0.1" and arguments.http is None:
        raise UsageError(f"--address {arguments.address} is the page's; say --http [PORT] too")
    wanted = _wanted(arguments.source, context)
    source = _opened(wanted, context)
    meter, stop = Meter(), take.Stop()
    page = None
    if arguments.http is not None:
        page = LivePage(source.camera_id, meter, address=arguments.address, port=arguments.http)
        context.out.line(f"{page.url}")
        if page.is_open_to_others:
            context.out.note("whoever has this address sees the camera, unencrypted; Ctrl-C takes it down")
    terminal = sys.stderr if context.out.bars else None
    next_ns = context.clock.mono_ns()
    try:
        with stop.on_signals():
            for frame in _live(source, stop, context, arguments.seconds):
                meter.see(frame)
                if page is not None:
                    page.show(frame.rgb)
                if context.clock.mono_ns() >= next_ns:
                    next_ns = context.clock.mono_ns() + round(EVERY_S * 1e9)
                    meter.measure(frame)
                    if terminal is not None:
                        terminal.write(f"\r{meter.text()}\x1b[K")
                        terminal.flush()
    finally:
        if terminal is not None:
            terminal.write("\r\x1b[K")
        if page is not None:
            page.close()
    context.out.line(f"{source.camera_id}: {meter.n_frames:,} frames  {meter.text()}")
    context.out.document({"camera_id": source.camera_id, **meter.document()})
    return 0


def _live(source: Source, stop: Stop, context: Context, seconds: float | None) -> Iterator[SourceFrame]:
    """Return the frames as a camera gives them: a file is played at its own speed."""
    from ingest import take

    frames = stop.frames(source)
    if getattr(source, "is_replay", False):
        frames = take.paced(frames, context.clock)
    return cast("Iterator[SourceFrame]", take.limited(frames, seconds=seconds))


def _wanted(name: str, context: Context) -> _Wanted:
    """Return what a camera's table, or an address with the tables of all cameras, asks for."""
    from ingest.config import camera_configs

    toml = context.settings.toml
    cameras = camera_configs(context.settings) if toml.get("camera") else ()
    for camera in cameras:
        if name in (camera.id, camera.url):
            options = {"size": camera.size, "fps": camera.fps, **camera.options}
            made = {key: value for key, value in options.items() if value is not None}
            return _Wanted(url=_calm(camera.url), camera_id=camera.id, allow=camera.allow, options=made)
    if "://" not in name and "." not in name and "/" not in name:
        known = ", ".join(camera.id for camera in cameras) or "none"
        raise UsageError(f"camera {name!r} is not in camloop.toml (there: {known}); or give an address such as picam://0")
    return _Wanted(url=_calm(name), camera_id=None, allow=(), options={})


def _calm(url: str) -> str:
    """Return a Pi camera's address without its training mode: a preview shows what the camera finds by itself."""
    if not url.startswith("picam://"):
        return url
    address, _, query = url.partition("?")
    kept = [part for part in query.split("&") if part and not re.match(r"training=", part)]
    return address + ("?" + "&".join(kept) if kept else "")


def _opened(wanted: _Wanted, context: Context) -> Source:
    from ingest.hidden import open_private

    return open_private(
        wanted.url, context.settings, camera_id=wanted.camera_id, host_id=context.settings.host_id, allow=wanted.allow,
        options=wanted.options,
    )  # fmt: skip
