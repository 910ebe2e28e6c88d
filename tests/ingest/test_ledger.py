"""The ledger on disk: entries, pages, what a crash tears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra import durable, keys
from infra.sequence import LedgerEntry, LedgerPage
from ingest.ledger import Ledger
from tests.faults.disk import CountingDisk, PowerCut, in_memory


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with in_memory(tmp_path) as made:
        yield made


def entry(seq: int, boot_id: str = "boot") -> LedgerEntry:
    """Return a reason."""
    return LedgerEntry(camera_id="cam1", boot_id=boot_id, seq=seq, kind="forfeited", reason="because")


def read(ledger: Ledger) -> list[LedgerPage]:
    """Return the pages that wait."""
    return [LedgerPage.from_json(page.path.read_bytes()) for page in ledger.pages()]


class TestPages:
    def test_entries_become_pages(self, tmp_path: Path) -> None:
        """Entries are sealed once, in order, chained, unsigned where there is no key; older delivered pages go."""
        ledger = Ledger(tmp_path / "ledger", "pi")
        ledger.add([entry(0), entry(3), entry(1, "other")])
        ledger.seal({"boot": {"cam1": 4}})
        ledger.add([entry(4)])
        assert [found.seq for found in ledger.entries()] == [0, 3, 4, 1]
        ledger.seal({"boot": {"cam1": 6}})
        first, second, other = read(ledger)
        assert [page.seq for page in first.entries] == [0, 3] and [page.seq for page in second.entries] == [4]
        assert (first.next_seq, second.next_seq) == ({"cam1": 4}, {"cam1": 6})
        assert second.previous == keys.sha256_hex(first.to_json()) and first.previous is None
        assert other.boot_id == "other" and first.signature is None
        assert [page.key for page in ledger.pages()] == [
            "ledger/pi/boot/00000000.json", "ledger/pi/boot/00000001.json", "ledger/pi/other/00000000.json",
        ]  # fmt: skip
        for page in ledger.pages():
            ledger.delivered(page)
        assert ledger.pages() == []
        names = sorted(path.name for path in (tmp_path / "ledger" / "boot").iterdir())
        assert names == ["00000001.delivered.json"]
        ledger.add([entry(9)])
        ledger.seal({})
        (third,) = read(ledger)
        assert third.number == 2 and third.previous == keys.sha256_hex(second.to_json())
        assert third.next_seq == {"cam1": 6}

    def test_more_than_a_page_holds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many entries become several pages in one chain, none too large; only the last says how far numbers went."""
        monkeypatch.setattr("ingest.ledger.MAX_ENTRIES", 3)
        ledger = Ledger(tmp_path / "ledger", "pi")
        ledger.add([entry(seq) for seq in range(8)])
        ledger.seal({"boot": {"cam1": 8}})
        pages = read(ledger)
        assert [[found.seq for found in page.entries] for page in pages] == [[0, 1, 2], [3, 4, 5], [6, 7]]
        assert [dict(page.next_seq) for page in pages] == [{}, {}, {"cam1": 8}]
        assert [page.previous for page in pages] == [None, *(keys.sha256_hex(page.to_json()) for page in pages[:2])]
        assert [found.seq for found in ledger.entries()] == list(range(8))

    def test_signed(self, tmp_path: Path) -> None:
        """The host's signature covers everything but itself."""

        def sign(document: Mapping[str, Any]) -> str:
            return f"over {keys.json_sha256(document)}"

        ledger = Ledger(tmp_path / "ledger", "pi", sign)
        ledger.add([entry(0)])
        ledger.seal({"boot": {"cam1": 1}})
        (page,) = read(ledger)
        assert page.signature == f"over {keys.json_sha256(page.document())}"

    def test_numbers_are_stated(self, tmp_path: Path) -> None:
        """Without anything to explain, a page comes every 64 numbers and when the boot is over, and says each only once."""
        ledger = Ledger(tmp_path / "ledger", "pi")
        ledger.seal({"boot": {"cam1": 63}})
        assert ledger.pages() == []
        ledger.seal({"boot": {"cam1": 64}})
        ledger.seal({"boot": {"cam1": 70}})
        ledger.seal({"boot": {"cam1": 70}}, over=["boot"])
        ledger.seal({"boot": {"cam1": 70}}, over=["boot"])
        assert [page.next_seq for page in read(ledger)] == [{"cam1": 64}, {"cam1": 70}]


class TestCrashes:
    def test_a_torn_line(self, tmp_path: Path) -> None:
        """An entry that a crash tore is dropped, those around it stay."""
        ledger = Ledger(tmp_path / "ledger", "pi")
        ledger.add([entry(0)])
        durable.disk = CountingDisk(1)
        with pytest.raises(PowerCut):
            ledger.add([entry(1)])
        durable.disk = durable.Disk()
        ledger.add([entry(2)])
        assert [found.seq for found in ledger.entries()] == [0, 2]
        ledger.seal({})
        assert [found.seq for found in read(ledger)[0].entries] == [0, 2]

    def test_every_primitive(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A power cut at each primitive of adding, sealing and delivering: no entry lost, none on two pages, chain whole."""
        monkeypatch.setattr("ingest.ledger.MAX_ENTRIES", 4)
        number = 0
        while True:
            number += 1
            folder = tmp_path / str(number)
            durable.disk = disk = CountingDisk(number)
            stored: dict[str, bytes] = {}
            acked: list[int] = []

            def work(ledger: Ledger, stored: dict[str, bytes], acked: list[int], first: int) -> None:
                for seq in range(first, first + 3):
                    more = range(100 + 10 * seq, 103 + 10 * seq) if seq % 10 == 1 else ()  # too many for one page
                    ledger.add([entry(number) for number in (seq, *more)])
                    acked.extend((seq, *more))
                    if seq % 2:
                        ledger.seal({"boot": {"cam1": seq + 1}}, over=["boot"])
                        for page in ledger.pages():
                            assert stored.setdefault(page.key, page.path.read_bytes()) == page.path.read_bytes()
                            ledger.delivered(page)

            try:
                work(Ledger(folder, "pi"), stored, acked, 0)
                cut = False
            except PowerCut:
                cut = True
            durable.disk = durable.Disk()
            work(Ledger(folder, "pi"), stored, acked, 10)
            work(Ledger(folder, "pi"), stored, acked, 20)
            pages = [LedgerPage.from_json(data) for _, data in sorted(stored.items())]
            told = [found.seq for page in pages for found in page.entries]
            left = [found.seq for found in Ledger(folder, "pi").entries() if found.seq not in told]
            assert set(acked) <= set(told) | set(left)
            assert len(told) == len(set(told)) and len(left) <= 1
            assert [page.number for page in pages] == list(range(len(pages)))
            for before, after in zip(pages, pages[1:], strict=False):
                assert after.previous == keys.sha256_hex(before.to_json())
            if not cut:
                break
        assert disk.n_calls > 20
        print(f"{number - 1} crash points")
