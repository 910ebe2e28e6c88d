"""The uploader of an agent: waits for clips, obeys hours and allowances, carries documents, fills sticks, stays small."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import keys
from infra.clock import FakeClock
from infra.console import Context, Output
from infra.errors import StoreError, StoreForbidden, UsageError
from infra.objects import ResumeLog, Stat, UploadNote
from infra.records import Sidecar
from infra.sequence import audit, delivered_in, pages_in
from infra.settings import Settings
from infra.store import DirStore, MemoryStore
from ingest import cli_upload
from ingest.errands import Errands
from ingest.recorder import Recorder
from ingest.schedule import UploadSettings
from ingest.source import open_source
from ingest.spool import Spool
from ingest.transfer import Retry, resume_path
from ingest.uplink import read_uplink
from ingest.uploader import Uploader, upload, watch
from ingest.watchdog import Heartbeat, read_beats

MakeClip = Callable[..., tuple[Path, Sidecar]]
NIGHT = UploadSettings(hours=("22:00-06:00",), time_zone="UTC")
NOON_NS, EVENING_NS = 1_767_268_800_000_000_000, 1_767_306_600_000_000_000  # 2026-01-01 12:00 and 22:30 UTC


def fill(spool: Spool, make_clip: MakeClip, *numbers: int) -> list[Sidecar]:
    """Adopt clips and return their sidecars."""
    made = [make_clip(number) for number in numbers]
    for path, sidecar in made:
        spool.adopt(path, sidecar)
    return [sidecar for _, sidecar in made]


def stored(store: MemoryStore | DirStore, prefix: str = "clips/") -> set[str]:
    """Return the clips' keys."""
    return {stat.key for stat in store.list(prefix) if not stat.key.endswith(".json")}


def run_command(*argv: str, settings: Settings | None = None) -> tuple[int, dict[str, object]]:
    """Run `camloop upload` and return its exit code and document."""
    parser = argparse.ArgumentParser()
    cli_upload.upload(parser)
    arguments, printed = parser.parse_args(argv), io.StringIO()
    context = Context(settings=settings or Settings(), out=Output(as_json=True, quiet=True, stdout=printed))
    code = int(arguments.run(arguments, context))
    return code, json.loads(printed.getvalue())


class TestWatch:
    def test_signs_of_life(self, spool: Spool, make_clip: MakeClip) -> None:
        """An uploader says in its turns and between its bytes that it is alive."""
        reading, writing = os.pipe2(os.O_NONBLOCK)
        clock = FakeClock()
        stop, store = cli_upload._Stop(Heartbeat(writing, clock)), MemoryStore()
        fill(spool, make_clip, 0)

        def after_a_pass() -> None:
            clock.advance_s(60)
            stop.set()

        watch(spool, store, settings=UploadSettings(), host_id="pi", stop=stop, between=after_a_pass, poll_s=0)
        beats, _ = read_beats(os.read(reading, 1 << 16))
        assert len(beats) >= 2 and all(beat.is_busy for beat in beats) and len(stored(store)) == 1
        for fd in (reading, writing):
            os.close(fd)

    def test_clips_that_come(self, spool: Spool, make_clip: MakeClip) -> None:
        """What is adopted while it runs arrives within seconds; an outage only rests it; a stop ends it."""

        class Down(MemoryStore):
            failures = 2

            def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
                if self.failures:
                    self.failures -= 1
                    raise StoreError("store memory:// cannot be reached at nowhere")
                return super().put_file_if_absent(key, path, sha256=sha256, resume=resume)

        store, stop = Down(), threading.Event()
        fill(spool, make_clip, 0)

        def rest(seconds: float | None = None) -> bool:
            time.sleep(0.01)
            return threading.Event.is_set(stop)

        stop.wait = rest  # type: ignore[method-assign]
        settings = UploadSettings(tries=1)
        with Spool(spool.folder) as other:
            thread = threading.Thread(
                target=lambda: watch(other, store, settings=settings, host_id="pi", stop=stop, rng=random.Random(1))
            )
            thread.start()
            deadline = time.monotonic() + 20
            while len(stored(store)) < 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            fill(spool, make_clip, 1, 2)
            while spool.counts() != {"done": 3} and time.monotonic() < deadline:
                time.sleep(0.02)
            stop.set()
            thread.join(10)
        assert spool.counts() == {"done": 3} and len(stored(store)) == 3
        uplink = read_uplink(spool.folder)
        assert uplink is not None and uplink.last_success_ns is not None

    def test_hours(self, spool: Spool, make_clip: MakeClip) -> None:
        """Outside the hours nothing goes, not even a question, and the agent is told why; in them everything does."""
        store, clock = MemoryStore(), FakeClock(now_ns=NOON_NS)
        fill(spool, make_clip, 0, 1)
        assert upload(spool, store, settings=NIGHT, retry=Retry(clock=clock)).n_clips == 0
        assert list(store.list()) == []
        uplink = read_uplink(spool.folder)
        assert uplink is not None and not uplink.is_open and "opens in 600 min" in str(uplink.reason)
        clock.jump_to_ns(EVENING_NS)
        assert upload(spool, store, settings=NIGHT, retry=Retry(clock=clock)).n_clips == 2

    def test_hours_end_in_the_middle(self, spool: Spool, make_clip: MakeClip) -> None:
        """A clip under way when the hours end is no failure: it waits for them to come again."""
        clock = FakeClock(now_ns=EVENING_NS)

        class Slow(MemoryStore):
            def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
                assert resume is not None and resume.on_bytes is not None
                for _ in range(10):
                    clock.advance_s(3600)
                    resume.on_bytes(2000)
                return super().put_file_if_absent(key, path, sha256=sha256, resume=resume)

        fill(spool, make_clip, 0)
        result = upload(spool, Slow(), settings=NIGHT, retry=Retry(clock=clock))
        assert result.n_clips == 0 and spool.counts() == {"pending": 1}

    def test_metered(self, spool: Spool, make_clip: MakeClip) -> None:
        """A metered day holds across restarts of the uploader; the next day goes on."""
        store, clock = MemoryStore(), FakeClock(now_ns=NOON_NS)
        fill(spool, make_clip, *range(6))
        settings = UploadSettings(metered_bytes_per_day=45_000, time_zone="UTC", connections=1)
        sent = [upload(spool, store, settings=settings, retry=Retry(clock=clock)).n_clips for _ in range(3)]
        assert sum(sent) == 2
        clock.jump_to_ns(NOON_NS + 86_400 * 10**9)
        assert upload(spool, store, settings=settings, retry=Retry(clock=clock)).n_clips == 2

    def test_one_bad_clip_does_not_stop_the_others(self, spool: Spool, make_clip: MakeClip) -> None:
        """A clip that the store refuses for a reason of its own waits behind all others."""

        class Picky(MemoryStore):
            def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
                if key == keys.clip_key("cam1", sidecars[0].clip_id, "mp4"):
                    raise StoreForbidden("not this one")
                return super().put_file_if_absent(key, path, sha256=sha256, resume=resume)

        sidecars = fill(spool, make_clip, *range(5))
        with pytest.raises(StoreError, match="not this one; 4 clips delivered, 1 wait"):
            upload(spool, Picky(), retry=Retry(max_tries=1, clock=FakeClock()))

    def test_sigterm_and_size(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """`camloop upload --watch` delivers into a folder, imports neither numpy nor av, stays under 80 MB, ends on SIGTERM."""
        with Spool(tmp_path / "spool") as spool:
            fill(spool, make_clip, 0, 1, 2)
        code = (
            "import sys, infra.cli, atexit, infra.s3\n"
            "atexit.register(lambda: print(sorted({'av', 'numpy', 'pyarrow', 'onnxruntime'} & set(sys.modules)), flush=True))\n"
            "sys.exit(infra.cli.main(sys.argv[1:]))"
        )
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
        child = subprocess.Popen(
            [sys.executable, "-c", code, "upload", "spool", "--watch", "--store", "store"],
            cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        store, deadline = DirStore(tmp_path / "store"), time.monotonic() + 30
        while len(stored(store)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        status = Path(f"/proc/{child.pid}/status").read_text()
        child.send_signal(signal.SIGTERM)
        printed, _ = child.communicate(timeout=20)
        assert child.returncode == 0 and printed.strip() == "[]"
        peak_kb = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        assert peak_kb < 80_000
        with Spool(tmp_path / "spool") as spool:
            assert spool.counts() == {"done": 3}


class TestErrands:
    def test_documents(self, spool: Spool, make_clip: MakeClip) -> None:
        """Ledger pages and health documents arrive under their keys, once."""
        store = MemoryStore()
        seq = spool.reserve("cam1", "boot")
        spool.forfeit("cam1", "boot", seq, "the disk was full")
        folder = spool.folder / "health" / "boot"
        folder.mkdir(parents=True)
        (folder / "00000007.json").write_bytes(b'{"n": 7}')
        (folder / ".tmp-1-abc").write_bytes(b"half")
        result = upload(spool, store, host_id="pi", retry=Retry(clock=FakeClock()))
        assert result.n_documents == 2
        assert store.get("health/pi/boot/00000007.json") == b'{"n": 7}'
        (page,) = store.list("ledger/")
        assert b"the disk was full" in store.get(page.key)
        assert upload(spool, store, host_id="pi", retry=Retry(clock=FakeClock())).n_documents == 0
        assert [path.name for path in folder.iterdir()] == [".tmp-1-abc"]

    def test_one_run_tells_how_far_the_numbers_went(self, tmp_path: Path) -> None:
        """After one `upload` of a finished recording the store alone can prove that its last clip was taken away."""
        store = MemoryStore()
        with Spool(tmp_path / "numbered") as spool:
            Recorder(open_source("sim://7/harbour1-hall?seconds=3"), spool, segment_s=1, gop_s=1).record()
            assert upload(spool, store, host_id="pi", retry=Retry(clock=FakeClock())).n_clips == 3
        assert audit(delivered_in(store), pages_in(store)).n_missing == 0
        last = max(stored(store), key=lambda key: Sidecar.from_json(store.get(keys.sidecar_key(key))).seq)
        store.delete(last)
        store.delete(keys.sidecar_key(last))
        assert audit(delivered_in(store), pages_in(store)).n_missing == 1

    def test_orphans(self, spool: Spool, make_clip: MakeClip) -> None:
        """Uploads in parts are given up when their clip waits no more, or when nobody has remembered them for a day."""
        clock, given_up = FakeClock(), list[str]()
        (sidecar,) = fill(spool, make_clip, 0)
        key = keys.clip_key("cam1", sidecar.clip_id, "mp4")

        class Parts(MemoryStore):
            def unfinished(self, prefix: str = ""):  # type: ignore[no-untyped-def, override]
                from infra.objects import Unfinished

                day_ns = 86_400 * 10**9
                for name, age_ns in (("ours", 2 * day_ns), ("young", day_ns // 2), ("orphan", 2 * day_ns)):
                    yield Unfinished(key, name, clock.now_ns() - age_ns)

            def abandon(self, key: str, upload_id: str) -> None:
                given_up.append(upload_id)

        store = Parts()
        note = UploadNote(url=store.url, key=key, upload_id="ours", token="t", sha256="s", n_bytes=1, part_bytes=5 << 20)
        ResumeLog(resume_path(spool.folder, sidecar.clip_id)).save(note)
        gone = ResumeLog(resume_path(spool.folder, "gone"))
        gone.save(dataclasses.replace(note, upload_id="of a clip that was given up"))
        Errands(spool, store, Retry(clock=clock), "pi", keep=False).sweep()
        assert given_up == ["of a clip that was given up", "orphan"]
        assert gone.load() is None


class TestStick:
    def test_two_sticks_and_ingest(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """Copied twice and from two cards, every clip is on the sticks and stays here, nothing doubles; --free deletes it."""
        spool_folder, sticks = tmp_path / "spool", [tmp_path / "stick1", tmp_path / "stick2"]
        with Spool(spool_folder) as spool:
            sidecars = fill(spool, make_clip, 0, 1)
        for stick in sticks:
            stick.mkdir()
        for stick in (*sticks, sticks[0]):
            code, said = run_command(str(spool_folder), "--to", str(stick))
            assert code == 0 and said["n_clips"] == 2 and said["spool"] == {"pending": 2}
        wanted = {keys.clip_key("cam1", sidecar.clip_id, "mp4") for sidecar in sidecars}
        assert stored(DirStore(sticks[0])) == stored(DirStore(sticks[1])) == wanted
        code, said = run_command(str(spool_folder), "--to", str(sticks[0]), "--free")
        assert code == 0 and said["spool"] == {"done": 2}
        assert list((spool_folder / "clips").iterdir()) == []

    def test_the_agents_spool(self, tmp_path: Path, make_clip: MakeClip) -> None:
        """Without a name, the spool is the one that `[agent]` names; without that, ./camloop-spool."""
        with Spool(tmp_path / "of-the-agent") as spool:
            fill(spool, make_clip, 0)
        (tmp_path / "stick").mkdir()
        settings = Settings(toml={"agent": {"spool": str(tmp_path / "of-the-agent")}})
        code, said = run_command("--to", str(tmp_path / "stick"), settings=settings)
        assert code == 0 and said["n_clips"] == 1
        with pytest.raises(UsageError, match="camloop-spool: no such folder"):
            run_command("--to", str(tmp_path / "stick"))

    def test_fat(self, tmp_path: Path, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
        """A card with a FAT file system has no hard links: put-if-absent is a rename that replaces nothing."""

        def none(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", none)
        store = DirStore(tmp_path / "stick")
        assert store.capabilities().put_if_absent
        with Spool(tmp_path / "spool") as spool:
            fill(spool, make_clip, 0, 1)
            assert upload(spool, store, keep=True).n_clips == 2
            assert upload(spool, store).n_clips == 2
        assert len(stored(store)) == 2
        assert list(store.path.rglob(".tmp-*")) == []

    def test_bad_sticks(self, tmp_path: Path, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stick that is not mounted, is read-only or full: one line, nothing lost."""
        with Spool(tmp_path / "spool") as spool:
            fill(spool, make_clip, 0)
        with pytest.raises(UsageError, match="no such folder; mount the stick first"):
            run_command(str(tmp_path / "spool"), "--to", str(tmp_path / "gone"))
        (tmp_path / "stick").mkdir()
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(StoreError, match="read-only; unlock"):
            run_command(str(tmp_path / "spool"), "--to", str(tmp_path / "stick"))
        monkeypatch.undo()

        def full(fd: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StoreError, match=r"No space left on device.*1 wait"):
            run_command(str(tmp_path / "spool"), "--to", str(tmp_path / "stick"), "--free")
        monkeypatch.undo()
        with Spool(tmp_path / "spool") as spool:
            assert spool.counts() == {"pending": 1}

    @pytest.mark.parametrize(
        ("argv", "message"),
        [(["--watch", "--to", "x"], "a stick is filled once"), (["--free"], "--free goes with --to DIR")],
    )
    def test_wrong_use(self, argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Options that contradict each other are refused."""
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match=message):
            run_command("spool", *argv)


def test_locks(spool: Spool) -> None:
    """An uploader that ended holds nothing."""
    Uploader(spool, MemoryStore(), UploadSettings()).close()
    with spool.locked("upload"):
        pass
