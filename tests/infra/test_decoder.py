"""Decoders in child processes: whatever a clip does to one, the next clip goes on.

`CAMLOOP_TEST_COUNT` (1) multiplies the mutated clips, 60 each: 834 of them are 50,000 decodes.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infra.decoder import TRIES, DecoderPool
from infra.errors import MediaError, UsageError
from infra.video import Writer, probe

HERE = Path(__file__).parent
MUTANTS = 60 * int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    """A pool with small limits, whose children can import poison.py."""
    monkeypatch.syspath_prepend(str(HERE))
    with DecoderPool(n=1, memory_bytes=1_000_000_000, cpu_s=1, wall_s=60) as made:
        yield made


def test_results_come_back_with_their_arrays(pool: DecoderPool) -> None:
    """Arrays arrive whole and writable, from one long-lived child that is not this process."""
    array = np.arange(3_000_000, dtype=np.int64)
    first, second = pool.run("poison:double", array), pool.run("poison:double", array[:3])
    assert (first["twice"] == array * 2).all()
    assert second["twice"].tolist() == [0, 2, 4]
    assert first["twice"].flags.writeable
    assert first["pid"] == second["pid"] != os.getpid()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crash", "killed by SIGSEGV"),
        ("abort", "killed by SIGABRT"),
        ("leave", "exited with 7"),
        ("spin", "over 1 s of CPU time"),
        ("hog", "over 1000 MB"),
    ],
)
def test_poison_costs_one_clip(pool: DecoderPool, name: str, reason: str) -> None:
    """Crash, abort, exit, endless loop and memory: a MediaError with clip and reason after two tries; the pool goes on."""
    with pytest.raises(MediaError, match=rf"^poisoned\.mp4: decoder {reason}, 2 times"):
        pool.run(f"poison:{name}", "clips/poisoned.mp4")
    assert pool.run("poison:double", np.ones(2))["text"] == "ok"


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that sleeps for ever is killed after the wall limit, twice."""
    monkeypatch.syspath_prepend(str(HERE))
    began = time.monotonic()
    with DecoderPool(wall_s=1.0) as pool, pytest.raises(MediaError, match=r"x\.mp4: decoder over 1 s, 2 times"):
        pool.run("poison:hang", "x.mp4")
    assert time.monotonic() - began < 20


def test_a_slow_start_is_no_hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a new child takes to import its function is not counted against the clip's wall limit."""
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(1.5)\ndef length(path): return len(path)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with DecoderPool(wall_s=1.0) as pool:
        assert pool.run("slow_to_import:length", "x.mp4") == 5


def test_errors_of_the_function_are_passed_on_at_once(pool: DecoderPool) -> None:
    """Our own errors keep their class and words, others become MediaError; neither costs the child."""
    pid = pool.run("poison:double", np.ones(1))["pid"]
    with pytest.raises(MediaError, match=r"^a\.mp4: is no clip$"):
        pool.run("poison:raise_ours", "a.mp4")
    with pytest.raises(MediaError, match="KeyError: 'frame'"):
        pool.run("poison:raise_other", "a.mp4")
    with pytest.raises(MediaError, match="No module named"):
        pool.run("no_such_module:f")
    assert pool.run("poison:double", np.ones(1))["pid"] == pid


def test_streams_come_in_order_and_can_be_left(pool: DecoderPool) -> None:
    """Items arrive one by one, larger and smaller ones; a stream that is left early does not disturb the next call."""
    items = list(pool.stream("poison:count", 20, 100))
    assert [item["number"] for item in items] == list(range(20))
    assert all((item["rgb"] == item["number"]).all() for item in items)
    stream = pool.stream("poison:count", 1000, 400)
    assert next(stream)["rgb"].shape == (400, 400, 3)
    stream.close()  # type: ignore[attr-defined]
    assert [item["number"] for item in pool.stream("poison:count", 2, 10)] == [0, 1]
    assert list(pool.stream("poison:count", 0, 10)) == []


def test_a_stream_that_is_tried_again_repeats_nothing(pool: DecoderPool, tmp_path: Path) -> None:
    """A crash after three items: the second try hands over the rest; a second crash is an error after all items."""
    assert list(pool.stream("poison:count_and_crash_once", 6, str(tmp_path / "marker"))) == [0, 1, 2, 3, 4, 5]
    seen = []
    with pytest.raises(MediaError, match="SIGSEGV, 2 times"):
        seen.extend(pool.stream("poison:count_and_crash", 4))
    assert pool.run("poison:double", np.ones(1))["text"] == "ok"


def test_a_slow_reader_is_not_a_slow_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only waiting for the child counts against the wall limit."""
    monkeypatch.syspath_prepend(str(HERE))
    with DecoderPool(wall_s=2.0) as pool:
        seen = []
        for item in pool.stream("poison:count", 5, 10):
            time.sleep(0.6)
            seen.append(item["number"])
    assert seen == [0, 1, 2, 3, 4]


def test_code_does_not_come_out_of_a_decoder(pool: DecoderPool) -> None:
    """A result that would call a function here is refused."""
    with pytest.raises(MediaError, match=r"system may not come out of a decoder"):
        pool.run("poison:evil")


def test_threads_share_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads use two children at the same time; poison in one does not touch the other."""
    monkeypatch.syspath_prepend(str(HERE))
    found: list[object] = []

    def work(name: str) -> None:
        try:
            found.append(pool.run(f"poison:{name}", "x") if name == "crash" else pool.run("poison:double", np.ones(1))["text"])
        except MediaError as error:
            found.append(str(error))

    with DecoderPool(n=2) as pool:
        threads = [threading.Thread(target=work, args=(name,)) for name in ("crash", "ok", "ok", "crash", "ok")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(map(str, found))[:3] == ["ok", "ok", "ok"]
    assert sum("SIGSEGV" in str(text) for text in found) == 2


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no decoder behind, not even a hanging one."""
    script = (
        "import sys, threading, time; sys.path.insert(0, sys.argv[1]); import numpy as np\n"
        "from infra.decoder import TRIES, DecoderPool\n"
        "pool = DecoderPool(); print(pool.run('poison:double', np.ones(1))['pid'], flush=True); pool.run('poison:hang', 'x')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(HERE)], stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1])
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(50):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0]:
            return
        time.sleep(0.1)
    pytest.fail(f"decoder {child} outlived its parent")


def test_probe_through_the_pool_is_probe(pool: DecoderPool, tmp_path: Path) -> None:
    """Records such as Probe come back as themselves; limits are checked."""
    with Writer(tmp_path / "clip.mp4", 32, 32, Fraction(1, 25)) as writer:
        for k in range(10):
            writer.add(np.full((32, 32, 3), 20 * k, np.uint8), k)
    assert pool.run("infra.video:probe", tmp_path / "clip.mp4") == probe(tmp_path / "clip.mp4")
    with pytest.raises(UsageError, match="above 0"):
        DecoderPool(n=0)


def refusals(pool: DecoderPool, clip: Path, rng: np.random.Generator, n: int) -> list[str]:
    """Probe and decode `n` mutants of an mp4 of 64 x 48 px whose bytes were changed or cut out; return what was refused."""
    data, mutant, refused = clip.read_bytes(), clip.with_name("mutant.mp4"), []
    for number in range(n):
        changed = bytearray(data)
        at = int(rng.integers(len(data) - 300)) if number % 3 else int(rng.integers(data.index(b"moov"), len(data) - 300))
        if number % 2:
            changed[at : at + int(rng.integers(1, 200))] = b""
        else:
            changed[at : at + 4] = rng.bytes(4)
        mutant.write_bytes(changed)
        try:
            pool.run("infra.video:probe", mutant)
            for frames in pool.stream("infra.video:decode", mutant):
                assert frames.rgb.ndim == 4 and frames.rgb.shape[3] == 3  # one in some 20,000 has another size, and says so
        except MediaError as error:
            refused.append(str(error))
    return refused


def test_mutated_clips_never_pass_for_a_crash(tmp_path: Path) -> None:
    """Bytes changed or cut out anywhere: probe and a full decode end in a result or a MediaError, within limits.

    This process stands for the worker: it is still here at the end. A child that a mutant kills is a clip with a reason.
    """
    path, rng = tmp_path / "clip.mp4", np.random.default_rng(7)
    with Writer(path, 64, 48, Fraction(1, 25), gop_s=0.4) as writer:
        for k in range(40):
            writer.add(rng.integers(0, 255, (48, 64, 3), np.uint8), k)
    with DecoderPool(wall_s=30) as pool:
        refused = refusals(pool, path, rng, MUTANTS)
        assert pool.run("infra.video:probe", path) == probe(path)
    assert all("mutant.mp4" in reason for reason in refused)
    assert MUTANTS / 3 < len(refused) < MUTANTS
    n_deaths = sum(f"{TRIES} times" in reason for reason in refused)
    print(f"{MUTANTS} mutants decoded: {len(refused)} refused, {n_deaths} of them after {TRIES} deaths of their child")


def test_a_pool_that_nobody_closed_leaves_nothing() -> None:
    """Its child and its file descriptors go with it, so that a process that makes pool after pool does not run out."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert DecoderPool().run("math:sqrt", 4.0) == 2.0
        gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
