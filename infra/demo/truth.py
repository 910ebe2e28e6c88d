"""What is true about a simulated recording. Kept apart: only the simulated annotator and tests read it.

A `RecordingTruth` is one JSON file, `<folder>/<recording_id>.json`, in a folder that is no store. Nothing of it enters a
clip, its sidecar or its name.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from infra import durable
from infra.errors import ArtefactError

Rgb = tuple[float, float, float]
Action = Literal["None", "Door", "Light", "Music", "Stop"]
ACTIONS: tuple[Action, ...] = ("None", "Door", "Light", "Music", "Stop")
Lighting = Literal["day", "dusk", "night", "infrared"]
LIGHTINGS: tuple[Lighting, ...] = ("day", "dusk", "night", "infrared")
Weather = Literal["clear", "rain", "fog", "wind"]
WEATHERS: tuple[Weather, ...] = ("clear", "rain", "fog", "wind")
ObjectClass = Literal["person", "car", "animal"]
CLASSES: tuple[ObjectClass, ...] = ("person", "car", "animal")


@dataclass(frozen=True, slots=True)
class Box:
    """One visible object: half-open pixel box of the stored picture; `colour` names its jacket or paint."""

    class_name: ObjectClass
    x1: float
    y1: float
    x2: float
    y2: float
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """Frames [start_frame, end_frame) in which the person does `action`."""

    start_frame: int
    end_frame: int
    action: Action


@dataclass(frozen=True, slots=True)
class FrameTruth:
    """One frame: its number and sensor time, the action and the boxes, and whether the room's lamp is on."""

    frame_number: int
    sensor_ns: int
    action: Action
    boxes: tuple[Box, ...]
    lamp_on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingTruth:
    """Everything true about one recording. `weather` is None indoors, `jacket` None without a person."""

    recording_id: str
    camera_id: str
    part: str
    lighting: Lighting
    weather: Weather | None
    jacket: str | None
    segments: tuple[Segment, ...]
    frames: tuple[FrameTruth, ...]

    def write(self, folder: Path) -> Path:
        """Write `<folder>/<recording_id>.json`, replacing an equal one; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.recording_id}.json"
        durable.write(path, json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode())
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one truth file.

        Raises:
            ArtefactError: it is absent or no truth file.
        """
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            document["segments"] = tuple(Segment(**segment) for segment in document["segments"])
            document["frames"] = tuple(
                FrameTruth(**{**frame, "boxes": tuple(Box(**box) for box in frame["boxes"])}) for frame in document["frames"]
            )
            return cls(**document)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtefactError(f"{path} is no truth file: {type(error).__name__}: {error}") from error
