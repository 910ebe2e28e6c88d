"""USB cameras through video4linux: the same `StreamCamera` as for RTSP, with no relay, since a device leads nowhere else.

A camera that gives H.264 is taken as H.264, else as motion JPEG; one that can only give raw pictures is told so. Its driver may
hang: the reader's thread is then left behind, the device stays busy, and the recorder ends, to be started anew.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import av

from infra.errors import UsageError
from ingest.decoding import SmallPictures
from ingest.packets import PacketReader
from ingest.stream import REOPEN_S, STALL_S, StreamCamera, opened


def open_v4l2(
    device: str,
    *,
    camera_id: str | None = None,
    host_id: str = "host",
    site: str | None = None,
    small: SmallPictures | None = None,
    size_px: tuple[int, int] | None = None,
    fps: float | None = None,
    stall_s: float = STALL_S,
    reopen_s: float = REOPEN_S,
) -> StreamCamera:
    """Open a USB camera, as H.264 where it can, else as motion JPEG.

    Args:
        device: such as /dev/video0.
        camera_id: who films; default: the device's name.
        host_id: the machine that records.
        site: where the camera stands.
        small: makes the trigger's pictures.
        size_px: (width, height) to ask for.
        fps: frames a second to ask for.
        stall_s: seconds without a frame after which the camera counts as broken.
        reopen_s: seconds for which it is opened again before the recording ends.

    Raises:
        UsageError: no such device; the message says which there are.
        DeviceError: it cannot be opened, or sends neither H.264 nor JPEG.
    """
    if not Path(device).exists():
        raise UsageError(f"camera v4l2://{device}: no such device; there {_devices()}")
    options = {} if size_px is None else {"video_size": f"{size_px[0]}x{size_px[1]}"}
    options |= {} if fps is None else {"framerate": f"{fps:g}"}

    def open_container() -> Any:
        for wanted in ("h264", "mjpeg"):
            with suppress(av.error.FFmpegError, ValueError):
                return av.open(device, format="v4l2", options={**options, "input_format": wanted})
        return av.open(device, format="v4l2", options=options)

    return StreamCamera(
        lambda answer_s: opened(PacketReader(open_container, f"v4l2://{device}")), camera_id=camera_id or Path(device).name,
        host_id=host_id, site=site, small=small, stall_s=stall_s, reopen_s=reopen_s,
    )  # fmt: skip


def _devices() -> str:
    names = []
    for device in sorted(Path("/sys/class/video4linux").glob("video*")):
        with suppress(OSError):
            names.append(f"v4l2:///dev/{device.name} ({(device / 'name').read_text().strip()})")
    return f"are {', '.join(names)}" if names else "is none on this machine (is it plugged in? may this user read /dev/video0?)"
