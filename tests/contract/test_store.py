"""One contract for every store: memory, a folder, S3."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import ObjectChanged, ObjectExists, ObjectMissing, StoreError, StoreIncapable, UsageError
from infra.store import Store, arrow_filesystem, require

KEY = "clips/cam1/0123.mp4"


def sha256(data: bytes) -> str:
    """Return the hex digest."""
    return hashlib.sha256(data).hexdigest()


class TestReadingAndWriting:
    def test_put_get(self, store: Store) -> None:
        """What was put is what is got, and its size is known."""
        data = os.urandom(300_000)
        stat = store.put(KEY, data)
        assert store.get(KEY) == data
        found = store.head(KEY)
        assert found is not None
        assert (found.key, found.n_bytes, found.etag) == (KEY, len(data), stat.etag)
        assert abs(found.modified_ns - stat.modified_ns) < 5_000_000_000

    def test_put_replaces(self, store: Store) -> None:
        """A second put replaces the object and changes its version."""
        first, second = store.put(KEY, b"one"), store.put(KEY, b"two")
        assert store.get(KEY) == b"two"
        assert first.etag != second.etag

    def test_empty_object(self, store: Store) -> None:
        """An object may be empty."""
        store.put(KEY, b"")
        assert store.get(KEY) == b""
        assert store.get_range(KEY, 0, 5) == b""

    def test_missing(self, store: Store) -> None:
        """What is not there is missing, with its key in the message."""
        assert store.head(KEY) is None
        for read in (lambda: store.get(KEY), lambda: store.get_range(KEY, 0, 1), lambda: store.local(KEY).__enter__()):
            with pytest.raises(ObjectMissing, match="0123"):
                read()

    @pytest.mark.parametrize(("start", "stop"), [(0, 4), (3, 7), (5, 5), (8, 99), (10, 12), (50, 60)])
    def test_ranges_are_half_open(self, store: Store, start: int, stop: int) -> None:
        """A range is what slicing gives, also past the end."""
        store.put(KEY, b"0123456789")
        assert store.get_range(KEY, start, stop) == b"0123456789"[start:stop]

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 2)])
    def test_bad_ranges_are_refused(self, store: Store, start: int, stop: int) -> None:
        """A backward or negative range is wrong use."""
        store.put(KEY, b"0123456789")
        with pytest.raises(UsageError, match="byte range"):
            store.get_range(KEY, start, stop)

    def test_delete_is_idempotent(self, store: Store) -> None:
        """Deleting twice is fine, and so is deleting what never was."""
        store.put(KEY, b"1")
        store.delete(KEY)
        store.delete(KEY)
        store.delete("never/was")
        assert store.head(KEY) is None
        assert list(store.list()) == []

    def test_local(self, store: Store) -> None:
        """`local` gives a file with the bytes and the suffix."""
        store.put(KEY, b"abc")
        with store.local(KEY) as path:
            assert path.read_bytes() == b"abc"
            assert path.suffix == ".mp4"


class TestListing:
    def test_sorted_by_bytes(self, store: Store) -> None:
        """Keys come in byte order whatever the folders are."""
        names = ["a/b", "a.b", "a/b/c.d", "a-b", "B", "a_b", "z"]
        names.remove("a/b")  # a folder cannot be a file too
        for name in names:
            store.put(name, name.encode())
        assert [stat.key for stat in store.list()] == sorted(names, key=str.encode)

    def test_prefix_is_text(self, store: Store) -> None:
        """A prefix is not a folder: cam1 matches cam10, cam1/ does not."""
        for name in ("clips/cam1/a", "clips/cam10/a", "clips/cam2/a"):
            store.put(name, b"1")
        assert [stat.key for stat in store.list("clips/cam1")] == ["clips/cam1/a", "clips/cam10/a"]
        assert [stat.key for stat in store.list("clips/cam1/")] == ["clips/cam1/a"]
        assert list(store.list("nothing/here/")) == []

    def test_sizes(self, store: Store) -> None:
        """A listing knows sizes and versions without reading the objects."""
        put = store.put("a/x", b"12345")
        assert [(stat.n_bytes, stat.etag) for stat in store.list("a/")] == [(5, put.etag)]


class TestConditions:
    def test_put_if_absent(self, store: Store) -> None:
        """The second put under a key is refused, even of the same bytes, and changes nothing."""
        store.put_if_absent(KEY, b"first")
        for data in (b"second", b"first"):
            with pytest.raises(ObjectExists):
                store.put_if_absent(KEY, data)
        assert store.get(KEY) == b"first"

    def test_one_writer_wins(self, store: Store) -> None:
        """Of many threads with one key exactly one wins, and its bytes are stored."""
        for round_ in range(3):
            key, start = f"race/{round_}", threading.Barrier(12)

            def attempt(number: int, key: str = key, start: threading.Barrier = start) -> bool:
                start.wait()
                try:
                    store.put_if_absent(key, b"%d" % number * 2000)
                except ObjectExists:
                    return False
                return True

            with ThreadPoolExecutor(12) as pool:
                won = [number for number, mine in enumerate(pool.map(attempt, range(12))) if mine]
            assert len(won) == 1
            assert store.get(key) == b"%d" % won[0] * 2000

    def test_put_if_match(self, store: Store) -> None:
        """Only the version that was read is replaced."""
        first = store.put(KEY, b"1")
        second = store.put_if_match(KEY, b"2", first.etag)
        with pytest.raises(ObjectChanged):
            store.put_if_match(KEY, b"3", first.etag)
        with pytest.raises(ObjectChanged):
            store.put_if_match("missing", b"3", first.etag)
        assert store.get(KEY) == b"2"
        store.put_if_match(KEY, b"4", second.etag)
        assert store.get(KEY) == b"4"

    def test_counter(self, store: Store) -> None:
        """Four threads that compare and swap lose no increment, though all values have one size."""
        store.put(KEY, b"1000")

        def add(_: int) -> None:
            done = 0
            while done < 8:
                stat = store.head(KEY)
                assert stat is not None
                value = int(store.get(KEY))
                try:
                    store.put_if_match(KEY, b"%d" % (value + 1), stat.etag)
                except ObjectChanged:
                    continue
                done += 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(4)))
        assert store.get(KEY) == b"1032"

    def test_capabilities_are_what_the_suite_found(self, store: Store) -> None:
        """All three stores honour both conditions, say so, and leave nothing of their test behind."""
        found = store.capabilities()
        assert found.put_if_absent and found.put_if_match and found.checksum_verified
        require(store, "put_if_absent", "put_if_match")
        assert list(store.list()) == []
        assert store.capabilities() is found or store.url == "memory://"


class TestFiles:
    @pytest.mark.parametrize("n_bytes", [0, 5, 3_000_000])
    def test_put_file(self, store: Store, tmp_path: Path, n_bytes: int) -> None:
        """A file is stored once, whole, and compared by content."""
        path, other = tmp_path / "clip.mp4", tmp_path / "other.mp4"
        data = os.urandom(n_bytes)
        path.write_bytes(data)
        other.write_bytes(bytes([data[0] ^ 1]) + data[1:] if data else b"x")
        assert store.put_file_if_absent(KEY, path, sha256=sha256(data)).n_bytes == n_bytes
        assert store.get(KEY) == data
        assert store.holds_file(KEY, path, sha256=sha256(data))
        assert not store.holds_file(KEY, other, sha256=sha256(other.read_bytes()))
        assert not store.holds_file("missing", path, sha256=sha256(data))
        with pytest.raises(ObjectExists):
            store.put_file_if_absent(KEY, other, sha256=sha256(other.read_bytes()))
        assert store.get(KEY) == data

    def test_wrong_hash_is_refused(self, store: Store, tmp_path: Path) -> None:
        """A file that is not what its hash says is not stored."""
        path = tmp_path / "clip.mp4"
        path.write_bytes(b"rotten")
        with pytest.raises(StoreError, match="nothing was stored"):
            store.put_file_if_absent(KEY, path, sha256=sha256(b"fresh"))
        assert store.head(KEY) is None

    def test_no_file(self, store: Store, tmp_path: Path) -> None:
        """A file that is gone is named."""
        with pytest.raises((StoreError, OSError), match="gone"):
            store.put_file_if_absent(KEY, tmp_path / "gone.mp4", sha256=sha256(b""))


class TestKeys:
    @pytest.mark.parametrize("key", ["../a", "a/../b", "a//b", "/a", "a/", "", ".", "a/./b", "a\0b", "x" * 1025])
    def test_keys_stay_inside(self, store: Store, key: str) -> None:
        """No key leads out of the store, neither for reading nor for writing."""
        writes = (lambda key: store.put(key, b"1"), lambda key: store.put_if_absent(key, b"1"))
        for act in (store.get, store.head, store.delete, *writes):
            with pytest.raises(UsageError):
                act(key)

    @pytest.mark.parametrize("key", ["a b", "é", "a+b", "%2e%2e/a", "-a", ".hidden"])
    def test_keys_that_we_write_are_plain(self, store: Store, key: str) -> None:
        """A free-form key can be asked for, not written."""
        assert store.head(key) is None
        with pytest.raises(UsageError):
            store.put(key, b"1")


class TestAddresses:
    def test_presign(self, store: Store) -> None:
        """A signed address gets, or puts once with the signed length; a store that cannot sign says so."""
        if not store.capabilities().presign:
            with pytest.raises(StoreIncapable, match="sign"):
                store.presign(KEY, method="get", expires_s=60)
            return
        address = store.presign(KEY, method="put", expires_s=60, n_bytes=5)
        for body, status in ((b"123456789", 403), (b"12345", 200), (b"54321", 412)):
            request = urllib.request.Request(address, body, {"If-None-Match": "*", "Content-Type": ""}, method="PUT")
            try:
                found = urllib.request.urlopen(request, timeout=10).status
            except urllib.error.HTTPError as error:
                found = error.code
            assert found == status
        assert store.get(KEY) == b"12345"
        assert urllib.request.urlopen(store.presign(KEY, method="get", expires_s=60), timeout=10).read() == b"12345"

    def test_arrow_and_delta_see_the_same_objects(self, store: Store) -> None:
        """Arrow's file system and delta's address point to the store's root, with the same credentials."""
        if store.url == "memory://":
            with pytest.raises(StoreIncapable, match="tables"):
                store.table_uri("tables/clips")
            return
        store.put("tables/t/x.bin", b"abc")
        with arrow_filesystem(store).open_input_file("tables/t/x.bin") as file:
            assert file.read() == b"abc"
        assert store.table_uri("tables/t").endswith("/tables/t")
        import deltalake
        import pyarrow as pa

        options = store.delta_options()
        deltalake.write_deltalake(store.table_uri("tables/d"), pa.table({"n": [1, 2]}), storage_options=options)
        assert deltalake.DeltaTable(store.table_uri("tables/d"), storage_options=options).version() == 0
        assert any(stat.key.startswith("tables/d/_delta_log/") for stat in store.list("tables/d/"))
