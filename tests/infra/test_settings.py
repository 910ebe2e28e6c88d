"""camloop.toml and the environment."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from pathlib import Path

import pytest

from infra import log
from infra.errors import SettingsError
from infra.settings import ROOM_TABLES, S3Settings, Settings, child_environment, load_settings, with_store


def write(tmp_path: Path, text: str) -> Path:
    """Return a camloop.toml with this text."""
    path = tmp_path / "camloop.toml"
    path.write_text(text)
    return path


class TestLoading:
    def test_defaults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without file and environment the store is a folder and the host has a name."""
        monkeypatch.chdir(tmp_path)
        found = load_settings(environ={})
        assert found.store_url == "./camloop-data"
        assert found.s3 == S3Settings()
        assert found.host_id
        assert dict(found.toml) == {}

    def test_file_then_environment(self, tmp_path: Path) -> None:
        """The environment is stronger than the file."""
        path = write(tmp_path, 'store = "s3://a/b"\nhost_id = "barn"\n[s3]\nregion = "eu-west-1"\nmax_attempts = 2\n')
        found = load_settings(path, {})
        assert (found.store_url, found.host_id, found.s3.region, found.s3.max_attempts) == ("s3://a/b", "barn", "eu-west-1", 2)
        environment = {"CAMLOOP_STORE": "/srv", "CAMLOOP_HOST_ID": "pi", "AWS_REGION": "r", "CAMLOOP_S3_ENDPOINT": "http://h:1"}
        found = load_settings(path, environment)
        assert (found.store_url, found.host_id, found.s3.region, found.s3.endpoint_url) == ("/srv", "pi", "r", "http://h:1")

    def test_room_tables_pass_through(self, tmp_path: Path) -> None:
        """Tables of the rooms are handed on as they are."""
        found = load_settings(write(tmp_path, '[[camera]]\nid = "cam1"\n[privacy]\nblur = true\n'), {})
        assert found.toml["camera"] == [{"id": "cam1"}]
        assert found.toml["privacy"] == {"blur": True}

    def test_frozen(self, tmp_path: Path) -> None:
        """Settings cannot be changed; another store is another Settings."""
        found = load_settings(write(tmp_path, ""), {})
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.store_url = "x"  # type: ignore[misc]
        assert with_store(found, "s3://b").store_url == "s3://b"

    def test_child_gets_the_same(self, tmp_path: Path) -> None:
        """A command started with the child environment loads equal settings."""
        found = load_settings(
            write(tmp_path, ""),
            {"CAMLOOP_STORE": "s3://a", "CAMLOOP_S3_ENDPOINT": "http://h:1"}
            | {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"},
        )
        again = load_settings(write(tmp_path, ""), child_environment(found, EXTRA="1"))
        for name in ("endpoint_url", "access_key_id", "secret_access_key"):
            assert getattr(again.s3, name) == getattr(found.s3, name)
        assert again.store_url == "s3://a"


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("\nstor = 'x'\n", r"line 2: unknown key 'stor'; legal: host_id.*\[camera\]"),
            ("store = 5\n", r"line 1: store = 5 must be text"),
            ("[s3]\nendpoint = 'x'\n", r"line 2: unknown key s3.endpoint; legal: addressing.*endpoint_url"),
            ("[s3]\nsecret_access_key = 'x'\n", r"line 2: s3.secret_access_key does not belong in a file"),
            ("[s3]\nmax_attempts = 'x'\n", r"line 2: s3.max_attempts = 'x' must be int"),
            ("[s3]\naddressing = 'odd'\n", r"s3.addressing is 'odd'; legal: auto, path, virtual"),
            ("[s3]\nendpoint_url = 'minio'\n", r"s3.endpoint_url is 'minio'; legal: http://"),
            ("camera = 'x'\n", r"line 1: camera = 'x' must be a table"),
            ("host_id = '../x'\n", r"host_id '../x' cannot stand in an object key"),
            ("store = \n", r"not TOML"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, text: str, message: str) -> None:
        """Each wrong file is refused in one line that names the place and the legal values."""
        with pytest.raises(SettingsError, match=message) as found:
            load_settings(write(tmp_path, text), {})
        assert "\n" not in str(found.value)
        assert found.value.exit_code == 2

    def test_named_file_must_exist(self, tmp_path: Path) -> None:
        """A file that was named and is not there is an error; the default file may be absent."""
        with pytest.raises(SettingsError, match="no such file"):
            load_settings(tmp_path / "other.toml", {})

    def test_secrets_are_not_shown(self) -> None:
        """The text of settings holds no secret."""
        shown = repr(Settings(s3=S3Settings(access_key_id="AKIAX", secret_access_key="hidden", session_token="hidden")))
        assert "hidden" not in shown and "AKIAX" not in shown

    def test_rooms_are_listed(self) -> None:
        """The tables named in the design pass."""
        assert {"camera", "agent", "privacy"} <= ROOM_TABLES


class TestLog:
    def test_one_line_of_json(self) -> None:
        """An event is one line of JSON with its fields, and secrets are masked wherever they stand."""
        stream = io.StringIO()
        log.configure(stream, level="info")
        try:
            log.Log("ingest.upload").info(
                "uploaded", n_bytes=5, url="rtsp://bob:canary@cam/1", token="canary", nested={"password": "canary", "n": 1},
                text="?X-Amz-Signature=canary&x=1 secret_access_key='canary canary'", keys=["AKIAABCDEFGHIJKLMNOP"],
            )  # fmt: skip
            log.Log("ingest.upload").debug("unseen")
        finally:
            logging.getLogger(log.ROOT).handlers.clear()
        lines = stream.getvalue().splitlines()
        assert len(lines) == 1
        assert "canary" not in lines[0] and "AKIAABCDEFG" not in lines[0]
        event = json.loads(lines[0])
        assert (event["event"], event["room"], event["level"], event["n_bytes"]) == ("uploaded", "ingest.upload", "info", 5)
        assert event["nested"]["n"] == 1

    def test_import_has_no_effect(self) -> None:
        """A Log that nobody configured has no handler of its own."""
        assert log.Log("x")._logger.handlers == []
