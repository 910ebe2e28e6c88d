"""What is filmed: sites, cameras and recordings, each a pure function of one integer seed.

A `World(seed)` has disjoint parts: `models` (footage that the demo models are made on), `train`, `evaluate` and `live`.
Each part has its own sites with their own scene layouts and its own seeds of people, so nothing that a model was made
or trained on is ever judged. A site has four fixed cameras: hall and workshop indoors, yard and street outdoors.
Hall, workshop and yard see actions; the street sees people walk, cars and an animal.

    world = World(7)
    cameras = world.cameras("train", n_sites=2)
    plans = world.plan("train", 40, cameras=cameras, lightings=("day", "dusk"))
    for rgb, sensor_ns, truth in render(plans[0]): ...
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from infra import keys
from infra.demo.actions import PASTIMES, Manner, Pastime, draw_manner
from infra.demo.people import Person, draw_person
from infra.demo.scenes import INDOOR, KINDS, Kind
from infra.demo.truth import LIGHTINGS, WEATHERS, Action, Lighting, Weather
from infra.errors import UsageError

Part = Literal["models", "train", "evaluate", "live"]
PARTS: tuple[Part, ...] = ("models", "train", "evaluate", "live")
FPS = 10
PERIOD_NS = 1_000_000_000 // FPS
MAX_SITES = 64
_SITE_NAMES: dict[Part, str] = {"models": "studio", "train": "north", "evaluate": "south", "live": "harbour"}
_ANGLES: dict[Kind, str] = {"hall": "eye level", "workshop": "corner, from above", "yard": "eye level", "street": "from across"}
_HOURS: dict[Lighting, tuple[float, float]] = {"day": (9, 16), "dusk": (18, 19.5), "night": (21.5, 27), "infrared": (21.5, 27)}
_FIRST_DAY = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)
_ACTING: tuple[Action, ...] = ("Door", "Light", "Music", "Stop")
SCENES_WITH_ACTIONS: frozenset[Kind] = frozenset(("hall", "workshop", "yard"))


@dataclass(frozen=True, slots=True)
class Camera:
    """One fixed camera: `layout_seed` lays out what it looks at, `boot_ns` is when its host was started (UTC)."""

    camera_id: str
    number: int
    site: str
    kind: Kind
    layout_seed: int
    boot_id: str
    boot_ns: int

    @property
    def indoor(self) -> bool:
        """Whether it hangs indoors."""
        return self.kind in INDOOR

    @property
    def angle(self) -> str:
        """How it looks at the place, in words."""
        return _ANGLES[self.kind]


@dataclass(frozen=True, slots=True)
class Beat:
    """One piece of a recording's script: `action` (or the pastime of a None) over frames [start_frame, end_frame).

    The person moves from `x` to `to_x`, shares of the scene's stage (0 its left edge, 1 its right).
    """

    start_frame: int
    end_frame: int
    action: Action
    pastime: Pastime
    x: float
    to_x: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingPlan:
    """All that decides one recording. `person` None: nobody is there. `counter`: frame numbers are burnt in."""

    recording_id: str
    part: Part
    camera: Camera
    number: int
    seed: int
    lighting: Lighting
    weather: Weather | None
    level: float
    person: Person | None
    manner: Manner
    depth: float  # where on the stage, from far (0) to near (1)
    script: tuple[Beat, ...]
    n_frames: int
    start_ns: int
    n_cars: int
    n_animals: int
    switch_frame: int | None
    counter: bool

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_frames / FPS

    @property
    def start_mono_ns(self) -> int:
        """Sensor time of the first frame: nanoseconds since the camera's host was started."""
        return self.start_ns - self.camera.boot_ns

    def sensor_ns(self, frame_number: int) -> int:
        """Sensor time of a frame."""
        return self.start_mono_ns + frame_number * PERIOD_NS


class World:
    """The simulated world of one seed; see the module docstring."""

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise UsageError(f"world seed {seed} is negative; use 0 or more")
        self.seed = seed

    def cameras(self, part: Part, n_sites: int = 1) -> tuple[Camera, ...]:
        """Return the cameras of the first `n_sites` sites of a part, four per site.

        Raises:
            UsageError: an unknown part, or a number of sites outside [1, 64].
        """
        if part not in PARTS:
            raise UsageError(f"world part {part!r}, legal: {', '.join(PARTS)}")
        if not 1 <= n_sites <= MAX_SITES:
            raise UsageError(f"n_sites {n_sites} is outside 1..{MAX_SITES}")
        return tuple(self._camera(part, site, kind) for site in range(n_sites) for kind in KINDS)

    def _camera(self, part: Part, site: int, kind: Kind) -> Camera:
        name = f"{_SITE_NAMES[part]}{site + 1}"
        number = (PARTS.index(part) * MAX_SITES + site) * len(KINDS) + KINDS.index(kind)
        camera_id = f"{name}-{kind}"
        return Camera(
            camera_id=camera_id,
            number=number,
            site=name,
            kind=kind,
            layout_seed=self.seed * 1_000_003 + number,
            boot_id=keys.derived_id("boot", self.seed, camera_id)[:16],
            boot_ns=int(_FIRST_DAY.timestamp()) * 1_000_000_000 - (number + 1) * 61_000_000_000,
        )

    def plan(
        self,
        part: Part,
        n: int,
        *,
        batch: str = "first",
        cameras: Sequence[Camera] | None = None,
        lightings: Sequence[Lighting] = LIGHTINGS,
        weathers: Sequence[Weather] = WEATHERS,
        duration_s: tuple[float, float] = (12.0, 15.0),
        empty_share: float = 0.0,
        counter: bool = False,
    ) -> tuple[RecordingPlan, ...]:
        """Plan `n` recordings, spread evenly over cameras, lightings and weathers, in order of time.

        Args:
            part: of the world.
            n: how many.
            batch: recordings of another batch are other recordings, with other people, on another day.
            cameras: of that part; default: its first site's.
            lightings: to film in, one after the other.
            weathers: outdoors; indoors weather is not seen and unknown.
            duration_s: shortest and longest recording.
            empty_share: share of recordings without a person.
            counter: burn frame numbers in (see `counter`).

        Returns:
            The plans; the first k of n are the same for every n as long as the other arguments are.

        Raises:
            UsageError: nothing to choose from, or a camera of another part.
        """
        chosen = tuple(self.cameras(part)) if cameras is None else tuple(cameras)
        if not chosen or not lightings or not weathers:
            raise UsageError("plan needs at least one camera, one lighting and one weather")
        for camera in chosen:
            if not camera.site.startswith(_SITE_NAMES[part]):
                raise UsageError(f"camera {camera.camera_id} is not of part {part!r}: parts must stay disjoint")
        plans = []
        for i in range(n):
            camera = chosen[i % len(chosen)]
            turn = i // len(chosen)
            lighting = lightings[(turn + i % len(chosen)) % len(lightings)]
            day = turn // len(lightings)  # shifted after each pass, so that no lighting always meets the same weather
            weather = None if camera.indoor else weathers[(day + day // len(weathers) + i % len(chosen)) % len(weathers)]
            name = (self.seed, part, batch, i)
            plans.append(_draw_plan(name, camera, lighting, weather, duration_s, empty_share, counter))
        return tuple(plans)


def _draw_plan(
    name: tuple[int, Part, str, int], camera: Camera, lighting: Lighting, weather: Weather | None,
    duration_s: tuple[float, float], empty_share: float, counter: bool,
) -> RecordingPlan:  # fmt: skip
    world_seed, part, batch, number = name
    rng = np.random.default_rng([world_seed, PARTS.index(part), *batch.encode(), 0, number])
    # Every draw is made in every case, so that one condition changes nothing but itself.
    n_frames = round(float(rng.uniform(*duration_s)) * FPS)
    batch_hash = zlib.crc32(batch.encode())
    # golden-ratio steps through the hours: recordings of one day never overlap
    hour = float(np.interp((batch_hash / 2**32 + number // 5 * 0.6180339887) % 1, (0, 1), _HOURS[lighting]))
    level, near = float(rng.uniform(0.88, 1.12)), float(rng.uniform())
    empty, busy, switched = rng.random() < empty_share, rng.random(2), float(rng.uniform())
    someone = draw_person(rng)
    manner = draw_manner(rng, someone.actor_side)
    script = _script(rng, n_frames, camera.kind in SCENES_WITH_ACTIONS, number)
    start = _FIRST_DAY + datetime.timedelta(days=number % 5 + 7 * (batch_hash % 50), hours=hour)  # the batch's week
    outdoors = not camera.indoor
    return RecordingPlan(
        recording_id=keys.derived_id("recording", world_seed, part, batch, number),
        part=part,
        camera=camera,
        number=number,
        seed=int(rng.integers(1 << 31)),
        lighting=lighting,
        weather=weather,
        level=level,
        person=None if empty else someone,
        manner=manner,
        depth=near,
        script=script,
        n_frames=n_frames,
        start_ns=round(start.timestamp()) * 1_000_000_000,
        n_cars=(1 + int(busy[0] < 0.5)) if camera.kind == "street" and (empty or busy[0] < 0.8) else 0,
        n_animals=int(outdoors and busy[1] < (0.7 if empty else 0.35)),
        switch_frame=n_frames // 2 if camera.indoor and lighting in ("dusk", "day") and switched < 0.12 else None,
        counter=counter,
    )


def _script(rng: np.random.Generator, n_frames: int, acts: bool, number: int) -> tuple[Beat, ...]:
    """Write what the person does: actions of about two seconds, apart by None; who does not act walks past."""
    pace = float(rng.uniform(0.85, 1.2))
    beats: list[Beat] = []
    x, frame, turn = float(rng.uniform(0.15, 0.85)), 0, int(rng.integers(4)) + number
    if not acts:
        ends = (-0.35, 1.35) if x < 0.5 else (1.35, -0.35)
        return (Beat(0, n_frames, "None", "walk", *ends),)
    while frame < n_frames:
        draws = rng.random(6)
        pause = frame + max(5, round(FPS * (0.6 + 1.0 * draws[0]) * pace))
        pastime: Pastime = PASTIMES[int(draws[1] * len(PASTIMES))] if draws[2] < 0.45 else "stand"
        to_x = x
        if draws[3] < 0.3:
            pastime, to_x = "walk", min(max(x + (draws[4] - 0.5) * 0.9, 0.0), 1.0)
        end = min(pause, n_frames)
        if n_frames - end < 12:  # too short for an action: this pause is the last piece
            end = n_frames
        beats.append(Beat(frame, end, "None", pastime, x, to_x))
        frame, x = end, to_x
        if frame < n_frames:
            length = round(FPS * float(rng.uniform(1.8, 2.2)) * pace)
            end = frame + length
            if end > n_frames:
                beats[-1] = Beat(beats[-1].start_frame, n_frames, "None", "stand", beats[-1].x, beats[-1].to_x)
                break
            beats.append(Beat(frame, end, _ACTING[turn % 4], "stand", x, x))
            turn += 1 + 2 * int(draws[5] < 0.3)
            frame = end
    return tuple(beats)
