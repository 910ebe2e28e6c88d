"""What has arrived: find videos and image folders, say what would be done with each, before anything is written.

Three places to look, one answer (`Found`): a folder or file on this machine; a bucket or folder that is a store
(`s3://...`); and the store's own `clips/`, where uploaders put clips and sidecars.

The camera of a file: `--camera ID`, else what cameras.toml says, else the sidecar beside it, else the first folder
below the ingested one. A file directly in it, and every file of a folder by class or of a label table (where the
folders are classes, not cameras), gets the ingested folder's own name. Each choice stands in the plan.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from curate.cameras import Registry
from infra import images, keys
from infra.errors import ArtefactError, ObjectMissing, UsageError
from infra.records import Sidecar
from infra.store import Store

VIDEO_SUFFIXES: Final = frozenset({"mp4", "mkv", "avi", "mov", "ts"})
IMAGE_SUFFIXES: Final = frozenset({"jpg", "jpeg", "png"})
TAR: Final = "tar"  # the container of a clip made of images
CameraFrom = Literal["--camera", "cameras.toml", "sidecar", "folder", "name of the ingested folder", "clips/"]
DEFAULTS: Final[tuple[CameraFrom, ...]] = ("folder", "name of the ingested folder")
"""Ways to name a camera that are no person's word: a clip that is registered keeps its camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One file, object or folder of images that will be a clip.

    Exactly one of `path` (a video on this machine), `members` (the images of a folder, sorted by name) and `key` (an
    object of `place`) is set. `stored` says that the bytes already lie in our own store under `key`.
    """

    source_name: str
    uri: str
    container: str
    n_bytes: int
    camera_id: str = ""
    camera_from: CameraFrom = "folder"
    path: Path | None = None
    members: tuple[Path, ...] = ()
    key: str | None = None
    place: Store | None = None
    stored: bool = False
    sidecar: Sidecar | None = None
    problem: str | None = None

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Yield a readable file with the bytes (of a file or an object; images are packed by `register`).

        Raises:
            ObjectMissing: the object is gone.
        """
        if self.path is not None:
            yield self.path
        else:
            assert self.place is not None and self.key is not None
            with self.place.local(self.key) as path:
                yield path


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies in a place: arrivals in order of name, and how many files of other kinds were left alone."""

    root_name: str
    arrivals: tuple[Arrival, ...]
    left: Counter[str]


def _suffix(name: str) -> str:
    base = name.rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[1].lower() if "." in base.lstrip(".") else ""


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_sidecar(data: bytes) -> Sidecar | None:
    """Return the sidecar that a `.json` beside a video is, or None when it is some other program's JSON.

    Raises:
        ArtefactError: it claims to be a sidecar (it names clip_id and sha256) and is broken.
    """
    try:
        document = json.loads(data)
    except ValueError:
        return None
    if not isinstance(document, dict) or not {"clip_id", "sha256", "camera_id"} <= document.keys():
        return None
    return Sidecar.from_json(data)


def _with_sidecar(arrival: Arrival, data: bytes | None) -> Arrival:
    if data is None:
        return arrival
    try:
        return dataclasses.replace(arrival, sidecar=read_sidecar(data))
    except ArtefactError as error:
        return dataclasses.replace(arrival, problem=f"its sidecar is broken: {error}")


def in_folder(root: Path, *, skip: Path | None = None) -> Found:
    """Find videos and image folders below `root`, or the one video that `root` is.

    A store below it (`skip`) is not looked into, so that `camloop ingest .` does not find its own clips.

    Hidden files (a leading dot, among them macOS's `._x.mp4`) and tars that are no clips are left alone. A folder that holds
    images directly is one clip; videos beside them are clips of their own.

    Raises:
        UsageError: there is no such folder, or nothing in it that could be a clip.
    """
    if not root.exists():
        raise UsageError(f"{root}: no such folder or file; give a folder of videos or images, one video, or s3://bucket/prefix")
    root = root.resolve()
    if root.is_file():
        if _suffix(root.name) not in VIDEO_SUFFIXES and not images.is_clip(root):
            raise UsageError(
                f"{root}: not a video by its name; legal endings: {' '.join('.' + s for s in sorted(VIDEO_SUFFIXES))}"
            )
        return Found(root_name=root.parent.name, arrivals=(_video(root, root.name),), left=Counter())
    own = skip.resolve() if skip is not None and not root.is_relative_to(skip.resolve()) else None
    arrivals, left = [], Counter[str]()
    pictures: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if own is not None and path.is_relative_to(own):
            continue
        if any(part.startswith(".") for part in name.split("/")) or not path.is_file():
            continue
        suffix = _suffix(path.name)
        if suffix in VIDEO_SUFFIXES or (suffix == TAR and images.is_clip(path)):
            arrivals.append(_video(path, name))
        elif suffix in IMAGE_SUFFIXES:
            pictures.setdefault(path.parent, []).append(path)
        elif not (suffix == "json" and any(path.with_suffix(f".{s}").exists() for s in (*VIDEO_SUFFIXES, TAR))):
            left[suffix or "no ending"] += 1
    for folder, members in pictures.items():
        name = root.name if folder == root else folder.relative_to(root).as_posix()
        n_bytes = sum(member.stat().st_size for member in members)
        arrivals.append(
            Arrival(
                source_name=name,
                uri=str(folder),
                container=TAR,
                n_bytes=n_bytes,
                members=tuple(sorted(members, key=lambda member: _natural(member.name))),
            )
        )
    if not arrivals:
        others = ", ".join(f"{n} .{suffix}" for suffix, n in left.most_common(5)) or "it is empty"
        raise UsageError(f"{root}: no video (.mp4 .mkv .avi .mov .ts) and no image (.jpg .png) below it: {others}")
    return Found(root_name=root.name, arrivals=tuple(sorted(arrivals, key=lambda a: a.source_name)), left=left)


def _video(path: Path, name: str) -> Arrival:
    beside = path.with_suffix(".json")
    made = Arrival(source_name=name, uri=str(path), container=_suffix(name), n_bytes=path.stat().st_size, path=path)
    return _with_sidecar(made, beside.read_bytes() if beside.is_file() else None)


def in_place(place: Store, prefix: str = "") -> Found:
    """Find videos in a bucket or folder that is a store; images in a bucket are counted as left alone.

    Raises:
        UsageError: there is no video under the prefix.
    """
    arrivals, left = [], Counter[str]()
    prefix = prefix.rstrip("/")
    below = f"{prefix}/" if prefix else ""
    names = {
        stat.key: stat.n_bytes
        for stat in place.list(prefix)
        if (stat.key == prefix or stat.key.startswith(below)) and not stat.key.startswith((keys.CLIPS, keys.TABLES))
    }
    base = len(below) if prefix not in names else len(prefix.rpartition("/")[0])  # PATH may be one object
    for key, n_bytes in names.items():
        suffix, name = _suffix(key), key[base:].lstrip("/")
        if suffix not in VIDEO_SUFFIXES and not (suffix == TAR and keys.sidecar_key(key) in names):
            if not (suffix == "json" and any(f"{key[:-5]}.{s}" in names for s in (*VIDEO_SUFFIXES, TAR))):
                left[suffix or "no ending"] += 1
            continue
        made = Arrival(
            source_name=name, uri=f"{place.url.rstrip('/')}/{key}", container=suffix, n_bytes=n_bytes, key=key, place=place
        )
        beside = keys.sidecar_key(key)
        arrivals.append(_with_sidecar(made, place.get(beside) if beside in names else None))
    if not arrivals:
        raise UsageError(f"{place.url.rstrip('/')}/{prefix}: no video (.mp4 .mkv .avi .mov .ts) under it")
    root_name = (prefix.rstrip("/") or place.url.rstrip("/")).rsplit("/", 1)[-1]
    return Found(root_name=root_name, arrivals=tuple(arrivals), left=left)


def in_store(store: Store, key: str, *, source_name: str, camera_id: str, n_bytes: int) -> Arrival:
    """Return a clip of our own store that has a row already, to be read again (a corrected camera)."""
    made = Arrival(
        source_name=source_name, uri=f"{store.url.rstrip('/')}/{key}", container=_suffix(key), n_bytes=n_bytes, key=key,
        place=store, stored=True, camera_id=camera_id, camera_from="clips/",
    )  # fmt: skip
    beside = keys.sidecar_key(key)
    return _with_sidecar(made, store.get(beside) if store.head(beside) is not None else None)


def in_clips(store: Store, registered: Iterable[str]) -> Found:
    """Find what uploaders put under `clips/` of our own store and what no `clips` row names yet.

    A clip there must be named by its own hash and lie beside its sidecar: until `register` has verified both it is
    untrusted. One without a sidecar is reported, it may still be coming (the sidecar is put first, so it is not).

    Args:
        store: our store.
        registered: keys that have a `clips` row.
    """
    held, arrivals, names = set(registered), [], {stat.key: stat.n_bytes for stat in store.list(keys.CLIPS)}
    for key, n_bytes in names.items():
        suffix = _suffix(key)
        if key in held or suffix not in VIDEO_SUFFIXES | {TAR}:
            continue
        parts, stem = key.split("/"), key.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        problem = None
        if len(parts) != 3 or not keys.is_clip_id(stem):
            problem = "not of the form clips/<camera_id>/<clip_id>.<container>"
        beside = keys.sidecar_key(key)
        made = Arrival(
            source_name=key, uri=f"{store.url.rstrip('/')}/{key}", container=suffix, n_bytes=n_bytes, key=key, place=store,
            stored=True, camera_id=parts[1], camera_from="clips/", problem=problem,
        )  # fmt: skip
        try:
            arrivals.append(_with_sidecar(made, store.get(beside) if beside in names else None))
        except ObjectMissing:
            arrivals.append(made)
    return Found(root_name="clips", arrivals=tuple(arrivals), left=Counter())


def assign_cameras(found: Found, *, camera: str | None, registry: Registry | None, folders_are_classes: bool) -> Found:
    """Return the arrivals with their cameras; nothing is guessed where a registry was given.

    Raises:
        UsageError: a folder's name cannot be a camera_id, or cameras.toml does not know a file or --camera.
    """
    if camera is not None:
        keys.check_name(camera, "--camera")
        if registry is not None and camera not in registry.cameras:
            raise UsageError(f"--camera {camera}: not in {registry.origin}, which has {', '.join(sorted(registry.cameras))}")
    assigned = []
    for arrival in found.arrivals:
        camera_id, origin = _camera(arrival, found.root_name, camera, registry, folders_are_classes)
        try:
            keys.check_name(camera_id, "camera")
        except UsageError as error:
            raise UsageError(
                f"{arrival.source_name}: folder {camera_id!r} cannot name a camera ({error}); "
                f'give --camera ID, or --cameras FILE with [[camera]] id = "...", folder = {camera_id!r}'
            ) from error
        assigned.append(dataclasses.replace(arrival, camera_id=camera_id, camera_from=origin))
    return dataclasses.replace(found, arrivals=tuple(assigned))


def _camera(
    arrival: Arrival, root_name: str, camera: str | None, registry: Registry | None, folders_are_classes: bool
) -> tuple[str, CameraFrom]:
    if arrival.stored and arrival.camera_id:
        return arrival.camera_id, arrival.camera_from
    if camera is not None:
        return camera, "--camera"
    if arrival.sidecar is not None:
        return arrival.sidecar.camera_id, "sidecar"
    if registry is not None:
        name = arrival.source_name if not arrival.members else f"{arrival.source_name}/{arrival.members[0].name}"
        return registry.camera_of(name), "cameras.toml"
    parts = arrival.source_name.split("/")
    if folders_are_classes or (len(parts) == 1 and not (arrival.members and arrival.source_name != root_name)):
        return root_name, "name of the ingested folder"
    return parts[0], "folder"
