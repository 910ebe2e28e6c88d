"""camloop.toml and the environment."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from infra import log
from infra.errors import SettingsError
from infra.settings import ROOM_TABLES, S3Settings, Settings, child_environment, load_settings, read_table, with_store


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """A table in a table."""

    share: float = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """A table of every kind of value."""

    kind: Literal["motion", "always"]
    pre_roll_s: float = 2.0
    frames: int = 3
    keep: bool = False
    mask: Path | None = None
    size: tuple[int, int] | None = None
    hours: tuple[str, ...] = ()
    controls: Mapping[str, float] = dataclasses.field(default_factory=dict)
    least: Least = Least()
    anything: Any = None

    def __post_init__(self) -> None:
        if self.pre_roll_s < 0:
            raise SettingsError(f"pre_roll_s is {self.pre_roll_s:g}; legal: 0 or more seconds")


class TestReadTable:
    def test_every_kind_of_value(self) -> None:
        """TOML values become the types of the fields; a whole number is a number, a list a tuple."""
        table = {
            "kind": "motion", "pre_roll_s": 3, "frames": 2, "keep": True, "mask": "a.png", "size": [320, 240],
            "hours": ["22-06"], "controls": {"gain": 2}, "least": {"share": 1}, "anything": [{}],
        }  # fmt: skip
        found = read_table(Motion, table, "[trigger]")
        assert found == Motion(
            kind="motion", pre_roll_s=3.0, frames=2, keep=True, mask=Path("a.png"), size=(320, 240), hours=("22-06",),
            controls=found.controls, least=Least(share=1.0), anything=[{}],
        )  # fmt: skip
        assert isinstance(found.pre_roll_s, float) and dict(found.controls) == {"gain": 2.0}

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"kind": "motion", "pre_rol_s": 3}, "[trigger]: unknown key 'pre_rol_s'; did you mean pre_roll_s?; legal: kind, "),
            ({"kind": "sound"}, "[trigger]: kind = 'sound'; legal: 'motion', 'always'"),
            ({"kind": "motion", "pre_roll_s": "3"}, "[trigger]: pre_roll_s = '3'; legal: a number"),
            ({"kind": "motion", "pre_roll_s": True}, "[trigger]: pre_roll_s = True; legal: a number"),
            ({"kind": "motion", "frames": 2.5}, "[trigger]: frames = 2.5; legal: a whole number"),
            ({"kind": "motion", "keep": 1}, "[trigger]: keep = 1; legal: true or false"),
            ({"kind": "motion", "size": [1]}, "[trigger]: size = [1]; legal: a list of 2 values"),
            ({"kind": "motion", "hours": "22-06"}, "[trigger]: hours = '22-06'; legal: a list [...]"),
            ({"kind": "motion", "controls": {"gain": "x"}}, "[trigger]: controls = {'gain': 'x'}; legal: a number"),
            (
                {"kind": "motion", "least": {"shar": 1}},
                "[trigger.least]: unknown key 'shar'; did you mean share?; legal: share",
            ),
            ({"kind": "motion", "mask": "rtsp://me:secret@host/1", "keep": "rtsp://me:secret@host/1"}, "rtsp://***@host/1"),
            ({}, "[trigger] lacks kind"),
            ({"kind": "motion", "pre_roll_s": -1}, "[trigger]: pre_roll_s is -1; legal: 0 or more seconds"),
            ([], "[trigger] is []; legal: a table"),
        ],
    )
    def test_what_is_refused(self, table: Any, message: str) -> None:
        """A wrong table is refused in one line with the key, the value and what is legal; a password is masked."""
        with pytest.raises(SettingsError) as caught:
            read_table(Motion, table, "[trigger]")
        assert message in str(caught.value) and "\n" not in str(caught.value) and "secret" not in str(caught.value)

    def test_the_line(self, tmp_path: Path) -> None:
        """The line is that of the key in its own table: the second camera's, the camera's own trigger's."""
        text = (
            '[[camera]]\nid = "a"\nkind = "motion"\n[camera.trigger]\nkind = "always"\n\n'
            '[[camera]]\nid = "b"\ntrigger = {kind = 1}\n[camera.spool]\nkind = "x"\n[trigger]\nkind = 7\n'
        )
        settings = load_settings(write(tmp_path, text), {})
        lines = {
            (table, number, key): settings.where(table, number).line(key).rsplit(" line ")[1].removesuffix(": ")
            for table, number, key in [
                ("camera", 0, "id"), ("camera", 1, "id"), ("camera", 1, None), ("camera.trigger", 0, "kind"),
                ("camera.trigger", 1, "kind"), ("camera.spool", 1, "kind"), ("trigger", 0, "kind"),
            ]
        }  # fmt: skip
        assert list(lines.values()) == ["2", "8", "7", "5", "9", "11", "13"]
        with pytest.raises(SettingsError, match=r"camloop\.toml line 13: \[trigger\]: kind = 7; legal: 'motion', 'always'"):
            read_table(Motion, settings.toml["trigger"], settings.where("trigger"))
