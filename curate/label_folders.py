"""Class folders out: DIR/CLASS/clip.mp4 and DIR/CLASS/0001.png, byte for byte what `ingest --labels folders` took in.

A clip is written for each class label in force that covers all of it; labels of a part of a clip have no place in this
layout and are counted. Two files of one name in one class: the later one (by source name) gets its clip_id in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from curate.arrivals import TAR
from curate.labels import Extent
from infra import durable, images, keys
from infra.catalog import Catalog
from infra.records import Label


def export(catalog: Catalog, folder: Path, labels: Sequence[Label], extents: Mapping[str, Extent]) -> tuple[int, int]:
    """Write labelled clips as class folders; safe to run twice.

    Args:
        catalog: where the clips are.
        folder: the folder to write below.
        labels: labels in force.
        extents: all clips by clip_id.

    Returns:
        (files written or found the same, labels left out: of a part of a clip, or of a clip that is not here).

    Raises:
        UsageError: a class name cannot name a folder.
        ObjectMissing: a clip's object is gone.
    """
    stored = {row[0]: row[1] for row in catalog.scan("clips", ["clip_id", "key"]).collect().iter_rows()}
    whole = [
        label for label in labels
        if label.factor is None and label.box is None and (extent := extents.get(label.clip_id)) is not None
        and (label.start_pts, label.end_pts) == (extent.first_pts, extent.end_pts)
    ]  # fmt: skip
    written: dict[Path, str] = {}
    for label in sorted(whole, key=lambda label: (label.name, extents[label.clip_id].source_name)):
        keys.check_name(label.name, "class")
        for name, data in _files(catalog, stored[label.clip_id], extents[label.clip_id].source_name):
            path = folder / label.name / name
            if written.setdefault(path, label.clip_id) != label.clip_id:
                path = path.with_name(f"{label.clip_id}_{name}")
                written[path] = label.clip_id
            if not path.is_file() or path.read_bytes() != data:
                durable.write(path, data)
    n_classes = sum(label.factor is None for label in labels)
    return len(written), n_classes - len(whole)


def _files(catalog: Catalog, key: str, source_name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files that a clip came from: its images, or itself under its own name."""
    with catalog.store.local(key) as path:
        if key.endswith(f".{TAR}"):
            for image, data in images.read_images(path, images.read_roll(path).images):
                yield image.name, data
        else:
            yield source_name.rsplit("/", 1)[-1], path.read_bytes()
