"""The registry of cameras: cameras.toml in, rows of table `cameras` out.

    [[camera]]
    id = "creek"                        # required; the camera_id everywhere
    folder = "CAM01"                    # first folder below the ingested one (or a list); default: the id
    match = "2024-*/CAM01/*"            # or: glob on the path below the ingested folder (or a list)
    site = "creek bed"
    angle = "down"
    indoor = false
    time_zone = "Africa/Nairobi"        # default UTC
    clock_offset_s = 0                  # true time = camera's clock + offset
    time_pattern = "IMG_%Y%m%d_%H%M%S"  # this camera's file names
    container_time = "utc"              # container digits are UTC; default: local, as cheap cameras write them
    mask = [[0.0, 0.0, 0.35, 0.6]]      # where motion never counts: boxes x1 y1 x2 y2 and polygons, in shares of the picture
    lens = "6 mm"                       # anything else is an attribute

    [[camera]]                          # the same id again: a later period; what it does not say stays as before
    id = "creek"
    valid_from = 2024-03-31T02:00:00    # true time, local in time_zone
    clock_offset_s = -3600

Rows are only ever added: a changed camera gets all its rows again with a new `created_ns`, and the newest writing of a
camera is in force. A camera that no file names is made as it is met, with a note.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from curate import capture_time
from infra import keys
from infra.errors import SettingsError, UsageError
from infra.records import CameraRow
from infra.regions import Region, check_regions
from infra.settings import Where

if TYPE_CHECKING:
    from infra.catalog import Catalog

_COLUMNS: Final[Mapping[str, tuple[type, ...]]] = {
    "site": (str,), "angle": (str,), "indoor": (bool,), "time_zone": (str,), "clock_offset_s": (int, float), "host_id": (str,),
}  # fmt: skip
_OWN: Final = {"id", "folder", "match", "valid_from", *_COLUMNS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """One camera of cameras.toml: where its files lie and its rows, oldest validity first (numbers not yet given)."""

    camera_id: str
    folders: tuple[str, ...]
    matches: tuple[str, ...]
    rows: tuple[CameraRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """cameras.toml, read and checked."""

    cameras: Mapping[str, Camera]
    origin: str = "cameras.toml"

    def camera_of(self, source_name: str) -> str:
        """Return the camera of a path below the ingested folder: `match` first, then `folder`.

        Raises:
            UsageError: no camera, or more than one, claims it.
        """
        claims = [c.camera_id for c in self.cameras.values() if any(fnmatch.fnmatchcase(source_name, m) for m in c.matches)]
        first = source_name.split("/", 1)[0] if "/" in source_name else ""
        claims = claims or [c.camera_id for c in self.cameras.values() if first in c.folders]
        if len(claims) == 1:
            return claims[0]
        if claims:
            raise UsageError(
                f"{source_name}: {' and '.join(claims)} of {self.origin} both claim it; make their `match` disjoint"
            )
        known = [folder for camera in self.cameras.values() for folder in camera.folders]
        near = difflib.get_close_matches(first, known, n=3) or known[:5]
        raise UsageError(
            f"{source_name}: no camera of {self.origin} has folder {first!r} (there are {', '.join(near)}); "
            f"add [[camera]] with folder = {first!r}, or give --camera ID"
        )


def _texts(value: object, what: str) -> tuple[str, ...]:
    found = tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(text, str) for text in found):
        raise SettingsError(f"{what} is {value!r}; it is text or a list of texts")
    return tuple(str(text) for text in found)


def _check_masks(block: Mapping[str, Any], line: str) -> None:
    """Refuse masks that are no regions of the picture; `line` names where they stand."""
    found = block.get("mask", [])
    is_list = isinstance(found, list) and all(isinstance(region, list) for region in found)
    if not is_list or not all(type(value) in (int, float) for region in found for value in region):
        raise SettingsError(f"{line}mask = {found!r}; legal: a list of lists of numbers, such as [[0, 0, 0.35, 0.6]]")
    try:
        check_regions("mask", [tuple(region) for region in found])
    except SettingsError as error:
        raise SettingsError(f"{line}{error}") from None


def masks_at(rows: Sequence[CameraRow], start_ns: int | None) -> tuple[Region, ...]:
    """Return the masks that hold at a time; of an unknown time, the newest.

    Args:
        rows: those of one camera, oldest validity first, as `in_force` gives them.
        start_ns: UTC, None where nobody knows it.
    """
    valid = [row for row in rows if start_ns is None or row.valid_from_ns <= start_ns]
    text = valid[-1].attributes.get("mask", "[]") if valid else "[]"
    return tuple(tuple(float(value) for value in region) for region in json.loads(text))


def _row(camera_id: str, block: Mapping[str, Any], where: str) -> CameraRow:
    for name, kind in _COLUMNS.items():
        if name in block and type(block[name]) not in kind:
            raise SettingsError(
                f"{where}: {name} = {block[name]!r} has the wrong type; the top of curate/cameras.py has an example"
            )
    time_zone = block.get("time_zone", "UTC")
    capture_time.zone(time_zone)
    valid_from = block.get("valid_from")
    if valid_from is not None and not isinstance(valid_from, datetime):
        raise SettingsError(f"{where}: valid_from = {valid_from!r}; write a date and time, such as 2024-03-31T02:00:00")
    attributes = {name: value if isinstance(value, str) else json.dumps(value, default=str)
                  for name, value in block.items() if name not in _OWN}  # fmt: skip
    if "time_pattern" in attributes:
        capture_time.compile_pattern(attributes["time_pattern"])
    if attributes.get("container_time", "local") not in ("local", "utc"):
        raise SettingsError(f"{where}: container_time = {attributes['container_time']!r}; legal: 'local', 'utc'")
    return CameraRow(
        camera_id=camera_id,
        camera_number=0,
        valid_from_ns=0 if valid_from is None else capture_time.to_ns(valid_from, time_zone),
        attributes=attributes,
        **{name: block[name] for name in ("site", "angle", "indoor", "host_id") if name in block},
        time_zone=time_zone,
        clock_offset_s=float(block.get("clock_offset_s", 0.0)),
    )


def parse(text: str, origin: str = "cameras.toml") -> Registry:
    """Read a registry.

    Raises:
        SettingsError: not TOML, no id, a wrong type, an unknown time zone, two rows of one camera with the same start.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{origin}: {error}") from error
    blocks = document.pop("camera", None)
    if document or not isinstance(blocks, list) or not blocks:
        raise SettingsError(
            f"{origin}: {'unknown ' + ', '.join(document) if document else 'no [[camera]] table'}; see curate/cameras.py"
        )
    gathered: dict[str, list[dict[str, Any]]] = {}
    for number, block in enumerate(blocks, 1):
        _check_masks(block, Where(file=Path(origin), text=text, table="camera", number=number - 1).line("mask"))
        camera_id = block.get("id")
        if not isinstance(camera_id, str):
            raise SettingsError(f'{origin}: [[camera]] number {number} has no id = "..."')
        keys.check_name(camera_id, "camera")
        before = gathered.setdefault(camera_id, [])
        before.append({**(before[-1] if before else {}), **block})
    cameras = {}
    for camera_id, periods in gathered.items():
        rows = sorted((_row(camera_id, p, f"{origin}: camera {camera_id}") for p in periods), key=lambda row: row.valid_from_ns)
        if len({row.valid_from_ns for row in rows}) < len(rows):
            raise SettingsError(
                f"{origin}: camera {camera_id} has two tables with the same valid_from; give the later one its own"
            )
        last = periods[-1]
        matches = _texts(last.get("match", []), f"{origin}: camera {camera_id}: match")
        folders = _texts(last.get("folder", [] if matches else camera_id), f"{origin}: camera {camera_id}: folder")
        cameras[camera_id] = Camera(camera_id=camera_id, folders=folders, matches=matches, rows=tuple(rows))
    return Registry(cameras=cameras, origin=origin)


def read(path: Path) -> Registry:
    """Read a registry file; see `parse`."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as text ({error}); give --cameras FILE") from error


def in_force(catalog: Catalog) -> dict[str, tuple[CameraRow, ...]]:
    """Return the rows of each camera that hold now: those of its newest writing, oldest validity first."""
    newest: dict[str, list[CameraRow]] = {}
    for row in catalog.scan("cameras").collect().iter_rows(named=True):
        fields = {field.name: row[field.name] for field in dataclasses.fields(CameraRow)}
        made = CameraRow(**{**fields, "attributes": json.loads(row["attributes"] or "{}")})
        held = newest.setdefault(made.camera_id, [])
        if held and made.created_ns > held[0].created_ns:
            held.clear()
        if not held or made.created_ns == held[0].created_ns:
            held.append(made)
    return {camera_id: tuple(sorted(rows, key=lambda row: row.valid_from_ns)) for camera_id, rows in newest.items()}


def wanted_rows(
    camera_ids: Iterable[str],
    known: Mapping[str, Sequence[CameraRow]],
    registry: Registry | None,
    time_pattern: str | None,
    created_ns: int,
) -> dict[str, tuple[CameraRow, ...]]:
    """Return the rows that must be written: of new cameras, and of those that cameras.toml or --time-pattern changes.

    Args:
        camera_ids: the cameras that this ingest meets; those of cameras.toml are added.
        known: `in_force`.
        time_pattern: --time-pattern, remembered with each camera met.
        created_ns: the time of this writing.
    """
    met = sorted(set(camera_ids))
    number = 1 + max((row.camera_number for rows in known.values() for row in rows), default=0)
    changed: dict[str, tuple[CameraRow, ...]] = {}
    for camera_id in [*met, *(sorted(set(registry.cameras) - set(met)) if registry else ())]:
        held = tuple(known.get(camera_id, ()))
        own = registry.cameras.get(camera_id) if registry else None
        rows = own.rows if own else held or (CameraRow(camera_id=camera_id, camera_number=0, valid_from_ns=0),)
        if time_pattern is not None and camera_id in met:
            rows = tuple(dataclasses.replace(row, attributes={**row.attributes, "time_pattern": time_pattern}) for row in rows)
        numbered = held[0].camera_number if held else number
        rows = tuple(dataclasses.replace(row, camera_number=numbered, created_ns=created_ns) for row in rows)
        if [dataclasses.replace(row, created_ns=0) for row in held] != [dataclasses.replace(row, created_ns=0) for row in rows]:
            changed[camera_id] = rows
            number += not held
    return changed


def as_table_rows(rows: Iterable[CameraRow]) -> list[dict[str, Any]]:
    """Return camera rows as table `cameras` holds them: attributes as JSON text."""
    return [{**dataclasses.asdict(row), "attributes": json.dumps(dict(row.attributes), sort_keys=True)} for row in rows]
