"""Small files that ask for much end as a result or a `MediaError`, in seconds, within a worker's memory."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from infra.decoder import DecoderPool
from infra.errors import MediaError
from tests.infra import bombs

LIMIT_S, LIMIT_BYTES = 20.0, 1_500_000_000
SIZES_PX = {"detect_rgb": 64}


def peak_of(stop: threading.Event, found: list[int]) -> None:
    """Note the largest resident memory of a child of this process."""
    me = psutil.Process()
    while not stop.wait(0.02):
        for child in me.children(recursive=True):
            try:
                found[0] = max(found[0], child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue


@pytest.mark.slow
def test_the_corpus(tmp_path: Path) -> None:
    """Each of about sixty files: at most 20 s and 1.5 GB in two tries, pictures of its own only, nothing called or written."""
    called: list[tuple[str, int]] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        stop, largest, slowest = threading.Event(), [0], (0.0, "")

        def listen() -> None:
            while not stop.is_set():
                try:
                    connection, address = server.accept()
                except TimeoutError:
                    continue
                called.append(address)
                connection.close()

        threads = [threading.Thread(target=listen), threading.Thread(target=peak_of, args=(stop, largest))]
        for thread in threads:
            thread.start()
        (tmp_path / "scratch").mkdir()
        outcomes: dict[str, str] = {}
        try:
            with DecoderPool(cpu_s=LIMIT_S / 2, wall_s=LIMIT_S / 2) as pool:
                for name, data in bombs.corpus(tmp_path / "scratch", server.getsockname()[1]):
                    path = tmp_path / name
                    path.write_bytes(data)
                    start_s = time.monotonic()
                    try:
                        truth = pool.run("infra.video:probe", path)
                        how = {"index": truth.index, "every_s": 1.0, "sizes_px": SIZES_PX}
                        parts = list(pool.stream("curate.scan:scan_clip", path, **how))
                        outcomes[name] = f"{truth.n_frames} frames"
                        assert len(parts[-1]["gops"]) >= 1
                    except MediaError as error:
                        outcomes[name] = str(error)
                        assert name in str(error)
                    slowest = max(slowest, (time.monotonic() - start_s, name))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert len(outcomes) >= 55
    assert slowest[0] < 2 * LIMIT_S, slowest  # probe and scan, each at most two tries of ten seconds
    assert largest[0] < LIMIT_BYTES
    assert called == []
    lead_elsewhere = (
        "concat.mp4",
        "playlist.mp4",
        "hls.mp4",
        "dash.mp4",
        "session.mp4",
        "image.mp4",
        "empty.mp4",
        "outside.tar",
    )
    assert [name for name in lead_elsewhere if outcomes[name].endswith(" frames")] == []
    assert not Path("/tmp/escaped.png").exists() and not list(tmp_path.parent.glob("escaped.png"))
    print(f"{len(outcomes)} files, slowest {slowest[1]} {slowest[0]:.1f} s, largest {largest[0] / 1e6:.0f} MB")
    for name, outcome in outcomes.items():
        print(f"  {name}: {outcome[:120]}")
