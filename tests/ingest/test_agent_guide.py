"""The guide of the agent, and the README: their camloop.toml are such that every part understands them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.settings import load_settings, read_table
from ingest.config import agent_config, camera_config, camera_configs
from ingest.membership import fleet_config, membership
from ingest.policy import SpoolLimits
from ingest.schedule import UploadSettings
from ingest.trigger import TriggerSettings

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "infra" / "docs" / "guides" / "agent.md"


def test_its_camloop_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table is read by the room that uses it; the password is shown nowhere."""
    (text,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "camloop.toml"
    path.write_text(text)
    settings = load_settings(path, {})
    cameras = camera_configs(settings)
    assert [camera.id for camera in cameras] == ["door", "bench", "yard", "gate", "film"]
    assert [camera.ends for camera in cameras] == [False, False, False, False, True]
    assert camera_config(settings, "yard").shown_url == "rtsp://***@192.168.1.20/stream1"
    assert "correct" not in repr(cameras) + repr(settings)
    assert camera_config(settings, "door").trigger["kind"] == "motion" and agent_config(settings).latitude == 48.1
    assert read_table(SpoolLimits, settings.toml["spool"], settings.where("spool")).policy == "value"
    assert read_table(UploadSettings, settings.toml["upload"], settings.where("upload")).bytes_per_s == 500_000
    assert str(fleet_config(settings).identity) == "/var/lib/camloop/identity"
    monkeypatch.chdir(tmp_path)
    assert membership(load_settings(None, {"CAMLOOP_HOST_ID": "x"})) is None


def test_the_readmes_camloop_toml(tmp_path: Path) -> None:
    """Its camera is one that would be filmed: the address is let through by the network it names, the trigger is understood."""
    (text,) = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "camloop.toml"
    path.write_text(text)
    (camera,) = camera_configs(load_settings(path, {}))
    assert camera.shown_url == "rtsp://***@192.168.1.20/stream1" and camera.allow == ("192.168.1.0/24",)
    assert TriggerSettings.from_table(camera.trigger, "README").kind == "motion"
