"""How a camera host is, as one page of text that can be read over the phone: at most 60 columns, worst things first.

    page(state, running=..., now_ns=..., mono_ns=..., boot_id=...)  ->  lines

A pure function of what the agent last published; the ages in it go on counting from then.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from datetime import datetime
from typing import Any

WIDTH = 60
_LOW_DISK_SHARE = 0.05
_DOWN = {"starting": "starting", "stalled": "stalled, being killed", "waiting": "starting again soon"}


def duration(seconds: float | None) -> str:
    """Return a length of time in one or two words: 8 s, 3 min, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def size(n_bytes: float | None) -> str:
    """Return a number of bytes in decimal units: 812 kB, 3.4 MB, 118 GB."""
    if n_bytes is None:
        return "-"
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" or n_bytes >= 9.95 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def troubles(state: Mapping[str, Any]) -> list[str]:
    """Return what somebody should look at, in words, the gravest first; empty: all is well."""
    found = []
    disk = state.get("disk")
    if disk is None:
        found.append("The spool's disk does not answer.")
    elif disk["is_read_only"]:
        found.append("The spool's disk is READ-ONLY: nothing is recorded.")
    elif disk["free_bytes"] < _LOW_DISK_SHARE * disk["total_bytes"]:
        found.append(f"The spool's disk is nearly full: {size(disk['free_bytes'])} free.")
    for camera in state["cameras"]:
        if camera["state"] in _DOWN and (camera["n_restarts"] or camera["down_s"] > 60):
            found.append(f"Camera {camera['id']} is NOT RECORDING.")
        elif camera["is_late"]:  # and the agent lets it live: the kernel holds it
            found.append(f"Camera {camera['id']} waits for the disk: no frame for {duration(camera['last_frame_age_s'])}.")
    if state.get("spool_holds") is None:
        found.append("The spool cannot be read.")
    for name, word in (("n_quarantined", "put aside as damaged"), ("n_lost", "lost"), ("n_evicted", "given up for space")):
        if n := state["spool_today"].get(name, 0):
            found.append(f"{_times(n, 'clip was', 'clips were')} {word} today.")
    if (uploader := state.get("uploader")) is not None and uploader["state"] == "waiting":
        found.append("The uploader fails.")
    if state.get("temperature_c") is not None and state["temperature_c"] >= state["hot_c"]:
        found.append(f"It is hot: {state['temperature_c']:.0f} degrees.")
    if state.get("power"):
        found.append(f"The power supply is weak: {state['power']}.")
    if state["clock"]["quality"] != "ntp":
        found.append("The clock is not set by the network.")
    return found


def page(state: Mapping[str, Any], *, running: bool, now_ns: int, mono_ns: int, boot_id: str) -> list[str]:
    """Return the lines of the page.

    Args:
        state: as the agent published it.
        running: whether the agent runs.
        now_ns, mono_ns, boot_id: now, on the reader's clocks, and the boot it is.
    """
    same_boot = state["boot_id"] == boot_id
    ago_s = (mono_ns - state["at_mono_ns"] if same_boot else now_ns - state["at_ns"]) / 1e9
    lines = [f"{state['host_id']}   camloop {state['version']}"]
    if running:
        since_s = (mono_ns - state["started_mono_ns"]) / 1e9
        lines.append(f"agent running since {duration(since_s)}, looked {duration(ago_s)} ago")
    else:
        why = "it was stopped" if state["state"] == "stopped" else "it crashed, or the power went"
        lines.append(f"AGENT NOT RUNNING since {_when(state['at_ns'])} ({duration(ago_s)})")
        lines += _wrapped(f"{why}; what follows is what it said last", "")
    found = troubles(state) if running else ["Nothing is recorded and nothing is uploaded.", *troubles(state)]
    if running and ago_s > 60:
        found.insert(0, f"The agent has said nothing for {duration(ago_s)}.")
    lines.append("")
    if found:
        lines.append("LOOK AT THIS")
        for trouble in found:
            lines += _wrapped(trouble, "- ")
    else:
        lines.append("All is well.")
    for camera in state["cameras"]:
        lines += ["", *_camera(camera, running, ago_s)]
    lines += ["", *_spool(state, now_ns), *_uplink(state, now_ns), *_host(state)]
    shown = {(camera["id"], camera["last_error"]) for camera in state["cameras"] if camera["state"] != "running"}
    errors = [error for error in state["errors"] if (error["name"], error["text"]) not in shown]
    if errors:
        lines += ["", "last errors"]
        for error in reversed(errors):
            times = f" ({error['n_times']} times)" if error["n_times"] > 1 else ""
            lines += _wrapped(f"{_when(error['at_ns'])} {error['name']}: {error['text']}{times}", "  ")
    return lines


def _camera(camera: Mapping[str, Any], running: bool, ago_s: float) -> list[str]:
    what = camera["state"]
    if what == "running":
        doing = "recording" if camera["trigger"] == "always" else "watching"
        words = f"{doing} since {duration(camera['since_s'] + ago_s)}" if running else f"was {doing}"
    elif what in _DOWN:
        down = f"no frame for {duration(camera['down_s'] + ago_s)}" if camera["n_restarts"] or what == "stalled" else "not yet"
        words = f"{down}, {_DOWN[what]}" if running else f"{_DOWN[what]} then"
    else:
        words = {"ended": "has no more frames", "stopping": "stopping", "stopped": "stopped"}[what]
    lines = [f"camera {camera['id']}: {words}"]
    if len(lines[0]) > WIDTH:
        lines = [f"camera {camera['id']}:"[:WIDTH], *_wrapped(words, "  ")]
    age_s = camera["last_frame_age_s"]
    rate = "" if camera["fps"] is None else f"{camera['fps']:.1f} frames/s, "
    last = "no frame yet" if age_s is None else f"last frame {duration(age_s + ago_s)} ago"
    lines.append(f"  {rate}{last}")
    today = camera["today"]
    lines.append(f"  today {today['n_frames']:,} frames, {today['n_dropped']:,} dropped, {today['n_clips']:,} clips")
    if today["n_skipped"]:
        lines.append(f"  {today['n_skipped']:,} frames not kept by the trigger ({camera['trigger']})")
    if camera["n_restarts"]:
        stalls = f", {camera['n_stalls']} of them stalled" if camera["n_stalls"] else ""
        lines.append(f"  restarted {_times(camera['n_restarts'], 'time', 'times')}{stalls}")
    if camera["last_error"] and what != "running":
        lines += _wrapped(camera["last_error"], "  ")
    return lines


def _spool(state: Mapping[str, Any], now_ns: int) -> list[str]:
    held = state.get("spool_holds")
    if held is None:
        return ["spool        cannot be read"]
    if not held["n_pending"]:
        return [f"spool        empty; {_times(held['n_delivered'], 'clip', 'clips')} delivered"]
    line = f"spool        {_times(held['n_pending'], 'clip waits', 'clips wait')}, {size(held['n_bytes'])}"
    oldest = "" if held["oldest_ns"] is None else f"oldest {duration((now_ns - held['oldest_ns']) / 1e9)}, "
    return [line, f"             {oldest}{held['n_evicted']:,} given up for space"]


def _uplink(state: Mapping[str, Any], now_ns: int) -> list[str]:
    uploader, uplink = state.get("uploader"), state.get("uplink")
    if uploader is None:
        return ["uplink       none: clips stay here"]
    if uplink is None:
        return ["uplink       nothing delivered yet"]
    success_ns = uplink["last_success_ns"]
    last = "nothing delivered yet" if success_ns is None else f"last delivery {duration((now_ns - success_ns) / 1e9)} ago"
    lines = [f"uplink       {last}"]
    rate = "" if uplink["bytes_per_s"] is None else f"{size(uplink['bytes_per_s'])}/s, "
    lines.append(f"             {rate}{'may send now' if uplink['is_open'] else 'waits for its hours'}")
    if uplink["reason"]:
        lines += _wrapped(uplink["reason"], "             ")
    return lines


def _host(state: Mapping[str, Any]) -> list[str]:
    disk, clock = state.get("disk"), state["clock"]
    free = "does not answer" if disk is None else f"{size(disk['free_bytes'])} free of {size(disk['total_bytes'])}"
    degrees = state.get("temperature_c")
    beside_store_s = (state.get("uplink") or {}).get("clock_offset_s")
    if beside_store_s is not None and abs(beside_store_s) >= 1:
        exact = f", {duration(abs(beside_store_s))} {'behind' if beside_store_s > 0 else 'ahead of'} the store"
    else:
        exact = "" if clock["offset_s"] is None else f", off by {abs(clock['offset_s']) * 1000:.0f} ms"
    set_by = f"set by the network{exact}" if clock["quality"] == "ntp" else f"NOT set by the network{exact}"
    return [
        f"disk         {free}{', READ-ONLY' if disk is not None and disk['is_read_only'] else ''}",
        f"temperature  {'no sensor' if degrees is None else f'{degrees:.0f} degrees C'}",
        *_wrapped(set_by, "clock        "),
        f"up           {duration(state['uptime_s'])}",
    ]


def _times(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _when(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9).astimezone().strftime("%d %b %H:%M")


def _wrapped(text: str, indent: str) -> list[str]:
    later = " " * len(indent)
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False) or [indent]
