"""The broker decides: enrolment, quotas, floods, its own restart; without HTTP, with an injected clock and a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra import keys
from infra.clock import FakeClock
from infra.errors import ArtefactError, ObjectChanged, ObjectMissing, StoreError, StoreIncapable, UsageError
from infra.identity import Identity, canonical, open_identity
from infra.protocol import Ask, Part
from infra.store import DirStore, MemoryStore
from serve.admission import Admission
from serve.broker import ASKS_A_SECOND, ASKS_BURST_S, COMPLETIONS, Answer, Broker
from serve.receiver import CAMERA_BYTES, FREE_BYTES, FolderReceiver, Taken
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
        assert self.enroll(desk, identity, code).document == answer.document, "the first answer may have been lost"
        assert self.enroll(desk, open_identity(tmp_path / "other", "x"), code).status == 403, "its key is another"
        for wrong in ("ABCD-EFGH-JKMN-PQRS", "", "x" * 65):
            assert self.enroll(desk, identity, wrong).status == 403

    def test_a_lost_answer_after_a_revocation(self, desk: Desk, tmp_path: Path) -> None:
        """A host that was revoked gets nothing for its old code."""
        code, identity = desk.registry.invite("barn", ["a"]), open_identity(tmp_path / "k", "x")
        assert self.enroll(desk, identity, code).status == 200
        desk.registry.revoke("barn")
        assert self.enroll(desk, identity, code).status == 403

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

    def test_a_read_that_fails(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that does not answer once, when the counts of the day are read, does not make the day begin anew."""
        identity = desk.host("barn", "a", clips_a_day=1)
        assert desk.ask(identity, camera_id="a", clip=0).status == 200
        desk.broker.save()
        desk.broker = desk.fresh_broker()
        with monkeypatch.context() as failing:
            failing.setattr(desk.store, "get", _fail)
            assert desk.ask(identity, camera_id="a", clip="new").status == 503
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


def _fail(key: str) -> Any:
    raise StoreError("disk of the operator, /secret/path: Permission denied")


def test_strangers_hear_no_path(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """hello, enroll and an upload that is gone name no path, bucket or cause."""
    identity = desk.host("barn", "a")
    code = desk.registry.invite("other", ["b"])
    body = canonical({"code": code, "public_key": identity.public_key})

    def missing(key: str, upload: str) -> Any:
        raise ObjectMissing("no object in s3://secret")

    monkeypatch.setattr(desk.broker._receiver, "parts", missing)
    answers = [desk.ask(identity, verb="parts", camera_id="a", clip=1, upload="x")]
    for name in ("head", "get", "capabilities"):
        monkeypatch.setattr(desk.store, name, _fail if name != "capabilities" else lambda: _fail(""))
    desk.clock.advance_s(31)
    answers += [desk.broker.hello(), desk.broker.enroll(body, identity.sign_request(body))]
    assert [answer.status for answer in answers] == [404, 503, 503]
    assert all("secret" not in json.dumps(dict(answer.document)) for answer in answers)


def test_completions_do_not_wait_for_one_another(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one clip is put together, the same is answered 503 with a time, another is done; a host has few at once."""
    barn, yard = desk.host("barn", "a"), desk.host("yard", "b")
    receiver = desk.broker._receiver
    monkeypatch.setattr(receiver, "parts", lambda key, upload: [Part(1, 100, "", "0" * 64)])
    inner: list[Answer] = []

    def complete(key: str, upload: str, parts: list[Part], *, sha256: str) -> None:
        if not inner:
            inner.append(desk.ask(barn, verb="complete", camera_id="a", clip=1, upload="x"))
            inner.append(desk.ask(yard, verb="complete", camera_id="b", clip=2, upload="x"))
            desk.broker._completing.update({str(n): "barn" for n in range(COMPLETIONS - 1)})
            inner.append(desk.ask(barn, verb="complete", camera_id="a", clip=3, upload="x"))

    monkeypatch.setattr(receiver, "complete", complete)
    assert desk.ask(barn, verb="complete", camera_id="a", clip=1, upload="x").status == 200
    assert [answer.status for answer in inner] == [503, 200, 503] and inner[0].retry_after_s == 10
    assert desk.ask(yard, verb="complete", camera_id="b", clip=1, upload="x").status == 200


def test_a_part_that_rots(desk: Desk) -> None:
    """A part whose bytes are no more what its name says is removed and asked for again; then it completes."""
    identity = desk.host("barn", "a")
    receiver = desk.broker._receiver
    assert isinstance(receiver, FolderReceiver)
    data = bytes(100)
    whole = {"camera_id": "a", "clip_id": keys.sha256_hex(data)[:32], "sha256": keys.sha256_hex(data), "n_bytes": 100}
    named = whole | {"kind": "clip", "container": "mp4"}

    def send() -> None:
        answer = desk.ask(identity, verb="part", upload=upload, part=1, part_sha256=keys.sha256_hex(data), **named)
        incoming = receiver.begin(answer.document["url"].rpartition("/")[2], 100)
        incoming.write(data)
        incoming.finish()
        incoming.abandon()

    upload = desk.ask(identity, verb="create", **named).document["upload"]
    send()
    (part,) = (desk.folder / "store" / "incoming" / upload).iterdir()
    part.write_bytes(b"x" * 100)
    assert desk.ask(identity, verb="complete", upload=upload, **named).status == 400
    assert desk.ask(identity, verb="create", **named).document["parts"] == []
    send()
    assert desk.ask(identity, verb="complete", upload=upload, **named).status == 200


class TestRoom:
    def grant(self, desk: Desk, identity: Identity, n_bytes: int = 100, **fields: Any) -> str:
        answer = desk.ask(identity, camera_id="a", n_bytes=n_bytes, **fields)
        return str(answer.document["url"].rpartition("/")[2])

    def test_one_put_of_an_object(self, desk: Desk) -> None:
        """However many lines one address is used on, one of them takes bytes; a camera's lines together have a bound."""
        identity, receiver = desk.host("barn", "a"), desk.broker._receiver
        assert isinstance(receiver, FolderReceiver)
        first = receiver.begin(self.grant(desk, identity, clip=1), 100)
        with pytest.raises(Taken):
            receiver.begin(self.grant(desk, identity, clip=1), 100)
        large = self.grant(desk, identity, CAMERA_BYTES, clip=2)
        with pytest.raises(StoreError, match="under way"):
            receiver.begin(large, CAMERA_BYTES)
        assert len(list((desk.folder / "store" / "incoming").iterdir())) == 1
        first.abandon()
        first.abandon()
        receiver.begin(large, CAMERA_BYTES).abandon()
        receiver.begin(self.grant(desk, identity, clip=1), 100).abandon()

    def test_the_disk_keeps_some_room(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is announced and would leave too little of the disk is refused before its first byte."""
        identity, receiver = desk.host("barn", "a"), desk.broker._receiver
        assert isinstance(receiver, FolderReceiver)
        usage = shutil._ntuple_diskusage(1 << 40, 0, FREE_BYTES + 150)
        monkeypatch.setattr("serve.receiver.shutil.disk_usage", lambda path: usage)
        first = receiver.begin(self.grant(desk, identity, clip=1), 100)
        with pytest.raises(StoreError, match="are kept"):
            receiver.begin(self.grant(desk, identity, clip=2), 100)
        first.abandon()
        receiver.begin(self.grant(desk, identity, clip=2), 100).abandon()


def test_the_key_is_the_brokers(desk: Desk) -> None:
    """A clip's key comes from camera and hash; the id must be the hash's."""
    identity = desk.host("barn", "a")
    assert desk.ask(identity, camera_id="a", clip=1, clip_id="0" * 32).document["error"] == "malformed"
    answer = desk.ask(identity, camera_id="a", clip=1)
    sha256 = hashlib.sha256(b"1").hexdigest()
    grant = desk.broker._receiver._opened(answer.document["url"].rpartition("/")[2])  # type: ignore[attr-defined]
    assert grant.key == keys.clip_key("a", sha256[:32], "mp4") and (grant.n_bytes, grant.sha256) == (100, sha256)
