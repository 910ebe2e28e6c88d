"""Where artefacts lie in a store: bundles and data sets by id, by the beginning of an id, or by name.

    put_bundle(store, bundle)            `bundles/<bundle_id>/`: model.onnx, then bundle.json; its presence says "whole"
    read_bundle(store, "3f2a")           verified; the id may be shortened
    read_dataset(store, "gestures")      the frozen Selection of that name

What an artefact is stands in `infra/artefacts.py`; how its key is spelled, in `infra/keys.py`.
"""

from __future__ import annotations

import difflib
from pathlib import PurePosixPath

from infra import keys
from infra.artefacts import Bundle, Selection
from infra.errors import ArtefactError, ObjectMissing, UsageError
from infra.objects import Store

_SHOWN = 5


def full_id(store: Store, prefix: str, begin: str) -> str:
    """Return the one id under `prefix` ("runs/", "bundles/") that begins so.

    Raises:
        UsageError: none does, or several do; the message shows some that there are.
    """
    there = sorted({stat.key.removeprefix(prefix).split("/")[0] for stat in store.list(prefix)})
    found = [name for name in there if name.startswith(begin)] if begin else []
    if len(found) != 1:
        shown = ", ".join(name[:12] for name in (found or there)[:_SHOWN]) or "none"
        raise UsageError(
            f"{len(found) or 'none'} of the {len(there)} under {prefix} in {store.url} begins with {begin!r} (there: {shown}); "
            "give exactly one"
        )
    return found[0]


def put_bundle(store: Store, bundle: Bundle) -> str:
    """Put a bundle into the store, `bundle.json` last; return its id. The same bundle again is a no-op."""
    prefix = keys.bundle_prefix(bundle.bundle_id)
    if store.head(prefix + "bundle.json") is None:
        store.put(prefix + "model.onnx", bundle.model)
        store.put(prefix + "bundle.json", bundle.spec_bytes())
    return bundle.bundle_id


def read_bundle(store: Store, begin: str) -> Bundle:
    """Read and verify a bundle of the store.

    Args:
        store: where it lies.
        begin: its id, or how only this one begins.

    Raises:
        UsageError: no bundle, or more than one, begins with that id.
        ArtefactError: what lies there is not whole, or not the bundle of that id.
    """
    bundle_id = full_id(store, "bundles/", begin)
    prefix = keys.bundle_prefix(bundle_id)
    try:
        bundle = Bundle.from_bytes(store.get(prefix + "bundle.json"), store.get(prefix + "model.onnx"))
    except ObjectMissing as error:
        raise ArtefactError(f"bundle {bundle_id} is not whole: {error}; export it again") from error
    if bundle.bundle_id != bundle_id:
        raise ArtefactError(f"bundle {bundle_id}: what lies there hashes to {bundle.bundle_id}")
    return bundle


def read_dataset(store: Store, name: str) -> Selection:
    """Return a data set by name.

    Raises:
        UsageError: there is none of that name; near names are offered, else those that there are.
    """
    try:
        return Selection.from_bytes(store.get(keys.dataset_key(name)))
    except ObjectMissing as error:
        there = dataset_names(store)
        near = difflib.get_close_matches(name, there, n=3)
        offered = f"near: {', '.join(near)}" if near else f"there: {', '.join(there) or 'none; camloop dataset makes one'}"
        raise UsageError(f"no data set {name!r} in {store.url}; {offered}") from error


def dataset_names(store: Store) -> list[str]:
    """Return the names of all data sets, sorted."""
    return [PurePosixPath(stat.key).stem for stat in store.list("datasets/")]
