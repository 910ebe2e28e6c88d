"""`camloop curate` that notes each time that a clip's decoding begins: a line of clip_id and address of the machine.

    python -c 'from tests.rigs.counted_curate import main; main()' FILE [arguments of camloop curate]

What is begun more often than once was done again. Workers of all machines append to FILE: they must share its file system.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from curate import jobs
from curate.decode import Decode
from curate.detect import Batch
from curate.pipeline import Stage
from curate.plan import Work
from infra import cli


class CountedDecode(Decode):
    """The decoder stage that notes what it begins."""

    def __init__(self, file: Path, *args: Any, **more: Any) -> None:
        import ray

        super().__init__(*args, **more)
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._file, self._address = file, address

    def __call__(self, work: Work) -> Iterator[Batch]:
        """Note the clip, then decode it."""
        with self._file.open("a") as file:
            file.write(f"{work.clip_id} {self._address}\n")
        return super().__call__(work)


def counted(file: Path, engine: Any, works: Sequence[Work], stages: Sequence[Stage], **more: Any) -> Iterator[Batch]:
    """Run the table by `engine`, counting."""
    first, *rest = stages
    assert isinstance(first.make, functools.partial)
    make = functools.partial(CountedDecode, file, *first.make.args, **first.make.keywords)
    return engine(works, [dataclasses.replace(first, make=make), *rest], **more)  # type: ignore[no-any-return]


def main() -> None:
    """Run `camloop curate`."""
    jobs.run_ray = functools.partial(counted, Path(sys.argv[1]), jobs.run_ray)
    sys.exit(cli.main(["curate", *sys.argv[2:]]))
