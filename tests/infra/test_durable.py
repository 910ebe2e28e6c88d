"""Crash at every primitive of every durable operation: old or new, whole, and temporary files never count."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import durable
from infra.errors import StoreError, UsageError
from infra.store import DirStore
from tests.faults.disk import CountingDisk, PowerCut

OLD, NEW = b"old" * 1000, b"new" * 2000


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[CountingDisk], CountingDisk]]:
    """Put a disk in the place of the real one."""

    def put(disk: CountingDisk) -> CountingDisk:
        monkeypatch.setattr(durable, "disk", disk)
        return disk

    yield put


def visible(folder: Path) -> dict[str, bytes]:
    """Return name -> content of what a reader sees."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not durable.is_temporary(path.name)
    }


def _write(folder: Path) -> None:
    durable.write(folder / "a", NEW)


def _create(folder: Path) -> None:
    durable.create(folder / "b", NEW)


def _copy(folder: Path) -> None:
    import hashlib

    source = folder.parent / "source"
    source.write_bytes(NEW)
    durable.create_copy(folder / "b", source, hashlib.sha256(NEW).hexdigest())


def _adopt(folder: Path) -> None:
    (folder / ".tmp-recorder").write_bytes(NEW)
    durable.adopt(folder / ".tmp-recorder", folder / "a")


def _remove(folder: Path) -> None:
    durable.remove(folder / "a")


OPERATIONS: dict[str, tuple[Callable[[Path], None], list[dict[str, bytes]]]] = {
    "write": (_write, [{"a": OLD}, {"a": NEW}]),
    "create": (_create, [{"a": OLD}, {"a": OLD, "b": NEW}]),
    "create_copy": (_copy, [{"a": OLD}, {"a": OLD, "b": NEW}]),
    "adopt": (_adopt, [{"a": OLD}, {"a": NEW}]),
    "remove": (_remove, [{"a": OLD}, {}]),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("error", [PowerCut(), OSError(errno.ENOSPC, "disk full"), OSError(errno.EIO, "I/O error")])
def test_every_crash_point(
    tmp_path: Path, use: Callable[[CountingDisk], CountingDisk], name: str, error: BaseException
) -> None:
    """A failure at primitive i, for every i, leaves the old state or the new one, and doing it again ends in the new one."""
    operation, states = OPERATIONS[name]

    def folder(number: int) -> Path:
        made = tmp_path / str(number) / "store"
        made.mkdir(parents=True)
        (made / "a").write_bytes(OLD)
        return made

    counting = use(CountingDisk())
    operation(folder(0))
    n_points = counting.n_calls
    assert n_points >= 2
    for number in range(1, n_points + 1):
        where = folder(number)
        use(CountingDisk(number, error))
        with pytest.raises(type(error)):
            operation(where)
        assert visible(where) in states, f"{name} crashed at {number} of {n_points}"
        use(CountingDisk())
        if visible(where) != states[1] or name == "write":
            operation(where)
        assert visible(where) == states[1]


def test_point_switches_whole(tmp_path: Path, use: Callable[[CountingDisk], CountingDisk]) -> None:
    """A link that is switched points to the old or the new slot, never to nothing."""
    for slot in ("A", "B"):
        (tmp_path / slot).mkdir()
    link = tmp_path / "current"
    counting = use(CountingDisk())
    durable.point(link, "A")
    n_points = counting.n_calls
    for number in range(1, n_points + 1):
        use(CountingDisk(number))
        with pytest.raises(PowerCut):
            durable.point(link, "B")
        assert link.readlink() in (Path("A"), Path("B"))
        use(CountingDisk())
        durable.point(link, "A")
    assert link.readlink() == Path("A")


def test_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is fsynced before it gets its name, and the folder after."""
    calls: list[tuple[str, str]] = []

    class Recording(durable.Disk):
        def fsync(self, path: Path) -> None:
            calls.append(("fsync", "folder" if path.is_dir() else "file"))

        def rename(self, source: Path, target: Path) -> None:
            calls.append(("rename", target.name))
            super().rename(source, target)

    monkeypatch.setattr(durable, "disk", Recording())
    durable.write(tmp_path / "a", b"1")
    assert calls == [("fsync", "file"), ("rename", "a"), ("fsync", "folder")]


def test_create_does_not_touch(tmp_path: Path) -> None:
    """`create` on an existing file refuses and leaves it."""
    (tmp_path / "a").write_bytes(OLD)
    with pytest.raises(FileExistsError):
        durable.create(tmp_path / "a", NEW)
    assert visible(tmp_path) == {"a": OLD}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_is_tried_where_it_points_to_and_stays(tmp_path: Path) -> None:
    """A dangling link stays a link, with nothing behind it; behind one that leads nowhere nothing can be written."""
    link, target = tmp_path / "link.csv", tmp_path / "later.csv"
    link.symlink_to(target)
    durable.check_writable(link, "--csv", in_place=True)
    assert link.is_symlink() and not target.exists()
    target.write_bytes(OLD)
    durable.check_writable(link, "--csv", in_place=True)
    assert link.is_symlink() and target.read_bytes() == OLD
    lost = tmp_path / "lost.csv"
    lost.symlink_to(tmp_path / "none" / "x.csv")
    with pytest.raises(UsageError, match="cannot be written"):
        durable.check_writable(lost, "--csv", in_place=True)
    assert lost.is_symlink()


def test_a_pipe_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it would wait for whoever reads it."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened"))
    durable.check_writable(tmp_path / "pipe", "--csv", in_place=True)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_folder_that_cannot_be_asked_for_is_one_line(tmp_path: Path, in_place: bool) -> None:
    """What the system says about the folder itself is said, too."""
    with pytest.raises(UsageError, match="File name too long"):
        durable.check_writable(tmp_path / ("x" * 300) / "a.csv", "--csv", in_place=in_place)


class TestFolderStore:
    def test_every_crash_point_of_a_put(self, tmp_path: Path, use: Callable[[CountingDisk], CountingDisk]) -> None:
        """A folder store lists and serves only whole objects whatever its put was killed at."""
        counting = use(CountingDisk())
        DirStore(tmp_path / "0").put("clips/cam1/a.mp4", NEW)
        for number in range(1, counting.n_calls + 1):
            store = DirStore(tmp_path / str(number))
            use(CountingDisk(number))
            with pytest.raises(PowerCut):
                store.put("clips/cam1/a.mp4", NEW)
            use(CountingDisk())
            listed = [stat.key for stat in store.list()]
            assert listed in ([], ["clips/cam1/a.mp4"])
            assert [store.get(key) for key in listed] == [NEW] * len(listed)
            store.put("clips/cam1/a.mp4", NEW)
            assert store.get("clips/cam1/a.mp4") == NEW

    def test_full_disk_is_one_line(self, tmp_path: Path, use: Callable[[CountingDisk], CountingDisk]) -> None:
        """ENOSPC becomes a StoreError that names folder, key and what to check; nothing is left."""
        store = DirStore(tmp_path / "store")
        store.put("a", OLD)
        use(CountingDisk(1, OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(StoreError, match=r"store .*: b: No space left on device; check the folder's disk"):
            store.put("b", NEW)
        assert [stat.key for stat in store.list()] == ["a"]

    def test_links_that_lead_out(self, tmp_path: Path) -> None:
        """A symbolic link out of the folder is not followed."""
        (tmp_path / "secret").write_text("x")
        store = DirStore(tmp_path / "store")
        store.put("a", b"1")
        (tmp_path / "store" / "out").symlink_to(tmp_path)
        with pytest.raises(Exception, match="symbolic link"):
            store.get("out/secret")

    def test_free_form_names_are_read(self, tmp_path: Path) -> None:
        """Files that people put into the folder can be listed and read under their own names."""
        (tmp_path / "My videos").mkdir()
        (tmp_path / "My videos" / "hé 1.mp4").write_bytes(b"1")
        store = DirStore(tmp_path)
        assert [stat.key for stat in store.list("My")] == ["My videos/hé 1.mp4"]
        assert store.get("My videos/hé 1.mp4") == b"1"
