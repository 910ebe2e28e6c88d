"""Tells systemd how a service is: READY=1, WATCHDOG=1, STATUS=... (sd_notify(3)), in a datagram to the socket it named."""

from __future__ import annotations

import contextlib
import socket

from infra.clock import Clock


class Notify:
    """The service's end of systemd's notification socket.

    Args:
        address: $NOTIFY_SOCKET, a path or `@` and an abstract name; None: nobody listens and nothing is sent.
        watchdog_s: systemd kills a service that is silent for so long ($WATCHDOG_USEC); None: it does not.
        clock: tells when the next WATCHDOG=1 is due.
    """

    def __init__(self, address: str | None, watchdog_s: float | None, clock: Clock) -> None:
        self._address = None if address is None else address.replace("@", "\0", 1) if address.startswith("@") else address
        self._watchdog_s, self._clock = watchdog_s, clock
        self._next_ns = 0
        self._status = ""

    def send(self, *lines: str) -> None:
        """Send `NAME=value` lines; a systemd that does not listen is no fault of a recording."""
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)
            to.sendto("\n".join(lines).encode(), self._address)

    def alive(self, status: str) -> None:
        """Say that the main loop turns: WATCHDOG=1 three times in the time allowed, STATUS= when it changed."""
        now_ns = self._clock.mono_ns()
        lines = []
        if self._watchdog_s is not None and now_ns >= self._next_ns:
            self._next_ns = now_ns + round(self._watchdog_s / 3 * 1e9)
            lines.append("WATCHDOG=1")
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        if lines:
            self.send(*lines)
