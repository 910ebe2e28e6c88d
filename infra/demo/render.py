"""From a plan to frames: background once, then people, cars and animals into a copy of it, then the sensor.

`render` is a pure function of the plan. What is true about each frame comes out beside it and goes to truth files only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.demo.actions import idle, pose
from infra.demo.counter import burn_counter
from infra.demo.light import LitScene, light_scene
from infra.demo.movers import COATS, PAINTS, Mover, draw_mover, paint_animal, paint_car
from infra.demo.pen import Pen
from infra.demo.people import Pose, paint_person
from infra.demo.scenes import HEIGHT_PX, WIDTH_PX, Kind, Scene, make_scene
from infra.demo.truth import Action, Box, FrameTruth, ObjectClass, RecordingTruth, Segment
from infra.demo.world import FPS, Beat, RecordingPlan

_LEAST_VISIBLE_PX = 6.0  # a box narrower than this at the picture's edge is not a thing that anybody could mark


@functools.lru_cache(maxsize=64)
def _scene(kind: Kind, layout_seed: int) -> Scene:
    return make_scene(kind, layout_seed)


@dataclass(slots=True)
class _Stage:
    """What one recording is made of, drawn once: lit scenes (lamp on, lamp off), movers, the shutter's own chance."""

    plan: RecordingPlan
    lit: tuple[LitScene, LitScene | None]
    cars: list[Mover]
    animals: list[Mover]
    rng: np.random.Generator


def _set_up(plan: RecordingPlan) -> _Stage:
    scene = _scene(plan.camera.kind, plan.camera.layout_seed)
    rng = np.random.default_rng(plan.seed)
    lit = light_scene(scene, plan.lighting, plan.weather, plan.level, plan.seed)
    dark = None
    if plan.switch_frame is not None:
        dark = light_scene(scene, plan.lighting, plan.weather, plan.level * 0.72, plan.seed, lamp_on=False)
    cars = []
    for i in range(plan.n_cars if scene.lanes else 0):
        y, way = scene.lanes[i % len(scene.lanes)]
        cars.append(draw_mover(rng, list(PAINTS), y, way, 3.6, float(rng.uniform(72, 92)), plan.n_frames, WIDTH_PX))
    animals = []
    for _ in range(plan.n_animals):
        y = float(rng.uniform(scene.stage_px[2] - 6, scene.stage_px[3]))
        size = scene.height_at(y) * float(rng.uniform(0.4, 0.52))
        animals.append(draw_mover(rng, list(COATS), y, int(rng.choice((-1, 1))), 2.2, size, plan.n_frames, WIDTH_PX))
    return _Stage(plan, (lit, dark), cars, animals, rng)


def _beat_at(script: tuple[Beat, ...], frame_number: int) -> Beat:
    return next(beat for beat in script if beat.start_frame <= frame_number < beat.end_frame)


def _person_at(plan: RecordingPlan, scene: Scene, frame_number: int) -> tuple[Pose, tuple[float, float], Action]:
    """Return pose, feet and action of the person in a frame."""
    beat = _beat_at(plan.script, frame_number)
    n = beat.end_frame - beat.start_frame
    phase = (frame_number - beat.start_frame + 0.5) / n
    time_s = frame_number / FPS
    x1, x2, y1, y2 = scene.stage_px
    feet = (x1 + (x2 - x1) * (beat.x + (beat.to_x - beat.x) * phase), y1 + (y2 - y1) * plan.depth)
    if beat.action == "None":
        return idle(beat.pastime, phase, plan.manner, time_s), feet, "None"
    return pose(beat.action, phase, n / FPS, plan.manner, time_s), feet, beat.action


def _visible(class_name: ObjectClass, xyxy: tuple[float, float, float, float], colour: str) -> Box | None:
    """Cut a box at the picture's edge; None when hardly anything of it is inside."""
    x1, y1, x2, y2 = (max(xyxy[0], 0.0), max(xyxy[1], 0.0), min(xyxy[2], float(WIDTH_PX)), min(xyxy[3], float(HEIGHT_PX)))
    if x2 - x1 < max(_LEAST_VISIBLE_PX, 0.25 * (xyxy[2] - xyxy[0])) or y2 - y1 < _LEAST_VISIBLE_PX:
        return None
    return Box(class_name, round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2), colour)


def _paint(stage: _Stage, lit: LitScene, canvas: NDArray[np.uint8], frame_number: int) -> tuple[Action, tuple[Box, ...]]:
    """Draw everything that moves, far things first; return the action and the boxes."""
    plan, pen, scene = stage.plan, Pen(canvas), lit.scene
    dark = plan.lighting in ("night", "dusk")
    boxes: list[Box | None] = []
    action: Action = "None"
    queue: list[tuple[float, ObjectClass, Mover | None]] = [(car.y_px, "car", car) for car in stage.cars]
    queue += [(animal.y_px, "animal", animal) for animal in stage.animals]
    if plan.person is not None:
        standing, feet, action = _person_at(plan, scene, frame_number)
        queue.append((feet[1], "person", None))
    for y, class_name, mover in sorted(queue, key=lambda item: item[0]):
        if mover is not None:
            x = mover.x_at(frame_number)
            if not -60 < x < WIDTH_PX + 60:
                continue
            shade = lit.shade(x, y - 10, y)
            if class_name == "car":
                xyxy = paint_car(pen, mover, frame_number, dark, shade)
            else:
                xyxy = paint_animal(pen, mover, frame_number, lit.grey, shade)
            boxes.append(_visible(class_name, xyxy, mover.colour))
        elif plan.person is not None:
            height = scene.height_at(feet[1])
            pen.glow((feet[0] + 2, feet[1] + 1), (height * 0.2, height * 0.045), (6, 6, 8), 0.5)
            shade = lit.shade(feet[0], feet[1] - 0.6 * height, feet[1])
            xyxy = paint_person(pen, plan.person, standing, feet, height, shade)
            boxes.append(_visible("person", xyxy, plan.person.jacket))
    return action, tuple(box for box in boxes if box is not None)


def render(plan: RecordingPlan) -> Iterator[tuple[NDArray[np.uint8], int, FrameTruth]]:
    """Yield the frames of a recording.

    Yields:
        uint8 (192, 256, 3) RGB, its sensor time (ns since the host's start), what is true about it.
    """
    stage = _set_up(plan)
    phase = 0.0
    for frame_number in range(plan.n_frames):
        lamp_off = plan.switch_frame is not None and frame_number < plan.switch_frame
        lit = stage.lit[1] if lamp_off and stage.lit[1] is not None else stage.lit[0]
        phase += 0.35 + 0.9 * stage.rng.random()
        canvas = lit.canvases[int(phase) % len(lit.canvases)].copy()
        action, boxes = _paint(stage, lit, canvas, frame_number)
        rgb = lit.see(canvas, stage.rng)
        if plan.counter:
            burn_counter(rgb, frame_number, plan.number)
        sensor_ns = plan.sensor_ns(frame_number)
        yield rgb, sensor_ns, FrameTruth(frame_number, sensor_ns, action, boxes, not lamp_off)


def segments(plan: RecordingPlan) -> tuple[Segment, ...]:
    """Return what the person does, frame by frame joined; one None when nobody is there."""
    if plan.person is None:
        return (Segment(0, plan.n_frames, "None"),)
    return tuple(Segment(beat.start_frame, beat.end_frame, beat.action) for beat in plan.script)


def recording_truth(plan: RecordingPlan, frames: list[FrameTruth]) -> RecordingTruth:
    """Return the truth file of a rendered recording."""
    return RecordingTruth(
        recording_id=plan.recording_id,
        camera_id=plan.camera.camera_id,
        part=plan.part,
        lighting=plan.lighting,
        weather=plan.weather,
        jacket=None if plan.person is None else plan.person.jacket,
        segments=segments(plan),
        frames=tuple(frames),
    )
