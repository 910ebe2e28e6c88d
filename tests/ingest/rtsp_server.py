"""GStreamer's RTSP server, for tests: run by the system's own Python (which has `gi`), ordered about over standard input.

    /usr/bin/python3 tests/ingest/rtsp_server.py --port 0 --live 320x240@15      ->  "ready 40213"
    size 160x120                                                                  (a line: the picture's size changes)

Debian: the packages of tests/apt-packages.txt. The stream is `/cam`; `--user NAME:PASSWORD` asks for these.
"""

from __future__ import annotations

import argparse
import re
import sys
import threading
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 pt=96 config-interval=-1",
    "mjpeg": "jpegenc quality=70 ! rtpjpegpay name=pay0 pt=26",
}


def launch_line(arguments: argparse.Namespace) -> str:
    """Return GStreamer's description of the stream."""
    if arguments.file:
        return f"( filesrc location={arguments.file} ! qtdemux ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 )"
    width, height, rate = re.fullmatch(r"(\d+)x(\d+)@(\d+)", arguments.live).groups()  # type: ignore[union-attr]
    raw = f"video/x-raw,format=I420,width={width},height={height},framerate={rate}/1"
    return f"( videotestsrc is-live=true pattern=smpte ! capsfilter name=size caps={raw} ! {ENCODERS[arguments.codec]} )"


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="0")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--file")
    parser.add_argument("--live", default="320x240@15")
    parser.add_argument("--codec", choices=ENCODERS, default="h264")
    parser.add_argument("--user")
    parser.add_argument("--digest", action="store_true", help="ask for the password as a digest, as cameras do")
    arguments = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_service(arguments.port)
    server.set_address(arguments.address)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(launch_line(arguments))
    factory.set_shared(not arguments.file)
    filters: list[Any] = []
    factory.connect("media-configure", lambda _, media: filters.append(media.get_element().get_by_name_recurse_up("size")))
    if arguments.user:
        protect(server, factory, *arguments.user.split(":"), digest=arguments.digest)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print("ready", server.get_bound_port(), flush=True)

    def obey() -> None:
        for line in sys.stdin:
            order, _, size = line.strip().partition(" ")
            if order == "size" and filters:
                width, height = size.split("x")
                caps = f"video/x-raw,format=I420,width={width},height={height},framerate=15/1"
                filters[-1].set_property("caps", Gst.Caps.from_string(caps))

    threading.Thread(target=obey, daemon=True).start()
    GLib.MainLoop().run()


def protect(server: Any, factory: Any, user: str, password: str, *, digest: bool) -> None:
    """Let only one user in."""
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    if digest:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    main()
