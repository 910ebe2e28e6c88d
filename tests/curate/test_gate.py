"""The packet gate: what it decodes, what it trusts, and that its probabilities are right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate import cameras, factors, gate, scan
from curate.gate import Gate, Seen, Stretch
from curate.plan import Options
from curate.query import open_catalog as open_footage
from curate.run import curate
from infra import keys, video
from infra.catalog import Catalog
from infra.errors import UsageError
from infra.reader import Packet
from infra.settings import Settings

MS = Fraction(1, 1000)


def _stretches(levels: Sequence[float], *, noise: float = 0.03, n: int = 30, seed: int = 0) -> list[Stretch]:
    """Return a stretch per level: `n` packets of about 1000 bytes times the level, keyframes of 30,000."""
    rng = np.random.default_rng(seed)
    return [
        Stretch(
            first=i, end=i + 1, start_s=2.0 * i, key_bytes=int(30_000 * rng.normal(1, 0.003)), duration_s=2.0,
            other_bytes=tuple(int(b) for b in 1000 * level * rng.normal(1, noise, n)),
        )
        for i, level in enumerate(levels)
    ]  # fmt: skip


def _gate(clip_id: str, levels: Sequence[float], **options: Any) -> Gate:
    return gate.open_gate(clip_id, _stretches(levels, **options), "packets")


def _run(plan: Gate, moving: Collection[int]) -> list[int]:
    """Answer the gate from a truth: which stretches move; return what was decoded, in order."""
    asked = []
    while (number := plan.next()) is not None:
        asked.append(number)
        plan.tell(number, Seen(moves=number in moving))
    return asked


def test_what_moves_is_decoded_first_and_a_still_one_ends_the_search() -> None:
    """Three loud stretches among sixty are found, with little else looked at."""
    levels = [1.0] * 60
    for number in (7, 31, 50):
        levels[number] = 1.6
    asked = _run(_gate("clip", levels), [7, 31, 50])
    assert set(asked[:3]) == {7, 31, 50}
    assert len(asked) < 12


def test_a_busy_clip_is_searched_from_the_top() -> None:
    """Where two thirds of the stretches move, none stands out in standard deviations; all that move are decoded."""
    rng = np.random.default_rng(4)
    moving = set(rng.choice(45, 30, replace=False).tolist())
    levels = [float(rng.uniform(1.15, 1.6)) if number in moving else 1.0 for number in range(45)]
    assert gate.is_calm(_stretches([1.0] * 45))
    assert not gate.is_calm(_stretches(levels))
    assert set(_run(_gate("clip", levels), sorted(moving))) >= moving


def test_a_clip_whose_first_look_moves_unannounced_is_searched_as_a_busy_one() -> None:
    """Surprises are small throughout, and yet the first stretch moves: the search goes on for a sixth of the clip."""
    plan = Gate("clip", [0.0] * 60, 2.0)
    assert len(_run(plan, {0, 4, 9})) >= 20
    assert len(_run(Gate("clip", [0.0] * 60, 2.0), {59})) <= 6


def test_motion_at_an_edge_pulls_in_the_neighbour() -> None:
    """A walk that goes on quietly into the next stretches is followed to its end."""
    plan = _gate("clip", [1.0] * 20 + [1.5] + [1.0] * 19)
    asked = []
    while (number := plan.next()) is not None:
        asked.append(number)
        moves = 20 <= number <= 23
        plan.tell(number, Seen(moves=moves, at_start=moves and number > 20, at_end=moves and number < 23))
    assert asked[:4] == [20, 21, 22, 23]


def test_a_slow_drift_of_the_noise_is_no_surprise() -> None:
    """At dusk the noise doubles the bytes within ten minutes; the event before it is still what is looked at first."""
    levels = [1.0 + 1.2 * i / 300 for i in range(300)]
    levels[20] *= 1.25
    assert int(np.argmax(gate.surprise(_stretches(levels)))) == 20


@pytest.mark.parametrize(
    ("found", "index", "reason"),
    [
        (_stretches([1.0] * 10), "sequential", "sequentially"),
        (_stretches([1.0] * 3), "packets", "3 stretches"),
        (_stretches([1.0] * 10, n=1), "packets", "keyframes"),
        (_stretches([1.0] * 10, noise=0.0), "packets", ""),
        (_stretches([1.0] * 10), "packets", ""),
    ],
)
def test_packets_that_say_nothing_are_not_believed(found: list[Stretch], index: Any, reason: str) -> None:
    """Each kind of stream that cannot be gated is named; then everything is decoded and certain."""
    said = gate.distrust(found, index)
    assert reason in said
    if said:
        plan = gate.open_gate("clip", found, index)
        assert _run(plan, []) == list(range(len(found)))
        assert [plan.p_keep(number) for number in range(len(found))] == [1.0] * len(found)


def test_a_constant_bitrate_is_not_believed() -> None:
    """Where every second has the same bytes, whatever happens, the packets say nothing."""
    flat = [Stretch(first=i, end=i + 1, start_s=2.0 * i, key_bytes=20_000, other_bytes=(1000 + i % 2,) * 30, duration_s=2.0)
            for i in range(20)]  # fmt: skip
    assert gate.distrust(flat, "packets") == "a constant bitrate"


def test_an_audit_that_sees_motion_decodes_all() -> None:
    """When packets lie about half of the clip, the first audited stretch that moves ends the belief in them."""
    moving = set(range(30, 60))
    n_alarms = 0
    for number in range(40):
        plan = Gate(f"clip{number}", [0.0] * 60, 2.0)
        asked = _run(plan, moving)
        n_alarms += plan.has_alarm
        assert plan.has_alarm == (len(asked) == 60)
    assert n_alarms > 10


def test_estimates_from_p_keep_are_right_in_expectation() -> None:
    """Over many clips the sums of y / p_keep are the totals: of footage, and of the motion that packets do not show.

    The gate sees nothing of five moving stretches in each clip; the audit finds some, and then all of that clip. Counting
    p_keep = 1 after an alarm would say that nothing was lost.
    """
    surprises, moving, n_clips = [0.0] * 60, {11, 12, 30, 41, 55}, 4000
    footage, motion, naive = [], [], []
    for number in range(n_clips):
        plan = Gate(f"clip{number}", surprises, 2.0)
        looked = _run(plan, moving)
        footage.append(sum(1 / plan.p_keep(one) for one in looked))
        motion.append(sum(1 / plan.p_keep(one) for one in looked if one in moving))
        naive.append(sum(one in moving for one in looked))
    for values, truth in ((footage, 60), (motion, 5)):
        error = np.std(values) / n_clips**0.5
        assert abs(np.mean(values) - truth) < 3 * error
        assert error < truth / 15
    assert np.mean(naive) < 4  # what is found, without p_keep


def test_what_is_certain_stays_as_it_is() -> None:
    """A decoded stretch that is certain keeps its p_keep to the end; once the audit is through, all are."""
    n_alarms = 0
    for number in range(40):
        plan, said, n_waiting = Gate(f"clip{number}", [0.0] * 600, 2.0), dict[int, float](), 0
        while (asked := plan.next()) is not None:
            plan.tell(asked, Seen(moves=asked >= 300))
            if plan.is_certain(asked):
                said[asked], n_waiting = plan.p_keep(asked), 0
            else:
                n_waiting += 1
            assert n_waiting <= 30
        assert {one: plan.p_keep(one) for one in said} == said
        n_alarms += plan.has_alarm
    assert n_alarms > 10


def test_the_draws_depend_on_the_clip_alone() -> None:
    """The same clip gives the same looks; other clips give others."""
    surprises = [0.0] * 60
    assert _run(Gate("a", surprises, 2.0), []) == _run(Gate("a", surprises, 2.0), [])
    assert len({tuple(_run(Gate(str(i), surprises, 2.0), [])) for i in range(20)}) > 10


def test_audit_share_is_bounded() -> None:
    """Of a short clip half a stretch in expectation, of a long one 2 %, at most 100 seconds."""
    assert gate.audit_share(10, 2.0) == pytest.approx(0.05)
    assert gate.audit_share(300, 2.0) == pytest.approx(0.02)
    assert gate.audit_share(6000, 2.0) * 6000 * 2 == pytest.approx(100)
    assert gate.audit_share(0, 2.0) == gate.audit_share(1, 0.5) * 2 == 1.0


def test_stretches_are_a_second_at_least() -> None:
    """GOPs of a third of a second are taken three together; the rest of the clip joins the last."""
    gops = [[Packet(pts=300 * g + 100 * k, dts=0, n_bytes=10 + k, is_keyframe=k == 0, duration=100) for k in range(3)]
            for g in range(13)]  # fmt: skip
    found = gate.stretches(gops, 0.001)
    assert [(s.first, s.end) for s in found] == [(0, 4), (4, 8), (8, 13)]
    assert found[0].other_bytes == (11, 12) * 4
    assert sum(s.duration_s for s in found) == pytest.approx(3.9)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.0] * 20, Seen(moves=False)),
        ([None] * 20, Seen(moves=None)),
        ([0.0] * 9 + [0.01] + [0.0] * 10, Seen(moves=False)),
        ([0.0] * 9 + [0.01] * 4 + [0.0] * 7, Seen(moves=True)),
        ([0.01] * 4 + [0.0] * 16, Seen(moves=True, at_start=True)),
        ([0.0] * 16 + [0.01] * 4, Seen(moves=True, at_end=True)),
    ],
)
def test_motion_counts_when_it_lasts(scores: list[float | None], expected: Seen) -> None:
    """One odd picture is no motion; where it lies decides what is pulled in."""
    assert gate.seen(scores, [0.1 * k for k in range(len(scores))]) == expected


# The gate on real streams


def _film(path: Path, shows: Callable[[int], bool], *, n: int = 300, **options: Any) -> Path:
    """Write 20 pictures a second with sensor noise; a block walks where `shows` says so."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:96, 0:160]
    ground = np.stack([60 + x, 90 + y, 200 - x], axis=-1)
    with video.Writer(path, 160, 96, MS, gop_s=1.0, **options) as writer:
        for number in range(n):
            rgb = ground + rng.normal(0, 2, (96, 160, 1))
            if shows(number):
                left = (3 * number) % 130
                rgb[30:60, left : left + 20] = (250, 250, 30)
            writer.add(rgb.clip(0, 255).astype(np.uint8), 50 * number)
    return path


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip of 15 s in which something walks from second 6 to second 8."""
    return _film(tmp_path_factory.mktemp("gate") / "walk.mp4", lambda number: 120 <= number < 160)


def _scan(path: Path, **options: Any) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    *parts, end = scan.scan_clip(path, index=video.probe(path).index, every_s=0.5, sizes_px={}, score=2, **options)
    assert all(1 <= len(part["pts"]) <= scan.PART for part in parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, end["gops"]


def test_a_gated_scan_is_part_of_the_whole_one(walk: Path) -> None:
    """What the gate decodes has the rows of the scan without a gate, to the last bit; the rest keeps its packets' facts."""
    whole, all_gops = _scan(walk)
    some, gops = _scan(walk, gate="packets", clip_id="walk")
    assert [gop["pts"] for gop in gops] == [gop["pts"] for gop in all_gops]
    assert {gop["gop_index"] for gop in gops if gop["decoded"]} >= {6, 7}
    assert 3 <= sum(gop["decoded"] for gop in gops) <= 9
    for mine, full in zip(gops, all_gops, strict=True):
        assert {**mine, "motion": None, "decoded": None, "p_keep": None} == {
            **full,
            "motion": None,
            "decoded": None,
            "p_keep": None,
        }
        assert mine["motion"] == (full["motion"] if mine["decoded"] else None)
        assert 0 < mine["p_keep"] <= 1
    at = {int(pts): k for k, pts in enumerate(whole["pts"])}
    decoded = {pts for gop in gops if gop["decoded"] for pts in gop["pts"]}
    assert set(some["pts"].tolist()) == set(at) & decoded
    for k, pts in enumerate(some["pts"].tolist()):
        p_gop = next(gop["p_keep"] for gop in gops if pts in gop["pts"])
        assert some["p_keep"][k] == pytest.approx(whole["p_keep"][at[pts]] * p_gop)
        assert some["motion_score"][k] == whole["motion_score"][at[pts]]
        assert some["brightness"][k] == whole["brightness"][at[pts]]


def test_kept_frames_of_a_gated_scan_stand_for_the_footage(walk: Path) -> None:
    """Over many draws the mean of the sum of 1 / p_keep over kept frames is the number of frames."""
    sums = [(1 / _scan(walk, gate="packets", clip_id=f"c{number}")[0]["p_keep"]).sum() for number in range(24)]
    assert abs(np.mean(sums) - 300) < 3 * np.std(sums) / 24**0.5
    assert len(set(sums)) > 1


def test_after_an_alarm_kept_frames_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept frames hold pixels: once the audit is through, at most a part and a stretch of them are alive, alarm or not."""
    path, made, waiting, n_yielded = _film(tmp_path / "long.mp4", lambda n: True, n=600), list[int](), [0], 0
    clip_id = next(f"c{k}" for k in range(9999) if keys.uniform("gate", f"c{k}", 15) < gate.audit_share(29, 1.0))
    kept = scan._kept
    monkeypatch.setattr(scan, "_kept", lambda picture, *rest: made.append(picture.pts) or kept(picture, *rest))
    monkeypatch.setattr(gate, "open_gate", lambda name, found, index: Gate(name, [0.0] * len(found), 1.0))
    monkeypatch.setattr(gate, "seen", lambda scores, times_s: Seen(moves=15 <= times_s[0] < 16))
    for part in scan.scan_clip(path, index="packets", every_s=0.5, sizes_px={}, score=2, gate="packets", clip_id=clip_id):
        waiting.append(len(made) - n_yielded)
        n_yielded += len(part.get("pts", ()))
    assert n_yielded == 60 and max(waiting) <= scan.PART + 6


def test_b_frames_change_nothing_of_what_is_kept(tmp_path: Path) -> None:
    """A clip with B-frames is gated like any other."""
    _, gops = _scan(_film(tmp_path / "b.mp4", lambda n: 120 <= n < 160, b_frames=2), gate="packets", clip_id="b")
    assert {gop["gop_index"] for gop in gops if gop["decoded"]} >= {6, 7}
    assert not all(gop["decoded"] for gop in gops)


def test_open_gops_give_the_pictures_of_a_full_decode(tmp_path: Path) -> None:
    """Pictures before a keyframe that need the GOP before it are the same as when all is decoded."""
    path = _film(
        tmp_path / "open.mp4", lambda n: True, n=90, b_frames=3, options={"x264-params": "open-gop=1", "forced-idr": "0"}
    )
    whole = {picture.pts: picture.gray().copy() for picture in video.pictures(path, index=video.probe(path).index)}
    with video.open_gops(path) as gops:
        assert len(gops.packets) >= 3
        for number in (2, 0, 1):
            for picture in gops.pictures(number, number + 1):
                assert np.array_equal(picture.gray(), whole[picture.pts])


def test_what_cannot_be_gated_is_decoded_whole(tmp_path: Path) -> None:
    """A clip of images, and one of one GOP, come back whole under the gate, every picture certain."""
    path = tmp_path / "one.mp4"
    with video.Writer(path, 64, 48, MS, gop_s=100.0) as writer:
        for number in range(50):
            writer.add(np.full((48, 64, 3), 90 + number % 5, np.uint8), 100 * number)
    frames, gops = _scan(path, gate="packets", clip_id="x")
    assert [gop["decoded"] for gop in gops] == [True]
    assert (1 / frames["p_keep"]).sum() == pytest.approx(50)


# The gate in a run


def _options(**more: Any) -> Options:
    return Options(steps=("scan", "tag"), sheet=factors.parse(factors.DEFAULT), **more)


def test_a_run_with_the_gate_leaves_most_undecoded(catalog: Catalog, add_clip: Callable[..., str], walk: Path) -> None:
    """Rows of what was decoded, packets' facts of the rest; the same run again does nothing, one without the gate all."""
    add_clip(catalog, "walk", walk.read_bytes())
    curate(catalog, _options(gate="packets", score=2), Settings())
    gops = catalog.scan("gops").collect().sort("gop_index")
    assert gops.height == 15 and 2 <= gops["decoded"].sum() <= 9
    assert gops.filter(~pl.col("decoded"))["motion"].null_count() == gops.height - gops["decoded"].sum()
    assert gops["packet_score"].null_count() == 0 and ((gops["p_keep"] > 0) & (gops["p_keep"] <= 1)).all()
    frames = catalog.scan("frames").collect()
    decoded = {pts for row in gops.filter("decoded")["pts"] for pts in row}
    assert set(frames["pts"]) <= decoded and frames.height == gops["decoded"].sum()
    assert curate(catalog, _options(gate="packets", score=2), Settings()).tally.clips == {}
    assert curate(catalog, _options(), Settings()).tally.clips == {"scan": 1, "tag": 1}
    assert catalog.scan("gops").collect()["decoded"].all()


def test_a_mask_changes_the_fingerprint_of_its_cameras_clips_only(
    catalog: Catalog, add_clip: Callable[..., str], walk: Path
) -> None:
    """With score 2, a mask that is drawn later has the clips of that camera scanned again; without it nothing changes."""
    add_clip(catalog, "walk", walk.read_bytes())
    add_clip(catalog, "other", [90] * 20, camera_id="cam2")
    curate(catalog, _options(score=2), Settings())
    moved = catalog.scan("frames").collect().filter(pl.col("motion_score") > 0.0015).height
    registry = cameras.parse('[[camera]]\nid = "cam1"\nmask = [[0.0, 0.2, 1.0, 0.8]]\n')
    wanted = cameras.wanted_rows(["cam1"], {}, registry, None, 1)
    catalog.append("cameras", cameras.as_table_rows(row for rows in wanted.values() for row in rows))
    assert curate(catalog, _options(score=2), Settings()).tally.clips == {"scan": 1, "tag": 1}
    assert moved > 0 == catalog.scan("frames").collect().filter(pl.col("motion_score") > 0.0015).height
    assert "mask" not in open_footage(catalog.store).frames.columns


def test_wrong_use_is_refused() -> None:
    """The gate needs score 2, and there is no score 3: said with the remedy."""
    with pytest.raises(UsageError, match="leave --motion out"):
        _options(gate="packets", score=1)
    with pytest.raises(UsageError, match="legal: --motion 1 or 2"):
        _options(score=3)


def test_without_the_gate_fingerprints_are_those_of_before() -> None:
    """Nothing that was scanned before this gate existed is scanned again."""
    assert _options().fingerprint("scan", {}) == keys.fingerprint("scan", scan.VERSION, {"upstream": {}, "every_s": 1.0}, None)


@pytest.mark.parametrize("tick", [1 / 15360, 1 / 90000, 1 / 1000, 1 / 30])
def test_two_looks_a_tenth_apart_are_motion_wherever_they_lie(tick: float) -> None:
    """A camera of 30 frames a second is looked at every tenth of a second: rounding decides nothing; one look is none."""
    step = round(0.1 / tick)
    for start in range(0, 2000 * step, 37 * step):
        times = [(start + number * step) * tick for number in range(10)]
        scores = [0.0] * 4 + [0.1, 0.1] + [0.0] * 4
        assert gate.seen(scores, times).moves and not gate.seen([0.0] * 4 + [0.1] + [0.0] * 5, times).moves
