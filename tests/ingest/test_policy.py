"""The policy: what a clip is worth by its own facts, and who goes first."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import SettingsError
from infra.records import Sidecar
from infra.settings import read_table
from ingest.policy import Candidate, SpoolLimits, give_up_order, marginal_values, value

PLAIN = Sidecar(
    clip_id="0" * 32, camera_id="cam1", host_id="pi", boot_id="boot", recording_id="r", seq=0, sha256="0" * 64, n_bytes=1,
    container="mp4", start_ns=None, start_mono_ns=0, clock="unknown",
)  # fmt: skip
HOUR_NS = 3_600_000_000_000


def worth(**facts: Any) -> float:
    """Return the value of a clip with these facts."""
    return value(dataclasses.replace(PLAIN, **facts))


def candidate(number: int, worth: float, hour: int = 0, camera_id: str = "cam1") -> Candidate:
    """Return a clip that waits."""
    return Candidate(str(number), camera_id, "boot", number, hour * HOUR_NS + number, 1000, worth, "motion")


class TestValue:
    def test_reasons(self) -> None:
        """Each reason has its stated chance on top of having been filmed; together they count more, never above 1."""
        motion = worth(trigger="motion", event={"kind": "motion", "peak": 0.6})
        assert worth() == pytest.approx(0.05)
        assert motion == pytest.approx(1 - 0.95 * 0.7)
        assert worth(trigger="model", event={"peak": 0.0, "uncertain": True}) == pytest.approx(1 - 0.95 * 0.2)
        assert worth(trigger="motion", event={"wanted_id": "w"}) == pytest.approx(1 - 0.95 * 0.1)
        assert worth(label="wave") == pytest.approx(1 - 0.95 * 0.05)
        assert worth(trigger="outbox", outbox={"reason": "uncertain"}) == pytest.approx(1 - 0.95 * 0.2)
        assert worth(trigger="outbox", outbox={"reason": "wanted w7: geese"}) == pytest.approx(1 - 0.95 * 0.1)
        assert motion < worth(trigger="motion", event={"peak": 0.6, "uncertain": True}, label="wave") < 1

    @pytest.mark.parametrize("peak", [None, "high", float("nan"), float("inf"), -3, 7, True])
    def test_a_strange_peak(self, peak: object) -> None:
        """A peak that is no number in [0, 1] is taken into it; the value stays a chance."""
        assert 0.05 <= worth(trigger="motion", event={"peak": peak}) <= 1 - 0.95 * 0.5 + 1e-12

    def test_the_wall_clock_has_no_say(self) -> None:
        """A clip of 1970 is worth what the same clip of today is worth."""
        assert worth(start_ns=0) == worth(start_ns=1_800_000_000_000_000_000)


class TestOrder:
    def test_worth_less_goes_first(self) -> None:
        """In different hours the value decides; equals go oldest first."""
        clips = [candidate(number, worth, hour=number) for number, worth in enumerate([0.5, 0.1, 0.5, 0.9])]
        assert [clip.seq for clip in give_up_order(clips, "value")] == [1, 0, 2, 3]

    def test_the_same_again_counts_less(self) -> None:
        """Ten like clips of one hour: the tenth adds less than a poorer clip of another hour."""
        clips = [candidate(number, 0.5) for number in range(10)] + [candidate(10, 0.3, hour=5)]
        order = [clip.seq for clip in give_up_order(clips, "value")]
        assert order.index(10) > 5 and set(order[:5]) <= set(range(10))
        assert order[-1] == 9

    def test_policies(self) -> None:
        """Oldest goes by age alone; newest and stop give up nothing that is here."""
        clips = [candidate(number, 1 - number / 10) for number in range(4)]
        assert give_up_order(clips, "oldest") == clips
        assert give_up_order(clips, "newest") == give_up_order(clips, "stop") == []

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), max_size=30))
    def test_a_permutation(self, facts: list[tuple[float, int]]) -> None:
        """Every clip is in the order once; what is worth more in its hour is given up later."""
        clips = [candidate(number, worth, hour) for number, (worth, hour) in enumerate(facts)]
        order = give_up_order(clips, "value")
        assert sorted(order) == sorted(clips)
        made = dict(zip(clips, marginal_values(clips), strict=True))
        assert [made[clip] for clip in order] == sorted(made.values())


class TestLimits:
    def test_excess(self) -> None:
        """The tightest of bytes, share of the disk and free bytes decides."""
        limits = SpoolLimits(max_bytes=100, max_share_of_disk=0.5, keep_free_bytes=50)
        assert limits.excess_bytes(60, 30, 1000, 500) == 0
        assert limits.excess_bytes(90, 30, 1000, 500) == 20
        assert limits.excess_bytes(90, 0, 160, 500) == 10
        assert limits.excess_bytes(10, 20, 1000, 60) == 10
        assert SpoolLimits(keep_free_bytes=0, max_share_of_disk=1).excess_bytes(10**9, 10, 2 * 10**9, 10**9) == 0

    @pytest.mark.parametrize(("table", "said"), [
        ({"policy": "random"}, "random"), ({"max_bytes": 0}, "max_bytes is 0; legal: more than 0"),
        ({"max_share_of_disk": 80.0}, "max_share_of_disk is 80; legal: more than 0 to 1, such as 0.8"),
        ({"keep_free_bytes": -1}, "keep_free_bytes is -1; legal: 0 or more"), ({"max_byte": 5}, "did you mean max_bytes"),
    ])  # fmt: skip
    def test_bad_tables(self, table: dict[str, Any], said: str) -> None:
        """A wrong value of [spool] is one line with the value and what is legal."""
        with pytest.raises(SettingsError, match=said):
            read_table(SpoolLimits, table, "[spool]")
