"""Does anything answer at a Ray cluster's address? Ray itself waits for minutes before it says no.

Ray is imported by `curate/jobs.py` and `train/jobs.py` only; both ask here before they join.
"""

from __future__ import annotations

import re
import socket

from infra.errors import JobError, UsageError

LOCAL = "local"
LEGAL = "local, auto, HOST:PORT, ray://HOST:PORT"
TIMEOUT_S = 5.0


def check_address(address: str) -> None:
    """Refuse an address at which no cluster can be joined.

    Args:
        address: `local`, `auto` (the cluster of this machine), HOST:PORT or ray://HOST:PORT.

    Raises:
        UsageError: it is none of these.
        JobError: nothing listens there.
    """
    if address in (LOCAL, "auto"):
        return
    found = re.fullmatch(r"(?:ray://)?\[?([^\s/\]]+?)\]?:(\d{1,5})", address)
    if found is None:
        raise UsageError(f"Ray address {address!r} is not understood; legal: {LEGAL}")
    try:
        socket.create_connection((found[1], int(found[2])), timeout=TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise JobError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or leave the address out"
        ) from error
