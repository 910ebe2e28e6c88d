"""How a fleet is doing, from what its hosts left in the store: health documents, clips, the ledger, and the registry.

    look(store, registry, now_ns) -> FleetStatus: one HostStatus each -> `page` (lines of at most 60 columns) or `document`

When a host was last heard of is the store's own time of its newest object; what a host says of itself is its word, and a
value that is missing or makes no sense is unknown (None). Nothing here decides: a limit that is passed is a complaint.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from infra import keys
from infra.errors import CamloopError
from infra.identity import verify
from infra.objects import Stat, Store
from infra.sequence import READERS, Audit, LedgerPage, PageName, audit, delivered_in, pages_in
from serve.registry import Host

SILENT_S: Final = 1800.0  # six health documents
LAG_S: Final = 3600.0
DISK_FREE: Final = 0.10
DRIFT_S: Final = 2.0
DROPPED: Final = 0.01
HOT_C: Final = 80.0  # a Pi slows down here
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraStatus:
    """One camera: what has arrived of it, and what its host last said about it."""

    camera_id: str
    n_clips: int = 0
    last_clip_s: float | None = None
    fps: float | None = None
    n_frames: int | None = None
    n_dropped: int | None = None
    n_expected: int = 0
    n_missing: int = 0
    n_explained: int = 0
    holes: tuple[str, ...] = ()

    @property
    def dropped(self) -> float | None:
        """The share of frames that the recorder did not get."""
        if self.n_dropped is None or not (total := (self.n_frames or 0) + self.n_dropped):
            return None
        return self.n_dropped / total


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """One host. Ages and lag in seconds as of now; `lag_s` is how old the oldest clip is that still waits there."""

    host_id: str
    state: str
    cameras: tuple[CameraStatus, ...]
    seen_s: float | None = None
    lag_s: float | None = None
    n_pending: int | None = None
    n_evicted: int | None = None
    disk_free: float | None = None
    drift_s: float | None = None
    temperature_c: float | None = None
    version: str | None = None
    uptime_s: float | None = None
    complaints: tuple[str, ...] = ()

    @property
    def n_missing(self) -> int:
        """Numbers of its cameras' sequences with neither clip nor reason."""
        return sum(camera.n_missing for camera in self.cameras)

    @property
    def dropped(self) -> float | None:
        """The largest share of dropped frames among its cameras."""
        return max((share for camera in self.cameras if (share := camera.dropped) is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """All hosts, worst first, and what the ledger's audit says of itself."""

    hosts: tuple[HostStatus, ...]
    audit: Audit | None
    at_ns: int


@dataclass(slots=True)
class _Arrived:
    newest_ns: int = 0
    n_clips: int = 0


@dataclass(slots=True)
class _Found:
    """What one pass over the store's listing gives."""

    health: dict[str, Stat] = field(default_factory=dict)
    clips: dict[str, _Arrived] = field(default_factory=dict)


def look(
    store: Store, registry: Mapping[str, Host], now_ns: int, *, audited: Audit | None = None, host_id: str | None = None
) -> FleetStatus:
    """Return how the fleet, or one host of it, is doing.

    Args:
        store: what hosts send to.
        registry: who belongs to the fleet; hosts that only left health documents are shown as `unknown`.
        now_ns: UTC.
        audited: the sequence audit, None to leave holes out.
        host_id: only this one.

    Raises:
        StoreError: the store cannot be read.
    """
    found = _listing(store)
    names = [name for name in sorted({*registry, *found.health}) if host_id in (None, name)]
    with ThreadPoolExecutor(READERS) as pool:
        documents = dict(zip(names, pool.map(lambda name: _health(store, name, found.health.get(name)), names), strict=True))
    newest = _newest(version for document in documents.values() if _is_name(version := document.get("version")))
    hosts = [_host(name, registry.get(name), documents[name], found, audited, now_ns, newest) for name in names]
    hosts.sort(key=lambda host: (-len(host.complaints), -(host.lag_s or 0.0), host.host_id))
    return FleetStatus(hosts=tuple(hosts), audit=audited, at_ns=now_ns)


def sequences(store: Store, registry: Mapping[str, Host], on_clip: Callable[[], object] = lambda: None) -> Audit:
    """Audit the sequence numbers of the whole store.

    A page counts only if it is signed by its host, with its key of now or before, and speaks of that host's cameras alone.
    Of a camera that the host had once, it may speak as long as no other host that has or had it knows of that boot.
    Hosts that the registry does not know have no key to go by: their pages count, but not about cameras of hosts it knows.
    """
    owners = {camera: host.host_id for host in registry.values() for camera in host.cameras}
    refused_pages: list[PageName] = []
    refused_sidecars: list[str] = []
    clips = list(delivered_in(store, on_clip, refused_sidecars.append))
    signed, pages = [], list(pages_in(store, on_refused=refused_pages.append))
    known_to: defaultdict[tuple[str, str], set[str]] = defaultdict(set)  # (camera, boot) -> hosts
    for clip in clips:
        known_to[clip.camera_id, clip.boot_id].add(clip.host_id)
    for page in pages:
        host = registry.get(page.host_id)
        if _is_signed(page, host):
            signed.append(page)
            for camera in _spoken_of(page).intersection((*host.cameras, *host.former_cameras) if host else ()):
                known_to[camera, page.boot_id].add(page.host_id)
        else:
            refused_pages.append((page.host_id, page.boot_id, page.number))

    def may_speak(page: LedgerPage, camera: str) -> bool:
        if owners.get(camera, page.host_id) == page.host_id:
            return True
        host = registry.get(page.host_id)
        return host is not None and camera in host.former_cameras and known_to[camera, page.boot_id] <= {page.host_id}

    found = audit(clips, signed, trusted=lambda page: all(may_speak(page, camera) for camera in _spoken_of(page)))
    refused = sorted([*found.refused_pages, *refused_pages])
    return dataclasses.replace(found, refused_pages=tuple(refused), refused_sidecars=tuple(sorted(refused_sidecars)))


def _spoken_of(page: LedgerPage) -> set[str]:
    return {*page.next_seq, *(entry.camera_id for entry in page.entries)}


def _is_signed(page: LedgerPage, host: Host | None) -> bool:
    if host is None or host.public_key is None:
        return True
    known, signature = (host.public_key, *host.former_keys), page.signature
    return signature is not None and any(verify(key, page.document(), signature) for key in known)


def _listing(store: Store) -> _Found:
    found = _Found()
    for stat in store.list("health/"):
        parts = stat.key.split("/")
        if len(parts) == 4:
            before = found.health.get(parts[1])
            if before is None or (stat.modified_ns, stat.key) > (before.modified_ns, before.key):
                found.health[parts[1]] = stat
    for stat in store.list(keys.CLIPS):
        parts = stat.key.split("/")
        if len(parts) == 3 and not stat.key.endswith(".json"):
            arrived = found.clips.setdefault(parts[1], _Arrived())
            arrived.n_clips += 1
            arrived.newest_ns = max(arrived.newest_ns, stat.modified_ns)
    return found


def _health(store: Store, host_id: str, stat: Stat | None) -> dict[str, Any]:
    """Return a host's newest health document; an empty one where there is none or it is another's."""
    if stat is None:
        return {}
    try:
        document = json.loads(store.get(stat.key))
    except (ValueError, RecursionError, CamloopError):
        return {}
    return document if isinstance(document, dict) and document.get("host_id") == host_id else {}


def _host(
    name: str, host: Host | None, health: Mapping[str, Any], found: _Found, audited: Audit | None, now_ns: int,
    newest: str | None,
) -> HostStatus:  # fmt: skip
    stat = found.health.get(name)
    spool, clock, said = (_mapping(health.get(part)) for part in ("spool", "clock", "cameras"))
    names = sorted({*(host.cameras if host else ()), *(camera for camera in said if _is_name(camera) and host is None)})
    cameras = tuple(_camera(camera, _mapping(said.get(camera)), found, audited, now_ns) for camera in names)
    seen_s = None if stat is None else max(0.0, (now_ns - stat.modified_ns) / _NS)
    heard_s = min([age for age in (seen_s, *(camera.last_clip_s for camera in cameras)) if age is not None], default=None)
    oldest_s, n_pending = _number(spool.get("oldest_s")), _count(spool.get("pending"))
    free, total = _number(health.get("disk_free_bytes")), _number(health.get("disk_total_bytes"))
    lag_s = None if oldest_s is None and n_pending is None else (oldest_s + (seen_s or 0.0) if oldest_s is not None else 0.0)
    version = health.get("version")
    made = HostStatus(
        host_id=name, state=host.state if host else "unknown", cameras=cameras, seen_s=heard_s, lag_s=lag_s,
        n_pending=n_pending, n_evicted=_count(spool.get("evicted")),
        disk_free=free / total if free is not None and total else None, drift_s=_drift(health, clock, stat),
        temperature_c=_number(health.get("temperature_c")), uptime_s=_number(health.get("uptime_s")),
        version=version[:40] if _is_name(version) else None,
    )  # fmt: skip
    return dataclasses.replace(made, complaints=tuple(_complaints(made, newest)))


def _drift(health: Mapping[str, Any], clock: Mapping[str, Any], stat: Stat | None) -> float | None:
    """How far the host's clock is off: its own measure, else what the time it wrote says beyond a document's usual age."""
    offset_s = _number(clock.get("offset_s"))
    if offset_s is not None and clock.get("quality") == "ntp":
        return offset_s
    at_ns = _number(health.get("at_ns"))
    if at_ns is None or stat is None:
        return offset_s
    behind_s = (stat.modified_ns - at_ns) / _NS  # a clock that is right writes before the store receives
    return -behind_s if behind_s < -DRIFT_S else (offset_s if offset_s is not None else 0.0)


def _camera(name: str, said: Mapping[str, Any], found: _Found, audited: Audit | None, now_ns: int) -> CameraStatus:
    arrived = found.clips.get(name)
    rows = [row for row in audited.rows if row.camera_id == name] if audited else []
    return CameraStatus(
        camera_id=name, n_clips=arrived.n_clips if arrived else 0,
        last_clip_s=max(0.0, (now_ns - arrived.newest_ns) / _NS) if arrived else None,
        fps=_number(said.get("fps")), n_frames=_count(said.get("n_frames")), n_dropped=_count(said.get("n_dropped")),
        n_expected=sum(row.n_expected for row in rows), n_missing=sum(row.n_missing for row in rows),
        n_explained=sum(sum(row.explained.values()) for row in rows),
        holes=tuple(f"{row.boot_id[:8]} {start}-{stop - 1}" for row in rows for start, stop in row.holes),
    )  # fmt: skip


def _complaints(host: HostStatus, newest: str | None) -> Iterator[str]:
    if host.state == "invited" or host.state == "revoked":
        return
    if host.seen_s is None or host.seen_s > SILENT_S:
        yield "never heard of" if host.seen_s is None else f"silent for {span(host.seen_s)}"
    if host.n_missing:
        yield f"{host.n_missing} numbers missing"
    if host.lag_s is not None and host.lag_s > LAG_S:
        yield f"lag {span(host.lag_s)}"
    if host.disk_free is not None and host.disk_free < DISK_FREE:
        yield f"disk {host.disk_free:.0%} free"
    if host.drift_s is not None and abs(host.drift_s) > DRIFT_S:
        yield f"clock {'+' if host.drift_s > 0 else '-'}{span(abs(host.drift_s))}"
    if host.dropped is not None and host.dropped > DROPPED:
        yield f"{host.dropped:.1%} dropped"
    if host.temperature_c is not None and host.temperature_c > HOT_C:
        yield f"{host.temperature_c:.0f} C"
    if newest is not None and host.version is not None and host.version != newest:
        yield f"version {host.version}"


def _newest(versions: Iterable[str]) -> str | None:
    """Return the version that most hosts run."""
    counts = Counter(versions)
    return counts.most_common(1)[0][0] if counts else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed; `values` are sorted and not empty."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def span(seconds: float) -> str:
    """Return a time as a person says it: 12 s, 3 min, 5.2 h, 3.1 d."""
    for unit, length in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if unit != "min" else f"{seconds / length:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -1e300 < value < 1e300:
        return None
    return float(value)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _is_name(value: object) -> TypeGuard[str]:
    try:
        keys.check_name(value if isinstance(value, str) else "", "name")
    except CamloopError:
        return False
    return True
