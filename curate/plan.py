"""What is missing: for every clip the steps whose fingerprint is not the one wanted now.

    scan --> detect --+
         \\--> embed --+--> tag

A step's fingerprint holds its hand-raised VERSION, its settings, its weights' hash, and the fingerprints of the steps
that it reads. So a clip scanned anew is detected anew, and a changed factor sheet only tags. What is not asked for now
counts as it stands in the tables. Clips whose last try failed for the same fingerprint are quarantined, not tried again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from curate import cameras, cascade, daylight, detect, factors, gate, motion, openclip, quality, scan, scene
from curate.cascade import Cascade, Look
from curate.detect import Weights
from curate.resources import Resources
from curate.scan import GateKind
from infra import keys
from infra.catalog import Catalog
from infra.errors import Refused, UsageError
from infra.regions import Region
from infra.views import FRAME_MEASURES, class_column, clips_view, frames_view

Step = Literal["scan", "detect", "embed", "tag"]
STEPS: tuple[Step, ...] = ("scan", "detect", "embed", "tag")
READS: Mapping[Step, tuple[Step, ...]] = {
    "scan": (),
    "detect": ("scan",),
    "embed": ("scan",),
    "tag": ("scan", "detect", "embed"),
}
TAG_VERSION = 1
WORLD_SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run was asked for.

    Attributes:
        steps: the steps to bring up to date, in order.
        detector: weights of the detector, needed by `detect`.
        embedder: weights of the image-text model, needed by `embed`, and by `tag` where the sheet has prompts.
        embedder_path: folder or file that the embedder is opened from.
        embedder_model: architecture of a bare weights file.
        sheet: the factors.
        every_s: at least one frame is kept per this many seconds.
        score: version of the motion score, 1 or 2.
        gate: "packets": only what the packets of a clip and an audit ask for is decoded; needs score 2.
        retry: try quarantined clips again.
        cascade: stages with conditions in place of `detector`; where it has an embed stage, `embedder` is that one's.
        resources: devices and pools; in no fingerprint (see `curate/resources.py`).
    """

    steps: tuple[Step, ...]
    detector: Weights | None = None
    embedder: Weights | None = None
    embedder_path: Path | None = None
    embedder_model: str | None = None
    sheet: factors.Sheet
    every_s: float = 1.0
    score: int = 1
    gate: GateKind = "none"
    retry: bool = False
    cascade: Cascade | None = None
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        in_cascade = self.cascade.steps if self.cascade else frozenset[str]()
        if self.cascade is not None and (
            absent := [step for step in ("detect", "embed") if step in self.steps and step not in in_cascade]
        ):
            raise UsageError(
                f"step {absent[0]} has no [[stage]] in the cascade: add one, or leave it out: --without {absent[0]}"
            )
        if "detect" in self.steps and self.detector is None and "detect" not in in_cascade:
            raise UsageError("step detect needs --weights FILE (.onnx or .pt); or leave it out: --without detect")
        if "embed" in self.steps and self.embedder is None:
            raise UsageError(f"step embed needs weights: {openclip.REMEDY}")
        if "tag" in self.steps and (asked := self.sheet.of("prompts")) and self.embedder is None:
            raise UsageError(
                f"{asked[0].at}: the factor sheet has prompts: {openclip.REMEDY.replace('--without embed', '--without tag')}"
            )
        if self.cascade is not None:
            self._check_cascade(self.cascade)
        if not self.every_s > 0:
            raise UsageError(f"--every-s {self.every_s}: give seconds above 0")
        if self.score not in (1, 2) or (self.gate != "none" and self.score != 2):
            raise UsageError(
                f"--gate {self.gate} with --motion {self.score}; legal: --motion 1 or 2, and --gate packets with --motion 2 "
                "(score 1 learns its background from every frame): leave --motion out"
            )

    def _check_cascade(self, stages: Cascade) -> None:
        """Refuse what the stages of a cascade and the steps of a run do not allow together."""
        if cascade.lengths(stages.looks) and "scan" not in self.steps and {"detect", "embed"} & set(self.steps):
            raise UsageError("once_s in the cascade needs the grid of the scan: leave step scan in (it is not done again)")
        whole = stages.last("embed")
        if "tag" in self.steps and (asked := self.sheet.of("prompts")) and whole is not None and whole.crops is not None:
            raise UsageError(
                f"{asked[0].at}: the factor sheet has prompts, and the cascade embeds boxes only: add an embed stage of "
                "frames, or leave the tags out: --without tag"
            )

    @property
    def judge(self) -> Look | None:
        """The detector whose boxes n_<class> counts."""
        if self.cascade is not None:
            return self.cascade.last("detect")
        return cascade.detector(self.detector) if self.detector else None

    @property
    def weights(self) -> tuple[Weights, ...]:
        """All weights of the run: those of its cascade, or of its detector and embedder."""
        if self.cascade is not None:
            return tuple(look.weights for look in self.cascade.looks)
        return tuple(weights for weights in (self.detector, self.embedder) if weights)

    def fingerprint(self, step: Step, upstream: Mapping[str, str | None], masks: Sequence[Region] = ()) -> str:
        """Return the fingerprint of `step`, given those of the steps that it reads, and the clip's masks."""
        settings: dict[str, object] = {"upstream": {name: upstream.get(name) for name in READS[step]}}
        if step == "scan":
            settings |= {"every_s": self.every_s}
            if self.score == 2:
                settings |= {"score": [2, motion.VERSION_2], "scene": scene.VERSION, "masks": [list(mask) for mask in masks]}
            if self.gate == "packets":
                settings |= {"gate": [self.gate, gate.VERSION]}
            return keys.fingerprint(step, scan.VERSION, settings, None)
        if self.cascade is not None and step in ("detect", "embed"):
            versions = [detect.VERSION, detect.LEAST_SCORE, detect.IOU, detect.MAX_DETECTIONS, openclip.VERSION]
            stages = {"stages": self.cascade.settings(step), "code": versions}
            return keys.fingerprint(step, cascade.VERSION, settings | stages, None)
        if step == "detect":
            least = {"least_score": detect.LEAST_SCORE, "iou": detect.IOU, "most": detect.MAX_DETECTIONS}
            return keys.fingerprint(step, detect.VERSION, settings | least, self.detector.sha256 if self.detector else None)
        if step == "embed":
            return keys.fingerprint(step, openclip.VERSION, settings, self.embedder.sha256 if self.embedder else None)
        lighting = [quality.PITCH_DARK, quality.NIGHT, quality.DUSK, quality.GREY]
        code = {"sheet": self.sheet.text_sha256, "code": factors.VERSION, "lighting": lighting}
        place = {"sun": upstream["sun"]} if "sun" in upstream else {}  # only where the sheet asks the sun
        return keys.fingerprint(step, TAG_VERSION, settings | code | place, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One clip and what is missing for it: step -> the fingerprint that it will have.

    `clip` is its row of table `clips`; `kept` are the pts of its frames, where it was scanned before; `masks` are those of
    its camera when it began, for motion score 2; `measures` are those of the kept frames, which conditions of a cascade read.
    """

    clip: Mapping[str, Any]
    missing: Mapping[Step, str]
    kept: tuple[int, ...] = ()
    masks: tuple[Region, ...] = ()
    measures: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    @property
    def clip_id(self) -> str:
        return str(self.clip["clip_id"])

    def measured(self, pts: Sequence[int]) -> dict[str, list[float]]:
        """Return the measures of some kept frames as the tables have them; NaN where unknown."""
        place = {known: number for number, known in enumerate(self.kept)}
        return {
            name: [math.nan if (value := values[place[int(at)]]) is None else value for at in pts]
            for name, values in self.measures.items()
        }

    @property
    def footage_s(self) -> float:
        """The length of the clip, seconds."""
        clip = self.clip
        return float((clip["end_pts"] - clip["first_pts"]) * clip["time_base_num"] / clip["time_base_den"])

    @property
    def pixel_steps(self) -> tuple[Step, ...]:
        """The missing steps that need decoded frames."""
        return tuple(step for step in STEPS if step in self.missing and step != "tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do, and what it leaves alone.

    Attributes:
        works: clips with something missing.
        n_clips: all live clips.
        quarantined: clips that failed before in the same way; `camloop curate --retry` tries them again.
        waiting: clips whose asked steps wait for a scan that was not asked for.
        expired: clips whose object is gone.
    """

    works: tuple[Work, ...]
    n_clips: int
    quarantined: tuple[str, ...]
    waiting: tuple[str, ...]
    expired: tuple[str, ...]


def failure_id(clip_id: str, step: str, fingerprint: str) -> str:
    """Return the id of the failure of one try: the same try fails once, however often it is repeated."""
    return keys.derived_id("failure", clip_id, step, fingerprint)


def make(catalog: Catalog, options: Options, *, only: Collection[str] | None = None) -> Plan:
    """Compare the tables with what is wanted.

    Args:
        catalog: the tables.
        options: what is wanted.
        only: clip_ids to look at; None looks at all.

    Raises:
        UsageError: no clips at all.
        Refused: a model of the simulated world on other footage.
    """
    clips = catalog.scan("clips").sort("camera_id", "start_ns", "clip_id", nulls_last=True).collect()
    if clips.is_empty():
        raise UsageError(f"no clips in {catalog.store.url}: camloop ingest PATH registers some")
    if only is not None:
        clips = clips.filter(pl.col("clip_id").is_in(list(only)))
    live: dict[str, dict[str, str]] = {}
    for row in catalog.live().filter(pl.col("scope") == "clip").iter_rows(named=True):
        live.setdefault(row["scope_id"], {})[row["step"]] = row["fingerprint"]
    failed = set() if options.retry else set(catalog.scan("failures", ["failure_id"]).collect()["failure_id"])
    if "tag" in options.steps:
        _check_sheet(catalog, options)
        if options.sheet.of("sun"):
            for clip_id, place in daylight.fingerprints(catalog).items():
                live.setdefault(clip_id, {})["sun"] = place
    works: list[Work] = []
    quarantined, waiting, expired = [], [], []
    rows = cameras.in_force(catalog) if options.score == 2 else {}
    for clip in clips.iter_rows(named=True):
        clip_id = clip["clip_id"]
        masks = cameras.masks_at(rows.get(clip["camera_id"], ()), clip["start_ns"])
        missing, waits = _missing(options, live.get(clip_id, {}), masks)
        if waits:
            waiting.append(clip_id)
        if clip["state"] == "expired" and any(step != "tag" for step in missing):
            expired.append(clip_id)
            missing = {}
        first = next(iter(missing.items()), None)
        if first and failure_id(clip_id, *first) in failed:
            quarantined.append(clip_id)
        elif missing:
            works.append(Work(clip=clip, missing=missing, masks=masks))
    _check_world(catalog, options, works)
    return Plan(
        works=tuple(works), n_clips=clips.height, quarantined=tuple(quarantined), waiting=tuple(waiting), expired=tuple(expired)
    )


def with_kept(catalog: Catalog, works: Sequence[Work]) -> list[Work]:
    """Return the works with the pts and measures of their clips' kept frames."""
    names = ["pts", *scan.MEASURES]
    mine = catalog.scan("frames", ["clip_id", *names]).filter(pl.col("clip_id").is_in([work.clip_id for work in works]))
    rows = mine.sort("clip_id", "pts").group_by("clip_id").agg(names).collect()
    kept = {clip_id: dict(zip(names, lists, strict=True)) for clip_id, *lists in rows.iter_rows()}
    made = []
    for work in works:
        own = kept.get(work.clip_id, {name: [] for name in names})
        measures = {name: own[name] for name in scan.MEASURES}
        made.append(dataclasses.replace(work, kept=tuple(own["pts"]), measures=measures))
    return made


def _missing(options: Options, live: Mapping[str, str], masks: Sequence[Region] = ()) -> tuple[dict[Step, str], bool]:
    """Return the steps to do with their fingerprints, and whether an asked step lacks its scan."""
    now: dict[str, str | None] = dict(live)
    missing: dict[Step, str] = {}
    for step in STEPS:
        if step not in options.steps:
            continue
        if step != "scan" and now.get("scan") is None:
            return missing, True
        wanted = options.fingerprint(step, now, masks)
        if live.get(step) != wanted:
            missing[step] = wanted
        now[step] = wanted
    if "embed" in missing and "detect" in live and options.cascade and any(look.crops for look in options.cascade.looks):
        missing["detect"] = live["detect"]  # vectors of boxes name them by their place: both come of the same look
    return missing, False


def _check_sheet(catalog: Catalog, options: Options) -> None:
    """Refuse, before anything is decoded, a sheet over columns or classes that nobody has, or over the sun without a place."""
    sheet, named = options.sheet, options.sheet.columns().keys() - set(FRAME_MEASURES)
    if any(not column.startswith("n_") for column in named):
        sheet.check_columns(frames_view(catalog).collect_schema().names())
    counts = any(column.startswith("n_") for column in named - {"n_person"})
    if "detect" in options.steps and counts and (judge := options.judge):
        known = [class_column(name) for name in judge.classes]
        sheet.check_classes([*known, "n_person"], judge.weights.path.name)
    for factor in sheet.of("sun"):
        daylight.check(catalog, factor.at)


def _check_world(catalog: Catalog, options: Options, works: Sequence[Work]) -> None:
    """Refuse models that only know the simulated world on footage that is not marked as simulated."""
    bound = [weights for weights in options.weights if weights.simulated_world_only]
    if not bound or not works or catalog.settings.get("world") == WORLD_SIMULATED:
        return
    rows = clips_view(catalog)
    mine = rows.filter(pl.col("clip_id").is_in([work.clip_id for work in works]))
    real = mine if "world" not in rows.collect_schema() else mine.filter(pl.col("world").fill_null("") != WORLD_SIMULATED)
    cameras = sorted(str(name) for name in real.select(pl.col("camera_id").unique()).collect()["camera_id"])
    if cameras:
        raise Refused(
            f"{bound[0].path.name} was trained on the simulated world only and would invent things on the cameras "
            f"{', '.join(cameras[:5])}: give other weights, or leave the step out (--without)"
        )
