"""The page of text that is read over the phone."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ingest.status import WIDTH, duration, page, size, troubles

NOW_NS, MONO_NS = 1_790_000_000_000_000_000, 500_000_000_000_000


def camera(name: str, **more: Any) -> dict[str, Any]:
    """Return a camera's facts as the agent publishes them: a good one, but for `more`."""
    return {
        "id": name, "url": "rtsp://***@host/1", "site": None, "trigger": "always", "state": "running", "since_s": 400_000.0,
        "fps": 14.98, "is_late": False, "down_s": 0.3, "last_frame_age_s": 0.3,
        "today": {"n_frames": 412_337, "n_dropped": 12, "n_skipped": 0, "n_clips": 341},
        "n_frames": 1, "n_dropped": 0, "n_skipped": 0, "n_clips": 1, "n_restarts": 0, "n_stalls": 0, "last_error": None,
        "n_lines_hidden": 0,
    } | more  # fmt: skip


def state(**more: Any) -> dict[str, Any]:
    """Return what an agent publishes when all is well, but for `more`."""
    return copy.deepcopy({
        "state": "running", "host_id": "barn-pi-1", "version": "0.2.0", "boot_id": "b", "started_mono_ns": MONO_NS - 10**14,
        "at_ns": NOW_NS - 4 * 10**9, "at_mono_ns": MONO_NS - 4 * 10**9, "hot_c": 80.0, "cameras": [camera("yard")],
        "uploader": {"state": "running", "last_error": None}, "power": None, "uptime_s": 500_000.0,
        "uplink": {"last_success_ns": NOW_NS - 35 * 10**9, "bytes_per_s": 1.2e6, "is_open": True, "reason": None,
                   "clock_offset_s": None},
        "disk": {"free_bytes": 21_000_000_000, "total_bytes": 58_000_000_000, "is_read_only": False}, "temperature_c": 54.2,
        "clock": {"quality": "ntp", "offset_s": 0.0021},
        "spool_holds": {"n_pending": 3, "n_bytes": 12_400_000, "oldest_ns": NOW_NS - 70 * 10**9, "n_evicted": 0,
                        "n_quarantined": 0, "n_lost": 0, "n_delivered": 8123},
        "errors": [], "spool_today": {"n_evicted": 0, "n_quarantined": 0, "n_lost": 0},
    } | more)  # fmt: skip


def lines(found: dict[str, Any], running: bool = True, boot_id: str = "b") -> list[str]:
    """Return the page of a state."""
    return page(found, running=running, now_ns=NOW_NS, mono_ns=MONO_NS, boot_id=boot_id)


def test_all_is_well() -> None:
    """The page of a good host, whole."""
    assert "\n".join(lines(state())) == (
        "barn-pi-1   camloop 0.2.0\n"
        "agent running since 27 h 47 min, looked 4 s ago\n"
        "\n"
        "All is well.\n"
        "\n"
        "camera yard: recording since 4 d 15 h\n"
        "  15.0 frames/s, last frame 4 s ago\n"
        "  today 412,337 frames, 12 dropped, 341 clips\n"
        "\n"
        "spool        3 clips wait, 12 MB\n"
        "             oldest 70 s, 0 given up for space\n"
        "uplink       last delivery 35 s ago\n"
        "             1.2 MB/s, may send now\n"
        "disk         21 GB free of 58 GB\n"
        "temperature  54 degrees C\n"
        "clock        set by the network, off by 2 ms\n"
        "up           5 d 18 h"
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"disk": None}, "The spool's disk does not answer."),
        ({"disk": {"free_bytes": 5, "total_bytes": 9, "is_read_only": True}}, "The spool's disk is READ-ONLY"),
        ({"disk": {"free_bytes": 10**8, "total_bytes": 10**10, "is_read_only": False}}, "nearly full: 100 MB free."),
        ({"spool_holds": None}, "The spool cannot be read."),
        ({"spool_today": {"n_evicted": 12_000}}, "12,000 clips were given up for space today."),
        ({"spool_today": {"n_lost": 1}}, "1 clip was lost today."),
        ({"cameras": [camera("yard", state="waiting", n_restarts=7)]}, "Camera yard is NOT RECORDING."),
        ({"cameras": [camera("yard", state="starting", down_s=61.0)]}, "Camera yard is NOT RECORDING."),
        ({"cameras": [camera("yard", last_frame_age_s=45.0, is_late=True)]}, "Camera yard waits for the disk: no frame for"),
        ({"uploader": {"state": "waiting", "last_error": "x"}}, "The uploader fails."),
        ({"temperature_c": 84.0}, "It is hot: 84 degrees."),
        ({"power": "under-voltage now"}, "The power supply is weak: under-voltage now."),
        ({"clock": {"quality": "unknown", "offset_s": None}}, "The clock is not set by the network."),
    ],
)  # fmt: skip
def test_what_somebody_should_look_at(more: dict[str, Any], words: str) -> None:
    """Each trouble is said first, in words; nothing on the page is wider than a phone."""
    (found,) = troubles(state(**more))
    assert words in found
    made = lines(state(**more))
    assert made[3] == "LOOK AT THIS" and max(map(len, made)) <= WIDTH


def test_a_camera_that_is_down() -> None:
    """How long there was no frame, what happens now, why; the same error is not told twice."""
    reason = "camloop record: rtsp://***@192.168.1.20/stream1: connection refused; is the camera on?"
    down = camera(
        "pen", state="waiting", fps=None, down_s=500.0, last_frame_age_s=500.0, n_restarts=31, n_stalls=1, last_error=reason
    )
    error = {"at_ns": NOW_NS, "name": "pen", "text": reason, "n_times": 31}
    other = {"at_ns": NOW_NS, "name": "uploader", "text": "store s3://farm: 503", "n_times": 4}
    made = lines(state(cameras=[camera("yard"), down], errors=[other, error]))
    text = "\n".join(made)
    assert "camera pen: no frame for 8 min, starting again soon\n" in text and text.count("connection refused") == 1
    assert "restarted 31 times, 1 of them stalled" in text and "uploader: store s3://farm: 503 (4 times)" in text
    assert max(map(len, made)) <= WIDTH


@pytest.mark.parametrize(("stopped", "words"), [("stopped", "it was stopped"), ("running", "it crashed, or the power went")])
def test_not_running(stopped: str, words: str) -> None:
    """Since when, and whether somebody stopped it."""
    made = lines(state(state=stopped), running=False, boot_id="another")
    assert made[1].startswith("AGENT NOT RUNNING since ") and made[1].endswith("(4 s)") and made[2].startswith(words)
    assert "- Nothing is recorded and nothing is uploaded." in made and "camera yard: was recording" in made


def test_an_agent_that_hangs() -> None:
    """A state that is old although the agent runs is the first trouble."""
    made = lines(state(at_mono_ns=MONO_NS - 300 * 10**9))
    assert "- The agent has said nothing for 5 min." in made


def test_a_clock_beside_the_store() -> None:
    """How far the clock is from the store's, where the store said so."""
    uplink = state()["uplink"] | {"clock_offset_s": 1.7e9}
    made = lines(state(clock={"quality": "unknown", "offset_s": None}, uplink=uplink))
    assert "clock        NOT set by the network, 19675 d 22 h behind the" in made and "             store" in made


def test_a_camera_with_a_trigger() -> None:
    """It watches, and what it did not keep is counted."""
    watching = camera("yard", trigger="motion")
    watching["today"] = watching["today"] | {"n_skipped": 391_004}
    text = "\n".join(lines(state(cameras=[watching])))
    assert "camera yard: watching since 4 d 15 h\n" in text and "  391,004 frames not kept by the trigger (motion)\n" in text


def test_no_uplink_and_long_names() -> None:
    """A host that uploads nothing says so; a name of 127 characters keeps within the page."""
    made = lines(state(uploader=None, cameras=[camera("n" * 127)]))
    assert "uplink       none: clips stay here" in made and max(map(len, made)) <= WIDTH


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (5990, "1 h 40 min"), (7200, "2 h"), (259_200, "3 d")],
)
def test_durations(seconds: float | None, words: str) -> None:
    """One or two words."""
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(None, "-"), (0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (999_600, "1.0 MB"), (12e6, "12 MB"), (2e12, "2.0 TB")],
)
def test_sizes(n_bytes: float | None, words: str) -> None:
    """Decimal units, two figures."""
    assert size(n_bytes) == words
