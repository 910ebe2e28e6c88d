"""The gate by truth tables: which frames an event holds, where it begins and ends, and what is counted as not kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DeviceError, UsageError
from infra.picture import Rgb
from ingest.gate import MAX_MINUTES, Event, Gate, Seen, Skipped
from ingest.recording import _telling
from ingest.source import EncodedFrame, SourceFrame, StreamFormat

SMALL = np.zeros((2, 2, 3), np.uint8)
FORMAT = StreamFormat(codec="h264", width_px=64, height_px=48, extradata=b"")
S = 10**9


class Script:
    """A trigger that is on at given sensor seconds, with the second's score."""

    name, small_px = "script", (2, 2)

    def __init__(self, on: dict[int, float], uncertain: Sequence[int] = ()) -> None:
        self.on, self.uncertain, self.times = on, uncertain, list[int]()

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        second = sensor_ns // S
        self.times.append(second)
        score = self.on.get(second, 0.0)
        return Seen(second in self.on, score, f"at {second}", second in self.uncertain, None)


class Always:
    """The trigger that does not look."""

    name, small_px = "always", None

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        raise AssertionError("always does not look")


def encoded(n: int, gop: int, size: int = 10, start: int = 0) -> list[EncodedFrame]:
    """One frame a second, a keyframe every `gop`."""
    return [
        EncodedFrame(
            data=bytes(size), is_keyframe=i % gop == 0, sensor_ns=(start + i) * S, frame_number=i, format=FORMAT, small=SMALL
        )
        for i in range(n)
    ]


def pictures(n: int) -> list[SourceFrame]:
    return [SourceFrame(SMALL, i * S, i) for i in range(n)]


def gate_of(trigger: Script | Always, **given: float) -> Gate[EncodedFrame]:
    return Gate(trigger, small=lambda frame: frame.small, **{"pre_roll_s": 3, "post_roll_s": 2, **given})  # type: ignore[arg-type]


def numbers(gate: Gate[EncodedFrame], frames: Sequence[EncodedFrame]) -> list[list[int]]:
    return [[frame.frame_number for frame in event] for event in gate.events(frames)]


def test_pictures_have_pre_roll_and_post_roll() -> None:
    """One second on: three seconds before it, itself, two after it; the rest is counted, per minute."""
    gate: Gate[SourceFrame] = Gate(Script({10: 0.5}), small=lambda frame: frame.rgb, pre_roll_s=3, post_roll_s=2)
    [event] = [(event, [frame.frame_number for frame in event]) for event in gate.events(pictures(70))]
    assert event[1] == [7, 8, 9, 10, 11, 12]
    assert event[0].n_skipped == 7
    assert event[0].facts() == {"kind": "script", "peak": 0.5, "reason": "at 10", "uncertain": False, "wanted_id": None}
    assert gate.take_skipped() == (Skipped(0, 60 - 6), Skipped(1, 10))
    assert gate.take_skipped() == ()


def test_what_a_quiet_camera_did_not_keep_stays_small_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two days without an event: told hour by hour as they pass, a day's minutes kept apart, and none is lost."""
    told: list[dict[str, int]] = []
    monkeypatch.setattr("ingest.recording._log", SimpleNamespace(warning=lambda event, **facts: told.append(facts)))
    gate, n = gate_of(Script({}), pre_roll_s=0), 4 * MAX_MINUTES
    half_minutes = (replace(frame, sensor_ns=frame.frame_number * 30 * S) for frame in encoded(n, 1))
    assert list(gate.events(cast("Iterator[EncodedFrame]", _telling(gate, half_minutes)))) == []
    assert len(told) == 47 and {facts["n_frames"] for facts in told[1:]} == {120}
    rows = gate.take_skipped()
    assert len(rows) == MAX_MINUTES and sum(row.n_frames for row in rows) == n == gate.n_not_kept
    assert rows[-1] == Skipped(2 * MAX_MINUTES - 1, 2) and rows[0] == Skipped(MAX_MINUTES, n - 2 * (MAX_MINUTES - 1))


@pytest.mark.parametrize(
    ("on", "gop", "expected"),
    [
        ({11: 1.0}, 4, [[8, 9, 10, 11, 12, 13]]),  # from the keyframe at or before 11 - 3
        ({10: 1.0}, 4, [[4, 5, 6, 7, 8, 9, 10, 11, 12]]),  # 7 is inside the group of 4
        ({2: 1.0}, 4, [[0, 1, 2, 3, 4]]),  # younger than its pre-roll
        ({6: 1.0, 8: 0.2}, 4, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]),  # closer than the post-roll: one event
        ({4: 1.0, 12: 1.0}, 4, [[0, 1, 2, 3, 4, 5, 6], [8, 9, 10, 11, 12, 13, 14]]),  # 7 needs a keyframe and is not kept
        ({4: 1.0, 10: 1.0}, 16, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]),  # no keyframe between them: one event
    ],
)
def test_encoded_events_begin_with_a_keyframe(on: dict[int, float], gop: int, expected: list[list[int]]) -> None:
    """Each event can be decoded from its first frame, and nothing of it is missing."""
    assert numbers(gate_of(Script(on)), encoded(20, gop)) == expected


def test_peak_reason_and_uncertain_of_an_event() -> None:
    """The strongest moment gives the reason; one uncertain frame marks the event; facts grow while it runs."""
    gate = gate_of(Script({4: 0.2, 5: 0.9, 6: 0.4}, uncertain=[6]))
    seen: list[tuple[float, str, bool]] = []
    for event in gate.events(encoded(12, 1)):
        for frame in event:
            assert gate.event is event or frame.frame_number < 8
            seen.append((event.peak, event.reason, event.uncertain))
    assert seen[0] == (0.2, "at 4", False)
    assert seen[-1] == (0.9, "at 5", True)
    assert gate.event is None


def test_the_buffer_is_bounded_in_bytes() -> None:
    """A pre-roll of ten minutes holds whole groups within the bytes; a group larger than that waits for a keyframe."""
    gate = gate_of(Script({50: 1.0}), pre_roll_s=600, max_buffer_bytes=95)
    assert numbers(gate, encoded(60, 4))[0][0] == 44  # 44..49 are six frames of 10 bytes; with 40..43 they would be ten
    gate = gate_of(Script({12: 0.7}), pre_roll_s=600, max_buffer_bytes=45, post_roll_s=5)
    [(event, kept)] = [(event, list(event)) for event in gate.events(encoded(30, 16))]
    assert [frame.frame_number for frame in kept][:2] == [16, 17]  # 0..15 did not fit; recording starts when it can
    assert (event.n_skipped, event.peak) == (16, 0.7)


def test_an_event_that_waits_for_a_keyframe_does_not_wait_for_ever() -> None:
    """With one keyframe only, the event ends when the buffer is full, and the rest is counted."""
    gate = gate_of(Script({1: 1.0}), max_buffer_bytes=50)
    assert numbers(gate, encoded(30, 1000)) == [[0, 1, 2, 3]]
    assert sum(row.n_frames for row in gate.take_skipped()) == 26


def test_always_passes_everything_unseen() -> None:
    """One endless event with the very frames, none buffered, none counted."""
    frames = encoded(10, 4)
    gate = gate_of(Always())
    [event] = gate.events(iter(frames))
    assert all(a is b for a, b in zip(event, frames, strict=True))
    assert (event.trigger, gate.take_skipped()) == ("always", ())


def test_waiting_frames_give_up_their_small_picture() -> None:
    """What waits holds its data only; frames of the running event are the very ones of the source."""
    frames = encoded(12, 1)
    [kept] = [list(event) for event in gate_of(Script({6: 1.0})).events(frames)]
    assert [frame.small is None for frame in kept] == [True] * 3 + [False] * 3
    assert [frame.data for frame in kept] == [frame.data for frame in frames[3:9]]


def test_frames_without_a_small_picture_keep_the_last_verdict() -> None:
    """Only every third frame was looked at: the event has all of them."""
    gate: Gate[EncodedFrame] = Gate(
        trigger := Script({6: 1.0}), small=lambda frame: frame.small if frame.frame_number % 3 == 0 else None,
        pre_roll_s=1, post_roll_s=3,
    )  # fmt: skip
    assert numbers(gate, encoded(20, 1)) == [[5, 6, 7, 8, 9]]
    assert trigger.times == [0, 3, 6, 9, 12, 15, 18]


def test_frames_in_decode_order() -> None:
    """With B-frames the time of decoding orders the event; presentation times go to and fro."""
    shown = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8]
    frames = [
        EncodedFrame(
            data=b"x",
            is_keyframe=i in (0, 4),
            sensor_ns=s * S,
            frame_number=i,
            format=FORMAT,
            decode_ns=(i - 1) * S,
            small=SMALL,
        )
        for i, s in enumerate(shown)
    ]
    assert numbers(gate_of(Script({7: 1.0}), pre_roll_s=1, post_roll_s=0), frames) == [[4, 5, 6, 7, 8]]


def test_an_event_left_early_is_counted() -> None:
    """Its reader takes two frames and goes on: the others of it are not kept, and the next event says how many."""
    gate = gate_of(Script({4: 1.0, 14: 1.0}), post_roll_s=1)
    events: list[Event[EncodedFrame]] = []
    for event in gate.events(encoded(20, 1)):
        events.append(event)
        frames: Iterator[EncodedFrame] = iter(event)
        if event.number == 0:
            assert [next(frames).frame_number, next(frames).frame_number] == [1, 2]
        else:
            assert [frame.frame_number for frame in frames] == [11, 12, 13, 14, 15]
    assert [event.n_skipped for event in events] == [1, 3 + 5]


def test_what_the_source_raises_reaches_the_reader() -> None:
    """A camera that dies inside an event ends that event with its error; what was yielded before stands."""

    def dies() -> Iterator[EncodedFrame]:
        yield from encoded(6, 1)
        raise DeviceError("unplugged")

    kept = []
    with pytest.raises(DeviceError, match="unplugged"):
        for event in gate_of(Script({4: 1.0})).events(dies()):
            for frame in event:
                kept.append(frame.frame_number)
    assert kept == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "wrong", [{"pre_roll_s": -1}, {"post_roll_s": 1e9}, {"max_buffer_bytes": 0}, {"pre_roll_s": float("nan")}]
)
def test_absurd_lengths_are_refused(wrong: dict[str, float]) -> None:
    """The message gives the values and the legal ones."""
    with pytest.raises(UsageError, match="legal:"):
        gate_of(Script({}), **wrong)


@given(
    on=st.sets(st.integers(0, 59), max_size=8),
    gop=st.integers(1, 20),
    pre=st.integers(0, 10),
    post=st.integers(0, 10),
    buffer=st.integers(10, 400),
)
def test_nothing_is_lost_silently(on: set[int], gop: int, pre: int, post: int, buffer: int) -> None:
    """Each frame is either in one event, in order, or counted; an event begins with a keyframe and has no hole."""
    frames = encoded(60, gop)
    gate = gate_of(Script(dict.fromkeys(on, 1.0)), pre_roll_s=pre, post_roll_s=post, max_buffer_bytes=buffer)
    kept = numbers(gate, frames)
    flat = [number for event in kept for number in event]
    assert flat == sorted(set(flat))
    assert len(flat) + sum(row.n_frames for row in gate.take_skipped()) == 60
    for event in kept:
        assert event == list(range(event[0], event[-1] + 1))
        assert event[0] % gop == 0
    if buffer >= (gop + 10 + post) * 10:  # room for a group and the pre-roll: whenever it was on, it was kept
        assert on <= set(flat)
