"""A recorder process that films nothing: it beats as a real one does and then goes wrong as it is told.

usage: fake_recorder.py FD STATE_FILE MODE   modes: fine, stall, late, dies, garbage, deaf, group, ends, exits, loud
It goes wrong on its first start only: STATE_FILE counts the starts (a line each: pid, monotonic seconds).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ingest.watchdog import Heartbeat


def main() -> None:
    fd, state, mode = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    n_starts = len(state.read_text().splitlines()) if state.exists() else 0
    with state.open("a") as file:
        file.write(f"{os.getpid()} {time.monotonic()}\n")
    always = mode.endswith("!")
    mode = mode.rstrip("!") if always or n_starts == 0 else "fine"
    if mode == "deaf":  # stop_recording() that blocks for ever
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "late":
        time.sleep(1000)
    if mode == "exits":
        sys.exit("no such camera /dev/video7; there are: /dev/video0")
    if mode == "garbage":
        os.write(fd, os.urandom(5000))
        sys.stderr.buffer.write(b"\xff\xfe\x00 no line end")
        sys.stderr.flush()
    if mode == "group":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    heartbeat = Heartbeat(fd)
    for number in range(100_000):
        heartbeat.beat(number, time.monotonic_ns())
        time.sleep(0.02)
        if mode == "loud":
            word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
            sys.stderr.write(f"line {word} of rtsp://me:secret@host/1\nsame line\n")
            sys.stderr.flush()
        if number == 5 and mode == "ends":
            sys.exit(0)
        if number == 5 and mode == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 5 and mode in ("stall", "garbage", "group", "deaf"):
            time.sleep(1000)


main()
