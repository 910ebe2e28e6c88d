"""Every id and every object key is spelled here and nowhere else.

Ids are lower-case hex. A key is a relative path of `/`-separated parts, each of letters, digits, `.`, `_` and `-`;
a key that a stranger wrote is checked with `check_key` before it is used as one.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping

from infra.errors import UsageError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,126}")
_HEX32 = re.compile(r"[0-9a-f]{32}")
MAX_KEY_BYTES = 1024  # S3's limit

CLIPS = "clips/"
TABLES = "tables/"


def check_name(name: str, what: str) -> str:
    """Return `name` if it can stand in a key (camera, dataset or model name).

    Raises:
        UsageError: it is empty, over 127 characters, starts with a dot or dash or holds a character outside A-Z a-z 0-9 . _ -
    """
    if not _PART.fullmatch(name) or ".." in name:
        raise UsageError(
            f"{what} {name[:80]!r} cannot stand in an object key: use 1 to 127 of A-Z a-z 0-9 . _ -, "
            "not starting with '.' or '-', without '..'"
        )
    return name


def check_key(key: str) -> str:
    """Return `key` if every part of it is plain; refuse `..`, empty parts, control characters, look-alikes.

    Raises:
        UsageError: the key could mean another place when it is used as a path.
    """
    if len(key.encode()) > MAX_KEY_BYTES or not all(_PART.fullmatch(part) and ".." not in part for part in key.split("/")):
        raise UsageError(f"object key {key[:120]!r} is not plain: parts of A-Z a-z 0-9 . _ - joined by single '/'")
    return key


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def json_sha256(document: object) -> str:
    """Return the SHA-256 of a JSON document in its canonical form (sorted keys, no spaces)."""
    return sha256_hex(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def clip_id(sha256: str) -> str:
    """Return the id of a clip: the first 32 hex digits of the SHA-256 of its bytes."""
    return sha256[:32]


def is_clip_id(text: str) -> bool:
    """Say whether `text` has the shape of a clip id."""
    return _HEX32.fullmatch(text) is not None


def clip_key(camera_id: str, clip_id: str, container: str) -> str:
    """Return `clips/<camera_id>/<clip_id>.<container>`."""
    return f"{CLIPS}{check_name(camera_id, 'camera')}/{clip_id}.{check_name(container, 'container')}"


def sidecar_key(clip_key: str) -> str:
    """Return the key of the sidecar that lies beside a clip: the same key, `.json`."""
    return clip_key.rsplit(".", 1)[0] + ".json"


def table_prefix(table: str) -> str:
    """Return the folder of a table's Delta log and data files."""
    return f"{TABLES}{table}"


def selection_key(selection_id: str) -> str:
    """Return the key of a Selection."""
    return f"selections/{selection_id}.jsonl"


def dataset_key(name: str) -> str:
    """Return the key of a named data set (an exported Selection)."""
    return f"datasets/{check_name(name, 'data set')}.jsonl"


def report_key(report_id: str) -> str:
    """Return the key of a Report."""
    return f"reports/{report_id}.json"


def bundle_prefix(bundle_id: str) -> str:
    """Return the folder of a bundle, with its closing slash."""
    return f"bundles/{bundle_id}/"


def run_prefix(run_id: str) -> str:
    """Return the folder of a training run, with its closing slash."""
    return f"runs/{run_id}/"


def ledger_key(host_id: str, boot_id: str, number: int) -> str:
    """Return the key of one page of a host's ledger: what it never delivered, and why."""
    return f"ledger/{check_name(host_id, 'host')}/{check_name(boot_id, 'boot')}/{number:08d}.json"


def health_key(host_id: str, boot_id: str, number: int) -> str:
    """Return the key of one health report of a camera host."""
    return f"health/{check_name(host_id, 'host')}/{check_name(boot_id, 'boot')}/{number:08d}.json"


def new_id() -> str:
    """Return a fresh random id of 32 hex digits (batches, runs, labels that a person makes)."""
    return secrets.token_hex(16)


def derived_id(*parts: str | int | None) -> str:
    """Return an id of 32 hex digits that is a pure function of its parts (events, imported labels, failures)."""
    return json_sha256(list(parts))[:32]


def fingerprint(step: str, version: int, settings: Mapping[str, object], weights_sha256: str | None) -> str:
    """Return what a step's output depends on beside its input: step, hand-raised VERSION, settings, weights."""
    return json_sha256({"step": step, "version": version, "settings": dict(settings), "weights": weights_sha256})[:32]


def uniform(*parts: str | int) -> float:
    """Return a draw from [0, 1) that is a pure function of its parts (purpose, clip, frame): no generator, no order."""
    return int(derived_id(*parts)[:13], 16) / 16**13
