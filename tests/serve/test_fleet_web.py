"""The broker over HTTP, with the host's own store at the other end: what a cut, a restart, a wrong clock and a flood do."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import ingest.broker_store as broker_store
from infra import keys
from infra.artefacts import Wanted
from infra.clock import FakeClock, SystemClock
from infra.errors import ObjectExists, ObjectMissing, SettingsError, StoreBusy, StoreError, StoreForbidden, UsageError
from infra.identity import open_identity
from infra.objects import Store, require
from infra.s3 import S3Store
from infra.store import DirStore
from ingest.broker_store import open_broker_store
from ingest.broker_wire import enroll
from ingest.enrolled import read_enrolled
from ingest.pace import Pace
from serve import wanted
from serve.receiver import Incoming
from tests.broker_server import RunningBroker, running_broker
from tests.faults.proxy import proxy
from tests.ministack_server import ministack
from tests.serve.flood import ask_once

ROUNDS = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))


@pytest.fixture(scope="module", params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A folder and a bucket."""
    if request.param == "folder":
        yield DirStore(tmp_path_factory.mktemp("store"))
    else:
        with ministack() as server:
            yield S3Store(f"s3://{server.new_bucket()}/farm", server.s3)


@pytest.fixture
def running(store: Any) -> Iterator[RunningBroker]:
    """A broker of that store, with a registry of its own for each test."""
    store.delete("fleet/registry.json")
    with running_broker(store) as made:
        yield made


def a_file(folder: Path, n_bytes: int, word: str) -> tuple[Path, str, str]:
    """Return a file, its SHA-256 and its key under camera `cam`."""
    data = random.Random(word).randbytes(n_bytes)
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{sha256[:8]}.mp4"
    path.write_bytes(data)
    return path, sha256, keys.clip_key("cam", sha256[:32], "mp4")


def test_enrolled_by_the_wire(running: RunningBroker, tmp_path: Path) -> None:
    """A device makes its key, sends code and public key, and keeps its name and window; then it can send."""
    code = running.registry.invite("barn", ["cam"])
    folder = tmp_path / "id"
    assert read_enrolled(folder) is None
    enrolled = enroll(running.url, folder, open_identity(folder, "new"), code)
    assert enrolled == read_enrolled(folder) and (enrolled.host_id, enrolled.cameras) == ("barn", ("cam",))
    assert enroll(running.url, folder, open_identity(folder, "new"), code) == enrolled, "the answer may have been lost"
    with pytest.raises(StoreForbidden, match="not known, was used or has expired"):
        enroll(running.url, tmp_path / "other", open_identity(tmp_path / "other", "new"), code)
    path, sha256, key = a_file(tmp_path, 1000, f"enrolled {running.url}")
    made = open_broker_store(running.url, open_identity(folder, "barn"))
    require(made, "put_if_absent")
    checked = made.put_file_if_absent(key, path, sha256=sha256).checked
    # A folder's broker answers with what it hashed; this test's S3 server says nothing of it, then only a look proves it.
    assert checked == ("" if isinstance(running.store, S3Store) else "sha256") and made.holds_file(key, path, sha256=sha256)


def test_a_cut_upload_goes_on(running: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file that is cut in its third part sends only what is missing, in another process's store, without any note."""
    monkeypatch.setattr(broker_store, "MULTIPART_BYTES", 1 << 20)
    identity, first = running.host(tmp_path, "barn", ["cam"])
    path, sha256, key = a_file(tmp_path, (16 << 20) + 7, f"cut {running.url}")
    sent: list[int] = []
    put = first._wire.put

    def cut(address: str, headers: Any, body: Any) -> int:
        if len(sent) == 2:
            raise StoreError("the line is cut")
        sent.append(len(body))
        return put(address, headers, body)

    monkeypatch.setattr(first._wire, "put", cut)
    monkeypatch.setattr(broker_store, "_PART_TRIES", 1)
    with pytest.raises(StoreError, match="cut"):
        first.put_file_if_absent(key, path, sha256=sha256)
    again = open_broker_store(running.url, identity)
    sizes: list[int] = []
    put_again = again._wire.put
    monkeypatch.setattr(again._wire, "put", lambda *args: (sizes.append(len(args[2])), put_again(*args))[1])
    again.put_file_if_absent(key, path, sha256=sha256)
    assert sent == [5 << 20] * 2 and sizes == [5 << 20, (1 << 20) + 7]
    assert again.holds_file(key, path, sha256=sha256) and hashlib.sha256(running.store.get(key)).hexdigest() == sha256
    with pytest.raises(ObjectExists):
        again.put_file_if_absent(key, path, sha256=sha256)
    assert list(again.unfinished()) == []


@pytest.mark.parametrize("what", ["POST /v1/ask", "PUT "])
def test_a_lost_answer(running: RunningBroker, tmp_path: Path, what: str) -> None:
    """An answer that is lost means look: the clip is there once, whether the broker's or the store's answer went missing."""
    if isinstance(running.store, S3Store) and what == "PUT ":
        pytest.skip("a bucket's addresses do not lead through the proxy before the broker; tests/contract has its lost answers")
    identity, _ = running.host(tmp_path, "barn", ["cam"])
    path, sha256, key = a_file(tmp_path, 2000, f"lost {what} {running.url}")
    with proxy(urlsplit(running.url).port or 0) as between:
        made = open_broker_store(between.url, identity)
        made.capabilities()
        between.cut = lambda line: line.startswith(what) and not between.lost
        with pytest.raises(StoreError):
            made.put_file_if_absent(key, path, sha256=sha256)
        made.pace._any_s = 0.0  # the pause is over
        with contextlib.suppress(ObjectExists):
            made.put_file_if_absent(key, path, sha256=sha256)
        assert made.holds_file(key, path, sha256=sha256) and len(between.lost) == 1


def test_a_broker_that_was_started_again(running: RunningBroker, tmp_path: Path) -> None:
    """Old epochs and old addresses die with the broker; the host signs anew by itself."""
    if not isinstance(running.store, DirStore):
        pytest.skip("a bucket's addresses do not depend on the broker's life; epochs are in test_broker.py")
    _, made = running.host(tmp_path, "barn", ["cam"])
    made.capabilities()
    running.broker.epoch = "another run"
    path, sha256, key = a_file(tmp_path, 2000, "restarted")
    assert made.put_file_if_absent(key, path, sha256=sha256).n_bytes == 2000
    running.broker._receiver._secret = b"another"  # type: ignore[attr-defined]
    path, sha256, key = a_file(tmp_path, 2000, "restarted again")
    assert made.put_file_if_absent(key, path, sha256=sha256).n_bytes == 2000


def test_a_clock_of_1970(running: RunningBroker, tmp_path: Path) -> None:
    """A host whose clock says 1970, and jumps meanwhile, signs with the broker's time; it knows how far it is off."""

    class Wrong(SystemClock):
        def now_ns(self) -> int:
            return 1_000_000_000

    identity, _ = running.host(tmp_path, "barn", ["cam"])
    made = open_broker_store(running.url, identity, Wrong())
    assert made.clock_offset_s is None
    path, sha256, key = a_file(tmp_path, 500, f"1970 {running.url}")
    made.put_file_if_absent(key, path, sha256=sha256)
    assert made.clock_offset_s is not None and abs(made.clock_offset_s - time.time()) < 60


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without space answers 503, keeps nothing half, and takes the clip when there is room again."""
    with running_broker(DirStore(tmp_path / "store")) as running:
        _, made = running.host(tmp_path, "barn", ["cam"])
        path, sha256, key = a_file(tmp_path, 100_000, "full")

        def full(self: Incoming, piece: bytes) -> None:
            raise StoreError("No space left on device")

        with monkeypatch.context() as disk:
            disk.setattr(Incoming, "write", full)
            with pytest.raises(StoreError, match="503"):
                made.put_file_if_absent(key, path, sha256=sha256)
        assert running.store.head(key) is None and list((tmp_path / "store" / "incoming").iterdir()) == []
        assert made.put_file_if_absent(key, path, sha256=sha256).n_bytes == 100_000


def test_a_host_that_hangs_up(tmp_path: Path) -> None:
    """A PUT whose line is cut in the middle leaves nothing behind."""
    with running_broker(DirStore(tmp_path / "store")) as running:
        _, made = running.host(tmp_path, "barn", ["cam"])
        path, sha256, key = a_file(tmp_path, 100_000, "hang")
        answer = made._ask("put", key, n_bytes=100_000, sha256=sha256)
        line = http.client.HTTPConnection("127.0.0.1", urlsplit(running.url).port, timeout=10)
        line.putrequest("PUT", answer["url"])
        line.putheader("Content-Length", "100000")
        line.endheaders()
        line.send(path.read_bytes()[:60_000])
        incoming = tmp_path / "store" / "incoming"
        _until(lambda: incoming.is_dir() and any(incoming.iterdir()))
        line.close()
        _until(lambda: not any(incoming.iterdir()))
        assert running.store.head(key) is None


def test_silent_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines on which nobody asks are closed, also after a first request, and shut nobody else out; a stalled PUT ends."""
    monkeypatch.setattr("serve.fleet_web.HEAD_S", 0.2)
    monkeypatch.setattr("serve.fleet_web.STALL_S", 0.5)
    monkeypatch.setattr("serve.fleet_web._most_connections", lambda: 8)
    with running_broker(DirStore(tmp_path / "store")) as running, contextlib.ExitStack() as lines:
        address = ("127.0.0.1", urlsplit(running.url).port)
        silent = [lines.enter_context(socket.create_connection(address, timeout=10)) for _ in range(20)]
        silent[0].sendall(b"GET /v1/hel")
        silent[1].sendall(b"GET /v1/hello HTTP/1.1\r\nhost: x\r\n\r\nGET")
        for line in silent:
            while line.recv(10_000):
                pass
        _, made = running.host(tmp_path, "barn", ["cam"])
        path, sha256, key = a_file(tmp_path, 1000, "stalled")
        answer = made._ask("put", key, n_bytes=1000, sha256=sha256)
        stalled = http.client.HTTPConnection(*address, timeout=10)
        lines.callback(stalled.close)
        stalled.putrequest("PUT", answer["url"])
        stalled.putheader("Content-Length", "1000")
        stalled.endheaders()
        incoming = tmp_path / "store" / "incoming"
        _until(lambda: incoming.is_dir() and any(incoming.iterdir()))
        again = http.client.HTTPConnection(*address, timeout=10)
        lines.callback(again.close)
        again.request("PUT", answer["url"], path.read_bytes())
        refused = again.getresponse()
        assert refused.status == 409 and str(tmp_path) not in refused.read().decode()
        assert stalled.getresponse().status == 408
        assert made.put_file_if_absent(key, path, sha256=sha256).n_bytes == 1000


def test_what_may_be_read(running: RunningBroker, tmp_path: Path) -> None:
    """Wishes and releases are handed out; nothing else is."""
    _, made = running.host(tmp_path, "barn", ["cam"])
    wish = wanted.create(running.store, "hour < 6", quota=3, days=1, reason="night", clock=SystemClock())
    running.store.put("releases/metadata/1.root.json", b"signed")
    assert [found.wanted_id for found in wanted.current(made, SystemClock())] == [wish.wanted_id]  # type: ignore[arg-type]
    assert isinstance(Wanted.from_bytes(made.get(f"wanted/{wish.wanted_id}.json")), Wanted)
    assert made.get("releases/metadata/1.root.json") == b"signed"
    for key in ("fleet/registry.json", "clips/cam/x.mp4", "releases/none"):
        with pytest.raises(ObjectMissing):
            made.get(key)


def test_a_quota_is_told(running: RunningBroker, tmp_path: Path) -> None:
    """A used-up quota is `StoreBusy` with the time to wait, not a failure that is tried again and again."""
    _, made = running.host(tmp_path, "barn", ["cam"], clips_a_day=1)
    path, sha256, key = a_file(tmp_path, 100, f"quota {running.url}")
    running.broker._quota._counts["clip cam"] = running.broker._quota._counts.pop("clip cam", None) or _count(1)
    running.broker._quota._day = running.clock.now_ns() // 86_400_000_000_000
    with pytest.raises(StoreBusy, match="used up") as caught:
        made.put_file_if_absent(key, path, sha256=sha256)
    assert 0 < caught.value.retry_after_s <= 86_400


def _count(n: int) -> Any:
    from serve.quota import _Count

    return _Count(n=n)


def test_turns_are_waited_for(tmp_path: Path) -> None:
    """A host that is sent back comes when it is its turn, by itself; a fresh clip does not wait for that."""
    with running_broker(DirStore(tmp_path / "store"), capacity=4.0) as running:
        _, made = running.host(tmp_path, "barn", ["cam"])
        made.put_if_absent(keys.ledger_key("barn", "boot", 0), b"{}")
        began = time.monotonic()
        for n in range(4):
            path, sha256, key = a_file(tmp_path, 10, f"turn {n}")
            with made.lane("backlog", waiting=9):
                made.put_file_if_absent(key, path, sha256=sha256)
        assert 0.4 < time.monotonic() - began < 2.0
        path, sha256, key = a_file(tmp_path, 10, "fresh")
        began = time.monotonic()
        with made.lane("fresh"):
            made.put_file_if_absent(key, path, sha256=sha256)
        assert time.monotonic() - began < 0.2


def test_patience_ends(tmp_path: Path) -> None:
    """A turn that is too far away is told to the caller, who may do something else."""
    identity = open_identity(tmp_path, "barn")
    clock = FakeClock()
    pace = Pace(0.0, window_s=0.0)
    pace.told(0.0, 1000.0, "backlog")
    made = open_broker_store("http://127.0.0.1:9", identity, clock, pace=pace)
    with pytest.raises(StoreBusy) as caught:
        made.put_if_absent(keys.clip_key("cam", "0" * 32, "mp4"), b"x")
    assert caught.value.retry_after_s == 1000.0


@pytest.mark.parametrize("url", ["", "barn", "ftp://x", "https://", "http://user:secret@host/", "https://host/?q=1"])
def test_addresses_that_are_none(url: str, tmp_path: Path) -> None:
    """An address of another kind is refused with the legal ones; a password in it is not shown."""
    with pytest.raises(SettingsError, match="legal: https://HOST") as caught:
        open_broker_store(url, open_identity(tmp_path, "barn"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["tables/x", "clips/cam/no.mp4", "ledger/other/boot/00000000.json", "selftest-1", "clips/c/x"])
def test_keys_that_a_host_has_not(key: str, tmp_path: Path) -> None:
    """A key that no camera host writes is refused before anything is asked."""
    with pytest.raises(UsageError):
        open_broker_store("http://127.0.0.1:9", open_identity(tmp_path, "barn")).put_if_absent(key, b"x")


def test_nobody_there(tmp_path: Path) -> None:
    """A broker that is not there, and a web server that is none, are one clear line each, and a pause follows."""
    made = open_broker_store("http://127.0.0.1:9", open_identity(tmp_path, "barn"))
    with pytest.raises(StoreError, match="cannot be reached"):
        made.capabilities()
    assert made.pace.due_s(time.monotonic()) > 0
    with ministack() as server, pytest.raises(StoreError, match="is it a camloop broker"):
        open_broker_store(f"http://127.0.0.1:{server.port}", open_identity(tmp_path, "barn")).capabilities()


def test_a_flood_is_not_noticed_by_others(tmp_path: Path) -> None:
    """A host that asks without end over four connections, its burst used up, costs others at most a fifth of their p95."""
    with running_broker(DirStore(tmp_path / "store"), asks=20.0) as running:
        running.host(tmp_path, "mad", ["flood"], clips_a_day=100)
        identity, _ = running.host(tmp_path, "calm", ["cam"])
        running.broker._seen.clear()
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(running.url).port, timeout=20)

        def p95(word: str) -> float:
            taken = []
            for n in range(100 * ROUNDS):
                if n % 100 == 0:
                    running.broker._seen.pop("calm", None)  # its own allowance is not the question
                began = time.perf_counter()
                assert ask_once(connection, identity, running.broker.epoch, "cam", f"{word} {n}") == 200
                taken.append(time.perf_counter() - began)
                time.sleep(0.002)
            return sorted(taken)[math.ceil(0.95 * len(taken)) - 1]

        p95("warm")
        argv = [sys.executable, "-m", "tests.serve.flood", running.url, str(tmp_path / "mad"), "mad", "flood", "4"]
        quiet, loud = [], []
        for attempt in range(3):
            quiet.append(p95(f"quiet {attempt}"))
            flood = subprocess.Popen(argv, cwd=Path(__file__).parents[2])
            try:
                _until(lambda: "mad" in running.broker._seen and running.broker._seen["mad"].bucket.tokens < 1)
                time.sleep(0.1)
                loud.append(p95(f"loud {attempt}"))
            finally:
                flood.kill()
                flood.wait()
            if min(loud) <= 1.2 * min(quiet):
                break
        n_sent, _ = running.broker._quota.used()["clip flood"]
        assert n_sent <= 100, "the quota holds"
        assert min(loud) <= 1.2 * min(quiet), (quiet, loud)


def _until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline, "the flood did not begin"
        time.sleep(0.02)


def test_nothing_else_is_served(running: RunningBroker) -> None:
    """No pages of documentation, no other route."""
    for path in ("docs", "openapi.json", "redoc", "v1", "v1/ask", "etc/passwd", "clips/"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{running.url}/{path}", timeout=10)
        assert caught.value.code in (404, 405) and b"Traceback" not in caught.value.read()
    hello = json.loads(urllib.request.urlopen(f"{running.url}/v1/hello", timeout=10).read())
    assert set(hello) == {"window_s", "capabilities", "time_ns", "epoch"}
