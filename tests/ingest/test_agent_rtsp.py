"""RTSP cameras that freeze and vanish, under a real agent with its own times: RELIABILITY row 16 on a real stream."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ingest.agent_state import read_state
from tests.ingest.rtsp_rig import serving
from tests.ingest.test_agent_end_to_end import agent, children, until

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))


def camera(spool: Path, name: str) -> dict[str, object]:
    """Return what the agent says of a camera."""
    state = read_state(spool)
    found = [] if state is None else [each for each in state["cameras"] if each["id"] == name]
    return found[0] if found else {"state": None, "n_restarts": 0, "n_stalls": 0, "fps": None}


def films(spool: Path, name: str) -> bool:
    """Say whether a camera films: it runs, and its rate is known."""
    found = camera(spool, name)
    return found["state"] == "running" and found["fps"] is not None


@pytest.mark.slow
def test_a_stream_that_freezes(tmp_path: Path) -> None:
    """A frozen camera is found within 10 s and records again within 30 s of its return; its neighbour loses nothing."""
    with serving("--live", "160x120@10") as frozen, serving("--live", "160x120@10") as fine:
        text = 'store = "store"\nhost_id = "barn"\n[agent]\nspool = "spool"\npublish_s = 1\n'
        for name, server in (("frozen", frozen), ("fine", fine)):
            text += f'[[camera]]\nid = "{name}"\nurl = "{server.url}"\nallow = ["127.0.0.1"]\nsegment_s = 5\n'
        (tmp_path / "camloop.toml").write_text(text)
        spool, found_s, again_s = tmp_path / "spool", [], []
        with agent(tmp_path) as process:
            for _ in range(COUNT):
                until(lambda: all(films(spool, name) for name in ("frozen", "fine")), tmp_path)
                before = children(process.pid).get("frozen")
                frozen.freeze()
                start = time.monotonic()
                until(lambda before=before: children(process.pid).get("frozen") != before, tmp_path)  # type: ignore[misc]
                found_s.append(time.monotonic() - start)
                frozen.process.send_signal(signal.SIGCONT)
                start = time.monotonic()
                until(lambda: films(spool, "frozen"), tmp_path)
                again_s.append(time.monotonic() - start)
            state = camera(spool, "fine")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    print(
        f"{COUNT} freezes: found after {max(found_s):.1f} s, recording {max(again_s):.1f} s after the camera's return at most"
    )
    assert max(found_s) <= 10 and max(again_s) <= 30
    assert (state["n_restarts"], state["n_dropped"]) == (0, 0)
