"""After a pulled plug: what was written of an open segment becomes a clip that says so, and nothing torn becomes one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from infra.errors import MediaError
from infra.remux import readable_bytes
from infra.video import decode, probe
from ingest.recorder import Recorder
from ingest.salvage import draft_path
from ingest.source import SALVAGED, SourceFrame
from ingest.spool import Spool
from tests.ingest.encoded import EncodedCamera, annex_b, frames

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))


class Cut(BaseException):
    """The plug was pulled."""


def unfinished_segment(folder: Path, n_frames: int = 60) -> tuple[Path, Path]:
    """Record, pull the plug before the end, and return (file, draft) as they lie on the disk."""
    with Spool(folder) as spool:
        recorder = Recorder(EncodedCamera(frames(n_frames)), spool)
        recorder._finish = lambda segment: (_ for _ in ()).throw(Cut)  # type: ignore[method-assign, assignment]
        with pytest.raises(Cut):
            recorder.record()
        (draft,) = spool.recording.glob("*.start.json")
        (path,) = spool.recording.glob("*.mp4")
    return path, draft


def check_salvaged(spool: Spool, sent: list[bytes]) -> int:
    """Check that the spool's one clip is a beginning of what was sent, and return how many frames it has."""
    (clip,) = spool.pending()
    found = [data for data, *_ in annex_b(clip.path)]
    assert found == sent[: len(found)]
    shape = probe(clip.path)
    assert shape.n_frames == len(found) == len(clip.sidecar.sensor_ns) == sum(len(b.pts) for b in decode(clip.path))
    assert clip.sidecar.salvaged and clip.sidecar.gaps[-1].cause == SALVAGED
    assert clip.sidecar.start_mono_ns == clip.sidecar.sensor_ns[0] == 5_000_000_000
    assert all(abs(ns - 5_000_000_000 - n * 100_000_000) < 12_000 for n, ns in enumerate(clip.sidecar.sensor_ns))
    assert not list(spool.recording.glob(".tmp-*"))
    return len(found)


def test_cut_at_any_byte(tmp_path: Path) -> None:
    """An open segment cut at any length gives its whole fragments as a clip, or nothing."""
    path, draft = unfinished_segment(tmp_path / "made")
    sent = [frame.data for frame in frames(60)]
    whole = path.read_bytes()
    chosen = sorted({0, 7, 8, len(whole) - 1, len(whole), *random.Random(3).sample(range(len(whole)), 8 * COUNT)})
    found = []
    for n_bytes in chosen:
        folder = tmp_path / f"cut-{n_bytes}"
        with Spool(folder) as spool:
            (spool.recording / path.name).write_bytes(whole[:n_bytes])
            shutil.copy(draft, spool.recording / draft.name)
            recorded = Recorder(EncodedCamera([]), spool).record()
            assert recorded.n_salvaged == len(spool.pending())
            found.append(check_salvaged(spool, sent) if spool.pending() else 0)
            assert not list(spool.recording.glob(".tmp-*"))
        shutil.rmtree(folder)
    assert found == sorted(found) and found[0] == 0 and found[-1] >= 40


def test_readable_part(tmp_path: Path) -> None:
    """At each of 60 lengths the readable part is whole fragments: more of it in a longer file."""
    path, _ = unfinished_segment(tmp_path / "made")
    whole, before = path.read_bytes(), 0
    for n_bytes in sorted(random.Random(4).sample(range(2000, len(whole)), 60 * COUNT)):
        path.write_bytes(whole[:n_bytes])
        try:
            kept, times = readable_bytes(path)
        except MediaError:
            assert not before
            continue
        assert kept <= n_bytes and len(times) >= before and len(times) % 10 == 0
        before = len(times)
    assert before >= 40


def test_zeros_where_data_should_be(tmp_path: Path) -> None:
    """A file that is long enough but holds zeros from somewhere on is cut before the fragment that they begin in."""
    path, _ = unfinished_segment(tmp_path / "made")
    whole = path.read_bytes()
    n_whole = len(readable_bytes(path)[1])
    for n_good in range(len(whole) // 2, len(whole), len(whole) // 12):
        path.write_bytes(whole[:n_good] + bytes(len(whole) - n_good))
        n_bytes, times = readable_bytes(path)
        assert n_bytes <= n_good and 0 < len(times) < n_whole
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(MediaError, match="cut off before its first frames"):
        readable_bytes(path)


def test_pictures(tmp_path: Path) -> None:
    """Pictures that are encoded here survive as far as their last whole group, too; what is replayed is not salvaged."""
    rgb = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    with Spool(tmp_path / "spool") as spool:
        source = PictureCamera([SourceFrame(rgb, n * 10**8, n) for n in range(45)], Cut())
        recorder = Recorder(source, spool, gop_s=1)
        recorder._finish = lambda segment: (_ for _ in ()).throw(Cut)  # type: ignore[method-assign, assignment]
        with pytest.raises(Cut):
            recorder.record()
    for is_replay, n_salvaged in ((False, 1), (True, 0)):
        shutil.copytree(tmp_path / "spool", tmp_path / f"{is_replay}")
        with Spool(tmp_path / f"{is_replay}") as spool:
            again = PictureCamera([], None)
            again.is_replay = is_replay
            assert Recorder(again, spool).record().n_salvaged == n_salvaged
            kept = [len(clip.sidecar.sensor_ns) for clip in spool.pending()]  # the encoder itself holds some frames back
            assert len(kept) == n_salvaged and set(kept) <= {30, 40}
            assert [entry.seq for entry in spool.ledger.entries()] == [0] * (1 - n_salvaged)


class PictureCamera(EncodedCamera):
    """The same camera, sending pictures."""

    is_replay = False

    def __init__(self, frames: list[SourceFrame], end: BaseException | None) -> None:
        super().__init__(frames, end)  # type: ignore[arg-type]


def test_draft_without_file(tmp_path: Path) -> None:
    """A recorder that died before it began its file leaves a draft only; it goes, and nothing comes of it."""
    path, _ = unfinished_segment(tmp_path / "spool")
    path.unlink()
    with Spool(tmp_path / "spool") as spool:
        assert Recorder(EncodedCamera([]), spool).record().n_salvaged == 0
        assert not list(spool.recording.glob(".tmp-*"))


def test_another_cameras_file_stays(tmp_path: Path) -> None:
    """A camera whose name begins like mine is not mine."""
    path, draft = unfinished_segment(tmp_path / "spool")
    other = path.with_name(path.name.replace("cam1-", "cam1-b-"))
    path.rename(other)
    draft.rename(draft_path(other))
    with Spool(tmp_path / "spool") as spool:
        assert Recorder(EncodedCamera([]), spool).record().n_salvaged == 0
        assert other.exists() and draft_path(other).exists()


CHILD = """
import sys, time
from pathlib import Path
from ingest.recorder import Recorder
from ingest.spool import Spool
from tests.ingest.encoded import EncodedCamera, frames

class Slow(EncodedCamera):
    def __iter__(self):
        for frame in self.frames:
            time.sleep(0.005)
            yield frame

with Spool(Path(sys.argv[1])) as spool:
    sent = frames(300)
    print("ready", flush=True)
    Recorder(Slow(sent), spool, segment_s=600).record()
"""


@pytest.mark.parametrize("number", range(COUNT))
def test_kill_9(tmp_path: Path, number: int) -> None:
    """A recorder that is killed loses at most the last fragment, two seconds of film; the next one makes a clip of the rest."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "spool")], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    time.sleep(0.5 + random.Random(number).random() / 2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with Spool(tmp_path / "spool") as spool:
        recorded = Recorder(EncodedCamera([]), spool).record()
        assert recorded.n_salvaged == 1
        assert check_salvaged(spool, [frame.data for frame in frames(300)]) >= 40
