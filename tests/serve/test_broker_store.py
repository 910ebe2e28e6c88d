"""A host's own end of the line to its broker: quotas, pages that are no store, other versions, patience, parts."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ingest.broker_store as broker_store
from infra import keys
from infra.clock import FakeClock, SystemClock
from infra.errors import QuotaSpent, StoreError
from infra.objects import ResumeLog
from infra.store import DirStore
from ingest.broker_store import open_broker_store
from ingest.broker_wire import Put
from ingest.errands import Errands
from ingest.pace import Pace
from ingest.spool import Spool
from ingest.transfer import Retry, resume_path
from serve.quota import _Count
from tests.broker_server import RunningBroker, running_broker


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker of a folder."""
    with running_broker(DirStore(tmp_path / "store")) as made:
        yield made


def a_file(folder: Path, n_bytes: int, camera_id: str = "cam") -> tuple[Path, str, str]:
    """Return a file, its SHA-256 and its key."""
    data = random.Random(f"{n_bytes} {camera_id}").randbytes(n_bytes)
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{sha256[:8]}.mp4"
    path.write_bytes(data)
    return path, sha256, keys.clip_key(camera_id, sha256[:32], "mp4")


def test_a_quota_is_one_cameras(running: RunningBroker, tmp_path: Path) -> None:
    """A camera that has used up its quota makes nothing else of its host wait: neither another camera nor a document."""
    _, made = running.host(tmp_path, "barn", ["cam", "other"], clips_a_day=1)
    made.capabilities()
    running.broker._quota._counts["clip cam"] = _Count(n=1)
    running.broker._quota._day = running.clock.now_ns() // 86_400_000_000_000
    path, sha256, key = a_file(tmp_path, 100)
    with pytest.raises(QuotaSpent, match="camera cam has used up") as caught:
        made.put_file_if_absent(key, path, sha256=sha256)
    assert 0 < caught.value.retry_after_s <= 86_400
    assert made.pace.due_s(made._now_s()) == made.pace.due_s(made._now_s(), "backlog") == 0
    path, sha256, key = a_file(tmp_path, 100, "other")
    assert made.put_file_if_absent(key, path, sha256=sha256).checked == "sha256"
    made.put_if_absent(keys.health_key("barn", "boot", 1), b"{}")


@pytest.mark.parametrize("has_etag", [False, True])
def test_a_login_page(running: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_etag: bool) -> None:
    """A page that says 200 to a PUT proves nothing: what is not in the store is not taken for delivered."""
    _, made = running.host(tmp_path, "barn", ["cam"])
    path, sha256, key = a_file(tmp_path, 100)
    with monkeypatch.context() as line:
        line.setattr(made._wire, "put", lambda *_: Put(200, None, has_etag))
        with pytest.raises(StoreError, match="login page"):
            made.put_file_if_absent(key, path, sha256=sha256)
        with pytest.raises(StoreError, match="login page"):
            made.put_if_absent(keys.sidecar_key(key), b"{}")
    put = made._wire.put
    monkeypatch.setattr(made._wire, "put", lambda *sent: dataclasses.replace(put(*sent), checksum=None, has_etag=True))
    assert made.put_file_if_absent(key, path, sha256=sha256).checked == ""
    assert made.holds_file(key, path, sha256=sha256)


@pytest.mark.parametrize(
    "more",
    [
        {"capabilities": {"teleport": True}, "window_s": 1},
        {"capabilities": None, "window_s": 1},
        {"window_s": 1},
    ],
)  # fmt: skip
def test_a_greeting_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]) -> None:
    """A broker that greets otherwise is one line, not a traceback."""
    with running_broker(DirStore(tmp_path / "store")) as running:
        _, made = running.host(tmp_path, "barn", ["cam"])
        monkeypatch.setattr(made._wire, "get", lambda path: (200, {"epoch": "e", "time_ns": 1, **more}))
        with pytest.raises(StoreError, match=r"does not understand.*one version") as caught:
            made.capabilities()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [{}, {"url": 7, "headers": {}, "upload": 1, "parts": [{}], "found": 3}, {"after_s": "soon"}])
def test_an_answer_of_another_version(
    running: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """Answers that lack what was asked for, or say it in another form, are one line each."""
    monkeypatch.setattr(broker_store, "MULTIPART_BYTES", 1000)
    _, made = running.host(tmp_path, "barn", ["cam"])
    made.capabilities()
    monkeypatch.setattr(made._wire, "post", lambda *_: (200, {"epoch": "e", "time_ns": 1, **more}))
    for n_bytes in (100, 2000):
        path, sha256, key = a_file(tmp_path, n_bytes)
        with pytest.raises(StoreError, match="does not understand"):
            made.put_file_if_absent(key, path, sha256=sha256)
        with pytest.raises(StoreError, match="does not understand"):
            made.holds_file(key, path, sha256=sha256)
    monkeypatch.setattr(made._wire, "get", lambda path: (200, {"wishes": []}))
    with pytest.raises(StoreError, match="does not understand"):
        list(made.list("wanted/"))


def test_every_request_has_its_turn(running: RunningBroker, tmp_path: Path) -> None:
    """The greeting and the look for wishes wait as all else does: hosts that boot together do not ask together."""
    identity, _ = running.host(tmp_path, "barn", ["cam"])
    clock = FakeClock()
    pace = Pace(0.0, window_s=60.0, rng=random.Random(3))
    due_s = pace.due_s(0.0)
    made = open_broker_store(running.url, identity, clock, pace=pace)
    made.capabilities()
    assert due_s > 1 and clock.mono_ns() == pytest.approx(due_s * 1e9)
    running.store.put("releases/metadata/1.root.json", b"signed")
    for act in (lambda: list(made.list("wanted/")), lambda: made.get("releases/metadata/1.root.json")):
        before_ns = clock.mono_ns()
        pace.told(before_ns / 1e9, 30.0)
        act()
        assert clock.mono_ns() - before_ns == pytest.approx(30e9)


def test_what_was_begun_is_given_up(running: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload in parts whose clip waits no more is given up by its note; one that arrived leaves no note."""
    monkeypatch.setattr(broker_store, "MULTIPART_BYTES", 1 << 20)
    monkeypatch.setattr(broker_store, "_PART_TRIES", 1)
    _, made = running.host(tmp_path, "barn", ["cam"])
    path, sha256, key = a_file(tmp_path, 2 << 20)
    incoming = tmp_path / "store" / "incoming"
    with Spool(tmp_path / "spool") as spool:
        note = ResumeLog(resume_path(spool.folder, sha256[:32]))
        with monkeypatch.context() as line:
            line.setattr(made._wire, "put", lambda *_: Put(500, None, False))
            with pytest.raises(StoreError, match="500"):
                made.put_file_if_absent(key, path, sha256=sha256, resume=note)
        assert note.load() is not None and len(list(incoming.iterdir())) == 1
        Errands(spool, made, Retry(clock=SystemClock()), "barn", keep=False).sweep()
        assert note.load() is None and list(incoming.iterdir()) == []
        made.pace._any_s = 0.0
        made.put_file_if_absent(key, path, sha256=sha256, resume=note)
        assert note.load() is None and made.holds_file(key, path, sha256=sha256)


def test_parts_that_never_fit(running: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a longer object under the same name are given up, and the upload is created again."""
    monkeypatch.setattr(broker_store, "MULTIPART_BYTES", 1 << 20)
    _, made = running.host(tmp_path, "barn", ["cam"])
    path, sha256, key = a_file(tmp_path, 2 << 20)
    longer = {"n_bytes": (5 << 20) + 3, "sha256": sha256}
    upload, _ = made._created(key, longer)
    tail = tmp_path / "longer"
    tail.write_bytes(bytes((5 << 20) + 3))
    made._send_part(key, tail, upload, 2, broker_store._digests(tail, 5 << 20, (5 << 20) + 3), longer, None)
    made.put_file_if_absent(key, path, sha256=sha256)
    assert made.holds_file(key, path, sha256=sha256)
