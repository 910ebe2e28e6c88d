"""The broker decides: enrolment, quotas, floods, its own restart; without HTTP, with an injected clock and a folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra import keys
from infra.clock import FakeClock
from infra.errors import ArtefactError, ObjectChanged, StoreIncapable, UsageError
from infra.identity import Identity, canonical, open_identity
from infra.protocol import Ask
from infra.store import DirStore, MemoryStore
from serve.admission import Admission
from serve.broker import ASKS_A_SECOND, ASKS_BURST_S, Answer, Broker
from serve.receiver import FolderReceiver
from serve.registry import KEY, Registry, require_conditions


@dataclass
class Desk:
    """A broker and what it stands on."""

    folder: Path
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.store = DirStore(self.folder / "store")
        self.registry = Registry(self.store, self.clock)
        self.broker = self.fresh_broker()

    def fresh_broker(self) -> Broker:
        """Return a broker as it is after a restart."""
        return Broker(self.registry, FolderReceiver(self.store, self.clock), self.clock, admission=Admission(1e6))

    def host(self, host_id: str, *cameras: str, **quota: int) -> Identity:
        """Return an enrolled host."""
        identity = open_identity(self.folder / host_id, host_id)
        self.registry.accept(self.registry.invite(host_id, cameras, **quota), identity.public_key)
        return identity

    def ask(self, identity: Identity, **fields: Any) -> Answer:
        """Ask as a host does, a nanosecond later each time."""
        self.clock.advance_s(1e-9)
        if "clip" in fields:
            sha256 = hashlib.sha256(str(fields.pop("clip")).encode()).hexdigest()
            fields = {"kind": "clip", "container": "mp4", "clip_id": sha256[:32], "sha256": sha256, "n_bytes": 100} | fields
        ask = Ask(
            **{"host_id": identity.host_id, "epoch": self.broker.epoch, "sequence": self.clock.now_ns(), "verb": "put"} | fields
        )
        return self.broker.ask(ask.to_bytes(), identity.sign_request(ask.to_bytes()))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A broker without hosts."""
    return Desk(tmp_path)


class TestEnrolment:
    def enroll(self, desk: Desk, identity: Identity, code: str, signer: Identity | None = None) -> Answer:
        body = canonical({"code": code, "public_key": identity.public_key})
        return desk.broker.enroll(body, (signer or identity).sign_request(body))

    def test_once(self, desk: Desk, tmp_path: Path) -> None:
        """A code makes one host, however it is typed; a second use, another code and a foreign signature are refused."""
        code = desk.registry.invite("barn", ["a", "b"])
        identity = open_identity(tmp_path / "k", "whatever")
        assert self.enroll(desk, identity, code, signer=open_identity(tmp_path / "other", "x")).status == 403
        answer = self.enroll(desk, identity, f" {code.lower().replace('-', ' ')} ")
        assert answer.status == 200 and answer.document["host_id"] == "barn" and answer.document["cameras"] == ["a", "b"]
        assert code.replace("-", "") not in (desk.folder / "store" / KEY).read_text(), "only its hash is kept"
        for wrong in (code, "ABCD-EFGH-JKMN-PQRS", "", "x" * 65):
            assert self.enroll(desk, identity, wrong).status == 403

    def test_expired(self, desk: Desk, tmp_path: Path) -> None:
        """A code ends with its time."""
        code = desk.registry.invite("barn", ["a"], lifetime_s=60)
        desk.clock.advance_s(61)
        assert self.enroll(desk, open_identity(tmp_path / "k", "x"), code).status == 403

    def test_guessing(self, desk: Desk, tmp_path: Path) -> None:
        """Who guesses codes is slowed down, and told when to come back."""
        identity = open_identity(tmp_path / "k", "x")
        answers = [self.enroll(desk, identity, f"GUESS{n}") for n in range(30)]
        assert sum(answer.status == 429 for answer in answers) == 20 and answers[-1].retry_after_s == 2.0

    def test_nonsense(self, desk: Desk) -> None:
        """Bytes that are no enrolment are refused, not understood."""
        for body in (b"", b"{}", b"[]", b"\xff", b'{"code": 3, "public_key": null}', b"[" * 20_000):
            assert desk.broker.enroll(body, "").status in (403, 429)


class TestRegistry:
    def test_one_camera_one_host(self, desk: Desk) -> None:
        """A camera belongs to one host; a revoked one keeps its reservation; names and quotas are checked."""
        desk.host("barn", "a")
        with pytest.raises(UsageError, match="camera a belongs to host barn"):
            desk.registry.invite("shed", ["b", "a"])
        desk.registry.revoke("barn")
        with pytest.raises(UsageError, match="camera a belongs"):
            desk.registry.invite("shed", ["a"])
        for host, cameras in (("../x", ["c"]), ("x", ["c/d"]), ("x", []), ("x" * 200, ["c"])):
            with pytest.raises(UsageError):
                desk.registry.invite(host, cameras)
        with pytest.raises(UsageError, match="must be positive"):
            desk.registry.invite("x", ["c"], clips_a_day=0)
        with pytest.raises(UsageError, match="known: barn"):
            desk.registry.revoke("bran")

    def test_two_operators_at_once(self, tmp_path: Path) -> None:
        """Two that give one camera away at the same moment: one is refused, and nothing of the other is lost."""
        store, clock = DirStore(tmp_path), FakeClock()
        first, second = Registry(store, clock), Registry(store, clock)
        first.invite("barn", ["a"])
        raced: list[str] = []
        real = store.put_if_match

        def slow(key: str, data: bytes, etag: str) -> Any:
            if not raced:
                raced.append(key)
                second.invite("shed", ["b"])
            return real(key, data, etag)

        store.put_if_match = slow  # type: ignore[method-assign]
        first.invite("mill", ["c"])
        with pytest.raises(UsageError, match="camera b belongs to host shed"):
            first.invite("mill", ["c", "b"])
        assert set(Registry(store, clock).hosts()) == {"barn", "shed", "mill"}

    def test_a_store_that_ignores_conditions(self, tmp_path: Path) -> None:
        """Where two operators could overwrite each other unseen, nobody is enrolled."""

        class Careless(DirStore):
            def put_if_match(self, key: str, data: bytes, etag: str) -> Any:
                return self.put(key, data)

        with pytest.raises(StoreIncapable, match="put_if_match"):
            require_conditions(Careless(tmp_path / "careless"))

    def test_a_registry_that_is_none(self) -> None:
        """A damaged or future registry is one line, not a traceback."""
        for data in (b"", b"{}", b'{"version": 9, "hosts": {}}', b'{"version": 1, "hosts": {"a": {}}}'):
            store = MemoryStore()
            store.put(KEY, data)
            with pytest.raises(ArtefactError, match="registry"):
                Registry(store, FakeClock()).hosts()

    def test_revocation_is_seen_in_time(self, desk: Desk) -> None:
        """Another process revokes; this broker knows within thirty seconds."""
        identity = desk.host("barn", "a")
        assert desk.ask(identity, camera_id="a", clip=1).status == 200
        Registry(desk.store, desk.clock).revoke("barn")
        desk.clock.advance_s(30)
        assert desk.ask(identity, camera_id="a", clip=2).document["error"] == "revoked"


class TestQuota:
    def test_clips_of_a_day(self, desk: Desk) -> None:
        """A camera that floods meets its quota; its neighbours, its own other camera and the next day do not."""
        flooder, other = desk.host("barn", "a", "b", clips_a_day=50), desk.host("shed", "c")
        statuses = [desk.ask(flooder, camera_id="a", clip=n).status for n in range(100)]
        assert statuses == [200] * 50 + [429] * 50
        refused = desk.ask(flooder, camera_id="a", clip="more")
        assert refused.document["error"] == "quota" and 0 < (refused.retry_after_s or 0) <= 86_400
        assert desk.ask(flooder, camera_id="b", clip="b").status == 200
        assert desk.ask(other, camera_id="c", clip="c").status == 200
        assert desk.ask(flooder, camera_id="a", clip=49).status == 200, "an address may be asked for again"
        desk.clock.advance_s(refused.retry_after_s or 0)
        assert desk.ask(flooder, camera_id="a", clip="more").status == 200

    def test_bytes_of_a_day(self, desk: Desk) -> None:
        """Bytes are counted as they are announced, which the address enforces; a second, longer word counts in full."""
        identity = desk.host("barn", "a", bytes_a_day=10_000)
        assert desk.ask(identity, camera_id="a", clip=1, n_bytes=6_000).status == 200
        assert desk.ask(identity, camera_id="a", clip=2, n_bytes=6_000).document["error"] == "quota"
        assert desk.ask(identity, camera_id="a", clip=1, n_bytes=10_001).document["error"] == "quota"
        assert desk.ask(identity, camera_id="a", clip=3, n_bytes=4_000).status == 200

    def test_a_restart_does_not_forget(self, desk: Desk) -> None:
        """The counts of the day outlive the broker."""
        identity = desk.host("barn", "a", clips_a_day=3)
        for n in range(3):
            assert desk.ask(identity, camera_id="a", clip=n).status == 200
        desk.broker.save()
        desk.broker = desk.fresh_broker()
        assert desk.ask(identity, camera_id="a", clip="new").document["error"] == "quota"

    def test_documents(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ledger and health pages have a bound of their own."""
        identity = desk.host("barn", "a")
        fields = {"kind": "health", "boot_id": "boot", "sha256": "0" * 64, "n_bytes": 10}
        monkeypatch.setattr("serve.quota.DOCUMENTS_A_DAY", 50)
        for n in range(50):
            assert desk.ask(identity, number=n, **fields).status == 200
        assert desk.ask(identity, number=51, **fields).document["error"] == "quota"


class TestFlood:
    def test_asking_too_often(self, desk: Desk) -> None:
        """A host that asks without end is answered `busy` at once, and again as soon as it keeps to its rate."""
        identity = desk.host("barn", "a")
        burst = round(ASKS_A_SECOND * ASKS_BURST_S)
        statuses = [desk.ask(identity, verb="look", camera_id="a", clip=1).status for _ in range(burst + 100)]
        assert statuses.count(200) == burst and statuses.count(429) == 100
        desk.clock.advance_s(1.0)
        assert desk.ask(identity, verb="look", camera_id="a", clip=1).status == 200


def test_a_restart_makes_old_signatures_worthless(desk: Desk) -> None:
    """What was signed for the broker before its restart is refused; the answer tells the new epoch, and that works."""
    identity = desk.host("barn", "a")
    ask = Ask(
        host_id="barn", epoch=desk.broker.epoch, sequence=desk.clock.now_ns(), verb="look", kind="clip", camera_id="a",
        clip_id="0" * 32, container="mp4",
    )  # fmt: skip
    body = ask.to_bytes()
    assert desk.broker.ask(body, identity.sign_request(body)).status == 200
    desk.broker = desk.fresh_broker()
    assert desk.broker.ask(body, identity.sign_request(body)).document["error"] == "stale"
    assert desk.ask(identity, verb="look", camera_id="a", clip=1).status == 200


def test_every_answer_tells_the_time(desk: Desk) -> None:
    """Time and epoch stand in each answer, refusals too, so that a host with a wrong clock can sign with ours."""
    answers = [desk.broker.hello(), desk.broker.enroll(b"", ""), desk.broker.ask(b"", ""), desk.broker.ask(b"{}", "x")]
    assert {answer.document["time_ns"] for answer in answers} == {desk.clock.now_ns()}
    assert {answer.document["epoch"] for answer in answers} == {desk.broker.epoch}


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"\xff\xfe", b"{", b"[" * 10_000, b'{"host_id": "a"}', b" " * 20_000, b'{"sequence": 1e400}',
     json.dumps({"host_id": "a", "epoch": "e", "sequence": 1, "verb": "put", "kind": "clip", "key": "clips/b/x"}).encode(),
     json.dumps({"host_id": "a", "epoch": "e", "sequence": True, "verb": "put", "kind": "clip"}).encode(),
     json.dumps({"host_id": "a", "epoch": "e", "sequence": 1, "verb": "delete", "kind": "clip"}).encode(),
     json.dumps({"host_id": "a", "epoch": "e", "sequence": 1 << 70, "verb": "put", "kind": "clip"}).encode()],
)  # fmt: skip
def test_nonsense(desk: Desk, body: bytes) -> None:
    """What is no request is refused as malformed, whoever signs it; a request cannot name a key."""
    answer = desk.broker.ask(body, "")
    assert (answer.status, answer.document["error"]) == (400, "malformed")


def test_a_store_that_fails(desk: Desk) -> None:
    """A registry that cannot be read is 503 and nothing is granted; the message keeps what only the operator may know."""
    identity = desk.host("barn", "a")
    desk.clock.advance_s(31)

    def fail(key: str) -> Any:
        raise ObjectChanged("disk of the operator, /secret/path")

    desk.store.head = fail  # type: ignore[method-assign]
    answer = desk.ask(identity, camera_id="a", clip=1)
    assert answer.status == 503 and "secret" not in json.dumps(dict(answer.document))


def test_the_key_is_the_brokers(desk: Desk) -> None:
    """A clip's key comes from camera and hash; the id must be the hash's."""
    identity = desk.host("barn", "a")
    assert desk.ask(identity, camera_id="a", clip=1, clip_id="0" * 32).document["error"] == "malformed"
    answer = desk.ask(identity, camera_id="a", clip=1)
    sha256 = hashlib.sha256(b"1").hexdigest()
    grant = desk.broker._receiver._opened(answer.document["url"].rpartition("/")[2])  # type: ignore[attr-defined]
    assert grant.key == keys.clip_key("a", sha256[:32], "mp4") and (grant.n_bytes, grant.sha256) == (100, sha256)
