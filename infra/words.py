"""Numbers as people say them, on pages and terminals alike."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """Return seconds in words, from two of a unit on in that unit: 45 s, 12.0 min, 3.5 h, 12.0 days; `-` where unknown."""
    if seconds is None:
        return "-"
    for unit, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.0f} s"
