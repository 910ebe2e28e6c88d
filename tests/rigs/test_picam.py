"""Recorder, trigger and training mode on the real picamera2 with virtual cameras: every frame recorded or listed as a gap.

The virtual cameras film on an exact grid of 33.333 ms, so the sidecars alone say whether a frame is missing.
The length of the main test follows CAMLOOP_TEST_COUNT: 30 s for each, 600 s from 20 on.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from infra.images import ImageEncoder
from infra.records import Sidecar
from infra.video import decode
from ingest.source import RECORDER_SLOW
from ingest.spool import Spool
from tests.rigs.conftest import Rig

pytestmark = pytest.mark.slow

FRAME_NS = 33_333_000
SECONDS = min(600, 30 * int(os.environ.get("CAMLOOP_TEST_COUNT", "1")))


def clips(folder: Path) -> list[tuple[Path, Sidecar]]:
    """Return what lies in a spool, in order."""
    with Spool(folder) as spool:
        found = [(clip.path, clip.sidecar) for clip in spool.pending()]
    return sorted(found, key=lambda one: one[1].start_mono_ns)


def check_accounted(sidecars: list[Sidecar]) -> tuple[int, int]:
    """Assert that recorded frames and listed gaps fill the sensor's grid without a hole; return (recorded, listed missing)."""
    times = [at for sidecar in sidecars for at in sidecar.sensor_ns]
    steps = np.diff(times)
    assert (steps > 0).all() and (steps % FRAME_NS == 0).all()
    gaps = []
    first = 0
    for sidecar in sidecars:
        gaps += [(first + gap.before_frame, gap.n_missing) for gap in sidecar.gaps]
        first += len(sidecar.sensor_ns)
    assert gaps == [(at + 1, int(step // FRAME_NS) - 1) for at, step in enumerate(steps) if step != FRAME_NS]
    n_missing = sum(n for _, n in gaps)
    assert len(times) + n_missing == (times[-1] - times[0]) // FRAME_NS + 1
    return len(times), n_missing


def test_two_cameras_at_once_lose_nothing_unseen(virtual_cameras: Rig, tmp_path: Path) -> None:
    """Two recorder processes; every frame is recorded or listed, every clip decodes whole, memory stays flat."""
    urls = ("picam://0?width=1280&height=720&fps=30", "picam://1?width=320&height=240&fps=30")

    def film(number: int) -> dict:
        spool = tmp_path / f"spool{number}"
        return virtual_cameras("film_picam.py", "record", urls[number], spool, SECONDS * 30, 10, timeout_s=SECONDS * 2 + 60)

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(film, range(2)))
    for number, result in enumerate(said):
        found = clips(tmp_path / f"spool{number}")
        n_frames, n_missing = check_accounted([sidecar for _, sidecar in found])
        assert n_frames == result["n_frames"] == SECONDS * 30 and n_missing == result["n_dropped"]
        for path, sidecar in found[:: max(1, len(found) // 5)]:
            assert sum(len(frames) for frames in decode(path)) == len(sidecar.sensor_ns)
        assert result["last_rss_kib"] < result["first_rss_kib"] * 1.15 + 4096
        print(
            f"{urls[number]}: {n_frames} frames recorded, {n_missing} listed as missing, {result['n_clips']} clips; "
            f"{100 * result['cpu_s'] / result['wall_s']:.1f} % of a core, peak {result['peak_rss_kib'] // 1024} MiB"
        )


def test_held_requests_give_exactly_the_gap_listed(virtual_cameras: Rig, tmp_path: Path) -> None:
    """All six buffers held for half a second: one gap of as many frames as the grid lacks, and the host is named."""
    result = virtual_cameras("film_picam.py", "held", "picam://0?width=640&height=360", tmp_path / "spool")
    sidecars = [sidecar for _, sidecar in clips(tmp_path / "spool")]
    n_frames, n_missing = check_accounted(sidecars)
    gaps = [gap for sidecar in sidecars for gap in sidecar.gaps]  # a busy machine may lose a frame elsewhere
    longest = max(gaps, key=lambda gap: gap.n_missing)
    assert longest.cause == RECORDER_SLOW and longest.n_missing == longest.duration_ns // FRAME_NS - 1
    assert n_missing == result["n_dropped"] and 8 <= longest.n_missing <= 25 and n_frames == 120


def test_a_slow_disk_costs_whole_groups_of_pictures(virtual_cameras: Rig, tmp_path: Path) -> None:
    """What does not fit into the mailbox is a gap that ends with a keyframe; the clip decodes whole."""
    url = "picam://0?width=640&height=360&gop_s=0.5"
    result = virtual_cameras("film_picam.py", "slow_disk", url, tmp_path / "spool")
    ((path, sidecar),) = clips(tmp_path / "spool")
    n_frames, n_missing = check_accounted([sidecar])
    assert {gap.cause for gap in sidecar.gaps} == {RECORDER_SLOW} and n_missing == result["n_dropped"] > 10
    assert sum(len(frames) for frames in decode(path)) == n_frames == 150


def test_the_trigger_sees_the_small_pictures(virtual_cameras: Rig, tmp_path: Path) -> None:
    """Two events with pre-roll and post-roll; between them nothing, and every frame was looked at."""
    result = virtual_cameras("film_picam.py", "triggered", "picam://0?width=640&height=360&gop_s=0.5", tmp_path / "spool")
    found = clips(tmp_path / "spool")
    assert result["small"] == [[180, 320, 3]] and result["n_looked"] > 250
    assert len(found) == result["n_clips"] == 2
    for path, sidecar in found:
        length_s = (sidecar.sensor_ns[-1] - sidecar.sensor_ns[0]) / 1e9
        assert 2.4 <= length_s <= 3.6  # 1 s pre-roll and its group, 1 s, .5 s post-roll and its group
        check_accounted([sidecar])
        assert sum(len(frames) for frames in decode(path)) == len(sidecar.sensor_ns)


def test_training_mode_writes_what_each_frame_was_taken_with(virtual_cameras: Rig, tmp_path: Path) -> None:
    """Locked: exposure and colours stand still; jittered: another ISO and white balance for every frame, in the sidecar."""
    base = "picam://0?width=320&height=180&settle_s=1&training="
    for mode in ("lock", "jitter"):
        virtual_cameras("film_picam.py", "record", f"{base}{mode}", tmp_path / mode, 300, 60)
    ((_, locked),), ((_, jittered),) = clips(tmp_path / "lock"), clips(tmp_path / "jitter")
    names = ("exposure_us", "gain", "red_gain", "blue_gain")
    assert {name: locked.controls[name] for name in names} == {
        "exposure_us": (20000.0,), "gain": (1.0,), "red_gain": (1.5,), "blue_gain": (2.0,)
    }  # fmt: skip
    assert jittered.controls["exposure_us"] == (20000.0,)
    gains = jittered.controls["gain"]
    assert len(gains) == 300 and len(set(gains[10:])) > 280 and min(gains) >= 1 and max(gains) <= 8
    for name, middle in (("red_gain", 1.5), ("blue_gain", 2.0)):
        drawn = np.asarray(jittered.controls[name])
        assert np.abs(drawn - middle).max() <= 0.5 + 1e-6 and len(np.unique(drawn)) > 280
    assert check_accounted([jittered]) == (300, 0)


def test_what_cannot_be_opened_says_what_can(virtual_cameras: Rig) -> None:
    """A camera that is not there, a size and a rate that it does not have, a USB camera in training mode."""
    result = virtual_cameras("film_picam.py", "refused")
    assert result["cameras"] == ["virtual_b", "virtual_a"]
    gone, wide, fast, usb = result["said"].values()
    assert gone == "UsageError: no camera picam://7; there are: picam://0 (virtual_b), picam://1 (virtual_a)"
    assert "1280x720" in wide and "legal: 5 to 30" in fast and "USB" in usb


def test_a_camera_that_never_stops_is_left_behind(virtual_cameras: Rig) -> None:
    """picamera2#1264: stopping has a deadline, and the process ends."""
    assert 0.9 < virtual_cameras("film_picam.py", "hung_stop", timeout_s=60)["stop_s"] < 3


def test_a_camera_that_gives_nothing_is_an_error(virtual_cameras: Rig) -> None:
    """picamera2#1392: no frame for the stated time ends with one line."""
    result = virtual_cameras("film_picam.py", "stalled", timeout_s=60)
    assert "DeviceError: camera 0 gave no frame for" in result["said"] and result["after_s"] < 3


@pytest.mark.parametrize("size", ["width=1280&height=720", "width=656&height=368"])
def test_colours_are_red_green_blue(virtual_cameras: Rig, size: str) -> None:
    """picamera2's BGR888 is RGB in memory, and padded rows are cut, of pictures and streams alike."""
    result = virtual_cameras("film_picam.py", "colours", f"picam://0?small=304&{size}")
    bars = [[255, 0, 0], [0, 255, 0], [255, 255, 0], [0, 0, 255], [255, 0, 255], [0, 255, 255]]
    for kind, least in (("pictures", 12), ("small", 12), ("stream", 24)):  # libx264 at its fastest is coarse
        assert np.abs(np.asarray(result[kind]) - bars).max() <= least, kind


def test_a_slow_reader_of_pictures_is_told_what_it_missed(virtual_cameras: Rig) -> None:
    """Pictures that nobody took in time are a jump of the numbers, the reader's fault, and the camera goes on."""
    frames = virtual_cameras("film_picam.py", "slow_pictures", "picam://0?width=640&height=360")["frames"]
    steps = [(b[0] - a[0], (b[1] - a[1]) // FRAME_NS, b[2]) for a, b in zip(frames, frames[1:], strict=False)]
    jumps = [step for step in steps if step[0] > 1]
    assert all(by_number == by_time for by_number, by_time, _ in steps)
    assert max(jumps)[0] >= 10 and max(jumps)[2] == RECORDER_SLOW  # a busy machine may lose one more elsewhere


def test_a_preview_shows_what_the_camera_finds_by_itself(virtual_cameras: Rig) -> None:
    """Rate, exposure and focus; the training mode of the address is left out, so that nothing is locked or jittered."""
    address = "picam://0?training=jitter&width=640&height=360"
    result = virtual_cameras("film_picam.py", "command", "preview", address, "--seconds", 3)
    assert result["code"] == 0 and result["n_frames"] + result["n_dropped"] >= 89 and result["width_px"] == 640
    assert result["controls"]["gain"] == 1.0 and result["controls"]["exposure_us"] == 20000.0
    assert result["focus_by"] == "laplacian" and result["focus"] > 10


def test_a_class_is_recorded_by_name_and_seconds(virtual_cameras: Rig, tmp_path: Path) -> None:
    """`camloop record day1/light 3` takes the first Pi camera; PNG at 128x128 comes from its pictures, in the right colours."""
    common = ("--countdown", 0, "--spool")
    h264 = virtual_cameras("film_picam.py", "command", "record", "day1/light", 3, *common, tmp_path / "h264")
    png = virtual_cameras(
        "film_picam.py", "command", "record", "day1/dark", 3, "--as", "png", "--size", "128x128", "--fps", 11, *common,
        tmp_path / "png",
    )  # fmt: skip
    assert h264["code"] == png["code"] == 0
    ((_, film),), ((_, images),) = clips(tmp_path / "h264"), clips(tmp_path / "png")
    assert (film.label, film.source_group, film.container) == ("light", "day1", "mp4")
    assert 45 < sum(check_accounted([film])) <= 91  # the grid is a little finer than 1/30 s; a busy machine loses some
    assert (images.label, images.container) == ("dark", "tar") and 17 < len(images.sensor_ns) <= 34


@pytest.mark.parametrize("kind", ["png", "h264"])
def test_a_rate_below_the_camera_s_own_is_taken_out_of_it(virtual_cameras: Rig, tmp_path: Path, kind: str) -> None:
    """A picture every two seconds of a camera that films at least five a second: no refusal, and no gap."""
    asked = ("--as", kind, "--size", "128x128", "--every-s", 2, "--countdown", 0, "--spool", tmp_path)
    assert virtual_cameras("film_picam.py", "command", "record", "day1/slow", 5, *asked)["code"] == 0
    sidecars = [sidecar for _, sidecar in clips(tmp_path)]
    times_s = [(ns - sidecars[0].sensor_ns[0]) / 1e9 for sidecar in sidecars for ns in sidecar.sensor_ns]
    assert len(times_s) == 3 and times_s[1:] == pytest.approx([1.6, 3.6], abs=0.25)
    assert not [gap for sidecar in sidecars for gap in sidecar.gaps]


SCENES = """
%YAML 1.1
---
"Still":
  supported_formats:
  - { width: 640, height: 360, frame_rates: [5, 30] }
  frames: { path: "still.jpg" }
  model: "still"
"Moving":
  supported_formats:
  - { width: 640, height: 360, frame_rates: [5, 30] }
  frames: { path: "scenes" }
  model: "moving"
"""
TABLE = """
[[camera]]
id = "{}"
url = "picam://{}?width=640&height=360"
trigger = {{kind = "motion", pre_roll_s = 1}}
"""
PRIVACY = 'privacy = {masks = [[0.0, 0.0, 0.5, 1.0]], style = "fill"}'


def test_motion_and_privacy_of_a_camera_s_table(virtual_cameras: Rig, tmp_path: Path) -> None:
    """A still scene records nothing, a moving one begins an event; what is masked is black in the clip."""
    grey, encoder = np.full((360, 640, 3), 90, np.uint8), ImageEncoder(".jpg", 640, 360)
    (tmp_path / "still.jpg").write_bytes(encoder.encode(grey))
    (tmp_path / "scenes").mkdir()
    for number in range(40):  # each is shown for 4 frames: 4 s of nothing, then a bright box crosses the scene
        scene = grey.copy()
        if number >= 30:
            scene[100:220, 60 * (number - 30) : 60 * (number - 30) + 80] = 230
        (tmp_path / "scenes" / f"{number}.jpg").write_bytes(encoder.encode(scene))
    config = tmp_path / "cameras.yaml"
    config.write_text(SCENES)
    tables = {"still": 0, "moving": 1, "hidden": 1}
    (tmp_path / "camloop.toml").write_text("".join(TABLE.format(name, number) for name, number in tables.items()) + PRIVACY)
    found = {}
    for name in tables:
        argv = ("record", "--camera-table", name, "--frames", 240, "--spool", tmp_path / name)
        assert virtual_cameras("film_picam.py", "command", *argv, config=config, cwd=tmp_path)["code"] == 0
        found[name] = clips(tmp_path / name)
    assert found["still"] == []
    for name in ("moving", "hidden"):
        path, sidecar = found[name][0]
        assert sidecar.trigger == "motion" and check_accounted([one for _, one in found[name]])[0] > 0
        brightest = np.max([frames.rgb.max(axis=(0, 1, 3)) for frames in decode(path)], axis=0)
        assert brightest[340:].max() > 200 and (brightest[:300].max() <= 24) == (name == "hidden")


AGENT = """
store = "store"
host_id = "pi"

[agent]
spool = "spool"
stall_s = 3

[[camera]]
id = "front"
url = "picam://0?width=640&height=360"
segment_s = 4

[[camera]]
id = "back"
url = "picam://1?width=320&height=240"
segment_s = 4
"""


def test_the_agent_heals_a_camera_that_hangs(virtual_cameras: Rig, tmp_path: Path) -> None:
    """Two Pi cameras under the agent; one recorder is frozen, killed and started again; the other loses nothing by it."""
    (tmp_path / "camloop.toml").write_text(AGENT)
    result = virtual_cameras("film_picam.py", "frozen", cwd=tmp_path, timeout_s=180)
    assert result["code"] == 0 and '"agent_stopped"' in result["events"]
    found = [Sidecar.from_json(path.read_bytes()) for path in (tmp_path / "store" / "clips").rglob("*.json")]
    lines = [line for path in (tmp_path / "spool" / "ledger").rglob("*.json*") for line in path.read_text().splitlines()]
    forfeited = [entry for entry in map(json.loads, lines) if entry.get("kind") == "forfeited"]
    found.sort(key=lambda one: one.seq)
    cameras = {name: [one for one in found if one.camera_id == name] for name in ("front", "back")}
    front, back = cameras["front"], cameras["back"]
    for name, clips_of_it in cameras.items():  # every number is a clip, or stands in the ledger with its reason
        numbers = [one.seq for one in clips_of_it] + [entry["seq"] for entry in forfeited if entry["camera_id"] == name]
        assert sorted(numbers) == list(range(len(numbers)))
    recordings = list(dict.fromkeys(one.recording_id for one in front))
    assert len(recordings) == 2 and len({one.recording_id for one in back}) == 1 and not any(one.salvaged for one in back)
    assert sum(one.salvaged for one in front) + sum(entry["camera_id"] == "front" for entry in forfeited) == 1
    check_accounted(back)
    check_accounted([one for one in front if one.recording_id == recordings[1]])
