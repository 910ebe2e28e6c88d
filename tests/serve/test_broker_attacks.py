"""A camera tries everything against its neighbour (RELIABILITY.md rows 46 to 50): all is denied, and its own create works.

The same attempts against a bucket (ministack checks signatures, AUTH=true) and against a folder whose web app receives the
bytes. Every attempt is judged twice: by its answer, and by the operator's look at what lies in the store before and after.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra import keys
from infra.clock import FakeClock
from infra.errors import ObjectExists, StoreError, StoreForbidden, UsageError
from infra.identity import Identity, canonical, open_identity
from infra.protocol import Ask, key_of
from infra.s3 import S3Store
from infra.store import DirStore
from ingest.broker_store import BrokerStore
from serve.admission import Admission
from serve.broker import Answer, Broker
from serve.receiver import FolderReceiver
from serve.registry import Registry, require_conditions
from tests.broker_server import RunningBroker, running_broker
from tests.ministack_server import Ministack, ministack
from tests.radosgw_server import needs_radosgw, radosgw

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))  # multiplies the texts that are tried
VICTIM, OWN = "cam-b", "cam-a"
NASTY = (
    "", ".", "..", "../cam-b", "cam-a/../cam-b", "cam-a/../../clips/cam-b", "%2e%2e", "%2e%2e%2fcam-b", "cam-a//cam-b",
    "/cam-b", "cam-b/", "cam-b\0", "cam-b\n", "cam-b ", " cam-b", "c\u0430m-b", "cam\u2010b", "cam-\uff42", "CAM-B", "cam-b.",
    "cam-b*", "cam-?", "*", "cam-a,cam-b", "cam-a\\..\\cam-b", "cam-a\u2044cam-b", "x" * 128, "x" * 1_025, "cam-a\u0300",
    "\ud800", "cam-b%00", "c\u200bam-b",
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Ministack]:
    """One S3 server for this file."""
    with ministack() as running:
        yield running


@dataclass
class Scene:
    """A broker with two hosts; the neighbour has one clip in the store.

    `checks` is False where the store takes no notice of a SHA-256 (radosgw): there registration quarantines other bytes.
    """

    running: RunningBroker
    thief: Identity
    store: BrokerStore
    victim_key: str
    bucket: str | None
    checks: bool = True

    def snapshot(self) -> dict[str, str]:
        """What the operator sees: every object that hosts can have written, and every file beside a folder store, by hash."""
        store = self.running.store
        seen = (stat.key for stat in store.list() if not stat.key.startswith(("fleet/", "selftest-")))
        found = {key: hashlib.sha256(store.get(key)).hexdigest() for key in seen}
        if isinstance(store, DirStore):  # a path that escapes lands above the store, where its listing does not look
            around = (path for path in store.path.parent.rglob("*") if path.is_file() and store.path not in path.parents)
            found |= {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in around}
        return found

    def ask(self, *, signer: Identity | None = None, **fields: Any) -> Answer:
        """Ask as the thief, who signs whatever it likes."""
        document = {
            "host_id": "host-a", "epoch": self.running.broker.epoch, "sequence": self.running.clock.now_ns(), "verb": "put",
            "kind": "clip", "camera_id": OWN, "container": "mp4", **fields,
        }  # fmt: skip
        body = Ask(**{name: value for name, value in document.items() if value is not None}).to_bytes()
        return self.running.broker.ask(body, (signer or self.thief).sign_request(body))

    def address(self, data: bytes, camera: str = OWN) -> tuple[str, dict[str, str]]:
        """Return an address and headers for a clip of the thief's own camera."""
        sha256 = hashlib.sha256(data).hexdigest()
        answer = self.ask(camera_id=camera, clip_id=sha256[:32], n_bytes=len(data), sha256=sha256)
        assert answer.status == 200, answer.document
        url = answer.document["url"]
        return (self.running.url + url if url.startswith("/") else url), dict(answer.document["headers"])


@contextlib.contextmanager
def scene_of(kind: str, server: Ministack | None, folder: Path) -> Iterator[Scene]:
    bucket = server.new_bucket() if server is not None and kind != "folder" else None
    store = S3Store(f"s3://{bucket}/farm", server.s3) if server and bucket else DirStore(folder / "store")
    with running_broker(store) as running:
        thief, seen = running.host(folder / "keys", "host-a", [OWN])
        _, victim = running.host(folder / "keys", "host-b", [VICTIM])
        data = b"the neighbour's clip"
        key = keys.clip_key(VICTIM, hashlib.sha256(data).hexdigest()[:32], "mp4")
        victim.put_if_absent(keys.sidecar_key(key), b"{}")
        victim.put_if_absent(key, data)
        victim.put_if_absent(keys.ledger_key("host-b", "boot", 0), b"{}")
        yield Scene(running, thief, seen, key, bucket, store.capabilities().checksum_verified)


KINDS = ["folder", "bucket", pytest.param("radosgw", marks=[pytest.mark.slow, needs_radosgw])]


@pytest.fixture(scope="module", params=KINDS)
def scene(request: pytest.FixtureRequest, server: Ministack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A folder, a bucket, and in the slow suite a bucket of a real server."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(radosgw()) if request.param == "radosgw" else server
        yield stack.enter_context(scene_of(request.param, running, tmp_path_factory.mktemp("scene")))


def send(method: str, url: str, headers: dict[str, str], body: bytes = b"", *, target: str | None = None) -> int:
    """Send one request exactly as written: nothing is normalised. Return the status."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.putrequest(method, target or f"{parts.path}?{parts.query}", skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(body)
        try:
            return connection.getresponse().status
        except (ConnectionError, http.client.HTTPException):
            return 400  # the server would not even talk to it
    finally:
        connection.close()


def _refuses(stranger: S3Store) -> bool:
    try:
        list(stranger.list("none/"))
    except StoreError:
        return True
    return False


class TestAsking:
    def test_own_create_works(self, scene: Scene, tmp_path: Path) -> None:
        """What the thief may do, it can: sidecar, clip, ledger page, look."""
        data = b"its own clip"
        key = keys.clip_key(OWN, hashlib.sha256(data).hexdigest()[:32], "mp4")
        path = tmp_path / "clip.mp4"
        path.write_bytes(data)
        scene.store.put_if_absent(keys.sidecar_key(key), b"{}")
        scene.store.put_file_if_absent(key, path, sha256=hashlib.sha256(data).hexdigest())
        scene.store.put_if_absent(keys.ledger_key("host-a", "boot", 0), b"{}")
        assert scene.store.holds_file(key, path, sha256=hashlib.sha256(data).hexdigest())
        assert scene.running.store.get(key) == data

    @pytest.mark.parametrize("kind", ["clip", "sidecar"])
    @pytest.mark.parametrize("verb", ["put", "create", "part", "parts", "complete", "abort", "look"])
    def test_neighbours_camera(self, scene: Scene, verb: str, kind: str) -> None:
        """No verb works on the neighbour's clip or sidecar, nor on a new one under its name."""
        before = scene.snapshot()
        for clip_id in (scene.victim_key.split("/")[2].split(".")[0], "0" * 32):
            answer = scene.ask(
                verb=verb, kind=kind, camera_id=VICTIM, clip_id=clip_id, n_bytes=20, sha256=clip_id * 2, upload="x", part=1,
                part_sha256="0" * 64,
            )  # fmt: skip
            assert (answer.status, answer.document["error"]) == (403, "not_yours")
        assert scene.snapshot() == before

    def test_in_the_neighbours_name(self, scene: Scene) -> None:
        """A request that says it is the neighbour's, signed by the thief, is nobody's."""
        before = scene.snapshot()
        for fields in ({"kind": "ledger", "boot_id": "boot", "number": 0}, {"camera_id": VICTIM, "clip_id": "0" * 32}):
            answer = scene.ask(host_id="host-b", n_bytes=2, sha256="0" * 64, **fields)
            assert (answer.status, answer.document["error"]) == (401, "signature")
        assert scene.snapshot() == before

    def test_every_nasty_name(self, scene: Scene) -> None:
        """`..`, %2e, //, NUL, 1,025 bytes and look-alikes as camera, container, boot or upload open nothing."""
        before = scene.snapshot()
        for name in NASTY:
            tries = (
                {"camera_id": name, "clip_id": "0" * 32}, {"clip_id": name or "."},
                {"clip_id": "0" * 32, "container": name or "."},
                {"kind": "ledger", "boot_id": name, "number": 1}, {"kind": "health", "boot_id": name, "number": 1},
                {"verb": "parts", "clip_id": "0" * 32, "upload": name},
                {"verb": "complete", "clip_id": "0" * 32, "upload": name},
            )  # fmt: skip
            for fields in tries:
                body = {"n_bytes": 2, "sha256": "0" * 64} | fields
                if name in ("CAM-B", "cam-b.") and "boot_id" in fields:
                    continue  # fine names for a boot of its own
                with contextlib.suppress(UnicodeEncodeError):
                    assert scene.ask(**body).status in (400, 401, 403, 404), fields
        assert scene.snapshot() == before

    def test_replayed(self, scene: Scene) -> None:
        """The same signed bytes are taken once; old numbers, other epochs and other bytes under a signature never."""
        broker, now_ns = scene.running.broker, scene.running.clock.now_ns()
        data = {"verb": "look", "clip_id": "0" * 32}
        ask = Ask(host_id="host-a", epoch=broker.epoch, sequence=now_ns, kind="clip", camera_id=OWN, container="mp4", **data)
        body = ask.to_bytes()
        signature = scene.thief.sign_request(body)
        assert [broker.ask(body, signature).status for _ in range(3)] == [200, 401, 401]
        for sequence in (now_ns - 301 * 10**9, now_ns + 302 * 10**9, 0):
            assert scene.ask(sequence=sequence, **data).document["error"] == "stale"
        assert scene.ask(epoch="another", **data).document["error"] == "stale"
        assert broker.ask(body.replace(b"look", b"put "), signature).status in (400, 401)
        assert broker.ask(body.replace(b"look", b"abort"), signature).document["error"] == "signature"

    def test_too_large(self, scene: Scene) -> None:
        """A sidecar of 5 MB, a clip of a terabyte, an empty one and a request of a megabyte are refused."""
        for fields in ({"kind": "sidecar", "n_bytes": 5 << 20}, {"n_bytes": 1 << 40}, {"n_bytes": 0}):
            answer = scene.ask(clip_id="0" * 32, sha256="0" * 64, **fields)
            assert (answer.status, answer.document["error"]) == (413, "too_large")
        assert scene.running.broker.ask(b" " * (1 << 20), "").status == 400


class TestAddresses:
    def test_other_bytes(self, scene: Scene) -> None:
        """Another length, another content, no length, no checksum: the store itself says no, and nothing lies there."""
        data = b"announced bytes"
        before = scene.snapshot()
        url, headers = scene.address(data)
        for body in (data[:-1], data + b"!", b"", *([b"announced bytez"] if scene.checks else [])):
            assert send("PUT", url, headers | {"Content-Length": str(len(body))}, body) in (400, 403, 411)
        if scene.bucket:
            for name in ("If-None-Match", "x-amz-checksum-sha256", "x-amz-sdk-checksum-algorithm"):
                stripped = {header: value for header, value in headers.items() if header != name}
                assert send("PUT", url, stripped, data) in (400, 403), name
            wrong = headers | {"x-amz-checksum-sha256": "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="}
            assert send("PUT", url, wrong | {"Content-Length": "5"}, b"hello") in (400, 403)
        assert scene.snapshot() == before
        assert send("PUT", url, headers, data) == 200, "the honest put works"

    def test_used_twice(self, scene: Scene) -> None:
        """An address makes an object once: the second put is refused and the object stays."""
        data = b"once only"
        url, headers = scene.address(data)
        assert send("PUT", url, headers, data) == 200
        before = scene.snapshot()
        assert send("PUT", url, headers, data) == 412
        assert scene.snapshot() == before

    def test_other_methods(self, scene: Scene) -> None:
        """An address for a put reads, lists and deletes nothing."""
        url, headers = scene.address(b"methods")
        assert send("PUT", url, headers, b"methods") == 200
        before = scene.snapshot()
        for method in ("GET", "HEAD", "DELETE", "POST", "PATCH", "OPTIONS" if not scene.bucket else "DELETE"):
            assert send(method, url, {}) not in (200, 204), method
        assert scene.snapshot() == before

    def test_other_keys(self, scene: Scene) -> None:
        """The key in an address cannot be bent towards the neighbour."""
        data = b"bent"
        url, headers = scene.address(data)
        parts = urlsplit(url)
        before = scene.snapshot()
        if scene.bucket:
            own = parts.path
            theirs = own.replace(f"/{OWN}/", f"/{VICTIM}/")
            bent = (f"/{OWN}/../{VICTIM}/", f"/{OWN}/%2e%2e/{VICTIM}/", f"//{VICTIM}/", "/c%D0%B0m-b/")
            paths = [theirs, *(own.replace(f"/{OWN}/", middle) for middle in bent), own + "%00", own + "/" + "x" * 1_025,
                     f"/{scene.bucket}/{scene.victim_key}", f"/{scene.bucket}/farm/{scene.victim_key}"]  # fmt: skip
            added = ("uploads", "acl", "tagging", "partNumber=1&uploadId=x")
            targets = [f"{path}?{parts.query}" for path in paths] + [f"{own}?{parts.query}&{more}" for more in added]
        else:
            stem, _, mac = parts.path.rpartition(".")
            grant = stem.rsplit("/", 1)[1]
            flipped = grant[:-2] + ("A" if grant[-2] != "A" else "B") + grant[-1]
            targets = [f"/v1/objects/{flipped}.{mac}", f"/v1/objects/{grant}.{'A' * len(mac)}", f"/v1/objects/{grant}",
                       f"/v1/objects/../../{scene.victim_key}", f"/v1/objects/%2e%2e/{scene.victim_key}",
                       f"/{scene.victim_key}", f"//{scene.victim_key}",
                       f"/v1/objects/{grant}.{mac}%00", "/v1/objects/" + "x" * 1_025,
                       "/v1/objects/"]  # fmt: skip
        for target in targets:
            assert send("PUT", url, headers, data, target=target) >= 400, target
        assert scene.snapshot() == before

    def test_without_an_address(self, scene: Scene) -> None:
        """Nothing of the neighbour's, nor the registry, can be read, listed, replaced or deleted by who has no right to it."""
        before = scene.snapshot()
        store = scene.running.store
        if isinstance(store, S3Store):
            guessed = dataclasses.replace(store.settings, access_key_id="AKIAGUESSEDGUESSED00", max_attempts=1)
            if not _refuses(S3Store(store.url, guessed)):
                pytest.skip("this ministack lets every key through: AUTH=true is known from ministack 1.5 on")
            stranger = S3Store(store.url, guessed)
            tries: list[Callable[[], object]] = [
                lambda: stranger.get(scene.victim_key), lambda: stranger.get("fleet/registry.json"),
                lambda: list(stranger.list("clips/")), lambda: stranger.delete(scene.victim_key),
                lambda: stranger.put(scene.victim_key, b"x"), lambda: stranger.head(scene.victim_key),
            ]  # fmt: skip
            for attempt in tries:
                with pytest.raises(StoreError):
                    attempt()
        for key in (scene.victim_key, "fleet/registry.json", "clips/", "", "releases/../fleet/registry.json",
                    "releases/%2e%2e/fleet/registry.json", "wanted/..%2ffleet%2fregistry.json", "wanted//etc/passwd",
                    "wanted/%2e%2e/fleet/registry.json", "releases/..%5cfleet", "wanted/%00", "releases/"):  # fmt: skip
            for method in ("GET", "PUT", "DELETE", "HEAD"):
                assert send(method, scene.running.url, {}, target=f"/{key}") >= 400, (method, key)
        with pytest.raises(StoreError):
            scene.store.get(scene.victim_key)
        with pytest.raises(StoreForbidden):
            list(scene.store.list("clips/"))
        assert scene.snapshot() == before

    def test_expired(self, scene: Scene) -> None:
        """An address dies; the bytes stay out."""
        data = b"too late"
        sha256 = hashlib.sha256(data).hexdigest()
        key = keys.clip_key(OWN, sha256[:32], "mp4")
        address = scene.running.broker._receiver.put_address(key, n_bytes=len(data), sha256=sha256, expires_s=1)
        url = scene.running.url + address.url if address.url.startswith("/") else address.url
        time.sleep(1.6 if scene.bucket is None else 2.1)
        assert send("PUT", url, dict(address.headers), data) == 403
        assert scene.running.store.head(key) is None


def test_parts_of_another(scene: Scene) -> None:
    """An upload id of one clip is of no use for another, and a part's address takes that part alone."""
    n_bytes, other = 6 << 20, 7 << 20
    data, more = b"a" * n_bytes, b"b" * other
    named = []
    for body in (data, more):
        sha256 = hashlib.sha256(body).hexdigest()
        fields = {"clip_id": sha256[:32], "sha256": sha256, "n_bytes": len(body)}
        answer = scene.ask(verb="create", **fields)
        assert answer.status == 200
        named.append(fields | {"upload": answer.document["upload"]})
    piece = data[: 5 << 20]
    answer = scene.ask(verb="part", part=1, part_sha256=hashlib.sha256(piece).hexdigest(), **named[0])
    url = answer.document["url"]
    url = scene.running.url + url if url.startswith("/") else url
    if scene.checks:
        assert send("PUT", url, dict(answer.document["headers"]), more[: 5 << 20]) in (400, 403)
    assert scene.ask(verb="part", part=3, part_sha256="0" * 64, **named[0]).status == 400
    assert scene.ask(verb="complete", **named[0]).status == 400, "not all parts are there"
    assert scene.ask(verb="complete", **(named[0] | {"upload": named[1]["upload"]})).status in (400, 404)
    for verb in ("part", "parts", "abort"):  # an abort says 200 of an upload that is not there, and does nothing
        crossed = named[0] | {"upload": named[1]["upload"]}
        answer = scene.ask(verb=verb, part=1, part_sha256=hashlib.sha256(piece).hexdigest(), **crossed)
        if scene.bucket and verb == "part":  # the store knows: this upload is not of that key
            assert send("PUT", answer.document["url"], dict(answer.document["headers"]), piece) in (403, 404)
        else:
            assert answer.status == (200 if verb == "abort" else 404)
    for fields in named:
        assert scene.ask(verb="parts", **fields).status == 200, "both are still there"
        assert scene.ask(verb="abort", **fields).status == 200
        assert scene.ask(verb="complete", **fields).status in (400, 404)
        assert scene.running.store.head(keys.clip_key(OWN, fields["clip_id"], "mp4")) is None


@pytest.mark.slow
@needs_radosgw
def test_a_store_that_compares_bare_etags(tmp_path: Path) -> None:
    """radosgw 16 fails the self-test of If-Match, but only for the quotes: the registry keeps its conditions there."""
    with radosgw() as server:
        store = S3Store(f"s3://{server.new_bucket()}/farm", server.s3)
        assert not store.capabilities().put_if_match
        require_conditions(store)


@settings(max_examples=300 * COUNT, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(["camera_id", "clip_id", "container", "boot_id", "upload", "host_id", "number"]),
    text=st.text(max_size=60) | st.sampled_from(NASTY) | st.from_regex(r"[.%/A-Za-z0-9_-]{1,40}", fullmatch=True),
    kind=st.sampled_from(["clip", "sidecar", "ledger", "health"]),
)
def test_any_text_names_only_its_own(field: str, text: str, kind: str) -> None:
    """Whatever stands in a request, its key lies below the host's own folders, plain and short, or there is none."""
    fields: dict[str, Any] = {
        "host_id": "host-a", "epoch": "e", "sequence": 1, "verb": "put", "kind": kind, "camera_id": OWN, "clip_id": "0" * 32,
        "container": "mp4", "boot_id": "boot", "number": 1, field: text,
    }  # fmt: skip
    try:
        ask = Ask.from_bytes(canonical(fields))
        key = key_of(ask)
    except (UsageError, UnicodeEncodeError):
        return
    assert keys.check_key(key) == key
    mine = (f"clips/{ask.camera_id}/", f"ledger/{ask.host_id}/", f"health/{ask.host_id}/")
    assert key.startswith(mine) and key.count("/") == (2 if kind in ("clip", "sidecar") else 3)


_ANY_TEXT = st.text(max_size=60) | st.sampled_from(NASTY) | st.from_regex(r"[.%/A-Za-z0-9_-]{1,40}", fullmatch=True)


def test_any_text_through_the_broker(tmp_path: Path) -> None:
    """Row 47: a thousand signed requests with any text in any field write below the host's own folders, or nowhere.

    Every file in the parent folder of the store is looked at before and after; each address that is given is used.
    """
    clock, data, n_granted = FakeClock(), b"x", 0
    store = DirStore(tmp_path / "around" / "store")
    receiver, registry = FolderReceiver(store, clock), Registry(store, clock, fresh_s=1e9)
    broker = Broker(registry, receiver, clock, admission=Admission(1e9), asks_a_second=1e9)
    thief = open_identity(tmp_path / "keys", "host-a")
    registry.accept(registry.invite("host-a", [OWN], clips_a_day=10**9), thief.public_key)
    registry.invite("host-b", [VICTIM])
    sha256 = hashlib.sha256(data).hexdigest()
    store.put(keys.clip_key(VICTIM, "0" * 32, "mp4"), b"the neighbour's")
    own = tuple(str(store.path / folder) + "/" for folder in (f"clips/{OWN}", "ledger/host-a", "health/host-a", "incoming"))

    def files() -> dict[str, str]:
        found = {str(path): path for path in store.path.parent.rglob("*") if path.is_file()}
        return {name: keys.sha256_hex(path.read_bytes()) for name, path in found.items() if not name.startswith(own)}

    @settings(max_examples=1_000 * COUNT, deadline=None)
    @given(
        field=st.sampled_from(["camera_id", "clip_id", "container", "boot_id", "upload", "host_id"]), text=_ANY_TEXT,
        kind=st.sampled_from(["clip", "sidecar", "ledger", "health"]), number=st.integers(-1, 10**9),
        verb=st.sampled_from(["put", "put", "put", "create", "part", "parts", "complete", "abort", "look"]),
    )  # fmt: skip
    def ask(field: str, text: str, kind: str, number: int, verb: str) -> None:
        nonlocal n_granted
        clock.advance_s(1e-6)
        fields: dict[str, Any] = {
            "host_id": "host-a", "epoch": broker.epoch, "sequence": clock.now_ns(), "verb": verb, "kind": kind,
            "camera_id": OWN, "clip_id": sha256[:32], "container": "mp4", "boot_id": "boot", "number": number, "n_bytes": 1,
            "sha256": sha256, "upload": "x", "part": 1, "part_sha256": sha256, field: text,
        }  # fmt: skip
        try:
            body = canonical(fields)
        except UnicodeEncodeError:
            return
        answer = broker.ask(body, thief.sign_request(body))
        assert answer.status in (200, 400, 401, 403, 404, 409, 413, 429), answer.document
        if "url" in answer.document:
            n_granted += 1
            incoming = receiver.begin(answer.document["url"].rpartition("/")[2], 1)
            try:
                incoming.write(data)
                with contextlib.suppress(ObjectExists):
                    incoming.finish()
            finally:
                incoming.abandon()

    before = files()
    ask()
    assert files() == before and n_granted > 100, n_granted


def test_revoked(server: Ministack, tmp_path: Path) -> None:
    """A stolen key: after the revocation every verb is denied at once; addresses held before live ten minutes at most."""
    for kind in ("folder", "bucket"):
        with scene_of(kind, server, tmp_path / kind) as scene:
            held, _ = scene.address(b"held")
            scene.running.registry.revoke("host-a")
            before = scene.snapshot()
            for verb in ("put", "create", "part", "parts", "complete", "abort", "look"):
                answer = scene.ask(
                    verb=verb, clip_id="0" * 32, n_bytes=2, sha256="0" * 64, upload="x", part=1, part_sha256="0" * 64
                )  # fmt: skip
                assert (answer.status, answer.document["error"]) == (401, "revoked"), verb
            with pytest.raises(StoreForbidden, match="revoked"):
                scene.store.put_if_absent(keys.ledger_key("host-a", "boot", 1), b"{}")
            assert scene.snapshot() == before
            if scene.bucket:
                assert "X-Amz-Expires=600&" in f"{held}&", "ten minutes, under the signature"


def test_a_held_address_dies(tmp_path: Path) -> None:
    """An address that was held when its host was revoked opens nothing 601 s later; a bucket's says so itself."""
    clock = FakeClock()
    with running_broker(DirStore(tmp_path / "store"), clock=clock) as running:
        identity = open_identity(tmp_path / "keys", "host-a")
        running.registry.accept(running.registry.invite("host-a", [OWN]), identity.public_key)
        data = b"held"
        sha256 = hashlib.sha256(data).hexdigest()
        ask = Ask(
            host_id="host-a", epoch=running.broker.epoch, sequence=clock.now_ns(), verb="put", kind="clip", camera_id=OWN,
            clip_id=sha256[:32], container="mp4", n_bytes=len(data), sha256=sha256,
        ).to_bytes()  # fmt: skip
        held = running.broker.ask(ask, identity.sign_request(ask)).document
        running.registry.revoke("host-a")
        clock.advance_s(601)
        assert send("PUT", running.url + held["url"], dict(held["headers"]), data) == 403
        assert running.store.head(keys.clip_key(OWN, sha256[:32], "mp4")) is None


def test_replaced_key(server: Ministack, tmp_path: Path) -> None:
    """A host that is enrolled anew has a new key; the old one opens nothing, and the code is used up."""
    with scene_of("folder", server, tmp_path) as scene:
        code = scene.running.registry.invite("host-a", [OWN])
        fresh = open_identity(tmp_path / "fresh", "host-a")
        scene.running.registry.accept(code, fresh.public_key)
        fields = {"verb": "look", "clip_id": "0" * 32}
        assert scene.ask(**fields).document["error"] == "signature"
        assert scene.ask(signer=fresh, **fields).status == 200
        with pytest.raises(UsageError, match="not known, was used or has expired"):
            scene.running.registry.accept(code, scene.thief.public_key)
        with pytest.raises(UsageError, match="belongs to host host-b"):
            scene.running.registry.invite("host-a", [OWN, VICTIM])


def test_overwriting_its_own(scene: Scene) -> None:
    """Not even its own clip can be written over."""
    data = b"mine, once"
    key = keys.clip_key(OWN, hashlib.sha256(data).hexdigest()[:32], "mp4")
    scene.store.put_if_absent(key, data)
    with pytest.raises(ObjectExists):
        scene.store.put_if_absent(key, data)
    sidecar = keys.sidecar_key(key)
    scene.store.put_if_absent(sidecar, b"{}")
    with pytest.raises(ObjectExists):
        scene.store.put_if_absent(sidecar, b'{"another": 1}')
    assert scene.running.store.get(sidecar) == b"{}"
