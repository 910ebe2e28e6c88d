"""The commit protocol at every point: our disk primitives and deltalake's own commits are numbered, and each is failed.

A crash anywhere leaves all of a batch or none for a reader; running the job again ends in the same state. deltalake's
commit is one step whose outcomes are made by hand: absent, zero bytes, every truncation, whole but its answer lost,
refused for good. Each test prints its number of points.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from infra import durable, maintain
from infra.catalog import Catalog, Done, open_catalog
from infra.deltalog import DeltaLog, torn
from infra.errors import CamloopError, CatalogError
from infra.settings import Settings
from infra.store import Capabilities, DirStore, open_store
from tests.faults.disk import CountingDisk, PowerCut
from tests.faults.proxy import proxy
from tests.ministack_server import Ministack, ministack

A, B = f"{1:032x}", f"{2:032x}"
State = list[list[tuple[Any, ...]]]


@pytest.fixture(autouse=True)
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the store's self-test: it has its own suite and would add its points to every commit."""
    able = Capabilities(put_if_absent=True, put_if_match=True, multipart_if_absent=True, checksum_verified=True, presign=False)
    monkeypatch.setattr(DirStore, "capabilities", lambda self: able)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[CountingDisk], CountingDisk]:
    """Put a counting disk in place; deltalake's create and commit count as one primitive each."""
    create, commit = DeltaTable.create, DeltaTable.create_write_transaction

    def step() -> None:
        if isinstance(durable.disk, CountingDisk) and durable.disk._step():
            raise durable.disk.error

    def counted_create(*args: Any, **named: Any) -> DeltaTable:
        step()
        return create(*args, **named)

    def counted_commit(self: DeltaTable, *args: Any, **named: Any) -> None:
        step()
        commit(self, *args, **named)

    monkeypatch.setattr(DeltaTable, "create", counted_create)
    monkeypatch.setattr(DeltaTable, "create_write_transaction", counted_commit)

    def put(disk: CountingDisk) -> CountingDisk:
        monkeypatch.setattr(durable, "disk", disk)
        return disk

    return put


def job(folder: Path, clip_id: str = B) -> None:
    """What a step does: commit what `done` lacks."""
    catalog = open_catalog(DirStore(folder))
    if clip_id not in catalog.done("scan", "f"):
        made = {
            "frames": [{"clip_id": clip_id, "pts": pts, "p_keep": 1.0} for pts in range(3)],
            "gops": [{"clip_id": clip_id, "gop_index": 0, "pts": [0, 1, 2]}],
            "detections": [{"clip_id": clip_id, "pts": 1, "det_id": "d", "source": "y@1", "class_name": "x", "score": 0.5}],
        }
        catalog.commit(made, [Done("clip", clip_id, "scan", "f", 3, 3)])


def state(catalog: Catalog) -> State:
    """What a reader sees: the live rows, without the ids of their batches."""
    frames = [catalog.scan(table).drop("batch_id").collect() for table in ("frames", "gops", "detections")]
    return [sorted(frame.rows(), key=repr) for frame in frames]


def seen(folder: Path) -> State:
    return state(open_catalog(DirStore(folder)))


@pytest.fixture(params=["new store", "store with a batch"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder store, empty or with the tables and one batch in them."""
    folder = tmp_path / "base"
    open_catalog(DirStore(folder))
    if request.param == "store with a batch":
        job(folder, A)
    return folder


def copies(base: Path, n: int) -> Iterator[tuple[int, Path]]:
    for number in range(1, n + 1):
        folder = base.parent / "crashed"
        shutil.copytree(base, folder)
        yield number, folder
        shutil.rmtree(folder)


def test_every_crash_point(base: Path, use: Callable[[CountingDisk], CountingDisk]) -> None:
    """A crash before any primitive leaves all or none of the batch; a rerun ends in the state of an undisturbed run."""
    before = seen(base)
    whole = base.parent / "whole"
    shutil.copytree(base, whole)
    counting = use(CountingDisk())
    job(whole)
    n_points = counting.n_calls
    use(CountingDisk())
    after = seen(whole)
    assert before != after
    found = collections.Counter[str]()
    for number, folder in copies(base, n_points):
        use(CountingDisk(number))
        with pytest.raises(PowerCut):
            job(folder)
        use(CountingDisk())
        left = seen(folder)
        assert left in (before, after), f"point {number}: part of a batch is visible"
        found["all" if left == after else "none"] += 1
        job(folder)
        assert seen(folder) == after, f"point {number}: the rerun ended elsewhere"
        assert maintain.check(open_catalog(DirStore(folder))) == []
    assert n_points > 20 and found["all"] > 0 and found["none"] > 0
    print(f"{n_points} crash points: {dict(found)}")


def test_every_io_error(tmp_path: Path, use: Callable[[CountingDisk], CountingDisk]) -> None:
    """EIO at any primitive is a CamloopError, never a success in silence; all or none is visible, and a rerun goes on."""
    base = tmp_path / "base"
    job(base, A)
    before = seen(base)
    whole = base.parent / "whole"
    shutil.copytree(base, whole)
    counting = use(CountingDisk())
    job(whole)
    n_points = counting.n_calls
    use(CountingDisk())
    after = seen(whole)
    n_survived = 0
    for number, folder in copies(base, n_points):
        use(CountingDisk(number, OSError(5, "Input/output error")))
        try:
            job(folder)
            n_survived += 1  # deltalake's own commit failed once, was looked up, and made again
        except CamloopError as error:
            assert "Input/output error" in str(error)
        use(CountingDisk())
        assert seen(folder) in (before, after)
        job(folder)
        assert seen(folder) == after and maintain.check(open_catalog(DirStore(folder))) == []
    assert n_survived == 4  # one log entry for each of four tables
    print(f"{n_points} points with EIO, {n_survived} of them mended by looking")


@pytest.mark.parametrize("table", ["frames", "detections", "done"])
def test_torn_log_entries(tmp_path: Path, table: str) -> None:
    """Of every truncation of the entry at which the plug was pulled none is believed; repair and rerun mend it."""
    folder = tmp_path / "store"
    job(folder, A)
    before = seen(folder)
    job(folder, B)
    after = seen(folder)
    entry = folder / "tables" / table / "_delta_log" / f"{2:020d}.json"
    whole = entry.read_bytes()
    if table != "done":  # the plug was pulled before later tables were reached
        last = ["detections", "frames", "gops", "done"]
        for later in last[last.index(table) + 1 :]:
            (folder / "tables" / later / "_delta_log" / f"{2:020d}.json").unlink()
    assert all(torn(whole[:length]) for length in range(len(whole)))
    borders = {0, 1, len(whole) - 1, *(at + d for at in (m.start() for m in re.finditer(rb"\n", whole)) for d in (0, 1, 2))}
    lengths = sorted(borders | set(range(0, len(whole), 97)))
    for number, copy in copies(folder, len(lengths)):
        torn_entry = copy / entry.relative_to(folder)
        torn_entry.write_bytes(whole[: lengths[number - 1]])
        with pytest.raises(CatalogError, match=torn_entry.name):
            seen(copy)
        with pytest.raises(CatalogError, match=r"doctor --store .* --repair"):
            job(copy)
        assert maintain.repair(open_catalog(DirStore(copy)))
        assert seen(copy) == before
        job(copy)
        assert seen(copy) == after and maintain.check(open_catalog(DirStore(copy))) == []
    print(f"{table}: {len(whole)} truncations seen as torn, {len(lengths)} repaired and rerun")


@pytest.mark.parametrize("number", range(1, 5))
def test_answer_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A commit that succeeded although its answer was lost is found by looking, not made twice."""
    commit, n_calls = DeltaTable.create_write_transaction, 0

    def answer_lost(self: DeltaTable, *args: Any, **named: Any) -> None:
        nonlocal n_calls
        commit(self, *args, **named)
        n_calls += 1
        if n_calls == number:
            raise DeltaError("error sending request: connection closed before message completed")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", answer_lost)
    job(tmp_path, A)
    catalog = open_catalog(DirStore(tmp_path))
    assert n_calls == 4 and set(catalog.snapshot().values()) == {1}
    assert catalog.scan("frames", live=False).collect().height == 3


def test_a_commit_that_never_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that refuses for good is one CatalogError with its reason, and nothing of the batch is visible."""
    job(tmp_path, A)
    before = seen(tmp_path)
    commit = DeltaTable.create_write_transaction

    def refuse(self: DeltaTable, *args: Any, **named: Any) -> None:
        if "gops" in self.table_uri:
            raise DeltaError("Permission denied")
        commit(self, *args, **named)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", refuse)
    with pytest.raises(CatalogError, match=r"table gops .* refused: Permission denied"):
        job(tmp_path, B)
    assert seen(tmp_path) == before
    monkeypatch.undo()
    job(tmp_path, B)
    assert len(seen(tmp_path)[0]) == 6


def test_unsynced_entries_of_others_are_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that another writer made and had no time to force is forced by the next commit: no hole is possible."""
    with monkeypatch.context() as without:
        without.setattr(DeltaLog, "_sync", lambda self: None)
        job(tmp_path, A)
    forced: list[str] = []

    class Recording(durable.Disk):
        def fsync(self, path: Path) -> None:
            forced.append(path.name)
            super().fsync(path)

    monkeypatch.setattr(durable, "disk", Recording())
    job(tmp_path, B)
    for number in (0, 1, 2):
        assert forced.count(f"{number:020d}.json") == 4


@pytest.fixture(scope="module")
def server() -> Iterator[Ministack]:
    """An S3 server with signature checks."""
    with ministack() as made:
        yield made


@pytest.mark.parametrize("n_lost", [1, 2, 5])
def test_answers_lost_before_an_s3_log(server: Ministack, n_lost: int) -> None:
    """On S3 every batch is in the tables once although the answers to log entries that succeeded were cut."""
    with proxy(server.port) as between:
        settings = Settings(s3=dataclasses.replace(server.s3, endpoint_url=between.url))
        store = open_store(f"s3://{server.new_bucket()}/farm", settings)
        between.cut = lambda line: line.startswith("PUT") and "/_delta_log/" in line and len(between.lost) < n_lost
        catalog = open_catalog(store)
        for number in range(3):
            clip_id = f"{number:032x}"
            rows = {"frames": [{"clip_id": clip_id, "pts": pts, "p_keep": 1.0} for pts in range(3)]}
            catalog.commit(rows, [Done("clip", clip_id, "scan", "f", 3, 3)])
        assert len(between.lost) == n_lost
    direct = open_catalog(open_store(store.url, Settings(s3=server.s3)))
    assert direct.scan("frames", live=False).collect().height == 9
    assert len(direct.done("scan")) == 3 and maintain.check(direct) == []


CHILD = """
import sys, pathlib
from infra import durable
calls = []
class Recording(durable.Disk):
    pass
for name in ("write", "append", "fsync", "rename", "link", "symlink", "unlink", "mkdir"):
    def call(self, *args, name=name):
        calls.append(name)
        getattr(durable.Disk, name)(self, *args)
    setattr(Recording, name, call)
sys.path.insert(0, sys.argv[1])
from tests.faults.test_commit import job, A, B
folder = pathlib.Path(sys.argv[2])
from infra.store import DirStore, Capabilities
DirStore.capabilities = lambda self: Capabilities(
    put_if_absent=True, put_if_match=True, multipart_if_absent=True, checksum_verified=True, presign=False)
job(folder, A)
durable.disk = Recording()
(folder / "mark").mkdir()
job(folder, B)
(folder / "mark").rmdir()
print(" ".join(f"{name}={calls.count(name)}" for name in ("write", "fsync", "rename", "link", "unlink", "mkdir")))
"""
SYSCALLS = {
    "write": "write", "pwrite64": "write", "writev": "write", "fsync": "fsync", "fdatasync": "fsync", "rename": "rename",
    "renameat": "rename", "renameat2": "rename", "link": "link", "linkat": "link", "unlink": "unlink", "unlinkat": "unlink",
    "mkdir": "mkdir", "mkdirat": "mkdir", "symlink": "symlink", "symlinkat": "symlink", "truncate": "truncate",
    "ftruncate": "truncate", "copy_file_range": "write", "sendfile": "write",
}  # fmt: skip


@pytest.mark.slow
def test_no_system_call_without_a_number(tmp_path: Path) -> None:
    """strace of one commit shows under the store only calls that `durable` counted, and deltalake's own log entries."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    folder, trace = tmp_path / "store", tmp_path / "trace"
    root = Path(__file__).resolve().parents[2]
    command = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", "trace=" + ",".join(SYSCALLS)]
    ran = subprocess.run(
        [*command, sys.executable, "-c", CHILD, str(root), str(folder)], cwd=root, capture_output=True, text=True, timeout=300
    )
    if "ptrace" in ran.stderr.lower() and "not permitted" in ran.stderr.lower():
        pytest.skip(f"strace may not trace here: {ran.stderr.strip()[:100]}")
    assert ran.returncode == 0, ran.stderr
    numbered = {name: int(n) for name, n in (word.split("=") for word in ran.stdout.split())}
    found, delta, marked = collections.Counter[str](), collections.Counter[str](), False
    for line in trace.read_text(errors="replace").splitlines():
        call = re.search(r"^\d+ +(\w+)\(", line)
        if call is None or str(folder) not in line or re.search(r"= -1 E\w+", line):
            continue
        if f'"{folder}/mark"' in line:
            marked = not marked
        elif marked:
            kind = SYSCALLS[call[1]]
            is_deltas = "/_delta_log/" in line and kind != "fsync"
            (delta if is_deltas else found)[kind] += 1
    assert set(delta) <= {"write", "rename", "link", "unlink"}, delta
    assert delta["link"] + delta["rename"] == 4, f"deltalake makes one entry in each of four tables: {delta}"
    for kind, n_found in found.items():
        assert n_found == numbered.get(kind, 0), f"{kind}: {n_found} system calls, {numbered} numbered"
    assert found["fsync"] == numbered["fsync"] > 8
    print(f"numbered {numbered}; deltalake's own {dict(delta)}")
