"""A fleet's status as a page of text: at most 60 columns a line, so that it reads on a phone; and as a document."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from serve.fleet import CameraStatus, FleetStatus, HostStatus, percentile, span

WIDTH: Final = 60  # columns
N_WORST: Final = 10
_FIGURES: Final[tuple[tuple[str, Callable[[HostStatus], float | None], Callable[[float], str], bool], ...]] = (
    ("last heard", lambda host: host.seen_s, span, True),
    ("lag", lambda host: host.lag_s, span, True),
    ("missing", lambda host: float(host.n_missing), lambda value: f"{value:.0f}", True),
    ("disk free", lambda host: host.disk_free, lambda value: f"{value:.0%}", False),
    ("clock off", lambda host: None if host.drift_s is None else abs(host.drift_s), span, True),
    ("dropped", lambda host: host.dropped, lambda value: f"{value:.2%}", True),
    ("degrees C", lambda host: host.temperature_c, lambda value: f"{value:.0f}", True),
)


def page(status: FleetStatus) -> Iterator[str]:
    """Yield the lines: a headline; percentiles and the ten worst by name of a large fleet, else every host."""
    active = [host for host in status.hosts if host.state in ("enrolled", "unknown")]
    others = [f"{sum(host.state == state for host in status.hosts)} {state}" for state in ("invited", "revoked")]
    counted = [text for text in others if not text.startswith("0 ")]
    n_cameras = sum(len(host.cameras) for host in active)
    yield _fit(", ".join([_counted(len(active), "host"), _counted(n_cameras, "camera"), *counted]))
    if status.audit is not None:
        yield from _ledger(status)
    if len(active) > N_WORST:
        yield from _percentiles(active)
        worst = [host for host in active if host.complaints][:N_WORST]
        yield "the ten worst" if len(worst) == N_WORST else f"{len(worst)} with something to say" if worst else "all is well"
        for host in worst:
            yield _fit(host.host_id)
            yield from _wrapped(", ".join(host.complaints))
        return
    for host in status.hosts:
        yield from _host(host)


def _percentiles(hosts: list[HostStatus]) -> Iterator[str]:
    yield f"{'':11}{'p50':>9}{'p95':>9}{'worst':>9}  "
    for name, value_of, text, high_is_bad in _FIGURES:
        known = sorted((value, host.host_id) for host in hosts if (value := value_of(host)) is not None)
        if not high_is_bad:
            known.reverse()
        if known:
            values = [value for value, _ in known]
            figures = "".join(f"{text(percentile(values, share)):>9}" for share in (0.5, 0.95, 1.0))
            yield _fit(f"{name:11}{figures}  {known[-1][1]}")
    versions = Counter(host.version or "unknown" for host in hosts)
    yield from _wrapped("version " + ", ".join(f"{name} ({n})" for name, n in versions.most_common()))


def _host(host: HostStatus) -> Iterator[str]:
    if host.state in ("invited", "revoked"):
        yield _fit(f"{_short(host.host_id)}  {host.state}")
        return
    heard = "never heard of" if host.seen_s is None else f"heard {span(host.seen_s)} ago"
    yield _fit(f"{_short(host.host_id)}  {'LOOK' if host.complaints else 'ok'}  {heard}")
    facts = []
    if host.lag_s is not None:
        facts.append(f"lag {span(host.lag_s)}" + (f" ({host.n_pending} wait)" if host.n_pending else ""))
    if host.disk_free is not None:
        facts.append(f"disk {host.disk_free:.0%} free")
    if host.drift_s is not None:
        facts.append(f"clock {host.drift_s:+.1f} s")
    if host.temperature_c is not None:
        facts.append(f"{host.temperature_c:.0f} C")
    if host.n_evicted:
        facts.append(f"{host.n_evicted} given up")
    if host.version:
        facts.append(host.version)
    if facts:
        yield from _wrapped(", ".join(facts))
    for camera in host.cameras:
        yield from _wrapped(_camera(camera))
    if host.complaints:
        yield from _wrapped("! " + ", ".join(host.complaints))


def _camera(camera: CameraStatus) -> str:
    facts = [_counted(camera.n_clips, "clip")]
    if camera.last_clip_s is not None:
        facts.append(f"last {span(camera.last_clip_s)} ago")
    if camera.fps is not None:
        facts.append(f"{camera.fps:.1f} fps")
    if camera.dropped is not None:
        facts.append(f"{camera.dropped:.1%} dropped")
    if camera.n_expected:
        facts.append(f"{camera.n_missing} of {camera.n_expected} missing")
    return f"{_short(camera.camera_id)}: " + ", ".join(facts)


def _ledger(status: FleetStatus) -> Iterator[str]:
    audit = status.audit
    assert audit is not None
    expected, explained = (sum(row.n_expected for row in audit.rows), sum(sum(row.explained.values()) for row in audit.rows))
    yield from _wrapped(f"{_counted(expected, 'clip')} numbered, {explained} explained, {audit.n_missing} missing", "")
    for pages, what in ((audit.missing_pages, "missing"), (audit.broken_pages, "broken"), (audit.refused_pages, "refused")):
        if pages:
            host_id, boot_id, number = pages[0]
            yield from _wrapped(f"! {len(pages)} ledger pages {what}, first {host_id} {boot_id[:8]} {number}", "")


def document(status: FleetStatus) -> dict[str, Any]:
    """Return the status for programs: everything, with the percentiles' inputs per host."""
    hosts = []
    for host in status.hosts:
        cameras = [dataclasses.asdict(camera) | {"dropped": camera.dropped} for camera in host.cameras]
        hosts.append(dataclasses.asdict(host) | {"cameras": cameras, "n_missing": host.n_missing, "dropped": host.dropped})
    made: dict[str, Any] = {"at_ns": status.at_ns, "hosts": hosts, "audit": None}
    if status.audit is not None:
        made["audit"] = dataclasses.asdict(status.audit) | {"n_missing": status.audit.n_missing}
    return made


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "~"


def _fit(line: str) -> str:
    return line.rstrip() if len(line) <= WIDTH else line[: WIDTH - 1] + "~"


def _wrapped(text: str, indent: str = "  ") -> Iterator[str]:
    line = indent
    for number, word in enumerate(text.split(" ")):
        joined = word if number == 0 else f" {word}"
        if len(line) + len(joined) > WIDTH and line.strip():
            yield line
            line, joined = f"{indent}  ", word
        line += joined
    yield _fit(line)
