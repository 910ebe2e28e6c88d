"""Filming: a simulated camera as a source of frames, and a quick way from a plan to a finished clip with its sidecar.

`SimulatedCamera` is what a recorder reads: frames with sensor times, under a clock of its own. `film` renders, encodes
and writes in one go, for a pool of processes: `<folder>/<clip_id>.mp4` and `.json` as an `Outbox` leaves them, from
where a spool adopts them; the truth goes to its own folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra import durable, keys
from infra.clock import FakeClock
from infra.demo.render import recording_truth, render
from infra.demo.scenes import HEIGHT_PX, WIDTH_PX
from infra.demo.truth import FrameTruth, RecordingTruth
from infra.demo.world import FPS, PERIOD_NS, Camera, RecordingPlan
from infra.errors import UsageError
from infra.records import Sidecar
from infra.writer import Writer

GOP_S = 2.0
TIME_BASE = Fraction(1, 1000)
PTS_PER_FRAME = PERIOD_NS // 1_000_000


@dataclass(frozen=True, slots=True)
class SimulatedFrame:
    """One frame as a recorder gets it: uint8 (192, 256, 3) RGB, nanoseconds since the host's start, running number."""

    rgb: NDArray[np.uint8]
    sensor_ns: int
    frame_number: int


class SimulatedCamera:
    """One recording as a source of frames; `clock` runs with it.

    Args:
        plan: what is filmed.
        clock: set to the recording's start, then moved on by one period per frame; default: a clock of its own.
    """

    width_px, height_px, fps = WIDTH_PX, HEIGHT_PX, FPS

    def __init__(self, plan: RecordingPlan, clock: FakeClock | None = None) -> None:
        self.plan = plan
        self.camera_id = plan.camera.camera_id
        self.host_id = host_id(plan.camera)
        self.boot_id = plan.camera.boot_id
        self.recording_id = plan.recording_id
        self.clock = clock or FakeClock(plan.start_ns, plan.start_mono_ns)
        self._truth: list[FrameTruth] = []

    def __iter__(self) -> Iterator[SimulatedFrame]:
        """Yield the frames from the first; each pass starts the recording anew."""
        self._truth = []
        self.clock.jump_to_ns(self.plan.start_ns)
        for rgb, sensor_ns, truth in render(self.plan):
            self._truth.append(truth)
            yield SimulatedFrame(rgb, sensor_ns, truth.frame_number)
            self.clock.advance_s(1 / FPS)

    def write_truth(self, folder: Path) -> Path:
        """Write what was true about the frames handed out so far; return the file's path."""
        return recording_truth(self.plan, self._truth).write(folder)


@dataclass(frozen=True, slots=True)
class Filmed:
    """A finished clip, its sidecar and its truth file (None when no folder was given)."""

    path: Path
    sidecar: Sidecar
    truth_path: Path | None


def host_id(camera: Camera) -> str:
    """Return the name of the host that the camera hangs on."""
    return f"sim-{camera.camera_id}"


def film(plan: RecordingPlan, folder: Path, truth_folder: Path | None = None) -> Filmed:
    """Render, encode and write one recording; safe to call from several processes, and again.

    Args:
        plan: what to film.
        folder: gets `<clip_id>.json` and then `<clip_id>.mp4`.
        truth_folder: gets `<recording_id>.json`; a folder of its own, never one that is ingested.

    Returns:
        What was written; the same plan gives the same bytes.

    Raises:
        UsageError: truth would lie among the clips.
    """
    if truth_folder is not None and (truth_folder == folder or folder in truth_folder.parents):
        raise UsageError(f"truth folder {truth_folder} lies in the clips' folder {folder}: give one outside of it")
    durable.make_dirs(folder)
    draft = folder / f".filming-{plan.recording_id}.mp4"
    truths, times = [], []
    with Writer(draft, WIDTH_PX, HEIGHT_PX, TIME_BASE, gop_s=GOP_S) as writer:
        for rgb, sensor_ns, truth in render(plan):
            writer.add(rgb, truth.frame_number * PTS_PER_FRAME)
            truths.append(truth)
            times.append(sensor_ns)
    with draft.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    sidecar = make_sidecar(plan, sha256, draft.stat().st_size, times)
    path = folder / f"{sidecar.clip_id}.mp4"
    durable.write(path.with_suffix(".json"), sidecar.to_json())
    durable.adopt(draft, path)
    truth_path = None
    if truth_folder is not None:
        truth_path = recording_truth(plan, truths).write(truth_folder)
    return Filmed(path, sidecar, truth_path)


def make_sidecar(plan: RecordingPlan, sha256: str, n_bytes: int, sensor_ns: Sequence[int]) -> Sidecar:
    """Return what the recorder of a simulated camera knows about a clip. Nothing of the truth is in it."""
    return Sidecar(
        clip_id=keys.clip_id(sha256),
        camera_id=plan.camera.camera_id,
        host_id=host_id(plan.camera),
        boot_id=plan.camera.boot_id,
        recording_id=plan.recording_id,
        seq=plan.start_mono_ns // 1_000_000_000,  # recordings of a boot in order of time
        sha256=sha256,
        n_bytes=n_bytes,
        container="mp4",
        start_ns=plan.start_ns,
        start_mono_ns=plan.start_mono_ns,
        clock="sensor",
        sensor_ns=tuple(sensor_ns),
        site=plan.camera.site,
    )


def cameras_toml(cameras: Sequence[Camera]) -> str:
    """Return the registry of these cameras, as `camloop ingest --cameras` reads it."""
    blocks = []
    for camera in cameras:
        fields = {"id": camera.camera_id, "site": camera.site, "angle": camera.angle, "indoor": camera.indoor,
                  "host_id": host_id(camera), "time_zone": "UTC", "place": camera.kind, "world": "simulated"}  # fmt: skip
        blocks.append("[[camera]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items()))
    return "\n".join(blocks)


def recordings(truth_folder: Path) -> dict[str, RecordingTruth]:
    """Return all truth files of a folder by recording_id. For the annotator and for tests."""
    paths = [path for path in sorted(truth_folder.glob("*.json")) if not durable.is_temporary(path.name)]
    return {path.stem: RecordingTruth.read(path) for path in paths}
