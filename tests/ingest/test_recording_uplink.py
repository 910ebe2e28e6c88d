"""On a slow link a stream's clips are cut so small that one is sent within a minute."""

from __future__ import annotations

import pytest

from infra.clock import FakeClock
from ingest import uplink
from ingest.recording import Wish, record
from ingest.spool import Spool
from ingest.take import Stop
from ingest.uplink import Uplink, write_uplink
from tests.ingest.encoded import EncodedCamera, frames


@pytest.mark.parametrize(("bytes_per_s", "n_clips"), [(1.0, 3), (5e6, 1), (None, 1)])
def test_a_slow_link_makes_small_clips(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, bytes_per_s: float | None, n_clips: int
) -> None:
    """Three seconds with a keyframe each are three clips on a link of one byte a second, one on a fast or unknown one."""
    monkeypatch.setattr(uplink, "LEAST_SEGMENT_BYTES", 1)
    monkeypatch.setattr(uplink, "CLIP_WITHIN_S", 1.0)
    if bytes_per_s is not None:
        write_uplink(spool.folder, Uplink(bytes_per_s=bytes_per_s))
    made = record(EncodedCamera(frames(30)), spool, Wish(follows_uplink=True), stop=Stop(), clock=FakeClock())
    assert (made.n_clips, made.n_frames) == (n_clips, 30)
