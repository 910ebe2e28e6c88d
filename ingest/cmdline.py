"""A password in an argument is seen by every user of the machine who calls `ps`: it is overwritten where the kernel keeps it.

Between the start of the process and this call it could be seen; an address in camloop.toml cannot.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_ARG_START, _ARG_END = 48, 49  # of /proc/PID/stat, proc(5), counted from 1


def hide_argument(secret: str) -> None:
    """Overwrite `secret` in this process's own command line with stars; nothing happens where that cannot be done."""
    wanted = secret.encode()
    if not wanted:
        return
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # from field 3 on
        start, end = int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            if wanted in arguments:
                memory.seek(start)
                memory.write(arguments.replace(wanted, b"*" * len(wanted)))
