"""A host joins a fleet and its agent uploads through the broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.clock import SystemClock
from infra.identity import verify
from infra.sequence import LedgerPage
from infra.settings import load_settings
from infra.store import DirStore
from ingest.membership import as_member, destination, membership, signer
from tests.broker_server import running_broker
from tests.ingest.test_agent_end_to_end import CAMERAS, agent, all_ended, configure, films, until  # noqa: F401

ROOT = Path(__file__).parents[2]


def camloop(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a camloop command in a folder."""
    argv = [sys.executable, "-m", "infra.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)


def test_join_and_upload(tmp_path: Path, films: dict[str, Path]) -> None:  # noqa: F811
    """The code works for one key; clips, signed ledger and health come through the broker under the fleet's name."""
    configure(tmp_path, films, realtime=False)
    store = DirStore(tmp_path / "behind")
    with running_broker(store) as broker:
        code = broker.registry.invite("north-1", CAMERAS)
        joined = camloop(tmp_path, "agent", "join", broker.url, "--code", code)
        assert joined.returncode == 0 and "this host is north-1 of the fleet" in joined.stdout, joined.stderr
        again = camloop(tmp_path, "agent", "join", broker.url, "--code", code)
        assert again.returncode == 0 and "north-1" in again.stdout, "the answer may have been lost: the same key may ask again"
        (tmp_path / "thief").mkdir()
        stolen = camloop(tmp_path / "thief", "agent", "join", broker.url, "--code", code)
        assert stolen.returncode == 1 and stolen.stderr.count("\n") == 1
        with agent(tmp_path) as process:
            until(lambda: all_ended(tmp_path / "spool"), tmp_path)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert camloop(tmp_path, "upload", "spool").returncode == 0
        keys = [stat.key for stat in store.list("")]
        (host,) = broker.registry.hosts().values()
        pages = [LedgerPage.from_json(store.get(key)) for key in keys if key.startswith("ledger/north-1/")]
    sidecars = [json.loads(store.get(key)) for key in keys if key.startswith("clips/") and key.endswith(".json")]
    assert len(sidecars) == 12 and {sidecar["host_id"] for sidecar in sidecars} == {"north-1"}
    assert any(key.startswith("health/north-1/") for key in keys) and not (tmp_path / "store").exists()
    assert pages and all(verify(str(host.public_key), page.document(), str(page.signature)) for page in pages)


def test_a_host_of_no_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `join` nothing changes: the store of camloop.toml, the host's own name, no signature."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(None, {"CAMLOOP_HOST_ID": "lonely"})
    assert membership(settings) is None and as_member(settings) is settings
    assert destination(settings, SystemClock()) is None and signer(settings) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("agent", "join"), "camloop agent join URL --code CODE"),
        (("agent", "join", "ftp://x", "--code", "1"), "legal:"),
        (("agent", "join", "http://127.0.0.1:1", "--code", "1"), "127.0.0.1:1"),
    ],
)
def test_wrong_use(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """Each is one line."""
    found = camloop(tmp_path, *arguments)
    assert found.returncode in (1, 2) and message in found.stderr and found.stderr.count("\n") == 1
