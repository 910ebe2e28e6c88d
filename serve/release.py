"""From a bundle in the store to a signed release on a channel. What did not pass its gate is refused.

1. The bundle is read and verified, its newest report found (or the one named). No report, a report of another model, or
   a verdict other than `passed`: refused, unless forced with a reason. A forced release is marked as such for ever:
   the mark stands in the signed metadata, every later release of the same bundle carries it on, and `run` prints it.
2. The model runs the golden frames here; its answers go into `release.json`, for devices to compare with.
3. Targets are signed: `<channel>/<bundle_id>/{bundle.json, model.onnx, report.json, release.json}` and the pointer
   `channels/<channel>.json`, which names the bundle. Going back is a new release that names an older bundle.

A device knows the releases of a channel apart by `sequence`, the version of the signed list of targets.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from infra import keys
from infra.artefacts import Bundle, Report
from infra.clock import Clock
from infra.errors import ArtefactError, ObjectMissing, Refused, UsageError
from infra.predictor import Predictor
from infra.store import Store
from serve import golden
from serve.repository import Repository

VERSION = 1
FILES = ("bundle.json", "model.onnx", "report.json", "release.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a channel points to. `reasons` are those of every forced release that this bundle ever had.

    `golden` holds the raw probabilities on the golden frames, in label order.
    """

    channel: str
    bundle_id: str
    sequence: int
    model_name: str
    report_id: str | None
    verdict: str
    reasons: tuple[str, ...]
    created_ns: int
    golden: tuple[tuple[float, ...], ...]

    @property
    def forced(self) -> bool:
        """Whether this bundle was ever released against its gate."""
        return bool(self.reasons)

    def to_bytes(self) -> bytes:
        document = {"version": VERSION, "kind": "release", "forced": self.forced, **dataclasses.asdict(self)}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a release.

        Raises:
            ArtefactError: not a release of this version.
        """
        try:
            document = json.loads(data)
            if (document.pop("version"), document.pop("kind")) != (VERSION, "release"):
                raise ArtefactError("release.json: another kind or version of document")
            forced = document.pop("forced")
            document["reasons"] = tuple(document["reasons"])
            document["golden"] = tuple(tuple(row) for row in document["golden"])
            release = cls(**document)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtefactError(f"release.json: {type(error).__name__}: {error}") from error
        if release.forced != forced or (not forced and release.verdict != "passed"):
            raise ArtefactError(f"release.json: verdict {release.verdict!r} with reasons {release.reasons} cannot be")
        return release


def pointer_path(channel: str) -> str:
    """Return the target path of a channel's pointer."""
    return f"channels/{keys.check_name(channel, 'channel')}.json"


def release_path(channel: str, bundle_id: str, name: str) -> str:
    """Return the target path of one file of a released bundle."""
    return f"{keys.check_name(channel, 'channel')}/{bundle_id}/{name}"


def find_report(store: Store, bundle_id: str, report_id: str | None) -> Report | None:
    """Return the report that is named, else the newest one of this bundle, else None.

    Raises:
        UsageError: no report of that id.
        ArtefactError: the report is not what its id says.
    """
    if report_id is not None:
        try:
            report = Report.from_bytes(store.get(keys.report_key(report_id)))
        except ObjectMissing as error:
            raise UsageError(
                f"no report {report_id!r} in {store.url}; camloop evaluate prints the id of the one it makes"
            ) from error
        if report.report_id != report_id:
            raise ArtefactError(f"report {report_id}: what lies there hashes to {report.report_id}")
        return report
    newest: Report | None = None
    for stat in store.list("reports/"):
        if not stat.key.endswith(".json"):
            continue
        report = Report.from_bytes(store.get(stat.key))
        if report.bundle_id == bundle_id and (newest is None or report.created_ns > newest.created_ns):
            newest = report
    return newest


def objection(bundle: Bundle, report: Report | None) -> str | None:
    """Return why this bundle must not be released, or None."""
    if report is None:
        return "no report judges it: run camloop evaluate with --gate first"
    if report.bundle_id != bundle.bundle_id:
        return f"report {report.report_id[:12]} judges bundle {report.bundle_id[:12]}"
    if report.labels != bundle.spec.labels:
        return f"report {report.report_id[:12]} judges labels {list(report.labels)}, the bundle has {list(bundle.spec.labels)}"
    if report.verdict != "passed":
        slices = [f"{cell.slice} {cell.verdict}" for cell in report.cells if cell.verdict in ("failed", "unknown")]
        said = f"its gate says {report.verdict}" + (f" ({', '.join(slices)})" if slices else "; evaluate it with --gate")
        missed = [entry["says"] for entry in filtered(report) if entry["verdict"] in ("failed", "unknown")]
        return "; ".join([said, *missed])
    return None


def filtered(report: Report | None) -> list[Mapping[str, Any]]:
    """Return what the report says of the filters before the footage it judged: one entry a question, with `says`."""
    found: list[Mapping[str, Any]] = report.detail.get("filters", {}).get("slices", []) if report else []
    return found


def refusal(bundle: Bundle, against: str) -> Refused:
    """Return the error that says why a bundle is not released."""
    return Refused(
        f"bundle {bundle.bundle_id[:12]} ({bundle.spec.model_name}) is not released: {against}. "
        "--force REASON releases it all the same and marks it for ever"
    )


def release(
    repository: Repository, bundle: Bundle, report: Report | None, *, channel: str, force: str | None, clock: Clock
) -> Release:
    """Sign a bundle and point the channel to it.

    Args:
        repository: the store's releases, open for signing.
        bundle: verified.
        report: what judged it, None if nothing did.
        channel: whose devices are to get it.
        force: the reason why it is released against its gate; None to let the gate decide.
        clock: for the time of the release.

    Raises:
        Refused: the gate did not pass and nobody forced it.
        ArtefactError: the model does not run here.
        UsageError: an empty reason, or a channel that cannot stand in a key.
        ObjectChanged: another release was made at the same time; nothing was released.
    """
    if force is not None and not force.strip():
        raise UsageError("--force needs a REASON in words; it stays with the release for ever")
    against = objection(bundle, report)
    if against and force is None:
        raise refusal(bundle, against)
    reasons = list(forced_reasons(repository, bundle.bundle_id))
    if against and force is not None:
        reasons.append(f"{force.strip()} [{against}]")
    fitting = report if report is not None and report.bundle_id == bundle.bundle_id else None
    made = Release(
        channel=channel, bundle_id=bundle.bundle_id, sequence=repository.next_version, model_name=bundle.spec.model_name,
        report_id=fitting.report_id if fitting else None, verdict=fitting.verdict if fitting else "no report",
        reasons=tuple(dict.fromkeys(reasons)), created_ns=clock.now_ns(), golden=golden.answers(Predictor(bundle)),
    )  # fmt: skip
    files = {"bundle.json": bundle.spec_bytes(), "model.onnx": bundle.model, "release.json": made.to_bytes()}
    if fitting:
        files["report.json"] = fitting.to_bytes()
    targets = {release_path(channel, bundle.bundle_id, name): data for name, data in files.items()}
    targets[pointer_path(channel)] = made.to_bytes()
    mark = {release_path(channel, bundle.bundle_id, "release.json"): {"forced": list(made.reasons)}} if made.forced else None
    repository.publish(targets, mark, version=made.sequence)
    return made


def forced_reasons(repository: Repository, bundle_id: str) -> tuple[str, ...]:
    """Return the reasons of all forced releases of this bundle so far, on any channel."""
    found: list[str] = []
    for path, target in repository.targets.items():
        custom: Mapping[str, list[str]] = target.unrecognized_fields.get("custom", {})
        if path.endswith(f"/{bundle_id}/release.json"):
            found.extend(custom.get("forced", ()))
    return tuple(found)


def current(repository: Repository, channel: str) -> Release | None:
    """Return what a channel points to, or None when nothing was released on it."""
    path = pointer_path(channel)
    return Release.from_bytes(repository.read(path)) if path in repository.targets else None
