"""Selection, Report, Bundle, Wanted and Outbox on disk: what the rooms hand to each other.

Each is bytes with a hash, readable by the standard library alone, so that a light install can read and write it:

- `Selection`: JSON Lines; the first line is the header, each further line one row. Frozen; its id is its hash.
- `Report`: one JSON document: model x slice x metric, with the figures behind each verdict.
- `Bundle`: a folder, `bundle.json` (the specification) and `model.onnx`. Its id is the hash of both.
- `Wanted`: what is to be filmed: where-expression, quota, expiry.
- `Outbox`: a folder of finished clips with sidecars that `run` leaves for the spool to adopt.

Reading verifies; nothing is corrected. An artefact of another version is refused with both versions named.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from infra import durable, keys
from infra.errors import ArtefactError, UsageError
from infra.records import Sidecar

VERSION = 1
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Verdict = Literal["passed", "failed", "unknown", "not gated"]


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ArtefactError(f"{what}: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        found = document.get("version") if isinstance(document, dict) else type(document).__name__
        raise ArtefactError(f"{what}: version {found!r}; this camloop reads {VERSION}")
    return document


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRow:
    """One chosen interval. `group` is the unit that a split keeps together; `columns` are the group-by values.

    `weight` is for training (1 = as drawn); `p_select` for estimation: the probability with which the row was drawn.
    """

    clip_id: str
    start_pts: int
    end_pts: int
    label: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    split: Split | None = None
    weight: float = 1.0
    p_select: float = 1.0
    reason: str = ""

    def __post_init__(self) -> None:
        if self.end_pts <= self.start_pts:
            raise ArtefactError(f"selection row of clip {self.clip_id}: [{self.start_pts}, {self.end_pts}) is empty")
        if self.split is not None and self.split not in SPLITS:
            raise ArtefactError(f"selection row of clip {self.clip_id}: split {self.split!r}, legal: {', '.join(SPLITS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What a sample could not meet: `wanted` of `cell` were asked for, `found` exist; `why` in words."""

    cell: str
    wanted: int
    found: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A frozen answer to a query: rows with query, table snapshots, seed and shortages.

    `unit` says what a row is ("frame", "interval" or "clip"); `group_by` names the column behind `group`;
    `snapshots` maps table name to Delta version; `extra` holds what the maker wants to keep (view arguments).
    """

    name: str
    purpose: Literal["train", "label", "evaluate", "export"]
    rows: tuple[SelectionRow, ...]
    query: str
    unit: Literal["frame", "interval", "clip"]
    group_by: str | None = None
    seed: int | None = None
    snapshots: Mapping[str, int] = field(default_factory=dict)
    shortages: tuple[Shortage, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the Selection as JSON Lines, header first; equal Selections give equal bytes."""
        header = {
            "version": VERSION, "kind": "selection", "name": self.name, "purpose": self.purpose, "query": self.query,
            "unit": self.unit, "group_by": self.group_by, "seed": self.seed, "snapshots": dict(self.snapshots),
            "shortages": [dataclasses.asdict(shortage) for shortage in self.shortages], "extra": dict(self.extra),
            "n_rows": len(self.rows),
        }  # fmt: skip
        return b"\n".join([_canonical(header), *(_canonical(dataclasses.asdict(row)) for row in self.rows)]) + b"\n"

    @property
    def selection_id(self) -> str:
        """The first 32 hex digits of the SHA-256 of the bytes."""
        return keys.sha256_hex(self.to_bytes())[:32]

    @classmethod
    def from_bytes(cls, data: bytes, *, selection_id: str | None = None) -> Self:
        """Read a Selection; with `selection_id`, verify it.

        Raises:
            ArtefactError: not a Selection, truncated, or of another id.
        """
        lines = data.splitlines()
        header = _document(lines[0] if lines else b"", "selection")
        if header.get("kind") != "selection":
            raise ArtefactError(f"selection: this is a {header.get('kind')!r}")
        if len(lines) - 1 != header["n_rows"]:
            raise ArtefactError(f"selection {header['name']!r}: {len(lines) - 1} rows, its header says {header['n_rows']}")
        if selection_id is not None and keys.sha256_hex(data)[:32] != selection_id:
            raise ArtefactError(f"selection {selection_id}: its bytes hash to {keys.sha256_hex(data)[:32]}")
        return cls(
            **{name: header[name] for name in ("name", "purpose", "query", "unit", "group_by", "seed", "snapshots", "extra")},
            shortages=tuple(Shortage(**shortage) for shortage in header["shortages"]),
            rows=tuple(SelectionRow(**json.loads(line)) for line in lines[1:]),
        )

    def split(self, name: Split) -> tuple[SelectionRow, ...]:
        """Return the rows of one split, in order."""
        return tuple(row for row in self.rows if row.split == name)

    def __repr__(self) -> str:
        cells = {name: len(self.split(name)) for name in SPLITS if self.split(name)}
        parts = f", {cells}" if cells else ""
        return f"<Selection {self.name!r}: {len(self.rows)} {self.unit}s{parts}, {len(self.shortages)} shortages>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCell:
    """One figure: a metric of a model on a slice, with its interval [low, high] and what it was judged by."""

    slice: str
    where: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    n_groups: int
    threshold: float | None
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Model x slice x metric for one bundle, with everything needed to ask where a figure came from.

    `judged` says which output the gate looked at ("raw" or "smoothed"); `detail` holds what the page shows
    (curves, confusion, paired differences, window metrics, reuse count of the evaluation part).
    """

    bundle_id: str
    model_name: str
    dataset: str
    selection_id: str
    group_by: str
    judged: Literal["raw", "smoothed"]
    seed: int
    cells: tuple[ReportCell, ...]
    labels: tuple[str, ...]
    created_ns: int
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """`passed` if every gated slice passed, `failed` if one failed, else `unknown`; `not gated` without thresholds."""
        gated = {cell.verdict for cell in self.cells} - {"not gated"}
        if not gated:
            return "not gated"
        return "failed" if "failed" in gated else "unknown" if "unknown" in gated else "passed"

    def to_bytes(self) -> bytes:
        return _canonical({"version": VERSION, "kind": "report", **dataclasses.asdict(self), "verdict": self.verdict})

    @property
    def report_id(self) -> str:
        """The first 32 hex digits of the SHA-256 of the bytes."""
        return keys.sha256_hex(self.to_bytes())[:32]

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a Report.

        Raises:
            ArtefactError: not a Report, or its verdict is not the one that its cells give.
        """
        document = _document(data, "report")
        try:
            verdict = document.pop("verdict")
            if document.pop("kind") != "report":
                raise ArtefactError("report: this is another kind of document")
            del document["version"]
            document["cells"] = tuple(ReportCell(**cell) for cell in document["cells"])
            document["labels"] = tuple(document["labels"])
            report = cls(**document)
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"report: {type(error).__name__}: {error}") from error
        if report.verdict != verdict:
            raise ArtefactError(f"report {report.report_id}: says {verdict!r}, its cells say {report.verdict!r}")
        return report


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """One tensor that a recurrent model carries from frame to frame: ONNX input `name`, output `name + "_next"`."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"
    initial: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """What a predictor must know to run `model.onnx`, and where the model comes from.

    The graph takes `frame` uint8 (1, height_px, width_px, 3) RGB and the state tensors, and gives `probs` float32
    (1, n labels) and the next states. Normalisation is inside. `period_s` is the time between two frames that the
    model wants; state resets at a new recording or at a gap of more than `reset_after_periods` periods.
    `smoothing` is the factor of the exponential moving average of seed 000 (0 = none). `uncertain_below`: a
    prediction with a smaller top probability is one that the Pi sends back.
    """

    model_name: str
    labels: tuple[str, ...]
    width_px: int
    height_px: int
    period_s: float
    reset_after_periods: float = 3.0
    states: tuple[StateSpec, ...] = ()
    smoothing: float = 0.0
    uncertain_below: float = 0.6
    lineage: Mapping[str, Any] = field(default_factory=dict)
    simulated_world_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An exported model with its specification. Read it from a folder or from a store's bytes; both verify."""

    spec: BundleSpec
    model: bytes = field(repr=False)

    def spec_bytes(self) -> bytes:
        """Return `bundle.json`: the specification and the model's SHA-256."""
        return _canonical(
            {"version": VERSION, "kind": "bundle", "model_sha256": keys.sha256_hex(self.model), **dataclasses.asdict(self.spec)}
        )

    @property
    def bundle_id(self) -> str:
        """The first 32 hex digits of the SHA-256 of `bundle.json`, which names the model's hash."""
        return keys.sha256_hex(self.spec_bytes())[:32]

    @classmethod
    def from_bytes(cls, spec: bytes, model: bytes) -> Self:
        """Read and verify a bundle.

        Raises:
            ArtefactError: the model is not the one whose hash the specification names, or a field is wrong.
        """
        document = _document(spec, "bundle")
        try:
            expected = document.pop("model_sha256")
            if document.pop("kind") != "bundle":
                raise ArtefactError("bundle: this is another kind of document")
            del document["version"]
            document["labels"] = tuple(document["labels"])
            document["states"] = tuple(StateSpec(**{**s, "shape": tuple(s["shape"])}) for s in document["states"])
            bundle = cls(spec=BundleSpec(**document), model=model)
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"bundle: {type(error).__name__}: {error}") from error
        if keys.sha256_hex(model) != expected:
            raise ArtefactError(f"bundle: model.onnx hashes to {keys.sha256_hex(model)}, bundle.json says {expected}")
        return bundle

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and verify the bundle in `folder`."""
        try:
            return cls.from_bytes((folder / "bundle.json").read_bytes(), (folder / "model.onnx").read_bytes())
        except FileNotFoundError as error:
            raise ArtefactError(f"no bundle in {folder}: {Path(error.filename).name} is missing") from error

    def write(self, folder: Path) -> None:
        """Write the bundle; `bundle.json`, which makes it one, last."""
        durable.write(folder / "model.onnx", self.model)
        durable.write(folder / "bundle.json", self.spec_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be filmed next: a where-expression over what a camera knows, how many clips, until when."""

    wanted_id: str
    where: str
    quota: int
    expires_ns: int
    reason: str

    def to_bytes(self) -> bytes:
        return _canonical({"version": VERSION, "kind": "wanted", **dataclasses.asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        document = _document(data, "wanted")
        if document.pop("kind", None) != "wanted":
            raise ArtefactError("wanted: this is another kind of document")
        del document["version"]
        try:
            return cls(**document)
        except TypeError as error:
            raise ArtefactError(f"wanted: {error}") from error


class Outbox:
    """A folder of finished clips with sidecars, written through `durable`: the sidecar first, then its clip.

    `run` puts there what a model was unsure about; the spool adopts it. A clip without sidecar is unfinished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, clip: bytes, sidecar: Sidecar) -> Path:
        """Write one clip and return its path; the same clip again is a no-op."""
        if keys.sha256_hex(clip) != sidecar.sha256:
            raise ArtefactError(f"outbox: the clip hashes to {keys.sha256_hex(clip)}, its sidecar says {sidecar.sha256}")
        path = self.folder / f"{sidecar.clip_id}.{sidecar.container}"
        durable.write(path.with_suffix(".json"), sidecar.to_json())
        durable.write(path, clip)
        return path

    def finished(self) -> list[tuple[Path, Sidecar]]:
        """Return the finished clips with their sidecars, in order of recording; a sidecar that cannot be read is set aside."""
        found = []
        for path in sorted(self.folder.glob("[!.]*.json")) if self.folder.is_dir() else ():
            try:
                sidecar = Sidecar.from_json(path.read_bytes())
            except ArtefactError as error:
                self.set_aside(path.stem, str(error))
                continue
            clip = path.with_suffix(f".{sidecar.container}")
            if clip.exists():
                found.append((clip, sidecar))
        return sorted(found, key=lambda pair: (pair[1].boot_id, pair[1].seq))

    def set_aside(self, clip_id: str, reason: str) -> None:
        """Move a clip that cannot be delivered to `broken/`, with the reason, so that it holds up no other."""
        for path in sorted(self.folder.glob(f"{clip_id}.*")):
            durable.adopt(path, self.folder / "broken" / path.name)
        durable.write(self.folder / "broken" / f"{clip_id}.reason.txt", f"{reason}\n".encode())


def read_gate(text: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """Parse a gate file (TOML): `judged`, `[[slice]]` tables, each a `records.Slice`, and what holds for all that do not say.

    Raises:
        UsageError: not TOML, or an unknown key.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"gate file: {error}") from error
    judged, slices = document.pop("judged", "smoothed"), document.pop("slice", ())
    shared: dict[str, Any] = {name: document.pop(name) for name in ("min_recall", "positive", "moving") if name in document}
    if document or judged not in ("raw", "smoothed"):
        legal = "judged = 'raw' | 'smoothed', min_recall, positive, moving, [[slice]]"
        raise UsageError(f"gate file: unknown {sorted(document) or judged!r}; legal: {legal}")
    rest = {**shared, "min_recall": None}  # a recall is asked of slices with a threshold
    return judged, tuple((shared if "threshold" in t else rest) | t if isinstance(t, dict) else t for t in slices)
