"""What stands in infra/deploy: policies that allow what the commands do and nothing more, rules and files that are well-formed.

ministack checks signatures but keeps no policies; tests/infra/iam.py stands before it and judges each request as the AWS
manuals say. Real AWS was not asked. The systemd units are in tests/serve/test_systemd.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from curate import cameras
from infra import keys
from infra.catalog import open_catalog
from infra.cli import main
from infra.clock import SystemClock
from infra.demo.card import fill
from infra.errors import StoreError, StoreForbidden
from infra.records import Sidecar
from infra.s3 import S3Store
from infra.settings import Settings, load_settings
from infra.store import open_store
from ingest.spool import Spool
from ingest.transfer import Retry
from ingest.uploader import upload
from serve import repository, wanted
from serve.origin import store_origin
from serve.puller import Puller
from serve.release import release
from serve.repository import Repository
from tests.infra.iam import allowed, judged
from tests.ministack_server import Ministack, ministack
from tests.serve.conftest import brightness_bundle, report_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "infra" / "deploy"


@pytest.fixture(scope="module")
def server() -> Iterator[Ministack]:
    """One S3 server for this file."""
    with ministack() as running:
        yield running


def rendered(name: str, bucket: str, camera: str = "cam1") -> dict[str, Any]:
    """Return a template of infra/deploy/aws with its three words replaced."""
    text = (DEPLOY / "aws" / name).read_text()
    for word, value in (("BUCKET", bucket), ("PREFIX", "farm/a"), ("CAMERA_ID", camera)):
        text = re.sub(rf"\b{word}\b", value, text)
    document: dict[str, Any] = json.loads(text)
    return document


def spooled(folder: Path, camera_id: str = "cam1", n_bytes: int = 20_000) -> Spool:
    """Return a spool with one clip of a camera."""
    data = random.Random(f"{camera_id} {n_bytes}").randbytes(n_bytes)
    sha256 = hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True)
    path = folder / "made.mp4"
    path.write_bytes(data)
    spool = Spool(folder / "spool")
    sidecar = Sidecar(
        clip_id=keys.clip_id(sha256), camera_id=camera_id, host_id="pi", boot_id="boot", recording_id="rec", seq=0,
        sha256=sha256, n_bytes=n_bytes, container="mp4", start_ns=None, start_mono_ns=0, clock="unknown", sensor_ns=(0, 5),
    )  # fmt: skip
    spool.adopt(path, sidecar)
    return spool


class Host:
    """A camera host's credentials: a session that its policy restricts, as `STS assume-role` gives it."""

    def __init__(self, server: Ministack, bucket: str, url: str) -> None:
        given = _session(server, rendered("host-policy.json", bucket))
        settings = dataclasses.replace(
            server.s3, endpoint_url=url, access_key_id=given["AccessKeyId"], secret_access_key=given["SecretAccessKey"],
            session_token=given["SessionToken"],
        )  # fmt: skip
        self.store = S3Store(f"s3://{bucket}/farm/a", settings)


def _session(server: Ministack, policy: Mapping[str, Any]) -> Mapping[str, str]:
    statement = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    name, iam = f"host-{keys.new_id()[:8]}", server.client("iam")
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=json.dumps(everything))
    answer = server.client("sts").assume_role(RoleArn=role, RoleSessionName="cam1", Policy=json.dumps(policy))
    credentials: Mapping[str, str] = answer["Credentials"]
    return credentials


class TestHostPolicy:
    def test_upload_works(self, server: Ministack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Clips of the own camera arrive, small and in parts; the policy refuses nothing that the uploader asks."""
        monkeypatch.setattr("infra.s3.MULTIPART_BYTES", 6 << 20)
        bucket = server.new_bucket()
        with judged(server, rendered("host-policy.json", bucket)) as (between, refusals):
            host = Host(server, bucket, between.url)
            for name, n_bytes in (("small", 20_000), ("big", 9 << 20)):
                with spooled(tmp_path / name, n_bytes=n_bytes) as spool:
                    assert upload(spool, host.store, retry=Retry(max_tries=1)).n_clips == 1
                    assert spool.counts() == {"done": 1}
            assert set(refusals) == {f"s3:ListBucketMultipartUploads arn:aws:s3:::{bucket}"}  # it knows no prefix; done without
        stored = [stat.key for stat in open_store(f"s3://{bucket}", Settings(s3=server.s3)).list()]
        assert len(stored) == 4 and all(key.startswith("farm/a/clips/cam1/") for key in stored)

    def test_a_lost_answer_is_looked_into(self, server: Ministack, tmp_path: Path) -> None:
        """Who may not list is told 403, not 404, of a clip that never arrived: it is sent again, not given up."""
        bucket = server.new_bucket()
        with judged(server, rendered("host-policy.json", bucket)) as (between, _):
            host = Host(server, bucket, between.url)
            host.store.capabilities()
            between.cut = lambda line: line.startswith("PUT") and ".mp4" in line and not between.lost
            with spooled(tmp_path / "host") as spool:
                assert upload(spool, host.store).n_clips == 1
            assert len(between.lost) == 1

    @pytest.mark.parametrize("camera", ["cam2", "cam10", "cam"])
    def test_another_cameras_clip_is_refused(self, server: Ministack, tmp_path: Path, camera: str) -> None:
        """A host cannot write as another camera, not even one whose name begins alike; the clip stays in its spool."""
        bucket = server.new_bucket()
        with judged(server, rendered("host-policy.json", bucket)) as (between, refusals):
            host = Host(server, bucket, between.url)
            with spooled(tmp_path / "host", camera) as spool:
                with pytest.raises(StoreError, match=r"AccessDenied.*rights.*1 wait in"):
                    upload(spool, host.store, retry=Retry(max_tries=1))
                assert len(spool.pending()) == 1
        (refused,) = [refusal for refusal in refusals if not refusal.startswith("s3:ListBucketMultipartUploads ")]
        assert refused.rsplit("/", 1)[0] == f"s3:PutObject arn:aws:s3:::{bucket}/farm/a/clips/{camera}"
        assert list(open_store(f"s3://{bucket}", Settings(s3=server.s3)).list()) == []

    def test_nothing_else_is_allowed(self, server: Ministack) -> None:
        """Reading others' clips and tables, replacing, listing and deleting one's own are all AccessDenied."""
        bucket = server.new_bucket()
        whole = open_store(f"s3://{bucket}/farm/a", Settings(s3=server.s3))
        there = {"clips/cam1/a.mp4", "clips/cam10/a.mp4", "tables/clips/part.parquet", "datasets/few.jsonl", "camloop.json"}
        for key in there:
            whole.put(key, b"1")
        with judged(server, rendered("host-policy.json", bucket)) as (between, _):
            store = Host(server, bucket, between.url).store
            assert store.get("clips/cam1/a.mp4") == b"1" and store.head("clips/cam1/a.mp4")
            forbidden = [
                lambda: store.get("clips/cam10/a.mp4"), lambda: store.head("clips/cam10/a.mp4"),
                lambda: store.get("tables/clips/part.parquet"), lambda: store.get("datasets/few.jsonl"),
                lambda: list(store.list()), lambda: list(store.list("clips/cam1/")), lambda: store.delete("clips/cam1/a.mp4"),
                lambda: store.put("clips/cam1/a.mp4", b"2"), lambda: store.put("releases/metadata/root.json", b"2"),
                lambda: store.put("camloop.json", b"2"), lambda: store.put_if_absent("clips/cam10/b.mp4", b"2"),
            ]  # fmt: skip
            for act in forbidden:
                with pytest.raises(StoreForbidden, match=r"(AccessDenied|403)"):
                    act()
        assert {stat.key for stat in whole.list()} == there
        assert all(whole.get(stat.key) == b"1" for stat in whole.list())

    def test_releases_and_wishes_can_be_fetched(self, server: Ministack, tmp_path: Path) -> None:
        """A device installs a release and reads what is wanted, although a missing next root is 403 to it."""
        bucket = server.new_bucket()
        whole = open_store(f"s3://{bucket}/farm/a", Settings(s3=server.s3))
        repository.make_keys(tmp_path / "keys")
        signers = repository.read_keys(tmp_path / "keys")
        bundle, clock = brightness_bundle(), SystemClock()
        release(Repository(whole, signers, clock), bundle, report_of(bundle), channel="stable", force=None, clock=clock)
        wish = wanted.create(whole, "label = 'Door'", quota=2, days=1, reason="few doors", clock=clock)
        with judged(server, rendered("host-policy.json", bucket)) as (between, refusals):
            store = Host(server, bucket, between.url).store
            puller = Puller(tmp_path / "home", clock)
            puller.trust(store.get(repository.metadata_key("1.root.json")))
            assert puller.update(store_origin(store), "stable").kind == "installed"
            assert wanted.current(store, clock) == [wish]
            assert refusals == []


def test_job_policy_is_enough_for_the_tables(
    server: Ministack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ingest, curate, query, label, sample and doctor work with the job policy; another prefix of the bucket is closed."""
    bucket = server.new_bucket()
    fill(tmp_path / "card", 2, seed=5)
    with judged(server, rendered("job-policy.json", bucket)) as (between, refusals):
        monkeypatch.setenv("CAMLOOP_S3_ENDPOINT", between.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
        for command in (
            ("ingest", str(tmp_path / "card")), ("curate", "--local", "--without", "detect", "embed"), ("query",),
            ("label", "import", str(tmp_path / "card" / "labels.csv"), "--annotator", "anna"), ("sample", "few", "all"),
            ("doctor",),
        ):  # fmt: skip
            assert main([*command, "--store", f"s3://{bucket}/farm/a"]) == 0, capsys.readouterr().err
        assert refusals == []
        assert main(["query", "--store", f"s3://{bucket}/farm/b"]) == 1
        assert "AccessDenied" in capsys.readouterr().err


def test_lifecycle_rules_are_accepted(server: Ministack) -> None:
    """The rules are taken and read back as they were written; by default nothing that a person filmed expires."""
    bucket, client = server.new_bucket(), server.client()
    rules = rendered("lifecycle.json", bucket)
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    found = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert sorted(found, key=lambda rule: rule["ID"]) == sorted(rules["Rules"], key=lambda rule: rule["ID"])
    expiring = [rule["Filter"]["Prefix"] for rule in found if "Expiration" in rule and rule["Status"] == "Enabled"]
    assert expiring == ["farm/a/selftest-"]


def test_the_judge_knows_its_rules() -> None:
    """Deny is the default and wins; a star crosses slashes; a name that begins alike is another name."""
    policy = rendered("host-policy.json", "b")
    clip = "arn:aws:s3:::b/farm/a/clips/cam1/x.mp4"
    assert not allowed(policy, "s3:PutObject", clip, {"s3:ObjectCreationOperation": "true"})
    assert allowed(policy, "s3:PutObject", clip, {"s3:ObjectCreationOperation": "true", "s3:if-none-match": "*"})
    assert allowed(policy, "s3:PutObject", clip, {"s3:ObjectCreationOperation": "false"})  # a part of a big file
    assert allowed(policy, "s3:GetObject", clip, {})
    assert not allowed(policy, "s3:GetObject", "arn:aws:s3:::b/farm/a/clips/cam10/x.mp4", {})
    assert not allowed(policy, "s3:GetObject", "arn:aws:s3:::b2/farm/a/clips/cam1/x.mp4", {})
    assert not allowed(policy, "s3:DeleteObject", clip, {}) and not allowed(policy, "s3:ListBucket", "arn:aws:s3:::b", {})


def test_the_dockerfile_copies_what_exists() -> None:
    """Every path after COPY is in the repository; every room and the licence are copied; it does not run as root."""
    lines = (DEPLOY / "docker" / "Dockerfile").read_text().splitlines()
    sources = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert {"infra", "ingest", "curate", "train", "serve", "pyproject.toml", "LICENSE", "requirements.lock"} <= set(sources)
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)


def test_the_compose_file_names_things_that_exist() -> None:
    """The build's context and Dockerfile exist; the service has the store's volume and the credentials' names."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed here")
    path = DEPLOY / "docker" / "compose.yaml"
    document = yaml.safe_load(path.read_text())
    service = document["services"]["camloop"]
    context = (path.parent / service["build"]["context"]).resolve()
    assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
    assert {volume.split(":")[0] for volume in service["volumes"]} >= set(document["volumes"])
    assert {"CAMLOOP_STORE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(service["environment"])


def blocks(guide: str, kind: str) -> list[str]:
    """Return the fenced blocks of a kind in a guide."""
    text = (ROOT / "infra" / "docs" / "guides" / guide).read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def runs_as_written(guide: str, folder: Path, **environment: str) -> None:
    """Run every `$` line of a guide in a folder; a program that fails fails the test."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    programs = [line[2:] for block in blocks(guide, "console") for line in block.splitlines() if line.startswith("$ ")]
    assert programs
    for program in programs:
        done = subprocess.run(
            program, shell=True, cwd=folder, env=given, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"{program}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


class TestGuides:
    def test_cameras(self, tmp_path: Path) -> None:
        """The commands and both cameras.toml of the guide work; the correction moves the hall's clips by an hour and a zone."""
        first, later = blocks("cameras.md", "toml")
        (tmp_path / "cameras.toml").write_text(first)
        (tmp_path / "corrected.toml").write_text(later)
        assert [row.clock_offset_s for row in cameras.parse(later).cameras["hall"].rows] == [-3600, 0]
        runs_as_written("cameras.md", tmp_path)
        catalog = open_catalog(open_store(str(tmp_path / "named")), create=False)
        clips = catalog.scan("clips").collect()
        for clip in clips.filter(clips["camera_id"] == "hall").iter_rows(named=True):
            written = datetime.strptime(Path(clip["source_name"]).stem[-15:], "%Y%m%d_%H%M%S")
            digits = written.replace(tzinfo=ZoneInfo("Europe/Paris"))
            hours = 1 if digits < datetime(2027, 1, 13, 12, tzinfo=ZoneInfo("Europe/Paris")) else 0
            assert clip["start_ns"] == (int(digits.timestamp()) - hours * 3600) * 10**9
        assert set(clips["camera_id"]) == {"hall", "yard", "street", "workshop"}
        assert catalog.scan("cameras").collect().height == 6  # four, and the corrected one again with its two periods

    def test_s3(self, server: Ministack, tmp_path: Path) -> None:
        """The commands of the guide work on a bucket; its camloop.toml is understood."""
        (document,) = blocks("s3.md", "toml")
        (tmp_path / "example.toml").write_text(document)
        assert load_settings(tmp_path / "example.toml", environ={}).s3.role_arn == "arn:aws:iam::123456789012:role/cam1"
        fill(tmp_path / "card", 2, seed=5)
        assert server.s3.endpoint_url
        runs_as_written(
            "s3.md", tmp_path, CAMLOOP_STORE=f"s3://{server.new_bucket()}/cameras", CAMLOOP_S3_ENDPOINT=server.s3.endpoint_url,
            AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="us-east-1",
        )  # fmt: skip

    def test_pi(self, tmp_path: Path) -> None:
        """The commands to try by hand work; every unit that the guide installs exists."""
        runs_as_written("pi.md", tmp_path)
        units = {name for block in blocks("pi.md", "bash") for name in re.findall(r"infra/deploy/systemd/[\w.-]+", block)}
        assert len(units) == 2 and all((ROOT / name).is_file() for name in units)
