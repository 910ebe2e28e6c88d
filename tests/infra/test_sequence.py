"""The audit of sequence numbers: what was taken away is found, what has a reason is not called missing."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import keys
from infra.errors import ArtefactError
from infra.records import Sidecar
from infra.sequence import (
    N_MISSING_PAGES,
    N_NUMBERS,
    SENT_BACK_SEQ,
    LedgerEntry,
    LedgerPage,
    Numbered,
    audit,
    delivered_in,
    pages_in,
)
from infra.store import MemoryStore

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))


def clip(seq: int, camera_id: str = "cam1", boot_id: str = "boot") -> Numbered:
    """Return a clip that is in the store."""
    return Numbered(camera_id, boot_id, seq, keys.derived_id(camera_id, boot_id, seq))


def entry(seq: int, n: int = 1, kind: str = "forfeited") -> LedgerEntry:
    """Return a reason."""
    return LedgerEntry(camera_id="cam1", boot_id="boot", seq=seq, n=n, kind=kind, reason="because")  # type: ignore[arg-type]


def page(*entries: LedgerEntry, number: int = 0, next_seq: int = 0, previous: LedgerPage | None = None) -> LedgerPage:
    """Return a page of host pi."""
    before = None if previous is None else keys.sha256_hex(previous.to_json())
    return LedgerPage(
        host_id="pi", boot_id="boot", number=number, entries=entries, next_seq={"cam1": next_seq}, previous=before
    )  # fmt: skip


class TestAudit:
    def test_truth_table(self) -> None:
        """Delivered, explained, waiting and missing numbers are told apart; a delivered one is delivered whatever is said."""
        pages = [page(entry(1), entry(2, n=2), entry(5, kind="unknown"), entry(0), next_seq=9)]
        found = audit([clip(0), clip(5)], pages, waiting=[clip(7)])
        (row,) = found.rows
        assert (row.n_expected, row.n_delivered, row.n_waiting) == (9, 2, 1)
        assert row.explained == {"forfeited": 3}
        assert row.holes == ((4, 5), (6, 7), (8, 9)) and row.n_missing == found.n_missing == 3
        assert row.n_expected == row.n_delivered + row.n_waiting + sum(row.explained.values()) + row.n_missing

    def test_cameras_and_boots_are_apart(self) -> None:
        """Numbers begin at 0 for each camera and each boot."""
        found = audit([clip(0), clip(1, "cam2"), clip(0, "cam1", "later")])
        assert [(row.camera_id, row.boot_id, row.holes) for row in found.rows] == [
            ("cam1", "boot", ()), ("cam1", "later", ()), ("cam2", "boot", ((0, 1),)),
        ]  # fmt: skip

    def test_two_clips_of_one_number(self) -> None:
        """A number that two clips bear is named."""
        assert audit([clip(0), clip(0)._replace(clip_id="other")]).rows[0].duplicates == (0,)

    def test_clips_sent_back(self) -> None:
        """Clips numbered by time are counted and make no holes."""
        found = audit([clip(SENT_BACK_SEQ + 5000), clip(0)], [page(entry(SENT_BACK_SEQ + 9))])
        assert found.n_sent_back == 1 and found.n_missing == 0

    def test_pages(self) -> None:
        """A page that never came, one that does not follow, and one that is not trusted are named."""
        first = page(entry(0))
        second = page(entry(1), number=1, previous=first)
        third = page(entry(2), number=2, previous=second)
        assert audit([], [first, second, third]).broken_pages == ()
        assert audit([], [first, third]).missing_pages == (("pi", "boot", 1),)
        changed = dataclasses.replace(first, entries=())
        assert audit([], [changed, second]).broken_pages == (("pi", "boot", 1),)
        refused = audit([clip(1)], [first], trusted=lambda page: False)
        assert refused.refused_pages == (("pi", "boot", 0),) and refused.rows[0].holes == ((0, 1),)

    def test_everything_removed_is_found(self) -> None:
        """Objects removed at random from a store are found, all of them and nothing else."""
        store, rng, n = MemoryStore(), random.Random(7), 60 * COUNT
        made = [Sidecar(
            clip_id=keys.derived_id(camera, seq), camera_id=camera, host_id="pi", boot_id="boot", recording_id="r", seq=seq,
            sha256="0" * 64, n_bytes=1, container="mp4", start_ns=None, start_mono_ns=0, clock="unknown",
        ) for camera in ("cam1", "cam2") for seq in range(n)]  # fmt: skip
        for sidecar in made:
            key = keys.clip_key(sidecar.camera_id, sidecar.clip_id, "mp4")
            store.put(key, b"x")
            store.put(keys.sidecar_key(key), sidecar.to_json())
        last = LedgerPage(
            host_id="pi", boot_id="boot", number=0, entries=(), next_seq={"cam1": n, "cam2": n}, previous=None
        )  # fmt: skip
        store.put(keys.ledger_key("pi", "boot", 0), last.to_json())
        gone = rng.sample(made, 50 * COUNT)
        for sidecar in gone:
            key = keys.clip_key(sidecar.camera_id, sidecar.clip_id, "mp4")
            for removed in rng.choice([[key], [keys.sidecar_key(key)], [key, keys.sidecar_key(key)]]):
                store.delete(removed)
        found = audit(delivered_in(store), pages_in(store))
        holes = {(row.camera_id, seq) for row in found.rows for start, stop in row.holes for seq in range(start, stop)}
        assert holes == {(sidecar.camera_id, sidecar.seq) for sidecar in gone}
        print(f"{len(gone)} objects removed, {len(holes)} found")

    def test_a_page_costs_what_its_bytes_cost(self) -> None:
        """Entries of millions of numbers are counted as ranges, each number once, the first entry's kind."""
        tracemalloc.start()
        found = audit([clip(5), clip(9_000_000)], [page(entry(0, n=3_000_000), entry(1, n=N_NUMBERS, kind="lost"))])
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.rows[0].explained == {"forfeited": 2_999_999, "lost": N_NUMBERS + 1 - 3_000_000 - 1}
        assert found.n_missing == 0 and found.rows[0].n_expected == N_NUMBERS + 1 and peak_bytes < 1_000_000

    def test_a_page_far_away(self) -> None:
        """A host that numbers a page 99,999,999 is told of, not listed page by page."""
        assert len(audit([], [page(number=99_999_999)]).missing_pages) == N_MISSING_PAGES

    @settings(max_examples=50, deadline=None)
    @given(
        st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)),
        st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from(["evicted", "lost"])), max_size=9),
    )  # fmt: skip
    def test_overlapping_entries(self, delivered: set[int], waiting: set[int], made: list[tuple[int, int, str]]) -> None:
        """Ranges that overlap count each number once: delivered, else its first entry's kind, else waiting."""
        known = dict.fromkeys(delivered, "delivered")
        for seq, n, kind in made:
            for number in range(seq, seq + n):
                known.setdefault(number, kind)
        for number in waiting:
            known.setdefault(number, "waiting")
        pages = [page(*(entry(seq, n, kind) for seq, n, kind in made))]
        row = audit([clip(seq) for seq in delivered], pages, waiting=[clip(seq) for seq in waiting]).rows[0]
        told = list(known.values())
        assert {**row.explained} == {kind: told.count(kind) for kind in ("evicted", "lost") if kind in told}
        assert (row.n_delivered, row.n_waiting) == (told.count("delivered"), told.count("waiting"))
        assert {seq for start, stop in row.holes for seq in range(start, stop)} == set(range(row.n_expected)) - known.keys()

    @settings(max_examples=50, deadline=None)
    @given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.integers(0, 45))
    def test_sums(self, delivered: set[int], explained: set[int], next_seq: int) -> None:
        """Each number below the highest one is exactly one of delivered, explained, missing."""
        found = audit([clip(seq) for seq in delivered], [page(*(entry(seq) for seq in explained), next_seq=next_seq)])
        row = found.rows[0]
        missing = {seq for start, stop in row.holes for seq in range(start, stop)}
        assert missing == set(range(row.n_expected)) - delivered - explained
        assert row.n_expected == max([next_seq, *(seq + 1 for seq in delivered | explained)])


class TestPages:
    def test_round_trip(self) -> None:
        """A page is the same after writing and reading; unknown versions and broken ones are refused in one line."""
        made = dataclasses.replace(page(entry(3, kind="evicted"), next_seq=4), signature="5ed25519")
        assert LedgerPage.from_json(made.to_json()) == made
        assert "signature" not in made.document()
        for broken in (b"", b"[]", b"{}", made.to_json().replace(b'"version":1', b'"version":9'), b'{"version":1}'):
            with pytest.raises(ArtefactError, match="ledger page"):
                LedgerPage.from_json(broken)
        with pytest.raises(ArtefactError, match="kind 'stolen'"):
            entry(0, kind="stolen")

    def test_a_page_under_a_wrong_key(self) -> None:
        """A page that lies where another host's belongs, and an object that is no page, are passed over."""
        store = MemoryStore()
        store.put(keys.ledger_key("other", "boot", 0), page(entry(0)).to_json())
        store.put(keys.ledger_key("pi", "boot", 1), b"{")
        store.put(keys.ledger_key("pi", "boot", 0), page(entry(0)).to_json())
        assert [found.number for found in pages_in(store)] == [0]

    @pytest.mark.parametrize(
        "changes",
        [{"host_id": 5}, {"host_id": None}, {"boot_id": []}, {"number": "0"}, {"number": True}, {"number": -1}, {"number": 0.0},
         {"number": 1 << 70}, {"next_seq": {"cam1": float("inf")}}, {"next_seq": {"cam1": -1}}, {"next_seq": []},
         {"next_seq": {"\x1b[2J": 1}}, {"next_seq": {f"cam{n}": 1 for n in range(1025)}}, {"entries": 5}, {"entries": [5]},
         {"signature": [[]]}, {"previous": 3}, {"more": 1}, {"boot_id": "another"}],
    )  # fmt: skip
    def test_a_page_of_nonsense(self, changes: dict[str, Any]) -> None:
        """A field of the wrong type or size, and an entry of another boot, make it no page; never another exception."""
        with pytest.raises(ArtefactError):
            LedgerPage.from_json(json.dumps(json.loads(page(entry(0)).to_json()) | changes).encode())

    @pytest.mark.parametrize(
        "changes",
        [{"camera_id": ["cam"]}, {"camera_id": "\x1b[2J"}, {"seq": "0"}, {"seq": None}, {"n": 10**9}, {"n": 0}, {"n": 1.5},
         {"n_bytes": -1}, {"kind": ["lost"]}, {"reason": 3}, {"reason": "\ud800"}, {"clip_id": {}}, {"at_mono_ns": 1 << 64}],
    )  # fmt: skip
    def test_an_entry_of_nonsense(self, changes: dict[str, Any]) -> None:
        """The same for the entries of a page."""
        document = json.loads(page(entry(0)).to_json())
        document["entries"][0] |= changes
        with pytest.raises(ArtefactError):
            LedgerPage.from_json(json.dumps(document).encode())
        with pytest.raises(ArtefactError):
            LedgerPage.from_json(b"[" * 100_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": "x"},
        {"seq": -1},
        {"sensor_ns": [float("inf")]},
        {"sensor_ns": ["5"]},
        {"sensor_ns": 3},
        {"gaps": [3]},
        {"gaps": [{"before_frame": "x", "n_missing": 1, "duration_ns": 1, "cause": "c"}]},
        {"controls": {"gain": ["x"]}},
        {"camera_id": ["cam1"]},
        {"camera_id": "cam2"},
        {"boot_id": "\x1b[2J"},
        {"event": 3},
        {"start_ns": 0.5},
        {"version": []},
    ],
)
def test_a_sidecar_of_nonsense(changes: dict[str, Any]) -> None:
    """A sidecar of the wrong types, or of another clip, is named and its clip not counted; the neighbour's is."""
    store = MemoryStore()
    for seq in range(3):
        sidecar = Sidecar(
            clip_id=keys.derived_id(seq), camera_id="cam1", host_id="pi", boot_id="boot", recording_id="r", seq=seq,
            sha256="0" * 64, n_bytes=1, container="mp4", start_ns=None, start_mono_ns=0, clock="unknown",
        )  # fmt: skip
        key = keys.clip_key("cam1", sidecar.clip_id, "mp4")
        store.put(key, b"x")
        document = json.loads(sidecar.to_json()) | (changes if seq == 1 else {})
        store.put(keys.sidecar_key(key), b"[" * 100_000 if seq == 2 else json.dumps(document).encode())
    refused: list[str] = []
    assert [clip.seq for clip in delivered_in(store, on_refused=refused.append)] == [0]
    assert len(refused) == 2
