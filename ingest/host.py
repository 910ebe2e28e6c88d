"""What a camera host knows about itself: disk, temperature, clock, uptime. Read from the kernel, no process is started.

Every reading may be None: not each machine has each sensor, and a reading that fails must not stop a recording.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from infra.clock import is_synchronised
from infra.records import ClockQuality

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
THERMAL = Path("/sys/class/thermal")
THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
TIMESYNCD = Path("/run/systemd/timesync/synchronized")
_STA_NANO = 0x2000  # linux/timex.h: the offset is in nanoseconds
_UNDER_VOLTAGE_NOW, _UNDER_VOLTAGE_SINCE_BOOT = 1 << 0, 1 << 16  # bits of the Pi firmware's get_throttled


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskState:
    """The file system of a folder: bytes free for this user, bytes in all, and whether it is read-only."""

    free_bytes: int
    total_bytes: int
    is_read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockState:
    """How good the machine's UTC is: `ntp` where the kernel's clock is disciplined, else `unknown`; the kernel's own offset."""

    quality: ClockQuality
    offset_s: float | None


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2); times are longs, what follows `tai` is padding."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("constant", ctypes.c_long), ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long), ("time_s", ctypes.c_long), ("time_us", ctypes.c_long), ("tick", ctypes.c_long),
        ("pps", ctypes.c_long * 10), ("rest", ctypes.c_int * 24),
    )  # fmt: skip


def boot_id(path: Path = BOOT_ID) -> str:
    """Return the kernel's id of this boot as 32 hex digits; `unknown` where the kernel has none."""
    try:
        return path.read_text().strip().replace("-", "") or "unknown"
    except OSError:
        return "unknown"


def disk_state(folder: Path) -> DiskState | None:
    """Return how full the file system of `folder` is."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return DiskState(
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        is_read_only=bool(found.f_flag & os.ST_RDONLY),
    )


def temperature_c(thermal: Path = THERMAL) -> float | None:
    """Return the hottest thermal zone in degrees Celsius; values that no silicon survives are not believed."""
    found = []
    for path in sorted(thermal.glob("thermal_zone*/temp")):
        try:
            degrees = int(path.read_text()) / 1000
        except (OSError, ValueError):
            continue
        if -40 <= degrees <= 150:
            found.append(degrees)
    return max(found, default=None)


def power_trouble(path: Path = THROTTLED) -> str | None:
    """Return what a Pi's firmware says about its supply: `under-voltage now`, `under-voltage since boot`, or None."""
    try:
        bits = int(path.read_text().strip(), 16)
    except (OSError, ValueError):
        return None
    if bits & _UNDER_VOLTAGE_NOW:
        return "under-voltage now"
    return "under-voltage since boot" if bits & _UNDER_VOLTAGE_SINCE_BOOT else None


def clock_state(timesyncd: Path = TIMESYNCD) -> ClockState:
    """Return whether something keeps this machine's UTC right: the kernel's word (adjtimex), else systemd-timesyncd's."""
    if is_synchronised():
        timex = _Timex()
        if ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) >= 0:
            return ClockState(quality="ntp", offset_s=timex.offset / (1e9 if timex.status & _STA_NANO else 1e6))
    return ClockState(quality="ntp" if timesyncd.exists() else "unknown", offset_s=None)
