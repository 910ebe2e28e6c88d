"""Small files that ask for much: gigapixel pictures, a billion frames, a hundred streams, boxes in boxes, other files."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def clip(
    path: Path, *, container: str, codec: str, n: int = 10, rate: int = 10, side_px: int = 64, n_streams: int = 1
) -> bytes:
    """Return a small honest clip of noise."""
    rng = np.random.default_rng(n)
    with av.open(str(path), "w", format=container) as out:
        streams: list[Any] = [out.add_stream(codec, rate=rate) for _ in range(n_streams)]
        for stream in streams:
            stream.width = stream.height = side_px
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.time_base = Fraction(1, rate)
        for number in range(n):
            picture = av.VideoFrame.from_ndarray(rng.integers(0, 255, (side_px, side_px, 3), np.uint8), format="rgb24")
            for stream in streams:
                frame = picture.reformat(format=stream.pix_fmt)
                frame.pts = number
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode())
    return path.read_bytes()


def png(width: int, height: int) -> bytes:
    """Return a black PNG of any size: 16,384 x 16,384 take 260 KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + width * 3)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def tar_of(members: Iterator[tuple[str, bytes]]) -> bytes:
    """Return a tar of members."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def replaced(data: bytes, pattern: bytes, *parts: bytes | int) -> bytes:
    """Return `data` with what a pattern finds replaced by bytes and by its own groups; it must find something."""

    def put(found: re.Match[bytes]) -> bytes:
        return b"".join(found[part] if isinstance(part, int) else part for part in parts)

    changed, n = re.subn(pattern, put, data, flags=re.DOTALL)
    assert n, pattern
    return changed


def nested(kind: bytes, depth: int) -> bytes:
    """Return boxes in boxes."""
    made = b""
    for _ in range(depth):
        made = (
            struct.pack(">I", 8 + len(made)) + kind + made
            if len(made) < 1 << 16
            else struct.pack(">I", len(made) + 8) + kind + made
        )
    return made


def corpus(folder: Path, port: int) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of about sixty files.

    Args:
        folder: for scratch files; one of them, `secret.mp4`, is a clip that no other file may lead to.
        port: where a server listens that nothing may call.
    """
    mp4 = clip(folder / "a.mp4", container="mp4", codec="libx264", n=30)
    mjpeg = clip(folder / "a.avi", container="avi", codec="mjpeg")
    mpeg4 = clip(folder / "b.avi", container="avi", codec="mpeg4")
    mkv = clip(folder / "a.mkv", container="matroska", codec="mpeg4")
    (folder / "secret.mp4").write_bytes(mp4)
    yield "empty.mp4", b""
    yield "zeros.mp4", bytes(4096)
    yield "ftyp-only.mp4", mp4[:32]
    yield "2000-fps.mp4", clip(folder / "fast.mp4", container="mp4", codec="mpeg4", n=1000, rate=2000, side_px=16)
    yield "100-streams.mkv", clip(folder / "many.mkv", container="matroska", codec="mpeg4", n=2, n_streams=100, side_px=16)
    yield "5000-frames.mp4", clip(folder / "long.mp4", container="mp4", codec="mpeg4", n=5_000, side_px=16)
    for count in (10**6, 2**31 - 1, 2**32 - 1):
        four, two = struct.pack(">I", count), struct.pack(">II", 1, count)
        yield f"stsz-{count}.mp4", replaced(mp4, rb"stsz(.{4}).{8}", b"stsz", 1, two)
        yield f"stts-{count}.mp4", replaced(mp4, rb"stts(.{4}).{4}(.{4})", b"stts", 1, four, 2)
        yield f"stsc-{count}.mp4", replaced(mp4, rb"stsc(.{4}).{4}", b"stsc", 1, four)
        yield f"delta-{count}.mp4", replaced(mp4, rb"stts(.{12}).{4}", b"stts", 1, four)
    for box in (b"moov", b"trak", b"udta", b"meta"):
        yield f"deep-{box.decode()}.mp4", mp4[:32] + nested(box, 5_000)
    for side in (16_384, 65_500):
        big, little = struct.pack(">HH", side, side), struct.pack("<II", side, side)
        yield f"jpeg-{side}.avi", replaced(mjpeg, rb"\xff\xc0(.{3}).{4}", b"\xff\xc0", 1, big)
        yield f"avi-{side}.avi", replaced(mpeg4, rb"strf(.{8}).{8}", b"strf", 1, little)
        yield f"tkhd-{side}.mp4", replaced(mp4, rb"avc1(.{24}).{4}", b"avc1", 1, big)
    yield "png-16384.tar", tar_of(iter([("000000.png", png(16_384, 16_384)), ("000001.png", png(16_384, 16_384))]))
    yield "png-8192.tar", tar_of(iter([("000000.png", png(8192, 8192)), ("000001.png", png(8192, 8192))]))
    yield "60000-members.tar", tar_of((f"{number:06}.jpg", b"") for number in range(60_000))
    yield "outside.tar", tar_of(iter([("../../escaped.png", png(8, 8)), ("/tmp/escaped.png", png(8, 8))]))
    for size in (2**31, 2**40, 2**62):
        yield f"box-{size}.mp4", mp4[:32] + struct.pack(">I", 1) + b"mdat" + struct.pack(">Q", size) + mp4[32:]
    yield "segment-size.mkv", replaced(mkv, rb"\x18\x53\x80\x67.{8}", b"\x18\x53\x80\x67\x01" + b"\xff" * 7)
    for name, text in {
        "concat.mp4": f"ffconcat version 1.0\nfile {folder}/secret.mp4\n", "playlist.mp4": f"#EXTM3U\n#EXTINF:1,\nfile://{folder}/secret.mp4\n",
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>',
        "session.mp4": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 26\n",
        "image.mp4": f"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:{port}/'/></svg>",
    }.items():  # fmt: skip
        yield name, text.encode()
    rng = np.random.default_rng(5)
    for source, data in (("mp4", mp4), ("avi", mpeg4), ("mkv", mkv)):
        for number in range(5):
            yield f"cut-{number}.{source}", data[: int(rng.integers(1, len(data)))]
