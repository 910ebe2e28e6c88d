"""What only S3 does: lost answers, parts, expiring credentials, endpoints that lie or are not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.errors import ObjectChanged, ObjectExists, SettingsError, StoreError, StoreIncapable
from infra.s3 import S3Store
from infra.settings import S3Settings
from infra.store import require
from tests.faults.proxy import Proxy, proxy
from tests.ministack_server import Ministack, free_port

KEY = "clips/cam1/0123.mp4"


@pytest.fixture
def between(s3_server: Ministack) -> Iterator[Proxy]:
    """A proxy in front of the server; it passes everything until a test says otherwise."""
    with proxy(s3_server.port) as made:
        yield made


@pytest.fixture
def store(s3_server: Ministack, between: Proxy) -> S3Store:
    """An S3 store behind the proxy."""
    settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url)
    return S3Store(f"s3://{s3_server.new_bucket()}/farm", settings)


def lose(between: Proxy, method: str, n_times: int) -> None:
    """Lose the answers to the first `n_times` successful requests of a method."""
    between.cut = lambda line: line.startswith(method) and len(between.lost) < n_times


class TestLostAnswers:
    def test_put_if_absent(self, store: S3Store, between: Proxy) -> None:
        """A put that succeeded although its answer was lost is a success: the retry's 412 is looked into."""
        store.capabilities()
        lose(between, "PUT", 1)
        stat = store.put_if_absent(KEY, b"data")
        assert len(between.lost) == 1
        assert store.head(KEY) == dataclasses.replace(stat, modified_ns=store.head(KEY).modified_ns)  # type: ignore[union-attr]

    def test_put_if_match(self, store: S3Store, between: Proxy) -> None:
        """The same for a compare-and-swap."""
        first = store.put(KEY, b"1")
        lose(between, "PUT", 1)
        store.put_if_match(KEY, b"2", first.etag)
        assert len(between.lost) == 1
        assert store.get(KEY) == b"2"
        with pytest.raises(ObjectChanged):
            store.put_if_match(KEY, b"3", first.etag)

    def test_every_answer_lost(self, store: S3Store, between: Proxy) -> None:
        """When no answer of any attempt came through, the object itself tells that it was stored."""
        store.capabilities()
        lose(between, "PUT", 99)
        store.put_if_absent(KEY, b"data")
        assert len(between.lost) >= 1
        assert store.get(KEY) == b"data"

    def test_somebody_elses_object(self, store: S3Store, between: Proxy, s3_server: Ministack) -> None:
        """Same bytes of another writer are not taken for one's own."""
        store.put(KEY, b"data")
        between.refuse = _once(503, "SlowDown", "PUT")
        with pytest.raises(ObjectExists):
            store.put_if_absent(KEY, b"data")

    def test_file_in_parts(self, store: S3Store, between: Proxy, tmp_path: Path) -> None:
        """A big file goes in parts; a completion whose answer was lost is looked into; nothing half-done stays."""
        path, data = tmp_path / "big.mp4", os.urandom((11 << 20) + 17)
        path.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        store.capabilities()
        between.cut = lambda line: "uploadId=" in line and line.startswith("POST") and not between.lost
        assert store.put_file_if_absent(KEY, path, sha256=sha256).n_bytes == len(data)
        assert len(between.lost) == 1
        assert store.get(KEY) == data
        assert store.holds_file(KEY, path, sha256=sha256)
        with pytest.raises(ObjectExists):
            store.put_file_if_absent(KEY, path, sha256=sha256)
        bucket = store.url.split("/")[2]
        assert "Uploads" not in store._s3.list_multipart_uploads(Bucket=bucket)

    def test_get_goes_on_where_it_broke(self, store: S3Store, between: Proxy) -> None:
        """A read whose connection is cut in the middle is repeated until it is whole."""
        data = os.urandom(500_000)
        store.put(KEY, data)
        lose(between, "GET", 2)
        assert store.get(KEY) == data
        assert len(between.lost) == 2


class TestEndpointsThatLie:
    def test_ignored_conditions_are_seen(self, store: S3Store, between: Proxy) -> None:
        """An endpoint that drops If-None-Match and If-Match is found out by the race, and refused."""
        between.mutate = _drop_conditions
        found = _unsigned(store).capabilities()
        assert not found.put_if_absent
        assert not found.put_if_match

    def test_require_names_what_is_lacking(self, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """The refusal names the store, what it lacks and a remedy."""
        found = dataclasses.replace(store.capabilities(), put_if_absent=False)
        monkeypatch.setattr(store, "capabilities", lambda: found)
        with pytest.raises(StoreIncapable, match=r"farm does not honour put_if_absent.*versioning"):
            require(store, "put_if_absent", "put_if_match")

    def test_wrong_bytes_are_refused(self, store: S3Store, between: Proxy) -> None:
        """A SHA-256 travels with every put once the endpoint was seen to check it."""
        heads: list[bytes] = []
        between.mutate = lambda head: heads.append(head) or head  # type: ignore[func-returns-value]
        store.put_if_absent(KEY, b"data")
        assert any(b"x-amz-checksum-sha256" in head.lower() for head in heads if head.startswith(b"PUT"))

    def test_versioned_bucket(self, s3_server: Ministack) -> None:
        """The self-test is made on the bucket as it is, versioned or not."""
        store = S3Store(f"s3://{s3_server.new_bucket(versioned=True)}", s3_server.s3)
        assert store.capabilities().put_if_absent


class TestCredentials:
    def test_expiring_role(self, s3_server: Ministack, between: Proxy) -> None:
        """An assumed role's token is renewed when it runs out, for boto3 and for delta alike."""
        role = _role(s3_server)
        bucket = s3_server.new_bucket()
        settings = dataclasses.replace(s3_server.s3, endpoint_url=between.url, role_arn=role)
        store = S3Store(f"s3://{bucket}", settings)
        expired: set[bytes] = set()
        between.refuse = lambda head: (400, "ExpiredToken") if _token(head) in expired else None
        store.put("a", b"1")
        first = store.delta_options()["AWS_SESSION_TOKEN"]
        expired.add(first.encode())
        held = store._session.get_credentials()
        held._expiry_time = datetime.now(UTC) - timedelta(seconds=1)  # an hour passes
        held._refresh_using.__self__._cache.clear()
        store.put("a", b"2")
        assert store.delta_options()["AWS_SESSION_TOKEN"] != first
        assert store.get("a") == b"2"

    def test_session_token_of_the_environment(self, s3_server: Ministack) -> None:
        """Temporary keys given from outside work with their token."""
        bucket = s3_server.new_bucket()
        answer = s3_server.client("sts").assume_role(RoleArn=_role(s3_server), RoleSessionName="cam1")["Credentials"]
        settings = dataclasses.replace(
            s3_server.s3, access_key_id=answer["AccessKeyId"], secret_access_key=answer["SecretAccessKey"],
            session_token=answer["SessionToken"],
        )  # fmt: skip
        S3Store(f"s3://{bucket}", settings).put("a", b"1")

    def test_anonymous_and_unknown_profile(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Without credentials, or with a profile that is not there, one line says what to set."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        with pytest.raises(StoreError, match="no credentials found; set AWS_PROFILE"):
            S3Store("s3://bucket", S3Settings(endpoint_url="http://127.0.0.1:1")).get("a")
        with pytest.raises(SettingsError, match="nobody"):
            S3Store("s3://bucket", S3Settings(profile="nobody"))

    def test_sent_to_another_process(self, store: S3Store) -> None:
        """A store can be pickled, and secrets are not in its text."""
        store.put("a", b"1")
        assert pickle.loads(pickle.dumps(store)).get("a") == b"1"
        assert "secret" not in repr(S3Settings(secret_access_key="secret", access_key_id="x")).replace("secret_access_key", "")


class TestErrors:
    def test_unreachable(self) -> None:
        """A store that is not there is one line with its address and what to check."""
        port = free_port()
        settings = S3Settings(
            endpoint_url=f"http://127.0.0.1:{port}", access_key_id="a", secret_access_key="b",
            max_attempts=2, connect_timeout_s=1,
        )  # fmt: skip
        message = rf"s3://farm cannot be reached at http://127.0.0.1:{port}.*CAMLOOP_S3_ENDPOINT"
        with pytest.raises(StoreError, match=message) as found:
            S3Store("s3://farm", settings).get("a")
        assert "\n" not in str(found.value)

    def test_no_bucket(self, s3_server: Ministack) -> None:
        """A missing bucket is named with the remedy."""
        with pytest.raises(StoreError, match=r"NoSuchBucket.*make the bucket"):
            S3Store("s3://there-is-no-such-bucket", s3_server.s3).put("a", b"1")

    def test_forbidden(self, store: S3Store, between: Proxy) -> None:
        """A refusal names the key and the rights."""
        between.refuse = lambda head: (403, "AccessDenied")
        with pytest.raises(StoreError, match=r"'a/b': AccessDenied.*rights"):
            store.get("a/b")

    def test_busy_store_is_tried_again(self, store: S3Store, between: Proxy) -> None:
        """503 and 409 are repeated within bounds."""
        store.capabilities()
        between.refuse = _once(503, "SlowDown", "PUT")
        store.put_if_absent("a", b"1")
        between.refuse = _once(409, "ConditionalRequestConflict", "PUT")
        store.put_if_absent("b", b"1")
        assert store.get("b") == b"1"

    def test_folders_of_consoles_are_skipped(self, store: S3Store) -> None:
        """The empty object `folder/` that web consoles write is not listed."""
        bucket = store.url.split("/")[2]
        store._s3.put_object(Bucket=bucket, Key="farm/clips/", Body=b"")
        store.put("clips/a", b"1")
        assert [stat.key for stat in store.list()] == ["clips/a"]


def _once(status: int, code: str, method: str):  # type: ignore[no-untyped-def]
    left = [1]

    def refuse(head: bytes) -> tuple[int, str] | None:
        if head.startswith(method.encode()) and left[0]:
            left[0] -= 1
            return status, code
        return None

    return refuse


def _token(head: bytes) -> bytes:
    found = re.search(rb"(?i)x-amz-security-token: *(\S+)", head)
    return found[1] if found else b""


def _drop_conditions(head: bytes) -> bytes:
    return re.sub(rb"(?i)\r\nif-(none-)?match: *[^\r]*", b"", head)


def _unsigned(store: S3Store) -> S3Store:
    """Leave the conditions out of the signature, so that dropping them on the way is not noticed."""
    import botocore.auth

    class Loose(botocore.auth.S3SigV4Auth):
        def headers_to_sign(self, request):  # type: ignore[no-untyped-def]
            headers = super().headers_to_sign(request)
            for name in ("if-none-match", "if-match"):
                del headers[name]
            return headers

    botocore.auth.AUTH_TYPE_MAPS["loose"] = Loose
    store._s3.meta.events.register("choose-signer.s3.PutObject", lambda **_: "loose")
    return store


def _role(server: Ministack) -> str:
    iam = server.client("iam")
    trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["sts:AssumeRole"]}
    try:
        arn = iam.create_role(
            RoleName="camera", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
        )["Role"]["Arn"]
    except iam.exceptions.EntityAlreadyExistsException:
        return str(iam.get_role(RoleName="camera")["Role"]["Arn"])
    rights = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_role_policy(RoleName="camera", PolicyName="all", PolicyDocument=policy)
    return str(arn)
