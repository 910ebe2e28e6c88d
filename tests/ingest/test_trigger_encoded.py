"""A stream that is kept as it comes, cut by motion: H.264 packets through the gate into clips that are whole."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infra.records import Sidecar
from infra.video import Writer, pictures, probe
from ingest.decoding import SmallPictures
from ingest.recorder import Recorder
from ingest.source import EncodedFrame
from ingest.spool import Spool
from ingest.stream import stream_options
from ingest.trigger import TriggerSettings, open_gate
from tests.ingest.encoded import FORMAT, EncodedCamera, annex_b, frames

FPS, START_NS = 10, 7_000_000_000
MOVES = ((60, 80), (150, 160))  # frames in which a square crosses the picture


def stream(path: Path, b_frames: int) -> list[EncodedFrame]:
    """Film 20 s: a still scene with noise, two things that cross it, a keyframe a second."""
    rng = np.random.default_rng(2)
    scene = 90 + 40 * np.sin(np.arange(160) / 9)[None, :] * np.cos(np.arange(120) / 11)[:, None]
    with Writer(path, 160, 120, Fraction(1, 90_000), gop_s=1.0, b_frames=b_frames) as writer:
        for number in range(200):
            grey = scene + rng.normal(0, 2, scene.shape)
            if any(a <= number < b for a, b in MOVES):
                x = 10 + number % 20 * 5
                grey[40:80, x : x + 36] = 235
            writer.add(np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2), number * 9000)
    small = SmallPictures((160, 120), of="all", max_fps=FPS)
    return [
        EncodedFrame(
            data=data, is_keyframe=is_keyframe, sensor_ns=START_NS + pts_ns, frame_number=number, format=FORMAT,
            decode_ns=START_NS + dts_ns if b_frames else None,
            small=small.of(data, is_keyframe, FORMAT, START_NS + pts_ns),
        )
        for number, (data, pts_ns, dts_ns, is_keyframe) in enumerate(annex_b(path))
    ]  # fmt: skip


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_stream_cut_by_motion(b_frames: int, tmp_path: Path) -> None:
    """Two things cross: two clips, each from a keyframe a second or more before to a second after, whole and decodable."""
    frames = stream(tmp_path / "film.mp4", b_frames)
    camera = EncodedCamera(frames)
    gate = open_gate(TriggerSettings(kind="motion", pre_roll_s=1, post_roll_s=1), camera)
    sidecars: list[Sidecar] = []
    with Spool(tmp_path / "spool") as spool:
        Recorder(camera, spool).record_events(gate.events(camera), on_clip=sidecars.append)
        paths = [next((tmp_path / "spool").rglob(f"{sidecar.clip_id}.mp4")) for sidecar in sidecars]
    assert len(sidecars) == 2
    keyframes = {frame.sensor_ns for frame in frames if frame.is_keyframe}
    for sidecar, path, (first, end) in zip(sidecars, paths, MOVES, strict=True):
        numbers = [(time_ns - START_NS) // 100_000_000 for time_ns in sidecar.sensor_ns]
        assert min(sidecar.sensor_ns) in keyframes
        assert first - 25 <= min(numbers) <= first - 5 and end + 5 <= max(numbers) <= end + 20
        assert len(list(pictures(path, index=probe(path).index))) == len(numbers)  # whole and decodable
        assert sidecar.gaps == () and sidecar.trigger == "motion" and sidecar.event["peak"] > 0.5
    n_kept = sum(len(sidecar.sensor_ns) for sidecar in sidecars)
    assert n_kept + sum(row.n_frames for row in gate.take_skipped()) == len(frames) == 200


@pytest.mark.parametrize(("gop_s", "n_seen"), [(1.0, 4), (2.0, 13)])
def test_keyframes_that_are_far_apart_are_not_enough(gop_s: float, n_seen: int) -> None:
    """By itself a trigger sees the keyframe of each second; where they are rarer, five pictures a second after the next."""
    for small, expected in (("auto", n_seen), ("keyframes", round(4 / gop_s))):
        made = stream_options({} if small == "auto" else {"small": small}, (64, 48), "rtsp")["small"]
        found = [made.of(one.data, one.is_keyframe, one.format, one.sensor_ns) for one in frames(40, gop_s=gop_s)]
        assert sum(rgb is not None for rgb in found) == expected and found[0] is not None
