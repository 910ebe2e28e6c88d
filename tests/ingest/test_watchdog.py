"""Heartbeats and the decisions made of them, on a clock that moves when told to."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.clock import FakeClock
from infra.errors import DeviceError
from ingest.watchdog import Beat, Heartbeat, Repeats, Watch, read_beats


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, closed afterwards."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            continue


def beat(n_frames: int) -> Beat:
    """Return a recorder's word after so many frames."""
    return Beat(frame_number=n_frames, sensor_ns=n_frames, n_frames=n_frames, n_dropped=0, n_skipped=0, n_clips=0)


class TestHeartbeat:
    def test_two_a_second_with_all_counts(self, pipe: tuple[int, int]) -> None:
        """A hundred frames in ten seconds are about twenty beats; lost frame numbers are counted."""
        clock = FakeClock()
        heart = Heartbeat(pipe[1], clock)
        for number in range(0, 200, 2):
            heart.skipped = lambda number=number: number // 4
            if number // 50 != heart.n_clips:
                heart.n_clips = number // 50
            heart.beat(number, number * 10)
            clock.advance_s(0.1)
        beats, rest = read_beats(os.read(pipe[0], 1 << 16))
        assert rest == b"" and 18 <= len(beats) <= 24 and beats[0].n_frames == 1
        assert [each.n_clips for each in beats if each.n_clips] != []
        last = beats[-1]
        assert last.n_dropped == last.n_frames - 1 and last.sensor_ns == last.frame_number * 10
        assert (last.n_skipped, last.n_clips) == (last.frame_number // 4, last.frame_number // 50)

    def test_a_supervisor_that_does_not_read(self, pipe: tuple[int, int]) -> None:
        """A full pipe holds no frame up."""
        clock = FakeClock()
        heart = Heartbeat(pipe[1], clock)
        for number in range(5000):
            heart.beat(number, number)
            clock.advance_s(1)
        assert len(read_beats(os.read(pipe[0], 1 << 20))[0]) < 5000

    def test_a_supervisor_that_is_gone(self, pipe: tuple[int, int]) -> None:
        """Without a reader the recorder hears of it and can keep what it has."""
        heart = Heartbeat(pipe[1], FakeClock())
        os.close(pipe[0])
        with pytest.raises(DeviceError, match="the agent that started this recorder is gone"):
            heart.beat(0, 0)

    def test_busy(self, pipe: tuple[int, int]) -> None:
        """Whoever works between two frames says so twice a second, and counts no frame; one without an agent goes on."""
        clock = FakeClock()
        heart = Heartbeat(pipe[1], clock)
        heart.beat(7, 70)
        for _ in range(1000):
            heart.busy()
            clock.advance_s(0.01)
        beats, rest = read_beats(b"junk" + os.read(pipe[0], 1 << 16))
        assert rest == b"" and [each.is_busy for each in beats] == [False, *[True] * 20]
        assert {each.n_frames for each in beats} == {1}
        os.close(pipe[0])
        heart.busy()
        Heartbeat(None).busy()

    def test_no_pipe(self) -> None:
        """A recorder that nobody watches beats nowhere; a number that is no pipe is refused."""
        Heartbeat(None).beat(0, 0)
        with pytest.raises(DeviceError, match="heartbeat descriptor 987: Bad file descriptor"):
            Heartbeat(987)

    @settings(max_examples=100)
    @given(st.lists(st.one_of(st.binary(max_size=80), st.integers(0, 1000)), max_size=12), st.integers(1, 60))
    def test_garbage_between(self, pieces: list[bytes | int], step: int) -> None:
        """However a pipe's bytes are cut and whatever stands between them, reading ends, and bounded memory is kept."""
        reading, writing = os.pipe2(os.O_NONBLOCK)
        clock = FakeClock()
        heart = Heartbeat(writing, clock)
        for piece in pieces:
            if isinstance(piece, bytes):
                os.write(writing, piece)
            else:
                heart.beat(piece, piece)
                clock.advance_s(1)
        os.close(writing)
        data, rest, found = os.read(reading, 1 << 16), b"", []
        os.close(reading)
        for at in range(0, len(data), step):
            beats, rest = read_beats(rest + data[at : at + step])
            found += beats
        assert len(rest) < 60
        if not any(isinstance(piece, bytes) for piece in pieces):
            assert [each.frame_number for each in found] == pieces


class TestWatch:
    def watch(self, **more: float) -> tuple[FakeClock, Watch]:
        """Return a clock and a watch on it."""
        clock = FakeClock()
        return clock, Watch(clock=clock, rng=random.Random(3), **more)  # type: ignore[arg-type]

    def test_found_within_ten_seconds_recording_within_thirty(self) -> None:
        """With the agent's own times a camera that stalls for 0.5 s steps of looking is found in 8.5 s and due in 9.5."""
        clock, watch = self.watch()
        watch.started()
        for number in range(1, 400):
            watch.beats([beat(number)])
            clock.advance_s(0.5)
            assert not watch.is_stalled()
        last_ns = watch.last_frame_ns
        assert last_ns is not None
        while not watch.is_stalled():
            clock.advance_s(0.5)
        assert (clock.mono_ns() - last_ns) / 1e9 <= 9
        watch.stalled()
        assert watch.last_error == "no frame after number 399 for 8 s; killed and started again"
        watch.exited(False, "killed by signal 9")
        assert watch.last_error.startswith("no frame after")
        while not watch.may_start():
            clock.advance_s(0.25)
        assert (clock.mono_ns() - last_ns) / 1e9 <= 10.5

    def test_busy_is_alive(self) -> None:
        """A long salvage before the first frame, and a long hash after one, are no stall; silence after them is."""
        clock, watch = self.watch()
        watch.started()
        for limit_s, state in ((25, "starting"), (8, "running")):
            for _ in range(300):
                watch.beats([dataclasses.replace(beat(0), is_busy=True)])
                clock.advance_s(1)
                assert not watch.is_stalled() and watch.state == state
            clock.advance_s(limit_s)
            assert watch.is_stalled()
            watch.beats([beat(1)])
        assert watch.last is not None and watch.last.n_frames == 1

    def test_uploader(self) -> None:
        """A child without frames is at work at once, and stalled when it says nothing for so long."""
        clock, watch = self.watch(stall_s=900.0, films=False)
        watch.started()
        assert watch.state == "running"
        for _ in range(10):
            clock.advance_s(800)
            assert not watch.is_stalled()
            watch.beats([dataclasses.replace(beat(0), is_busy=True)])
        clock.advance_s(901)
        assert watch.is_stalled()
        watch.stalled()
        assert watch.last_error == "no sign of life for 900 s; killed and started again"

    def test_pauses_grow_and_are_bounded(self) -> None:
        """A camera that is gone is asked for at most every 16 s, never in step with others; a good run forgets it."""
        clock, watch = self.watch()
        pauses = []
        for _ in range(12):
            assert watch.may_start()
            watch.started()
            watch.exited(False, "no such camera")
            before_ns = clock.mono_ns()
            while not watch.may_start():
                clock.advance_s(0.05)
            pauses.append((clock.mono_ns() - before_ns) / 1e9)
        assert pauses[0] <= 1.05 and 8 <= pauses[-1] <= 16.05 and len(set(pauses[-4:])) == 4
        watch.started()
        for number in range(1, 100):
            clock.advance_s(1)
            watch.beats([beat(number)])
        watch.exited(False, "gone")
        clock.advance_s(1)
        assert watch.may_start()

    def test_the_same_count_is_no_frame(self) -> None:
        """A recorder that only repeats its last beat is stalled."""
        clock, watch = self.watch()
        watch.started()
        for _ in range(20):
            watch.beats([beat(5)])
            clock.advance_s(0.5)
        assert watch.is_stalled()

    def test_rate(self) -> None:
        """Frames a second are those of the last ten seconds."""
        clock, watch = self.watch()
        watch.started()
        assert watch.fps() is None
        for number in range(100):
            watch.beats([beat(1 + number * (5 if number < 50 else 10))])
            clock.advance_s(0.5)
        assert watch.fps() == pytest.approx(20)
        clock.advance_s(30)
        assert watch.fps() is None

    def test_stop(self) -> None:
        """A child that was told to end is not started again, whatever its exit code was."""
        clock, watch = self.watch()
        watch.started()
        watch.stopping()
        watch.exited(False, "exit code 1")
        clock.advance_s(100)
        assert watch.state == "stopped" and not watch.may_start() and not watch.is_stalled()


def test_repeats() -> None:
    """The same line but for its numbers is told once in ten minutes; memory stays bounded."""
    clock = FakeClock()
    repeats = Repeats(clock)
    assert [repeats.is_news(f"try {number} failed") for number in range(3)] == [True, False, False]
    clock.advance_s(601)
    assert repeats.is_news("try 9 failed")
    for number in range(500):
        repeats.is_news("x" * number)
    assert len(repeats._said) <= 51
