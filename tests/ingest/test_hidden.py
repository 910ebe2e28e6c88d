"""Which privacy holds for an address that somebody typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.settings import load_settings
from ingest.hidden import device, open_private, privacy_of

LEFT, RIGHT = "masks = [[0.0, 0.0, 0.5, 1.0]]", "masks = [[0.5, 0.0, 1.0, 1.0]]"


def hidden(tmp_path: Path, text: str, url: str, camera_id: str | None = None) -> list[tuple[float, ...]]:
    """Return the first mask of each privacy that holds for an address."""
    path = tmp_path / "camloop.toml"
    path.write_text(text)
    return [one.masks[0] for one in privacy_of(url, load_settings(path, {}), camera_id)]


def camera(number: int, url: str, privacy: str = "") -> str:
    return f'[[camera]]\nid = "cam{number}"\nurl = "{url}"\n' + (f"privacy = {{{privacy}}}\n" if privacy else "")


@pytest.mark.parametrize(
    ("known", "typed"),
    [
        ("picam://0?fps=10", "picam://0"),
        ("picam://0", "PICAM://0?width=640&height=480"),
        ("rtsp://user:word@10.0.0.7/stream1", "rtsp://10.0.0.7:554/stream2"),
        ("rtsps://Cam.local/1", "rtsp://cam.LOCAL./1"),
        ("v4l2:///dev/video7", "v4l2:///dev/../dev/video7"),
        ("sim://7/harbour1-yard?seconds=2", "sim://7/harbour1-yard"),
        ("day.mp4", "./day.mp4"),
    ],
)
def test_a_device_is_known_however_it_is_spelled(tmp_path: Path, known: str, typed: str) -> None:
    """Another rate, stream, password or spelling of a camera hides no less than its table says."""
    assert hidden(tmp_path, camera(1, known, LEFT), typed) == [(0.0, 0.0, 0.5, 1.0)]
    assert device(known) == device(typed)


def test_all_that_any_camera_of_the_device_hides_is_hidden(tmp_path: Path) -> None:
    """Two tables of one host count both; an exact address or a name its own; a stranger gets what holds for all."""
    text = camera(1, "rtsp://10.0.0.7/1", LEFT) + camera(2, "rtsp://10.0.0.7/2", RIGHT) + camera(3, "picam://1")
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    assert hidden(tmp_path, text, "rtsp://10.0.0.7/9") == [left, right]
    assert hidden(tmp_path, text, "rtsp://10.0.0.7/2") == [right]
    assert hidden(tmp_path, text, "rtsp://10.0.0.8/2", "cam1") == [left]
    assert hidden(tmp_path, text, "picam://1") == [] == hidden(tmp_path, text, "picam://2")
    text = f"[privacy]\n{LEFT}\n" + camera(1, "picam://0")
    assert hidden(tmp_path, text, "picam://0?fps=5") == [left] == hidden(tmp_path, text, "picam://4")


def test_the_camera_that_is_opened_shows_no_more(tmp_path: Path) -> None:
    """Both halves of one device's tables are black in every picture; what cannot be hidden opens no camera."""
    path, url = tmp_path / "camloop.toml", "sim://7/harbour1-yard"
    path.write_text(
        camera(1, f"{url}?seconds=1", f'{LEFT}, style = "fill"') + camera(2, f"{url}?seconds=3", f'{RIGHT}, style = "fill"')
    )
    source = open_private(f"{url}?seconds=0.5", load_settings(path, {}))
    shown = [int(frame.rgb.max()) for frame in source]
    assert shown and max(shown) == 0 and source.camera_id == "harbour1-yard"
    path.write_text('[privacy]\nblur = ["person"]\ndetector = "gone.onnx"\n')
    with pytest.raises(SettingsError, match=r"gone\.onnx"):
        open_private(url, load_settings(path, {}))
