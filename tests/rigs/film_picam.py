"""Films with the virtual cameras in the rig's environment, one case a call; prints one JSON document on the last line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra import cli
from infra.errors import CamloopError
from ingest import picam, picam_device
from ingest.gate import Gate, Seen
from ingest.picam import PiCamera, PiPictures, available_cameras, open_picam
from ingest.recorder import Recorder
from ingest.spool import Spool


def rss_kib() -> int:
    """Return the resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def stream(url: str, **more: Any) -> PiCamera:
    """Return the camera as a stream."""
    camera = open_picam(url, **more)
    assert isinstance(camera, PiCamera)
    return camera


def record(url: str, folder: str, frames: str, segment_s: str = "5") -> dict[str, Any]:
    """Record so many frames into a spool, and say what it cost."""
    camera = stream(url)
    early_kib: list[int] = []

    def clip_done(sidecar: object) -> None:
        early_kib.append(rss_kib())

    with Spool(Path(folder)) as spool:
        began, cpu = time.monotonic(), time.process_time()
        recorder = Recorder(camera, spool, segment_s=float(segment_s))
        made = recorder.record(max_frames=int(frames), on_clip=clip_done)
        wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    return {
        "n_frames": made.n_frames, "n_dropped": made.n_dropped, "n_clips": made.n_clips, "n_bytes": made.n_bytes,
        "wall_s": wall_s, "cpu_s": cpu_s, "first_rss_kib": early_kib[0], "last_rss_kib": early_kib[-1], "clock": camera.clock,
        "peak_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }  # fmt: skip


def held(url: str, folder: str) -> dict[str, Any]:
    """Record 120 frames; after two seconds another part of the program holds all six requests for half a second."""
    camera = stream(url)
    device = camera._device.camera

    def hold() -> None:
        time.sleep(2)
        requests = [device.capture_request() for _ in range(picam_device.N_BUFFERS)]
        time.sleep(0.5)
        for request in requests:
            request.release()

    holder = threading.Thread(target=hold)
    holder.start()
    with Spool(Path(folder)) as spool:
        made = Recorder(camera, spool, segment_s=60).record(max_frames=120)
    holder.join()
    return {"n_frames": made.n_frames, "n_dropped": made.n_dropped}


def slow_disk(url: str, folder: str) -> dict[str, Any]:
    """Record 150 frames; the disk stands still for two seconds and the mailbox holds half a second."""
    picam.MAX_WAITING_BYTES = 1_500_000
    camera = stream(url)

    class Slow(Recorder):
        def _add(self, segment: Any, before: Any, frame: Any, n_waited: int) -> None:
            if self._n_frames == 60:
                time.sleep(2)
            super()._add(segment, before, frame, n_waited)

    with Spool(Path(folder)) as spool:
        made = Slow(camera, spool, segment_s=60).record(max_frames=150)
    return {"n_frames": made.n_frames, "n_dropped": made.n_dropped}


def triggered(url: str, folder: str) -> dict[str, Any]:
    """Record what a trigger on the small pictures asks for: one second, twice, with pre-roll; say what it looked at."""
    camera, shapes, times = stream(url), set(), []

    class Twice:
        name, small_px = "twice", (320, 180)

        def see(self, small: Any, sensor_ns: int, utc_ns: int | None) -> Seen:
            shapes.add(small.shape)
            times.append(sensor_ns)
            second = (sensor_ns - times[0]) / 1e9
            on = 3 <= second < 4 or 8 <= second < 9
            return Seen(on=on, score=float(small.mean()) / 255, reason="by the clock")

    gate = Gate(Twice(), small=lambda frame: frame.small, pre_roll_s=1.0, post_roll_s=0.5)

    def until_s(seconds: float) -> Any:
        for frame in camera:
            yield frame
            if times and (frame.sensor_ns - times[0]) / 1e9 > seconds:
                return

    with Spool(Path(folder)) as spool:
        made = Recorder(camera, spool, segment_s=60).record_events(gate.events(until_s(12)))
    return {"n_frames": made.n_frames, "n_clips": made.n_clips, "small": sorted(shapes), "n_looked": len(times)}


def refused() -> dict[str, Any]:
    """Open what cannot be opened; return the one line of each."""
    said = {}
    for url in (
        "picam://7",
        "picam://0?width=4000",
        "picam://0?fps=90",
        "picam://1?training=lock&settle_s=0.1&width=320&height=240",
    ):
        try:
            next(iter(open_picam(url)))
        except CamloopError as error:
            said[url] = f"{type(error).__name__}: {error}"
    return {"cameras": [camera.model for camera in available_cameras()], "said": said}


def hung_stop() -> dict[str, Any]:
    """Stop a camera that never returns from it (picamera2#1264)."""
    picam_device.STOP_S = 1.0
    camera = stream("picam://0?width=320&height=180")
    frames = iter(camera)
    next(frames)
    camera._device.camera.stop_encoder = lambda encoder: threading.Event().wait()
    began = time.monotonic()
    frames.close()  # type: ignore[attr-defined]
    return {"stop_s": time.monotonic() - began}


def stalled() -> dict[str, Any]:
    """Wait for a camera whose frames stop coming (picamera2#1392)."""
    picam.STALL_S = 1.0
    camera = open_picam("picam://0?width=320&height=180")
    frames = iter(camera)
    next(frames)
    camera._device._on_frame = lambda request, seen: None
    began = time.monotonic()
    try:
        for _ in frames:
            began = time.monotonic()
    except CamloopError as error:
        return {"after_s": time.monotonic() - began, "said": f"{type(error).__name__}: {error}"}
    return {"said": "ended as if nothing had happened"}


def colours(url: str) -> dict[str, Any]:
    """Return the colours of six upright bars: of pictures, of the stream once decoded, and of its small pictures."""
    import av
    import numpy as np

    def bars(rgb: Any) -> list[list[float]]:
        height, width = rgb.shape[:2]
        rows = slice(int(height * 0.8), int(height * 0.95))
        return [
            np.median(rgb[rows, int(width * (at + 0.3) / 6) : int(width * (at + 0.7) / 6)].reshape(-1, 3), axis=0).tolist()
            for at in range(6)
        ]

    pictures = open_picam(url, pictures=True)
    assert isinstance(pictures, PiPictures)
    films = iter(pictures)
    large = next(films)
    films.close()  # type: ignore[attr-defined]
    encoded = iter(stream(url))
    first = next(encoded)
    encoded.close()  # type: ignore[attr-defined]
    assert first.small is not None
    decoder: Any = av.CodecContext.create("h264", "r")
    (shown,) = [*decoder.decode(av.Packet(first.data)), *decoder.decode(None)]
    stream_rgb = shown.to_ndarray(format="rgb24")
    assert stream_rgb.shape == large.rgb.shape
    return {"pictures": bars(large.rgb), "stream": bars(stream_rgb), "small": bars(first.small)}


def slow_pictures(url: str) -> dict[str, Any]:
    """Read pictures, once too slowly; return numbers, times and causes."""
    frames = []
    source = iter(open_picam(url, pictures=True))
    for frame in source:
        frames.append((frame.frame_number, frame.sensor_ns, frame.lost))
        if len(frames) == 30:
            time.sleep(0.5)
        if len(frames) == 90:
            break
    source.close()  # type: ignore[attr-defined]
    return {"frames": frames}


def command(*argv: str) -> dict[str, Any]:
    """Run a camloop command with --json in the current folder; return its exit code and its document."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main([*argv, "--json"])
    return {"code": code, **json.loads(said.getvalue())}


def frozen() -> dict[str, Any]:
    """Run `camloop agent` in the current folder, freeze the recorder of `front` once both film, stop it ten seconds later."""
    log = Path("agent.log")
    with log.open("wb") as errors:
        agent = subprocess.Popen([sys.executable, "-m", "infra.cli", "agent"], stderr=errors)
    try:
        _until(lambda: log.read_text().count('"camera_recording"') == 2)
        time.sleep(6)
        (recorder,) = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/stat")
            if _is_child(path, agent.pid) and b"front" in path.with_name("cmdline").read_bytes().split(b"\0")
        ]
        os.kill(recorder, signal.SIGSTOP)
        _until(lambda: "camera_stalled" in log.read_text())
        time.sleep(15)
    finally:
        agent.send_signal(signal.SIGTERM)
    return {"code": agent.wait(timeout=60), "events": log.read_text()}


def _until(is_so: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, Path("agent.log").read_text()
        time.sleep(0.2)


def _is_child(stat: Path, parent: int) -> bool:
    """Say whether a process of /proc is a child of `parent`."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(stat.read_text().rpartition(")")[2].split()[1]) == parent
    return False


CASES = (frozen, command, record, held, slow_disk, triggered, refused, hung_stop, stalled, colours, slow_pictures)

if __name__ == "__main__":
    (case,) = [case for case in CASES if case.__name__ == sys.argv[1]]
    result = case(*sys.argv[2:])
    print("\n" + json.dumps(result), flush=True)
