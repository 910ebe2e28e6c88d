"""`camloop preview`: the figures, the page, and that it stores nothing and shows nothing that is to be hidden."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from infra import cli, video
from infra.errors import UsageError
from infra.images import decode_image
from infra.picture import Rgb, resize
from ingest.preview import MAX_VIEWERS, LivePage, Meter, focus_of
from ingest.source import SourceFrame

FRAME_NS = 100_000_000


def texture(size_px: tuple[int, int] = (320, 180)) -> Rgb:
    """Return a picture with edges everywhere."""
    return np.random.default_rng(1).integers(0, 256, (size_px[1], size_px[0], 3), np.uint8)


def plain(colour: tuple[int, int, int], size_px: tuple[int, int] = (320, 180)) -> Rgb:
    """Return a picture of one colour."""
    return np.full((size_px[1], size_px[0], 3), colour, np.uint8)


@pytest.fixture
def open_page() -> Iterator[Callable[..., LivePage]]:
    """Return an opener of pages that are closed afterwards."""
    pages = []

    def make(**options: object) -> LivePage:
        pages.append(LivePage("yard", Meter(), **options))  # type: ignore[arg-type]
        return pages[-1]

    yield make
    for page in pages:
        page.close()


@pytest.fixture
def films(open_page: Callable[..., LivePage]) -> Iterator[Callable[[LivePage, Rgb], None]]:
    """Return what shows a picture again and again, as a camera does."""
    over = threading.Event()
    threads = []

    def start(page: LivePage, rgb: Rgb) -> None:
        def film() -> None:
            while not over.wait(0.02):
                page.show(rgb)

        threads.append(threading.Thread(target=film))
        threads[-1].start()

    yield start
    over.set()
    for thread in threads:
        thread.join()


def ask(page: LivePage, name: str, host: str | None = None) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Return status, body and headers of one page."""
    parts = urlsplit(page.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", f"{parts.path}{name}", headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


def watch(page: LivePage) -> socket.socket:
    """Return a viewer of the stream that has got its head and a first picture, and then reads nothing."""
    parts = urlsplit(page.url)
    viewer = socket.create_connection((parts.hostname, parts.port), timeout=10)
    viewer.sendall(f"GET {parts.path}stream.mjpg HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
    data = b""
    while b"image/jpeg" not in data:
        data += viewer.recv(4096)
    return viewer


def test_a_blurred_picture_is_less_in_focus() -> None:
    """The figure falls with every blur and is nothing for a wall of one colour."""
    sharp = texture()
    soft, softer = (resize(resize(sharp, (320 // by, 180 // by)), (320, 180)) for by in (2, 4))
    assert focus_of(sharp) > 2 * focus_of(soft) > 4 * focus_of(softer) > 0
    assert focus_of(plain((90, 90, 90))) < 1e-3


def test_the_meter_says_rate_losses_and_what_the_camera_was_set_to() -> None:
    """Rate over two seconds of sensor time; a jump of the numbers is a loss; the camera's own focus figure is preferred."""
    meter = Meter()
    controls = {"exposure_us": 8_333.0, "gain": 2.5, "red_gain": 1.5, "blue_gain": 2.0, "focus": 812.0, "lux": 120.0}
    for at in range(50):
        frame = SourceFrame(plain((0, 0, 0)), at * FRAME_NS, at + 3 * (at > 20), controls)
        meter.see(frame)
    meter.measure(frame)
    assert (meter.n_frames, meter.n_dropped) == (50, 3) and meter.fps == pytest.approx(10)
    assert meter.text() == (
        "320x180  10.00 fps  3 dropped  exposure 8.333 ms  gain 2.50  white balance 1.50/2.00  120 lux  focus 812 (best 812)"
    )
    meter.see(SourceFrame(texture(), 60 * FRAME_NS, 70))
    meter.measure(SourceFrame(texture(), 60 * FRAME_NS, 70))
    assert meter.focus_by == "laplacian" and "exposure" not in meter.text()
    assert json.dumps(meter.document())


def test_the_page_shows_the_newest_picture(open_page, films) -> None:
    """A JPEG of the right colours, at most 960 wide, not to be stored by anybody; figures in words and as JSON."""
    page = open_page()
    films(page, plain((200, 40, 40), (1280, 720)))
    status, jpeg, headers = ask(page, "frame.jpg")
    rgb = decode_image(jpeg, "frame.jpg").to_ndarray(format="rgb24")
    assert status == 200 and rgb.shape == (540, 960, 3) and np.abs(rgb.astype(int) - (200, 40, 40)).max() <= 4
    assert headers["Cache-Control"] == "no-store" and "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"stream.mjpg" in ask(page, "")[1] and b"yard" in ask(page, "status")[1]
    assert json.loads(ask(page, "status.json")[1])["n_frames"] == 0
    assert ask(page, "../etc/passwd")[0] == 404


def test_a_viewer_who_does_not_read_holds_nothing_up(open_page, films) -> None:
    """The camera goes on, and another viewer sees what is new."""
    page = open_page()
    films(page, texture((960, 540)))
    with watch(page):
        time.sleep(0.3)
        began = time.monotonic()
        for _ in range(50):
            page.show(plain((10, 200, 10)))
        assert time.monotonic() - began < 1
        assert ask(page, "frame.jpg")[0] == 200


def test_only_so_many_may_look(open_page, films) -> None:
    """One more than allowed is told so; when one leaves there is room again."""
    page = open_page()
    films(page, plain((9, 9, 9)))
    viewers = [watch(page) for _ in range(MAX_VIEWERS)]
    status, body, _ = ask(page, "frame.jpg")
    assert (status, body) == (503, b"8 look already\n")
    for viewer in viewers:
        viewer.close()
    until = time.monotonic() + 5
    while (status := ask(page, "frame.jpg")[0]) != 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert status == 200


def test_another_site_cannot_read_the_page_through_a_browser(open_page, films) -> None:
    """A name that resolves to this machine (DNS rebinding) is refused; localhost is not."""
    page = open_page()
    films(page, plain((9, 9, 9)))
    assert ask(page, "frame.jpg", host="evil.example")[0] == 403
    assert ask(page, "frame.jpg", host="localhost:1")[0] == 200


def test_beyond_loopback_the_address_is_a_secret(open_page, films) -> None:
    """Without the random path there is nothing to be seen."""
    page = open_page(address="127.0.0.2")  # any address that is not the usual loopback
    films(page, plain((9, 9, 9)))
    assert len(page.root) > 10 and ask(page, "frame.jpg")[0] == 200
    parts = urlsplit(page.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    for path in ("/", "/frame.jpg", "/stream.mjpg", "/status.json"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 404 and answer.read() == b"no such page\n"
        connection.close()


def test_a_port_that_is_taken_is_one_line(open_page) -> None:
    """The address, the port and what to do."""
    taken = urlsplit(open_page().url).port
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1 port {taken}.*choose another"):
        LivePage("yard", Meter(), port=taken)
    with pytest.raises(UsageError, match="choose another"):
        LivePage("yard", Meter(), port=70_000)


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of eight pictures, half a second long, in an empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    with video.Writer(tmp_path / "door.mp4", 320, 180, Fraction(1, 1000)) as writer:
        for number in range(8):
            writer.add(np.full((180, 320, 3), 20 + number, np.uint8), number * 66)
    return tmp_path / "door.mp4"


def test_the_command_says_the_figures_and_stores_nothing(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is played at its own speed; --json is one document; the folder is as it was."""
    began = time.monotonic()
    assert cli.main(["preview", str(film), "--json", "--http", "0"]) == 0
    assert time.monotonic() - began > 0.4
    document = json.loads(capsys.readouterr().out)
    assert (document["n_frames"], document["n_dropped"], document["width_px"]) == (8, 0, 320)
    assert document["fps"] == pytest.approx(1000 / 66, rel=0.01) and document["focus_by"] == "laplacian"
    assert [path.name for path in film.parent.iterdir()] == ["door.mp4"]


def test_what_is_hidden_in_recordings_is_hidden_here(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """[privacy] holds for the figures and for the page, and by a camera's own name for that camera's table."""
    with video.Writer(film, 320, 180, Fraction(1, 1000)) as writer:
        for number in range(15):
            writer.add(np.full((180, 320, 3), 200, np.uint8), number * 66)
    Path("camloop.toml").write_text(
        '[privacy]\nmasks = [[0.0, 0.0, 0.5, 1.0]]\nstyle = "fill"\n[[camera]]\nid = "yard"\nurl = "door.mp4"\n'
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("yard", "./door.mp4"):
        seen: list[bytes] = []

        def look(seen: list[bytes] = seen) -> None:
            until = time.monotonic() + 10
            while not seen and time.monotonic() < until:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                try:
                    connection.request("GET", "/frame.jpg")
                    answer = connection.getresponse()
                    seen += [answer.read()] if answer.status == 200 else []
                except OSError:
                    time.sleep(0.02)
                finally:
                    connection.close()

        looking = threading.Thread(target=look)
        looking.start()
        assert cli.main(["preview", name, "--json", "--http", str(port)]) == 0
        looking.join()
        rgb = decode_image(seen[0], "frame.jpg").to_ndarray(format="rgb24")
        assert rgb[:, :150].max() <= 8 and rgb[:, 170:].min() >= 180
        assert json.loads(capsys.readouterr().out)["camera_id"] == ("yard" if name == "yard" else "door")


def test_a_preview_that_cannot_hide_does_not_begin(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A detector that is not there is one line, and nothing was shown."""
    Path("camloop.toml").write_text('[privacy]\nblur = ["person"]\ndetector = "gone.onnx"\n')
    assert cli.main(["preview", str(film), "--http", "0"]) == 2
    said = capsys.readouterr()
    assert "gone.onnx" in said.err and "http://" not in said.out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["yard"], "not in camloop.toml"),
        (["door.mp4", "--seconds", "0"], "more than 0"),
        (["door.mp4", "--address", "0.0.0.0"], "--http"),
        (["door.mp4", "--http", "70000"], "choose another"),
        (["gone.mp4"], "no such file"),
    ],
)
def test_wrong_use_is_one_line(film: Path, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line with what is legal."""
    assert cli.main(["preview", *argv]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said
