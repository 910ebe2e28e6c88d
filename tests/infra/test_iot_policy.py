"""The AWS IoT policy gives a camera what the broker gives it, and nothing of its neighbour's; the broker has a policy too.

What AWS does with it is not to be had here: a certificate is shown, the role alias is assumed, and the thing's name stands for
`${credentials-iot:ThingName}`. The tests put the name there themselves, and then ask twice: tests/infra/iam.py judges each
request by the AWS manuals' rules; ministack's STS judges the same session where it knows session policies (from 1.5 on).
ministack does not weigh `s3:if-none-match`, neither knows the life of an IoT token: the fleet guide lists what AWS must show.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra import keys
from infra.errors import ObjectExists, StoreError, StoreForbidden
from infra.s3 import S3Store
from tests.broker_server import running_broker
from tests.infra.iam import allowed, judged
from tests.ministack_server import Ministack, ministack

AWS = Path(__file__).parents[2] / "infra" / "deploy" / "aws"
THING = "${credentials-iot:ThingName}"


@pytest.fixture(scope="module")
def server() -> Iterator[Ministack]:
    """One S3 and STS server for this file."""
    with ministack() as running:
        yield running


def policy(bucket: str, thing: str) -> dict[str, Any]:
    """Return the policy as it is in force for one thing."""
    text = (AWS / "iot-camera-policy.json").read_text().replace(THING, thing)
    for word, value in (("BUCKET", bucket), ("PREFIX", "farm/a")):
        text = re.sub(rf"\b{word}\b", value, text)
    document: dict[str, Any] = json.loads(text)
    return document


def session(server: Ministack, bucket: str, thing: str, endpoint_url: str | None = None) -> S3Store:
    """Return a store opened with a session that the policy restricts, as the credential provider would give it."""
    trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    name, iam = f"iot-{keys.new_id()[:8]}", server.client("iam")
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=json.dumps(everything))
    given = server.client("sts").assume_role(RoleArn=role, RoleSessionName=thing, Policy=json.dumps(policy(bucket, thing)))
    secrets = given["Credentials"]
    settings = dataclasses.replace(
        server.s3, access_key_id=secrets["AccessKeyId"], secret_access_key=secrets["SecretAccessKey"], max_attempts=1,
        session_token=secrets["SessionToken"], endpoint_url=endpoint_url or server.s3.endpoint_url,
    )  # fmt: skip
    return S3Store(f"s3://{bucket}/farm/a", settings)


def clip(camera: str, data: bytes) -> str:
    """Return the key of a clip."""
    return keys.clip_key(camera, hashlib.sha256(data).hexdigest()[:32], "mp4")


def forbidden(store: S3Store, own: str) -> list[Callable[[], object]]:
    """Return everything that a camera might try against its neighbours; `own` is a clip of its own that exists."""
    theirs = [clip(camera, b"theirs") for camera in ("cam2", "cam10", "cam", "CAM1")]
    documents = [keys.ledger_key("cam2", "boot", 0), keys.health_key("cam10", "boot", 0)]
    tries: list[Callable[[], object]] = [lambda: list(store.list("clips/")), lambda: list(store.list("clips/cam1/"))]
    tries += [lambda: list(store.list()), lambda: store.get("fleet/registry.json"), lambda: store.delete(own)]
    tries += [lambda: store.put("fleet/registry.json", b"{}"), lambda: store.put("tables/x", b"")]
    for key in (*theirs, *documents):
        tries += [partial(store.put_if_absent, key, b"x"), partial(store.put, key, b"x"), partial(store.get, key)]
        tries += [partial(store.delete, key), partial(store._s3.create_multipart_upload, **store._at(key))]
    return tries


def test_by_the_manuals(server: Ministack) -> None:
    """Judged by the rules of the manuals: own clip, ledger and health are made once; every attempt elsewhere is refused."""
    bucket = server.new_bucket()
    operator = S3Store(f"s3://{bucket}/farm/a", server.s3)
    for camera in ("cam2", "cam10", "cam", "CAM1"):
        operator.put(clip(camera, b"theirs"), b"theirs")
    before = {stat.key: stat.etag for stat in operator.list()}
    with judged(server, policy(bucket, "cam1")) as (between, refusals):
        store = session(server, bucket, "cam1", between.url)
        assert store.capabilities().put_if_absent
        own = clip("cam1", b"own")
        for key in (own, keys.ledger_key("cam1", "boot", 0), keys.health_key("cam1", "boot", 0)):
            store.put_if_absent(key, b"own")
            assert store.head(key) is not None
            with pytest.raises(ObjectExists):
                store.put_if_absent(key, b"another")
        refusals.clear()
        tries = [*forbidden(store, own), partial(store.put, own, b"replaced")]
        for attempt in tries:
            with pytest.raises((StoreError, store._s3.exceptions.ClientError)):
                attempt()
        assert len(refusals) >= len(tries) - 6, "refused by the policy, not by chance: get of what is not there is 403 too"
    after = {stat.key: stat.etag for stat in operator.list()}
    assert {key: etag for key, etag in after.items() if "/cam1/" not in key} == before


def test_by_the_session_policy_of_sts(server: Ministack) -> None:
    """ministack's own STS refuses a neighbour's clip and a listing under the same session policy."""
    bucket = server.new_bucket()
    store = session(server, bucket, "cam1")
    try:
        list(store.list())
    except StoreForbidden:
        pass
    else:
        pytest.skip("this ministack keeps no session policies (1.4 does not know AUTH=true; 1.5 does): judged by iam.py alone")
    own = clip("cam1", b"own")
    store.put_if_absent(own, b"own")
    assert store.head(own) is not None
    for attempt in forbidden(store, own):
        with pytest.raises((StoreError, store._s3.exceptions.ClientError)):
            attempt()


def test_a_broker_with_no_more_than_it_needs(server: Ministack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under broker-policy.json a broker enrols, takes small and large clips and looks; it can delete and replace none."""
    monkeypatch.setattr("ingest.broker_store.MULTIPART_BYTES", 1 << 20)
    bucket = server.new_bucket()
    text = (AWS / "broker-policy.json").read_text().replace("BUCKET", bucket).replace("PREFIX", "farm/a")
    with judged(server, json.loads(text)) as (between, refusals):
        store = S3Store(f"s3://{bucket}/farm/a", dataclasses.replace(server.s3, endpoint_url=between.url))
        with running_broker(store) as running:
            _, seen = running.host(tmp_path, "barn", ["cam1"])
            for n_bytes in (1_000, 6 << 20):
                path = tmp_path / str(n_bytes)
                path.write_bytes(b"x" * n_bytes)
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                key = keys.clip_key("cam1", sha256[:32], "mp4")
                seen.put_file_if_absent(key, path, sha256=sha256)
                assert seen.holds_file(key, path, sha256=sha256)
            seen.put_if_absent(keys.ledger_key("barn", "boot", 0), b"{}")
            running.broker.save()
        assert refusals == []
        for attempt in (partial(store.delete, key), partial(store.put, key, b"x"), partial(store.put, "tables/x", b"x")):
            with pytest.raises(StoreForbidden):
                attempt()


def test_what_the_template_says() -> None:
    """A resource ends its thing's name with a slash (cam1 is not cam10), nothing may be listed but wishes, none deleted."""
    document = json.loads((AWS / "iot-camera-policy.json").read_text())
    named = [text for statement in document["Statement"] for text in statement["Resource"] if THING in text]
    assert len(named) == 3 and all(text.endswith(f"/{THING}/*") for text in named)
    for action in ("ListBucket", "ListBucketMultipartUploads", "DeleteObject", "DeleteBucket", "PutBucketPolicy"):
        for resource in ("b", "b/farm/a/clips/cam1/x.mp4", "b/farm/a/fleet/registry.json"):
            assert not allowed(policy("b", "cam1"), f"s3:{action}", f"arn:aws:s3:::{resource}", {}), (action, resource)
    for name in ("iot-role-trust.json", "iot-certificate-policy.json"):
        assert json.loads((AWS / name).read_text())["Statement"][0]["Effect"] == "Allow"
