"""`camloop curate` by a Ray of this machine whose object store and spill disk are small, and partly taken by something else.

    python -c 'from tests.curate.full_curate import main; main()' SPILL_FOLDER TAKEN_BYTES [arguments of camloop curate]

TAKEN_BYTES of the object store are held by another object for as long as the command runs.
"""

from __future__ import annotations

import sys
from typing import Any

from curate import jobs
from infra import cli

STORE_BYTES = 78_643_200  # the least that Ray takes: 75 MiB


def main() -> None:
    """Run `camloop curate`."""
    import numpy as np
    import ray

    spill, taken_bytes = sys.argv[1], int(sys.argv[2])
    init, held = ray.init, []

    def start(**asked: Any) -> None:
        init(**asked, object_spilling_directory=spill)
        if taken_bytes:
            held.append(ray.put(np.ones(taken_bytes, np.uint8)))

    jobs.OBJECT_STORE_BYTES = STORE_BYTES
    ray.init = start  # type: ignore[assignment]
    sys.exit(cli.main(["curate", *sys.argv[3:]]))
