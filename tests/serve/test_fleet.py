"""`camloop fleet`: what an operator reads of hosts that are well, ill, silent and lying; and the whole way by command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infra import keys
from infra.cli import main
from infra.clock import SystemClock
from infra.console import Output
from infra.identity import Identity, open_identity
from infra.records import Sidecar
from infra.sequence import LedgerEntry, LedgerPage
from infra.store import DirStore
from ingest.broker_store import open_broker_store
from ingest.broker_wire import enroll
from serve import fleet, fleet_page
from serve.registry import Registry

ROOT = Path(__file__).parents[2]
GB = 10**9


def health(host_id: str, **changes: Any) -> dict[str, Any]:
    """Return a health document as the agent writes it."""
    return {
        "host_id": host_id, "boot_id": "boot", "n": 300, "at_ns": time.time_ns(), "mono_ns": 300 * GB, "version": "0.2.0",
        "cameras": {f"{host_id}-cam": {"state": "running", "n_frames": 9_000, "n_dropped": 9, "fps": 30.0}},
        "spool": {"pending": 2, "bytes": 4_000_000, "oldest_s": 12.0, "evicted": 0}, "disk_free_bytes": 20 * GB,
        "disk_total_bytes": 32 * GB, "temperature_c": 55.0, "clock": {"quality": "ntp", "offset_s": 0.001}, "uptime_s": 3600.0,
        **changes,
    }  # fmt: skip


def put_health(store: DirStore, host_id: str, **changes: Any) -> None:
    """Leave a health document in the store."""
    document = health(host_id, **changes)
    store.put(keys.health_key(host_id, "boot", document["n"]), json.dumps(document).encode())


def put_clip(store: DirStore, camera_id: str, host_id: str, seq: int, *, told: str | None = None) -> None:
    """Leave a clip with its sidecar in the store; `told` is the camera that the sidecar speaks of."""
    data = f"{camera_id} {seq}".encode()
    sha256 = hashlib.sha256(data).hexdigest()
    key = keys.clip_key(camera_id, sha256[:32], "mp4")
    sidecar = Sidecar(
        clip_id=sha256[:32], camera_id=told or camera_id, host_id=host_id, boot_id="boot", recording_id="r", seq=seq,
        sha256=sha256, n_bytes=len(data), container="mp4", start_ns=None, start_mono_ns=0, clock="unknown", sensor_ns=(0, 5),
    )  # fmt: skip
    store.put(keys.sidecar_key(key), sidecar.to_json())
    store.put(key, data)


def put_page(store: DirStore, identity: Identity, camera_id: str, seq: int, *, signer: Identity | None = None) -> None:
    """Leave a page of a host's ledger that explains one number of a camera and states the next."""
    entry = LedgerEntry(camera_id=camera_id, boot_id="boot", seq=seq, kind="evicted", reason="disk full")
    fields: dict[str, Any] = {
        "host_id": identity.host_id, "boot_id": "boot", "number": 0, "entries": (entry,), "next_seq": {camera_id: 6},
        "previous": None,
    }  # fmt: skip
    signature = (signer or identity).sign(LedgerPage(**fields).document())
    store.put(keys.ledger_key(identity.host_id, "boot", 0), LedgerPage(**fields, signature=signature).to_json())


def enrolled(store: DirStore, folder: Path, host_id: str, *cameras: str) -> Identity:
    """Return the identity of a host that belongs to the fleet."""
    registry = Registry(store, SystemClock())
    identity = open_identity(folder / host_id, host_id)
    registry.accept(registry.invite(host_id, cameras), identity.public_key)
    return identity


@pytest.fixture
def store(tmp_path: Path) -> DirStore:
    """An empty folder store."""
    return DirStore(tmp_path / "store")


def status_of(store: DirStore, **options: Any) -> fleet.FleetStatus:
    """Return the status as the command makes it."""
    hosts = Registry(store, SystemClock()).hosts()
    return fleet.look(store, hosts, time.time_ns(), audited=fleet.sequences(store, hosts), **options)


class TestStatus:
    def test_every_figure(self, store: DirStore, tmp_path: Path) -> None:
        """Lag, holes, disk, drift, drops, version, temperature and last sight of one host, and what is wrong with another."""
        well = enrolled(store, tmp_path, "well", "well-cam")
        enrolled(store, tmp_path, "ill", "ill-cam")
        Registry(store, SystemClock()).invite("new", ["new-cam"])
        for seq in (0, 1, 2, 4):
            put_clip(store, "well-cam", "well", seq)
        put_page(store, well, "well-cam", 3)
        put_health(store, "well")
        for seq in (0, 3):
            put_clip(store, "ill-cam", "ill", seq)
        put_health(
            store, "ill", spool={"pending": 900, "oldest_s": 90_000.0}, disk_free_bytes=GB, temperature_c=84.0, version="0.1.0",
            cameras={"ill-cam": {"n_frames": 900, "n_dropped": 100, "fps": 9.0}}, clock={"quality": "ntp", "offset_s": -40.0},
        )  # fmt: skip
        put_health(store, "stranger", version="0.2.0")
        found = {host.host_id: host for host in status_of(store).hosts}
        assert next(iter(found)) == "ill", "worst first"
        good, bad = found["well"], found["ill"]
        assert (good.n_missing, good.complaints) == (1, ("1 numbers missing",)), "number 5 was given out and never came"
        assert good.cameras[0].n_expected == 6 and good.cameras[0].n_explained == 1 and good.cameras[0].holes == ("boot 5-5",)
        assert (good.lag_s or 0) >= 12 and good.n_pending == 2 and good.disk_free == 0.625 and good.drift_s == 0.001
        assert good.dropped == pytest.approx(9 / 9009) and good.version == "0.2.0" and good.temperature_c == 55.0
        assert good.seen_s is not None and good.seen_s < 60 and good.cameras[0].n_clips == 4
        assert bad.n_missing == 2 and len(bad.complaints) == 7, bad.complaints
        assert found["new"].state == "invited" and found["new"].complaints == ()
        assert found["stranger"].state == "unknown"

    def test_a_host_may_lie(self, store: DirStore, tmp_path: Path) -> None:
        """Another's health, foreign signatures, pages and sidecars about a neighbour's camera count for nothing."""
        thief = enrolled(store, tmp_path, "thief", "thief-cam")
        victim = enrolled(store, tmp_path, "victim", "victim-cam")
        put_clip(store, "victim-cam", "victim", 0)
        put_clip(store, "victim-cam", "victim", 2)
        put_clip(store, "thief-cam", "victim", 1, told="victim-cam")
        put_page(store, thief, "victim-cam", 1)
        store.put(keys.health_key("victim", "boot", 1), json.dumps(health("thief")).encode())
        found = status_of(store)
        host = next(host for host in found.hosts if host.host_id == "victim")
        assert host.cameras[0].holes == ("boot 1-1",) and host.version is None and found.audit is not None
        assert found.audit.refused_pages == (("thief", "boot", 0),)
        put_page(store, victim, "victim-cam", 1, signer=thief)
        audited = fleet.sequences(store, Registry(store, SystemClock()).hosts())
        assert [page[0] for page in audited.refused_pages] == ["thief", "victim"]

    def test_a_former_owner(self, store: DirStore, tmp_path: Path) -> None:
        """A host that lost a camera may explain its own boots of it, not those of the host that has it now."""
        former = enrolled(store, tmp_path, "former", "cam", "left")
        put_page(store, former, "cam", 3)
        enrolled(store, tmp_path, "former", "left")
        owner = enrolled(store, tmp_path, "owner", "cam")
        hosts = Registry(store, SystemClock()).hosts()
        former = open_identity(tmp_path / "former", "former")
        put_page(store, former, "cam", 3)
        assert fleet.sequences(store, hosts).refused_pages == (), "nobody else knows of this boot"
        put_clip(store, "cam", "owner", 0)
        assert fleet.sequences(store, hosts).refused_pages == (("former", "boot", 0),), "it is the owner's"
        for stat in list(store.list("clips/")):
            store.delete(stat.key)
        put_page(store, owner, "cam", 5)
        found = fleet.sequences(store, hosts)
        assert found.refused_pages == (("former", "boot", 0),) and found.rows[0].holes == ((0, 5),)

    def test_terminal_escapes(self, store: DirStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A version that would write to the operator's terminal is unknown; a name that would is shown without its force."""
        enrolled(store, tmp_path, "pi", "pi-cam")
        put_health(store, "pi", version="\x1b[2J\x1b]0;all is well\x07")
        assert status_of(store).hosts[0].version is None
        out = Output()
        out.line("a\x1b[2Jb")
        out.table("", ["camera"], [["c\u202ed\x07"]])
        shown = capsys.readouterr().out
        assert "a\ufffd[2Jb" in shown and "c\ufffdd\ufffd" in shown and "\x1b" not in shown

    def test_pages_of_nonsense(self, store: DirStore, tmp_path: Path) -> None:
        """One host's page or sidecar that cannot be read is named; the fleet's audit and status go on."""
        enrolled(store, tmp_path, "pi", "pi-cam")
        put_clip(store, "pi-cam", "pi", 0)
        store.put(keys.ledger_key("pi", "boot", 0), b"[" * 100_000)
        store.put(keys.ledger_key("pi", "boot", 1), b'{"host_id": 5, "version": 1}')
        store.put(keys.clip_key("pi-cam", "0" * 32, "json"), b"[" * 100_000)
        found = status_of(store).audit
        assert found is not None and found.refused_pages == (("pi", "boot", 0), ("pi", "boot", 1))
        assert found.refused_sidecars == (keys.clip_key("pi-cam", "0" * 32, "json"),) and found.rows[0].n_delivered == 1

    @pytest.mark.parametrize(
        "data",
        [b"", b"[]", b"{}", b"\xff", b"null", b'{"host_id": "pi", "cameras": 3, "spool": [], "clock": "now", "version": {}}',
         b'{"host_id": "pi", "temperature_c": 1e999, "disk_free_bytes": "all", "disk_total_bytes": 0, "uptime_s": true}',
         b'{"host_id": "pi", "cameras": {"../x": {"fps": []}, "pi-cam": null}, "at_ns": -1}', b"[" * 100_000,
         b'{"host_id": "pi", "temperature_c": 1' + b"0" * 400 + b', "at_ns": -1' + b"0" * 400 + b"}"],
    )  # fmt: skip
    def test_nonsense_from_a_host(self, store: DirStore, tmp_path: Path, data: bytes) -> None:
        """A health document that is none is unknown, not a traceback; the others are shown."""
        enrolled(store, tmp_path, "pi", "pi-cam")
        store.put(keys.health_key("pi", "boot", 1), data)
        found = status_of(store).hosts[0]
        assert found.temperature_c is None and found.disk_free is None and found.version is None and found.seen_s is not None
        assert all(len(line) <= 60 for line in fleet_page.page(status_of(store)))

    def test_many_hosts_fit_a_phone(self, store: DirStore, tmp_path: Path) -> None:
        """Percentiles for many, the ten worst by name, at most 60 columns a line however long the names are."""
        registry = Registry(store, SystemClock())
        for n in range(30):
            name = f"a-rather-long-name-of-a-barn-somewhere-in-the-hills-{n:02d}"
            registry.invite(name, [f"{name}-cam"])
            put_health(store, name, temperature_c=50.0 + n, spool={"pending": n, "oldest_s": 400.0 * n}, boot_id="boot")
        hosts = {name: dataclasses.replace(host, public_key="00") for name, host in registry.hosts().items()}
        found = fleet.look(store, hosts, time.time_ns())
        lines = list(fleet_page.page(found))
        assert max(map(len, lines)) <= 60 and len(lines) < 45
        text = "\n".join(lines)
        assert "30 hosts, 30 cameras" in text and "the ten worst" in text and "p95" in text
        assert re.search(r"degrees C +64 +78 +79", text), text
        worst = [line for line in lines if line.startswith("a-rather")]
        assert len(worst) == 10 and worst[0].endswith("-29")

    def test_percentile_and_span(self) -> None:
        """Percentiles are values that occur; times read as people say them."""
        assert [fleet.percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 2, 4, 4]
        assert [fleet.span(t) for t in (0, 1.234, 59, 119, 120, 7_000, 7_300, 200_000)] == [
            "0 s", "1.2 s", "59 s", "119 s", "2 min", "117 min", "2.0 h", "2.3 d"
        ]  # fmt: skip


class TestCommands:
    def test_the_whole_way(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """enroll, serve, join, send, status, audit, revoke: as an operator and a device do it, with a real server process."""
        folder = str(tmp_path / "store")
        assert main(["fleet", "enroll", "barn", "--cameras", "gate, yard", "--store", folder, "--json"]) == 0
        code = json.loads(capsys.readouterr().out)["code"]
        argv = [sys.executable, "-m", "infra.cli", "fleet", "serve", "--store", folder, "--address", "127.0.0.1:0"]
        server = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            url = re.search(r"http://127.0.0.1:\d+", line)
            assert url is not None, line
            identity = open_identity(tmp_path / "id", "pi")
            host = enroll(url[0], tmp_path / "id", identity, code)
            store = open_broker_store(url[0], Identity(host.host_id, identity._key))
            data = b"a clip"
            sha256 = hashlib.sha256(data).hexdigest()
            store.put_if_absent(keys.clip_key("gate", sha256[:32], "mp4"), data)
            store.put_if_absent(keys.health_key("barn", "boot", 300), json.dumps(health("barn")).encode())
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)
        assert main(["fleet", "status", "--store", folder]) == 0
        out = capsys.readouterr().out
        assert "barn  ok  heard" in out and "gate: 1 clip, last" in out and max(map(len, out.splitlines())) <= 60
        assert main(["fleet", "status", "barn", "--no-holes", "--store", folder, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["hosts"][0]["cameras"][0]["n_clips"] == 1 and document["audit"] is None
        put_clip(DirStore(folder), "gate", "barn", 1)
        assert main(["fleet", "audit", "--store", folder]) == 1
        assert "1 of 2 numbers have neither clip nor reason" in capsys.readouterr().out
        assert main(["fleet", "revoke", "barn", "--store", folder]) == 0
        assert main(["fleet", "revoke", "barn", "--store", folder]) == 0, "twice is a no-op"
        capsys.readouterr()
        assert main(["fleet", "status", "--store", folder]) == 0
        assert "1 revoked" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("argv", "said"),
        [(["enroll"], "needs the HOST"), (["enroll", "a"], "--cameras"), (["revoke"], "needs the HOST"),
         (["revoke", "nobody"], "no host 'nobody'"), (["status", "nobody"], "no host 'nobody'"),
         (["serve", "x"], "takes no HOST"), (["serve", "--address", "192.0.2.1:1"], "choose another address"),
         (["enroll", "a/b", "--cameras", "c"], "cannot stand"), (["enroll", "a", "--cameras", "x" * 2000], "cannot stand"),
         (["enroll", "a", "--cameras", "c", "--hours", "0"], "must be positive"), (["serve", "--address", "8787"], "HOST:PORT"),
         (["enroll", "a", "--cameras", ","], "no camera"), (["serve", "--capacity", "0"], "must be positive"),
         (["dance"], "invalid choice")],
    )  # fmt: skip
    def test_wrong_use(self, argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """One line with the value and what is legal, exit code 2; nothing is made."""
        assert main(["fleet", *argv, "--store", str(tmp_path / "store")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and len(error) < 400

    def test_an_empty_fleet(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A store without hosts says how to get one."""
        assert main(["fleet", "status", "--store", str(tmp_path)]) == 0
        assert "camloop fleet enroll HOST" in capsys.readouterr().out
