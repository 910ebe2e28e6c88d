"""Events of a store: layers of motion, classes and expressions, across clip borders, with what nobody looked at."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import chains, events, events_page, layers, open_catalog, scan, scores
from curate.events import Events
from curate.thumbnails import thumbnails
from infra import keys
from infra.catalog import Catalog, Done
from infra.cli import main
from infra.decoder import DecoderPool
from infra.errors import QueryError

AddClip = Callable[..., str]
RATE = 10
DAY_NS = 1_767_949_200 * 10**9  # 2026-01-09 09:00 UTC


def clip_row(name: str, n_frames: int, **columns: Any) -> dict[str, Any]:
    """Return a row of `clips` for a clip of 10 frames a second that exists in the tables only."""
    sha256 = keys.sha256_hex(name.encode())
    facts = {
        "clip_id": keys.clip_id(sha256), "key": f"clips/cam1/{name}.mp4", "source_name": f"{name}.mp4", "container": "mp4",
        "camera_id": "cam1", "camera_number": 1, "recording_id": "r", "boot_id": None, "seq": None, "start_ns": None,
        "time_base_num": 1, "time_base_den": RATE, "first_pts": 0, "end_pts": n_frames, "n_frames": n_frames, "width_px": 64,
        "height_px": 48, "codec": "h264", "index": "packets", "clock": "unknown", "state": "live", "n_bytes": 1,
        "sha256": sha256, "rotation_deg": 0, "n_dropped": 0,
    }  # fmt: skip
    return {**facts, **columns}


def gop(clip: dict[str, Any], number: int, start: int, motion: Sequence[float | None] | None, n: int, p: float = 1.0) -> Any:
    """Return a row of `gops`: `n` frames from `start`; motion None: not decoded."""
    return {
        "clip_id": clip["clip_id"], "gop_index": number, "start_pts": start, "end_pts": start + n,
        "pts": list(range(start, start + n)), "n_bytes": 1, "packet_score": 0.1, "decoded": motion is not None,
        "motion": None if motion is None else list(motion), "p_keep": p,
    }  # fmt: skip


def put(catalog: Catalog, clips: Sequence[dict[str, Any]], gops: Sequence[Any] = (), **rows: Any) -> None:
    """Commit clips, each with its step `scan` done, and rows of further tables by their step."""
    catalog.commit({"clips": list(clips)}, [Done("clip", clip["clip_id"], "register", "f", 1, 1) for clip in clips])
    frames = rows.pop("frames", [])
    done = [Done("clip", clip["clip_id"], "scan", "f" * 32, 1, 1) for clip in clips]
    catalog.commit({"gops": list(gops), "frames": frames}, done)


def found(catalog: Catalog, name: str = "motion", **how: Any) -> Events:
    """Return the events of a layer, with no merging and no least length unless asked for."""
    return events.find(catalog, layers.layer(name, **{"least_s": 0.0, "merge_s": 0.0, **how}))


def ticks(made: Events) -> list[tuple[str, int, int]]:
    """Return (file, start, end) of each row."""
    return list(made.rows.select(pl.col("source_name").str.head(-4), "start_pts", "end_pts").iter_rows())


MOVES, STILL = 0.1, 0.0


def test_an_event_crosses_clip_borders(catalog: Catalog) -> None:
    """Motion in the last half second of one clip and the first of the next is one event in two rows, with exact times."""
    first, second = clip_row("a", 20, start_ns=DAY_NS), clip_row("b", 20, start_ns=DAY_NS + 2 * 10**9)
    rows = [
        gop(first, 0, 0, [None, *[STILL] * 14, *[MOVES] * 5], 20),
        gop(second, 0, 0, [None, *[MOVES] * 4, *[STILL] * 15], 20),
    ]
    put(catalog, [second, first], rows[::-1])
    made = found(catalog, merge_s=0.1)
    assert ticks(made) == [("a", 15, 20), ("b", 0, 5)]
    head, tail = made.rows.to_dicts()
    assert head["event_id"] == tail["event_id"] == keys.derived_id("r", "motion", "scan@ffffffffffff", first["clip_id"], 15)
    assert (head["start_s"], head["end_s"], head["start_utc_ns"]) == (1.5, 2.0, DAY_NS + 1_500_000_000)
    assert tail["end_utc_ns"] == DAY_NS + 2_500_000_000 and head["peak"] == pytest.approx(MOVES) and head["peak_pts"] == 15
    assert head["unknown_s"] == 0 and tail["unknown_s"] == pytest.approx(0.1)  # the second clip's first frame has no score
    assert (head["start_known"], tail["end_known"]) == (True, True)
    totals = made.cameras.row(0, named=True)
    assert (totals["n_events"], totals["footage_s"], totals["on_s"]) == (1, 4.0, 1.0)
    assert totals["unknown_s"] == pytest.approx(0.2)
    apart = found(catalog)  # without merging the frame that nobody knows parts them
    assert ticks(apart) == [("a", 15, 20), ("b", 1, 5)] and apart.rows["event_id"].n_unique() == 2
    assert apart.rows["end_known"].to_list() == [False, True] and apart.rows["start_known"].to_list() == [True, False]


@pytest.mark.parametrize(
    ("second", "n_events"),
    [
        ({"boot_id": "b", "seq": 1}, 1),  # no time at all: the next one follows at once
        ({"boot_id": "b", "seq": 2}, 2),  # one is missing in between
        ({"boot_id": "b", "seq": 1, "start_mono_ns": 2_900_000_000}, 1),  # less than a second is lost
        ({"boot_id": "b", "seq": 1, "start_mono_ns": 3_100_000_000}, 2),  # a gap ends an event
        ({"boot_id": "b", "seq": 1, "start_mono_ns": 500_000_000}, 2),  # time ran back
        ({"boot_id": "c", "seq": 1, "start_mono_ns": 2_000_000_000}, 2),  # another run of the host
        ({"boot_id": "b", "seq": 1, "recording_id": "other"}, 2),
        (
            {"boot_id": "b", "seq": 1, "start_mono_ns": 2_000_000_000, "start_ns": DAY_NS + 3600 * 10**9},
            1,
        ),  # the wall clock jumped
    ],
)
def test_what_follows_and_what_does_not(catalog: Catalog, second: dict[str, Any], n_events: int) -> None:
    """Order is (boot_id, seq), distance is monotonic time, else wall time; a gap of more than a second ends an event."""
    mono = 0 if "start_mono_ns" in second else None
    before = clip_row("a", 20, boot_id="b", seq=0, start_mono_ns=mono, start_ns=DAY_NS if mono is not None else None)
    after = clip_row("b", 20, **second)
    put(catalog, [before, after], [gop(clip, 0, 0, [MOVES] * 20, 20) for clip in (before, after)])
    assert found(catalog, merge_s=2).rows["event_id"].n_unique() == n_events


def test_files_of_a_camera_are_joined_when_asked(catalog: Catalog) -> None:
    """Files without sidecars are recordings of their own; --join-s makes those that follow by their clocks one."""
    clips = [
        clip_row(name, 20, recording_id=name, start_ns=DAY_NS + at * 10**8) for name, at in (("a", 0), ("b", 16), ("c", 60))
    ]
    put(catalog, clips, [gop(clip, 0, 0, [MOVES] * 20, 20) for clip in clips])
    assert found(catalog, merge_s=1).rows["event_id"].n_unique() == 3
    joined = found(catalog, merge_s=1, join_s=1)  # b begins .4 s before a ends: clocks in file names are of whole seconds
    assert joined.rows["event_id"].n_unique() == 2 and ticks(joined) == [("a", 0, 20), ("b", 0, 20), ("c", 0, 20)]


def test_what_was_not_decoded_is_unknown(catalog: Catalog) -> None:
    """A GOP that nobody decoded neither has motion nor has none; shares of frames are estimated by 1 / p_keep."""
    clip = clip_row("a", 40)
    still, moving = [STILL] * 10, [MOVES] * 10
    put(catalog, [clip], [gop(clip, 0, 0, moving, 10), gop(clip, 1, 10, None, 10, 0.5), gop(clip, 2, 20, still, 10, 0.5),
                          gop(clip, 3, 30, moving, 10)])  # fmt: skip
    made = found(catalog)
    assert ticks(made) == [("a", 0, 10), ("a", 30, 40)]
    assert made.rows["end_known"].to_list() == [False, False] and made.rows["start_known"].to_list() == [False, True]
    totals = made.cameras.row(0, named=True)
    assert totals["unknown_s"] == 1.0 and totals["n_frames"] == 40
    assert (totals["share_on"], totals["share_off"], totals["share_unknown"]) == (0.5, 0.5, 0.0)  # the still GOP stands for two
    assert ticks(found(catalog, merge_s=2)) == [("a", 0, 40)]  # bridged, and said
    assert found(catalog, merge_s=2).rows["unknown_s"].to_list() == [1.0]


def test_a_store_that_was_not_scanned(catalog: Catalog) -> None:
    """Everything is unknown, no share is made up, and a store without clips has no events."""
    assert found(catalog).rows.is_empty() and found(catalog).cameras.is_empty()
    clip = clip_row("a", 40)
    catalog.commit({"clips": [clip]}, [Done("clip", clip["clip_id"], "register", "f", 1, 1)])
    made = found(catalog)
    assert made.rows.is_empty()
    assert made.cameras.select("unknown_s", "share_on", "share_unknown").row(0) == (4.0, None, None)


def frames_of(clip: dict[str, Any], levels: Sequence[float]) -> list[dict[str, Any]]:
    """Return rows of `frames`, every fifth tick, of these brightnesses."""
    return [{"clip_id": clip["clip_id"], "pts": 5 * i, "brightness": level, "p_keep": 0.2} for i, level in enumerate(levels)]


def test_a_class_a_tag_and_an_expression(catalog: Catalog) -> None:
    """The best score of the class decides; no detection is 0 where the detector looked, unknown where it did not."""
    seen, unseen = clip_row("a", 20), clip_row("b", 20, recording_id="s")
    put(catalog, [seen, unseen], [gop(clip, 0, 0, [STILL] * 20, 20) for clip in (seen, unseen)],
        frames=[*frames_of(seen, [9, 9, 99, 99]), *frames_of(unseen, [99] * 4)])  # fmt: skip
    box = {"clip_id": seen["clip_id"], "source": "d@1", "x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}
    boxes = [("person", 5, 0.3), ("person", 5, 0.9), ("person", 10, 0.3), ("dog", 0, 0.9)]
    rows = [{**box, "det_id": str(i), "class_name": c, "pts": pts, "score": s} for i, (c, pts, s) in enumerate(boxes)]
    catalog.commit({"detections": rows}, [Done("clip", seen["clip_id"], "detect", "e" * 32, 4, 4)])
    people = found(catalog, "person")
    assert ticks(people) == [("a", 5, 15)] and people.rows["peak_pts"].to_list() == [5]  # .3 is above half of .5
    assert people.rows["source"].to_list() == ["detect@eeeeeeeeeeee"] and people.cameras["unknown_s"].to_list() == [2.0]
    assert people.cameras["share_on"].to_list() == [pytest.approx(5 / 40)]
    assert ticks(found(catalog, "dog", on=0.9, off=0.9)) == [("a", 0, 5)]
    assert ticks(found(catalog, "brightness < 50")) == [("a", 0, 10)]
    assert ticks(found(catalog, "n_person = 0 and brightness > 50")) == [("a", 15, 20)]  # null in clip b: unknown
    tag = {"clip_id": unseen["clip_id"], "pts": None, "factor": "weather", "name": "rain", "source": "m@1"}
    catalog.commit({"tags": [tag]}, [Done("clip", unseen["clip_id"], "tag", "f", 4, 1)])
    assert ticks(found(catalog, "weather = 'rain'")) == [("b", 0, 20)]
    with pytest.raises(QueryError, match="did you mean person"):
        found(catalog, "persn")
    with pytest.raises(QueryError, match="wether"):
        found(catalog, "wether = 'rain'")


def test_a_kept_frame_says_nothing_about_a_gop_that_nobody_decoded(catalog: Catalog) -> None:
    """It holds until the next kept frame, but not into the dark, and not over a long drop-out."""
    clip = clip_row("a", 60)
    frames = [{"clip_id": clip["clip_id"], "pts": pts, "brightness": 9.0, "p_keep": 0.2} for pts in (0, 5, 10, 25, 30, 35)]
    gops = [gop(clip, 0, 0, [STILL] * 12, 12), gop(clip, 1, 12, None, 8), gop(clip, 2, 20, [STILL] * 40, 40)]
    put(catalog, [clip], gops, frames=frames)
    made = found(catalog, "brightness < 50")
    assert ticks(made) == [("a", 0, 12), ("a", 25, 55)]  # 12 to 20 is dark, 20 to 25 has no kept frame; 55 = 35 + 4 x 5
    assert made.cameras["unknown_s"].to_list() == [pytest.approx(1.8)]
    assert made.rows["end_known"].to_list() == [False, False]


def test_a_late_clip_gives_the_rows_that_it_would_have_given(catalog: Catalog) -> None:
    """Three clips of a recording, the middle one last: nothing remembers in what order they came."""
    clips = [clip_row(name, 20, boot_id="b", seq=i, start_mono_ns=i * 2 * 10**9) for i, name in enumerate("abc")]
    gops = {clip["clip_id"]: gop(clip, 0, 0, [MOVES] * 20, 20) for clip in clips}
    for i in (0, 2):
        put(catalog, [clips[i]], [gops[clips[i]["clip_id"]]])
    assert found(catalog).rows["event_id"].n_unique() == 2
    put(catalog, [clips[1]], [gops[clips[1]["clip_id"]]])
    made = found(catalog)
    assert made.rows["event_id"].n_unique() == 1 and ticks(made) == [("a", 0, 20), ("b", 0, 20), ("c", 0, 20)]


def test_thresholds_follow_darkness_and_hours(catalog: Catalog) -> None:
    """The same score is motion by day and noise at night: by brightness of the nearest kept frame, and by local hour."""
    night, day = clip_row("a", 20, start_ns=DAY_NS - 6 * 3600 * 10**9), clip_row("b", 20, recording_id="s", start_ns=DAY_NS)
    camera = {"camera_id": "cam1", "camera_number": 1, "valid_from_ns": 0, "time_zone": "Europe/Paris", "created_ns": 1}
    catalog.append("cameras", [camera])
    put(catalog, [night, day], [gop(clip, 0, 0, [0.03] * 20, 20) for clip in (night, day)],
        frames=[*frames_of(night, [20, 20, 20, 60]), *frames_of(day, [100] * 4)])  # fmt: skip
    assert ticks(found(catalog)) == [("a", 0, 20), ("b", 0, 20)]
    assert ticks(found(catalog, dark=[(20, 4), (80, 1)], off=0.015)) == [("b", 0, 20)]
    assert ticks(found(catalog, dark=[(20, 4), (60, 1)])) == [("a", 13, 20), ("b", 0, 20)]
    assert ticks(found(catalog, hours=layers.read_hours("22:00-06:00=2"))) == [("b", 0, 20)]  # 04:00 in Paris, 10:00 in Paris
    assert ticks(found(catalog, hours=layers.read_hours("10:00-10:01=2,22:00-06:00=.5"))) == [("a", 0, 20)]
    assert layers.read_hours("18:30-24:00=2") == ((1110, 1440, 2.0),)


def test_the_factor_of_darkness() -> None:
    """Linear between the points, constant outside, 1 where the brightness is unknown."""
    given_ = pl.DataFrame({"b": [None, 0.0, 20.0, 40.0, 60.0, 120.0, 255.0]})
    factor = given_.select(scores.darkness_factor(pl.col("b"), layers.read_dark("20=4,60=2,120=1")))
    assert factor.to_series().to_list() == [1.0, 4.0, 4.0, 3.0, 2.0, 1.0, 1.0]
    assert given_.select(scores.darkness_factor(pl.col("b"), ())).to_series().to_list() == [1.0] * 7


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("motion; --", {}, "legal: motion, a class"),
        ("motion", {"on": 0.1, "off": 0.2}, "off <= on"),
        ("motion", {"on": 0.0}, "0 < off"),
        ("motion", {"least_s": -1.0}, "least_s -1"),
        ("motion", {"merge_s": float("nan")}, "merge_s nan"),
        ("motion", {"dark": [(300, 2)]}, "from 0 to 255"),
        ("motion", {"dark": [(30, 0)]}, "times 0"),
        ("n_person > 0", {"on": 0.5}, "has no thresholds"),
        ("n_person > ", {}, "where-expression"),
    ],
)
def test_what_is_refused(name: str, how: dict[str, Any], message: str) -> None:
    """A layer that cannot be is refused in one line, with what is legal."""
    with pytest.raises(QueryError, match=re.escape(message)):
        layers.layer(name, **how)


def test_what_looked_at_frames_stand_for() -> None:
    """Sure frames stand for themselves, the sample by 1 / p_keep for the rest; without a sample the rest stays unknown."""
    looked = np.array([1.0, 1.0, 0.25, 0.05, 0.05])
    whole = scores.stood_for(looked)
    assert whole.tolist() == [2, 44]
    assert scores.estimate(scores.stood_for(looked[:1]), whole, 46) == 1
    assert scores.estimate(scores.stood_for(looked[1:3]), whole, 46) == pytest.approx(1 + 4)
    assert scores.estimate(scores.stood_for(looked[1:3]), whole, 24) == pytest.approx(1 + 4 / 44 * 22)  # the sample said 44
    assert scores.estimate(whole, whole, 5) == 5
    assert scores.estimate(scores.stood_for(looked[:2]), scores.stood_for(looked[:2]), 10) == 2


def test_the_share_of_motion_is_estimated_without_bias(catalog: Catalog) -> None:
    """Of 200 clips a tenth of the GOPs that promise nothing are decoded: the share of what moves in them comes out."""
    draw = random.Random(11)
    clips, gops, moving = [], [], 0
    for i in range(200):
        clip = clip_row(f"g{i}", 60, recording_id=f"g{i}", camera_id="quiet")
        clips.append(clip)
        for number in range(6):
            is_sure, moves = number == 0, number == 0 or draw.random() < 0.2
            moving += moves
            motion = [MOVES if moves else STILL] * 10
            decoded = is_sure or draw.random() < 0.1
            gops.append(gop(clip, number, 10 * number, motion if decoded else None, 10, 1.0 if is_sure else 0.1))
    put(catalog, clips, gops)
    made = found(catalog).cameras.row(0, named=True)
    assert made["n_frames"] == 12_000 and made["share_unknown"] == pytest.approx(0)
    assert made["share_on"] == pytest.approx(moving / 1200, abs=0.08)  # 100 of 1,000 were looked at: a standard error of .033


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([(1, 90_000), (1, 15_360), (1, 1000), (1001, 30_000), (1, 1_000_000_000), (1, 25)]), st.data())
def test_ticks_come_back_from_the_axis(time_base: tuple[int, int], data: st.DataObject) -> None:
    """pts -> nanoseconds -> pts is exact for every time base, also late in a long clip."""
    pts = data.draw(st.integers(0, 10**7))
    clip = {"time_base_num": time_base[0], "time_base_den": time_base[1], "first_pts": 7}
    at = int(chains.to_ns(np.array([pts], np.int64), clip, 123)[0])
    assert chains.to_pts(at, clip, 123) == pts


def test_where_a_recording_is_cut_does_not_matter(catalog: Catalog) -> None:
    """The same scores cut into clips anywhere, their rows in any order, give the same intervals on the clock."""
    draw = random.Random(4)
    motion = [draw.choice([0.0, 0.005, 0.015, 0.05]) for _ in range(120)]
    wanted: list[tuple[int, int]] | None = None
    for cuts in ([], [1], [17, 60], [40, 41, 99]):
        edges = [0, *cuts, 120]
        parts = list(zip(edges[:-1], edges[1:], strict=True))
        name = f"x{len(cuts)}"
        clips = [
            clip_row(f"{name}-{a}", b - a, camera_id=name, recording_id=name, boot_id="b", seq=i, start_ns=DAY_NS + a * 10**8)
            for i, (a, b) in enumerate(parts)
        ]
        gops = [gop(clip, 0, 0, motion[a:b], b - a) for clip, (a, b) in zip(clips, parts, strict=True)]
        draw.shuffle(clips)
        put(catalog, clips, gops)
        rows = found(catalog, merge_s=0.3, least_s=0.4, pad_s=0.2).rows.filter(pl.col("camera_id") == name)
        spread = rows.group_by("event_id").agg(pl.col("start_utc_ns").min(), pl.col("end_utc_ns").max()).drop("event_id")
        clocks = sorted(spread.iter_rows())
        wanted = wanted or clocks
        assert clocks == wanted and len(clocks) > 2


def test_a_view_of_events_can_be_asked_and_sampled(catalog: Catalog) -> None:
    """`footage.events` narrows, spreads and draws like every view; its columns are those of the nearest kept frame."""
    clips = [clip_row(f"c{i}", 20, recording_id=f"r{i}", camera_id=f"cam{i % 2}") for i in range(4)]
    put(catalog, clips, [gop(clip, 0, 0, [*[MOVES] * 10, *[STILL] * 10], 20) for clip in clips],
        frames=[row for i, clip in enumerate(clips) for row in frames_of(clip, [10 * i] * 4)])  # fmt: skip
    view = open_catalog(catalog.store).events("motion", least_s=0.2)
    assert view.count() == 4 and view.where("brightness >= 20 and peak > .05").count() == 2
    assert view.distribution(by=["camera_id"]).table["footage_s"].to_list() == [2.0, 2.0]
    drawn = view.sample(2, by=["camera_id"], seed=1, name="moves")
    assert drawn.unit == "interval" and {(row.start_pts, row.end_pts) for row in drawn.rows} == {(0, 10)}
    assert drawn.extra["layer"]["name"] == "motion" and drawn.extra["layer"]["least_s"] == 0.2


def test_motion_begins_where_it_suits_the_score(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    """A hundredth of the picture is motion where all clips have score 2, and none where one has score 1, which is said; --on
    wins."""
    first, second = clip_row("a", 20), clip_row("b", 20, recording_id="s")
    put(catalog, [first], [gop(first, 0, 0, [0.0] * 5 + [0.01] * 10 + [0.0] * 5, 20)])
    assert open_catalog(catalog.store).events().count() == 0
    both = {"gops": [gop(first, 0, 0, [0.0] * 5 + [0.01] * 10 + [0.0] * 5, 20)], "scenes": [{"clip_id": first["clip_id"]}]}
    catalog.commit(both, [Done("clip", first["clip_id"], "scan", "h" * 32, 1, 1)])
    assert scores.motion_on(catalog) == layers.ON[2] and open_catalog(catalog.store).events().count() == 1
    put(catalog, [second], [gop(second, 0, 0, [0.0] * 20, 20)])
    assert open_catalog(catalog.store).events().count() == 0 and open_catalog(catalog.store).events(on=0.01).count() == 1
    asked = ["query", "--intervals", "motion", "--store", catalog.store.url]
    for more, is_said in (([], True), (["--on", ".01"], False)):
        assert main([*asked, *more]) == 0
        assert ("motion scores 1 and 2: on from 0.02" in " ".join(capsys.readouterr().out.split())) is is_said


def test_the_vault_is_left_out(catalog: Catalog) -> None:
    """Held-out recordings have no events and are no footage, unless asked for."""
    clips = [clip_row(f"v{i}", 20, recording_id=f"v{i}") for i in range(60)]
    put(catalog, clips, [gop(clip, 0, 0, [MOVES] * 20, 20) for clip in clips])
    footage = open_catalog(catalog.store)
    n_held = len(footage.vault_state().held)
    assert n_held and footage.events().count() == 60 - n_held
    assert open_catalog(catalog.store, vault=True).events().count() == 60


def test_the_command(catalog: Catalog, add_clip: AddClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, --json, --csv and a page with a picture of each peak; a clip that is gone keeps its line."""
    levels = [60] * 20 + [200] * 10 + [60] * 20
    kept, gone = (add_clip(catalog, name, [level + i for level in levels], recording_id=name) for i, name in enumerate("ab"))
    motion = [None, *[STILL] * 19, *[MOVES] * 10, *[STILL] * 20]
    for clip_id in (kept, gone):
        row = gop({"clip_id": clip_id}, 0, 0, motion, 50)
        catalog.commit({"gops": [row], "frames": []}, [Done("clip", clip_id, "scan", "f" * 32, 50, 0)])
    catalog.store.delete(keys.clip_key("cam1", gone, "mp4"))
    store, table, page = str(tmp_path / "store"), tmp_path / "e.csv", tmp_path / "e.html"
    argv = ["query", "--intervals", "motion", "--store", store, "--csv", str(table), "--page", str(page)]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "2 events of motion" in shown and "2.000" in shown and "a.mp4" in shown
    assert main([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["n_events"], document["on_s"], document["footage_s"]) == (2, 2.0, 10.0)
    rows = list(csv.DictReader(table.open()))
    assert list(rows[0])[:9] == [
        "camera_id", "clip_id", "source_name", "start_pts", "end_pts", "start_s", "end_s", "event_id", "peak",
    ]  # fmt: skip
    assert [(row["source_name"], row["start_pts"], row["end_s"]) for row in rows] == [
        ("a.mp4", "20", "3.0"),
        ("b.mp4", "20", "3.0"),
    ]
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 1 and html.count("no picture") == 1 and "http" not in html
    narrowed = ["query", "source_name = 'a.mp4'", "--intervals", "motion", "--store", store, "--by", "camera_id", "--json"]
    assert main(narrowed) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n_events"] == 1 and document["on_s"] == 1.0 and document["distribution"][0]["rows"] == 1
    assert main(["sample", "moves", "all", "--intervals", "motion", "--purpose", "label", "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_rows"] == 2


def test_a_page_shows_words_of_others_as_text(catalog: Catalog) -> None:
    """Names of files and cameras cannot become markup; a long event names some of its files; days and hours are shown."""
    clips = [
        clip_row(
            f"x{i}", 20, camera_id="<i>cam</i>", source_name="<script>.mp4", boot_id="b", seq=i, start_ns=DAY_NS + i * 2 * 10**9
        )
        for i in range(6)
    ]
    put(catalog, clips, [gop(clip, 0, 0, [MOVES] * 20, 20) for clip in clips])
    html = events_page.render(catalog, layers.layer("motion"), found(catalog), where="peak > 0 or '<b>' = '<b>'")
    assert "<script>" not in html and "<i>cam" not in html and "<b>'" not in html
    assert html.count("&lt;script&gt;.mp4") == 4 and "... 2 more files ..." in html
    assert "2026-01-09 09h: 12.0 s in events" in html and "no picture" in html


def test_times_on_the_page_are_the_cameras(catalog: Catalog) -> None:
    """Of a camera with a time zone the page shows that zone's clocks, with its name, in the list and by hour; else UTC."""
    start_ns = DAY_NS + 14 * 3_600 * 10**9
    clips = [clip_row(name, 20, camera_id=name, recording_id=name, start_ns=start_ns) for name in ("mumbai", "none")]
    put(catalog, clips, [gop(clip, 0, 0, [MOVES] * 20, 20) for clip in clips])
    camera = {"camera_id": "mumbai", "camera_number": 1, "valid_from_ns": 0, "created_ns": 1, "attributes": "{}"}
    catalog.append("cameras", [camera | {"time_zone": "Asia/Kolkata"}])
    html = events_page.render(catalog, layers.layer("motion"), found(catalog))
    assert "when (Asia/Kolkata, UTC)" in html
    assert re.search("2026-01-10 Asia/Kolkata<.*?>04:30:00.000 to 04:30:02.000<", html)
    assert re.search("2026-01-09 UTC<.*?>23:00:00.000 to 23:00:02.000<", html)
    assert "2026-01-10 04h: 2.0 s in events" in html and "2026-01-09 23h: 2.0 s in events" in html
    assert "mumbai: days with events, by hour (Asia/Kolkata)" in html and "none: days with events, by hour (UTC)" in html


def test_lengths_and_times_for_people() -> None:
    """Seconds, minutes, hours; UTC to the millisecond, also before 1970."""
    assert [events_page.length(s) for s in (0.04, 59.94, 185, 90_000)] == ["0.0 s", "59.9 s", "3:05 min", "25:00:00 h"]
    assert events_page.utc(DAY_NS + 1_500_000) == "2026-01-09T09:00:00.001Z" and events_page.utc(None) is None
    assert events_page.utc(-1_000_000) == "1969-12-31T23:59:59.999Z"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--on", ".1"], "--on: only together with --intervals"),
        (["--intervals", "motion", "--off", "2"], "off <= on"),
        (["--intervals", "motion", "--unit", "clip"], "a row is an interval"),
        (["--intervals", "motion", "--dark", "20"], "BRIGHTNESS=FACTOR"),
        (["--intervals", "motion", "--hours", "9-10=2"], "HH:MM-HH:MM=FACTOR"),
        (["--intervals", "motion", "--hours", "09:00-09:00=2"], "HH:MM-HH:MM=FACTOR"),
        (["--intervals", "motion", "--page-most", "3"], "together with --page"),
        (["--intervals", "motion", "--csv", "/no/such/e.csv"], "there is no folder"),
    ],
)
def test_the_command_refuses(catalog: Catalog, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the value and what is legal, exit 2."""
    assert main(["query", *argv, "--store", catalog.store.url]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_a_thumbnail_is_the_frame(catalog: Catalog, add_clip: AddClip) -> None:
    """A picture has the frame's brightness and size; what is not there has no picture."""
    import cv2

    clip_id = add_clip(catalog, "a", [40] * 5 + [200] * 5)
    row = catalog.scan("clips").filter(pl.col("clip_id") == clip_id).collect().row(0, named=True)
    with DecoderPool() as pool:
        made = thumbnails(catalog.store, pool, row, [7, 2])
        assert thumbnails(catalog.store, pool, row, [77]) == {}
    assert sorted(made) == [2, 7] and (made[2].width_px, made[2].height_px, made[2].scale) == (64, 48, 1.0)
    dark, bright = (cv2.imdecode(np.frombuffer(made[pts].jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) for pts in (2, 7))
    assert dark is not None and bright is not None
    assert abs(dark.mean() - 40) < 8 and abs(bright.mean() - 200) < 8


def test_a_real_hallway(shared_data: Path, catalog: Catalog) -> None:
    """A person comes at 31.5 s and goes at 52 s of a still hallway; the light of another does not last."""
    path = shared_data / "videos" / "hallway_person.mp4"
    clip = clip_row("hall", 512, time_base_num=1, time_base_den=12_288, end_pts=1_048_576)
    (*_, last) = scan.scan_clip(path, index="packets", every_s=1.0, sizes_px={})
    put(catalog, [clip], [{"clip_id": clip["clip_id"], **row} for row in last["gops"]])
    made = found(catalog, least_s=0.5, merge_s=1.0).rows.select("start_s", "end_s").rows()
    assert made[0] == (31.5, 52.0) and all(start > 52 for start, _ in made[1:])
