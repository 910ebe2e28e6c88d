"""Where an address may lead: a table of addresses that must not be reached, tried against catchers on this machine."""

from __future__ import annotations

import datetime
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.cli import main
from infra.errors import CamloopError, DeviceError, UsageError
from ingest.address import networks, resolve
from ingest.source import open_camera, open_source
from ingest.stream import open_rtsp

PLACES = (
    "127.0.0.1", "localhost", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1",
    "017700000001", "0", "0.0.0.0", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "10.0.0.1", "172.16.5.4",
    "192.168.1.20", "192.168.1.20.", "100.64.0.9", "169.254.169.254", "169.254.170.2", "[fd00:ec2::254]",
    "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "2852039166", "0xa9fea9fe", "100.100.100.200", "[fe80::1]",
    "[fe80::1%25lo]", "[fd12:3456::1]", "224.0.0.1", "255.255.255.255", "[ff02::1]", "198.18.0.1", "192.0.2.7", "240.0.0.1",
    "user:pass@127.0.0.1", "example.com@127.0.0.1", "127.0.0.1#@example.com", "example.com:80@127.0.0.1", "a@b@127.0.0.1",
)  # fmt: skip
OTHERS = (
    "http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "file:///etc/passwd", "exec:/bin/true",
    "tcp://127.0.0.1:{port}", "udp://127.0.0.1:{port}", "concat:http://127.0.0.1:{port}/a", "rtmp://127.0.0.1:{port}/a",
    "rtp://127.0.0.1:{port}", "RTSP:127.0.0.1:{port}/", "rtsp:/127.0.0.1:{port}/", "rtsp://127.0.0.1:{port}\\@example.com/",
    "rtsp://127.0.0.1:{port}/a b", "rtsp://127.0.0.1:{port}/%0d%0aHost: x", "rtsp://\t127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/x", "crypto:http://127.0.0.1:{port}/",
    "subfile,,start,0,end,9,,:http://127.0.0.1:{port}/", "rtsp://[::1:{port}/", "rtsp://:{port}/", "rtsp://127.0.0.1:99999/",
    "rtsp://127.0.0.1:{port}/?udp&multicast",
)  # fmt: skip


class Catcher:
    """Listens on both loopbacks and counts who comes."""

    def __init__(self) -> None:
        self.n_hits = 0
        self.listeners = [socket.create_server(("127.0.0.1", 0))]
        self.port = int(self.listeners[0].getsockname()[1])
        with suppress(OSError):
            self.listeners.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listener in self.listeners:
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                guest, _ = listener.accept()
                self.n_hits += 1
                guest.close()

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()


@pytest.fixture
def catcher() -> Iterator[Catcher]:
    """What must never be reached."""
    made = Catcher()
    yield made
    made.close()


@contextmanager
def answering(answers: list[bytes], *, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Run an RTSP server that answers requests by `answers`, one after the other (`{}` is the request's number)."""
    with socket.create_server(("127.0.0.2", 0)) as listener:

        def serve() -> None:
            while listener.fileno() >= 0:
                with suppress(OSError, ValueError):
                    guest, _ = listener.accept()
                    guest = guest if tls is None else tls.wrap_socket(guest, server_side=True)
                    for answer in answers:
                        asked = guest.recv(65536)
                        number = asked.partition(b"CSeq: ")[2].partition(b"\r\n")[0]
                        guest.sendall(answer.replace(b"{}", number))
                    guest.recv(65536)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_no_address_reaches_this_machine(catcher: Catcher) -> None:
    """Over sixty addresses that mean this machine, its networks or another protocol: each is refused in a line, 0 hits."""
    addresses = [f"rtsp://{place}:{catcher.port}/x" for place in PLACES] + [url.format(port=catcher.port) for url in OTHERS]
    assert len(set(addresses)) >= 60
    for address in addresses:
        for opener in (open_camera, open_source):
            with pytest.raises(CamloopError) as found:
                opener(address, camera_id="yard")
            assert "\n" not in str(found.value), address
            assert "pass@" not in str(found.value) and "user:pass" not in str(found.value), address
    time.sleep(0.05)
    assert catcher.n_hits == 0


def test_message_says_what_to_write() -> None:
    """A private address is refused with the line that allows it, and that line works; the cloud's credentials stay shut."""
    with pytest.raises(UsageError, match=r'leads to 192.168.1.20, a private network; .*allow = \["192.168.1.0/24"\]'):
        resolve("rtsp://192.168.1.20/a")
    found = resolve("rtsp://bob:pw%40x@192.168.1.20:8554/a?b=1&udp", allow=["192.168.1.0/24"])
    assert (found.ip, found.port, found.password, found.path) == ("192.168.1.20", 8554, "pw@x", "/a?b=1")
    assert found.through(7) == "rtsp://bob:pw%40x@127.0.0.1:7/a?b=1"
    assert found.shown == "rtsp://***@192.168.1.20:8554/a" and "pw" not in repr(found)
    for place in ("169.254.169.254", "[::ffff:169.254.169.254]", "0.0.0.0", "224.0.0.1"):
        with pytest.raises(UsageError, match="never connected to"):
            resolve(f"rtsp://{place}/", allow=["0.0.0.0/0", "::/0"])


@pytest.mark.parametrize(("listed", "near"), [("192.168.1.7/24", "192.168.1.0/24"), ("barn", ""), ("10.0.0.0/33", "")])
def test_bad_lists(listed: str, near: str) -> None:
    """A network that is none is refused with the nearest that is."""
    with pytest.raises(UsageError, match=near or "is no network"):
        networks([listed])


def test_rebinding(catcher: Catcher) -> None:
    """A name that leads to a public number first and to this machine at the next look-up is connected to by the first one."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    found = resolve(f"rtsp://evil.example:{catcher.port}/", look_up=lambda host, port: next(answers))
    assert found.ip == "93.184.216.34"
    with pytest.raises(UsageError, match=r"leads to 127\.0\.0\.1, this machine"):
        resolve(f"rtsp://evil.example:{catcher.port}/", look_up=lambda host, port: next(answers))
    mixed = resolve("rtsp://both.example/", look_up=lambda host, port: ["127.0.0.1", "93.184.216.34"])
    assert mixed.ip == "93.184.216.34"
    with pytest.raises(DeviceError, match="leads nowhere"):
        resolve("rtsp://none.example/", look_up=lambda host, port: [])


REDIRECT = b"RTSP/1.0 302 Moved\r\nCSeq: {}\r\nLocation: rtsp://127.0.0.1:PORT/x\r\n\r\n"
OPTIONS = b"RTSP/1.0 200 OK\r\nCSeq: {}\r\nPublic: DESCRIBE, SETUP, PLAY\r\n\r\n"
SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video PORT RTP/AVP 96\r\n"
SDP += b"a=rtpmap:96 H264/90000\r\na=control:rtsp://127.0.0.1:PORT/track\r\n"
DESCRIBE = b"RTSP/1.0 200 OK\r\nCSeq: {}\r\nContent-Base: rtsp://127.0.0.1:PORT/\r\nContent-Type: application/sdp\r\n"
UDP = b"RTSP/1.0 200 OK\r\nCSeq: {}\r\nSession: 1\r\nTransport: RTP/AVP;unicast;source=127.0.0.1;server_port=PORT-PORT\r\n\r\n"


def leading_elsewhere(step: int, port: int) -> list[bytes]:
    """Return answers that are right for `step` requests, name another host's `port` throughout, and then redirect to it."""
    sdp = SDP.replace(b"PORT", b"%d" % port)
    answers = [*[OPTIONS, DESCRIBE + b"Content-Length: %d\r\n\r\n" % len(sdp) + sdp, UDP][:step], REDIRECT]
    return [answer.replace(b"PORT", b"%d" % port) for answer in answers]


@pytest.mark.parametrize("step", range(4))
def test_server_that_leads_elsewhere(catcher: Catcher, step: int) -> None:
    """A camera that is allowed and redirects at any step, or names other hosts in its answers, leads nowhere: 0 hits."""
    with (
        answering(leading_elsewhere(step, catcher.port)) as port,
        pytest.raises(DeviceError, match="would lead elsewhere" if step < 3 else "cannot be read"),
    ):
        open_rtsp(f"rtsp://127.0.0.2:{port}/x", camera_id="yard", allow=["127.0.0.2"], stall_s=1)
    time.sleep(0.05)
    assert catcher.n_hits == 0


def test_ffmpeg_alone_would_follow(catcher: Catcher) -> None:
    """The same server leads FFmpeg, without our relay, straight to the catcher: the test above can fail."""
    with answering(leading_elsewhere(1, catcher.port)) as port, pytest.raises(av.error.InvalidDataError):
        av.open(f"rtsp://127.0.0.2:{port}/x", options={"rtsp_transport": "tcp", "timeout": "1000000"})
    time.sleep(0.05)
    assert catcher.n_hits == 1


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "nothing came for 0.5 s"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "cannot be read|not speak RTSP|nothing came|Invalid"),
        ([b"\x00\x01\x02garbage" * 50], "not speak RTSP"),
        ([b"RTSP/1.0 200 OK\r\nCSeq: {}\r\nContent-Length: 99999999\r\n\r\nx"], "announces 99999999 bytes"),
        ([b"RTSP/1.0 200 OK\r\n" + b"A: b\r\n" * 20000], "not speak RTSP"),
    ],
)
def test_servers_that_are_none(answers: list[bytes], message: str) -> None:
    """What is silent, speaks something else or floods is given up within its time, in a line."""
    with answering(answers) as port, pytest.raises(DeviceError, match=message) as found:
        open_rtsp(f"rtsp://127.0.0.2:{port}/x", camera_id="yard", allow=["127.0.0.2"], stall_s=0.5)
    assert "\n" not in str(found.value)


def test_tls(tmp_path: Path) -> None:
    """An rtsps camera must show a certificate that this machine trusts, unless somebody said otherwise."""
    with answering([OPTIONS, REDIRECT], tls=self_signed(tmp_path)) as port:
        url = f"rtsps://127.0.0.2:{port}/x"
        with pytest.raises(DeviceError, match=r"certificate verify failed.*verify_tls"):
            open_rtsp(url, camera_id="yard", allow=["127.0.0.2"], stall_s=2)
        with pytest.raises(DeviceError, match="would lead elsewhere"):
            open_rtsp(url, camera_id="yard", allow=["127.0.0.2"], stall_s=2, verify_tls=False)


def self_signed(folder: Path) -> ssl.SSLContext:
    """Return what a camera with a certificate of its own making shows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "camera")])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    signed = made.not_valid_before(day).not_valid_after(day.replace(year=2100)).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "camera.pem").write_bytes(secret + signed.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "camera.pem")
    return context


def test_names() -> None:
    """A name that nobody knows, a device that is not there and a wrong option are told."""
    with pytest.raises(DeviceError, match="its name is not known"):
        open_camera("rtsp://no-such-host.invalid/", camera_id="yard")
    with pytest.raises(UsageError, match=r"no such device; there (are|is none)"):
        open_camera("v4l2:///dev/video99", camera_id="yard")
    with pytest.raises(UsageError, match=r"option 'bitrate' of a rtsp camera; legal: small, small_fps, verify_tls"):
        open_camera("rtsp://192.168.1.1/", options={"bitrate": 5})
    with pytest.raises(UsageError, match=r"option small = 'some' of a rtsp camera; legal: \"auto\", \"keyframes\""):
        open_camera("rtsp://192.168.1.1/", options={"small": "some"})
    with pytest.raises(DeviceError, match=r"camera v4l2:///dev/null: "):
        open_camera("v4l2:///dev/null", camera_id="yard")


def test_password_on_the_command_line(tmp_path: Path) -> None:
    """A password given as an argument is seen neither in the process table nor in any output or file afterwards."""
    with answering([]) as port:
        url = f"rtsp://bob:s3cret%2Fcanary@127.0.0.2:{port}/x"
        program = "import sys; from pathlib import Path; from ingest.stream import open_rtsp\n"
        program += "try: open_rtsp(sys.argv[1], allow=['127.0.0.2'], stall_s=0.2)\n"
        program += "except Exception as error: print(error)\n"
        program += "print(Path('/proc/self/cmdline').read_text().replace(chr(0), ' '))"
        done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert "nothing came for 0.2 s" in said and f"rtsp://{19 * chr(42)}@127.0.0.2:{port}/x" in said
    assert "canary" not in said and "s3cret" not in said


def test_secrets_of_a_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A camera's password in camloop.toml stands in no message, log line or file of a recording that fails."""
    with answering([OPTIONS, REDIRECT]) as port:
        table = f'[[camera]]\nid = "yard"\nurl = "rtsp://bob:c4nary@127.0.0.2:{port}/x"\nallow = ["127.0.0.2"]\n'
        (tmp_path / "camloop.toml").write_text(table)
        monkeypatch.chdir(tmp_path)
        assert main(["record", "--camera-table", "yard"]) != 0
    said = capsys.readouterr()
    assert "would lead elsewhere" in said.err and "c4nary" not in said.out + said.err
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "camloop.toml"]
    assert not any(b"c4nary" in path.read_bytes() for path in written)
