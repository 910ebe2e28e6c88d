"""[[camera]] and [agent] of camloop.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import log
from infra.errors import SettingsError
from infra.settings import Settings, load_settings
from ingest.config import CameraConfig, agent_config, camera_config, camera_configs, masked_url


def load(tmp_path: Path, text: str) -> Settings:
    """Return the settings of a camloop.toml with this text."""
    path = tmp_path / "camloop.toml"
    path.write_text(text)
    return load_settings(path, {})


def test_cameras_with_defaults_for_all(tmp_path: Path) -> None:
    """A camera's own keys stand over [trigger] and [privacy]; another kind of trigger starts from nothing."""
    settings = load(
        tmp_path,
        '[trigger]\nkind = "motion"\npre_roll_s = 2\n[privacy]\nblur = ["face"]\n'
        '[[camera]]\nid = "a"\nurl = "rtsp://host/1"\nsize = [640, 480]\nfps = 10\nallow = ["192.168.1.0/24"]\n'
        "trigger = {pre_roll_s = 5}\n"
        '[[camera]]\nid = "b"\nurl = "day.mp4"\nsegment_s = 5\n[camera.trigger]\nkind = "always"\n',
    )
    first, second = camera_configs(settings)
    assert dict(first.trigger) == {"kind": "motion", "pre_roll_s": 5} and dict(second.trigger) == {"kind": "always"}
    assert dict(first.privacy) == dict(second.privacy) == {"blur": ["face"]}
    assert (first.size, first.fps, first.allow, first.ends) == ((640, 480), 10.0, ("192.168.1.0/24",), False)
    assert second.ends and camera_config(settings, "b") == second
    with pytest.raises(SettingsError, match=r"no \[\[camera\]\] has id 'c'; .*camloop.toml has: a, b"):
        camera_config(settings, "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no camera; add [[camera]] with id"),
        ('[camera]\nid = "a"\n', "camloop.toml line 1: [camera] is one table; write [[camera]], once per camera"),
        ('[[camera]]\nid = "a"\n', "camloop.toml line 1: [camera] lacks url"),
        ('[[camera]]\nid = "a"\nurl = "x"\nurll = "y"\n', "line 4: [camera]: unknown key 'urll'; did you mean url?"),
        ('[[camera]]\nid = "a"\nurl = 7\n', "line 3: [camera]: url = 7; legal: text in quotes"),
        ('[[camera]]\nid = "a/b"\nurl = "x"\n', "line 2: [camera]: id 'a/b' cannot stand in an object key"),
        (f'[[camera]]\nid = "{"n" * 2000}"\nurl = "x"\n', "line 2: [camera]: id 'nnnn"),
        ('[[camera]]\nid = "a"\nurl = ""\n', "line 3: [camera]: url is empty; legal: a file, rtsp://"),
        ('[[camera]]\nid = "a"\nurl = "ftp://u:secret@h/x"\n', "line 3: [camera]: url is 'ftp://***@h/x'; legal: a file, rtsp://"),
        ('[[camera]]\nid = "a"\nurl = "rtsp://u:sec/ret@h/x"\n', "url is rtsp://***, which is no address"),
        ('[[camera]]\nid = "a"\nurl = "rtsp:///x"\n', "url is rtsp://***, which is no address"),
        ('[[camera]]\nid = "a"\nurl = "x"\nsegment_s = 0.5\n', "line 4: [camera]: segment_s is 0.5; legal: 1 to 3600 seconds"),
        ('[[camera]]\nid = "a"\nurl = "x"\nformat = "mp5"\n', "line 4: [camera]: format = 'mp5'; legal: 'h264', 'png'"),
        ('[[camera]]\nid = "a"\nurl = "x"\nsize = [1, 2]\n', "line 4: [camera]: size is [1, 2]; legal: [width, height]"),
        ('[[camera]]\nid = "a"\nurl = "x"\nfps = 0\n', "line 4: [camera]: fps is 0; legal: more than 0"),
        (
            '[[camera]]\nid = "a"\nurl = "x"\n\n[[camera]]\nurl = "y"\nid = "a"\n',
            "line 7: [camera]: id 'a' is taken",
        ),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    """Each wrong table is one line with the file's line, the value and what is legal; no password gets out."""
    with pytest.raises(SettingsError) as caught:
        camera_configs(load(tmp_path, text))
    assert message in str(caught.value)
    assert "secret" not in str(caught.value) and "sec/ret" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[agent]\nstal_s = 3\n", "line 2: [agent]: unknown key 'stal_s'; did you mean stall_s"),
        ("[agent]\n\nstall_s = 0\n", "line 3: [agent]: stall_s is 0; legal: 1 seconds or more"),
        ("[agent]\nlatitude = 91\n", "line 2: [agent]: latitude is 91; legal: -90 to 90 degrees"),
        ("[agent]\nlog_lines_per_minute = 0\n", "line 2: [agent]: log_lines_per_minute is 0; legal: 1 or more"),
    ],
)
def test_bad_agent(tmp_path: Path, text: str, message: str) -> None:
    """The agent's own table is refused likewise."""
    with pytest.raises(SettingsError) as caught:
        agent_config(load(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:hunter2@host/1", "rtsp://admin:p@hunter2@host/1", "rtsp://hunter2@host", "rtsps://a:hunter2@[::1]:9/x?y=1",
        "rtsp://host/user=admin_password=hunter2_channel=1.sdp", "rtsp://host/1?user=a&pwd=hunter2&x=1",
        "rtsp://host/1?pass=hunter2", "rtsp://host/1?auth=hunter2", "rtsp://host/1?token=hunter2",
    ],
)  # fmt: skip
def test_no_password_is_shown(url: str) -> None:
    """A password in an address is in no repr, no shown address and no log line."""
    camera = CameraConfig(id="a", url=url, options={"password": "hunter2"})
    assert "hunter2" not in repr(camera) + camera.shown_url + masked_url(url)
    assert "host" in masked_url(url) or "::1" in masked_url(url)
    assert "hunter2" not in log.mask(f"cannot open {camera.shown_url}: 401")
