"""What the uploader has measured of its link, where the recorders and the agent can read it: `<spool>/uplink.json`.

The uploader writes it when something changed enough to matter, at most once a minute. On a slow link a recorder cuts its
clips so small that one is sent within `CLIP_WITHIN_S`: a link that drops every few minutes then still brings whole clips.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from infra import durable

FILE_NAME = "uplink.json"
CLIP_WITHIN_S = 60.0
LEAST_SEGMENT_BYTES = 256 << 10
FAST_BYTES_PER_S = 2.0e6  # from here on the clip's length alone decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """The link as the uploader sees it.

    Attributes:
        last_success_ns: UTC of the last object delivered; None: none yet.
        bytes_per_s: measured while sending; None: not yet.
        is_open: whether the hours and the kind of link allow sending now.
        reason: why it does not send, or what failed last, in words.
        clock_offset_s: how far the store's clock is ahead of this host's; None: the store never complained.
    """

    last_success_ns: int | None = None
    bytes_per_s: float | None = None
    is_open: bool = True
    reason: str | None = None
    clock_offset_s: float | None = None


def write_uplink(spool: Path, uplink: Uplink) -> None:
    """Leave what was measured.

    Raises:
        OSError: the disk refuses.
    """
    durable.write(spool / FILE_NAME, json.dumps(asdict(uplink)).encode())


def read_uplink(spool: Path) -> Uplink | None:
    """Return what the uploader measured last, None where it never did."""
    try:
        return Uplink(**json.loads((spool / FILE_NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def max_segment_bytes(uplink: Uplink | None) -> int | None:
    """Return how large a clip may be on this link, None where it may be of any size."""
    if uplink is None or uplink.bytes_per_s is None or uplink.bytes_per_s >= FAST_BYTES_PER_S:
        return None
    return max(LEAST_SEGMENT_BYTES, round(uplink.bytes_per_s * CLIP_WITHIN_S))
