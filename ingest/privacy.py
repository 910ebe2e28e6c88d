"""What must not be seen leaves no camera: regions and detected people are hidden before anything is stored or shown.

    [privacy]
    masks = [[0.6, 0.0, 1.0, 0.4]]      # the neighbour's windows
    blur = ["person"]
    detector = "yolov8n.onnx"

    source = private(source, settings)  # before the trigger, the recorder and the preview: none sees more than this

**Fails closed.** A picture is passed on only when everything that had to be done to it was done. When the detector raises or
takes longer than `timeout_s`, the picture is withheld; the next one that passes says so (`lost = "privacy"`, a gap in its
sidecar). After `failures_in_a_row`, looking or covering, the recording ends with a DeviceError. A detector that hangs holds up
nobody: it works in a thread of its own, and while it hangs every picture is withheld. A look that failed stays due: with
`every` above 1 no picture is passed on the strength of a look that never was.

A detector misses: what it does not find is not hidden. Against that stand a low threshold, a margin around each box, and
boxes that hold from `delay_frames` pictures before to `hold_frames` after (tests/bench/trigger.py measures what is left). Where
nobody may ever be seen, mask the place. `fill` paints black and cannot be undone; `pixelate` leaves at most `CELLS` cells
on the longer side of a region, which hides a face in a picture, but of a face that moves through many pictures more can be
worked out than of one.

An encoded stream is decoded and encoded anew for this; frames that are still encoded are refused.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

import numpy as np

from infra.errors import CamloopError, DeviceError, SettingsError, UsageError
from infra.log import Log
from infra.regions import Region, check_regions, covered
from infra.settings import Where, read_table
from ingest.source import PRIVACY, Source, SourceFrame
from ingest.take import taken

if TYPE_CHECKING:
    from infra.onnx_boxes import FoundBox
    from infra.picture import Rgb

CELLS = 6
_FAULTS = (
    ArithmeticError, AttributeError, CamloopError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_T = TypeVar("_T")
_log = Log("ingest.privacy")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """The `[privacy]` table, or the `privacy` of a `[[camera]]`.

    Attributes:
        masks: regions that are always hidden: boxes and polygons in shares of the picture (infra/regions.py).
        blur: classes of the detector that are hidden wherever they are found.
        detector: its .onnx file (infra/onnx_boxes.py).
        style: how a region is hidden.
        threshold: the least score of a box that is hidden; low, since a miss is worse than a patch too many.
        margin: how much larger than the box the hidden region is, as a share of the box's sides, on each side.
        hold_frames: for how many pictures a box stays hidden after it was found.
        delay_frames: how many pictures are awaited before one is passed on: what is found in them is hidden in it, too, so
            that somebody who enters is hidden before the detector is sure. That many pictures wait in memory.
        every: the detector looks at every so-manieth picture.
        timeout_s: how long hiding one picture may take.
        failures_in_a_row: after so many withheld pictures the recording ends.
        threads: of the detector.
        simulated: this camera films the simulated world, for which alone the demo's detector was made.
    """

    masks: tuple[tuple[float, ...], ...] = ()
    blur: tuple[str, ...] = ()
    detector: Path | None = None
    style: Literal["pixelate", "fill"] = "pixelate"
    threshold: float = 0.15
    margin: float = 0.15
    hold_frames: int = 10
    delay_frames: int = 3
    every: int = 1
    timeout_s: float = 2.0
    failures_in_a_row: int = 25
    threads: int = 1
    simulated: bool = False

    def __post_init__(self) -> None:
        check_regions("masks", self.masks)
        if bool(self.blur) != (self.detector is not None):
            raise SettingsError("blur and detector go together: the classes to hide, and the .onnx file that finds them")
        if not 0 < self.threshold < 1:
            raise SettingsError(f"threshold is {self.threshold:g}; legal: a score, more than 0 and below 1")
        if not 0 <= self.margin <= 2:
            raise SettingsError(f"margin is {self.margin:g}; legal: 0 to 2, a share of the box's sides")
        if not 1 <= self.every <= 100 or not self.every - 1 <= self.hold_frames <= 10_000:
            raise SettingsError(
                f"every is {self.every}, hold_frames {self.hold_frames}; legal: 1 to 100, and at least every - 1 to hold"
            )
        if not 0 <= self.delay_frames <= 50:
            raise SettingsError(f"delay_frames is {self.delay_frames}; legal: 0 to 50")
        if not 0 < self.timeout_s <= 60:
            raise SettingsError(f"timeout_s is {self.timeout_s:g}; legal: more than 0, at most 60 seconds")
        if self.failures_in_a_row < 1 or self.threads < 1:
            raise SettingsError(
                f"failures_in_a_row is {self.failures_in_a_row}, threads {self.threads}; legal: 1 or more of each"
            )

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: Where | str = "[privacy]") -> PrivacySettings:
        """Read a table.

        Raises:
            SettingsError: an unknown key, a wrong type or value; the message names the line.
        """
        return read_table(cls, table, where)


class Finder(Protocol):
    """What finds the things to hide."""

    def find(self, rgb: Rgb, class_names: Sequence[str], least_score: float) -> list[FoundBox]:
        """Return every box of these classes, in pixels of `rgb`."""
        ...


class Privacy:
    """Hides; one object per camera, since it remembers where people were.

    Args:
        settings: what to hide.
        finder: what finds people; None opens `settings.detector` when that is asked for.

    Raises:
        SettingsError: the detector cannot be read, does not know a class, or was made for the simulated world only.
    """

    def __init__(self, settings: PrivacySettings, *, finder: Finder | None = None) -> None:
        self.settings = settings
        self._finder = _open(settings) if finder is None and settings.blur else finder
        self._held: deque[list[FoundBox]] = deque(maxlen=settings.hold_frames + 1)
        self._masks: Any = None
        self._phase = 0  # pictures since the last look that is still good; 0: a look is due
        self._n_uncovered = 0  # in a row
        self._lost = False  # the next picture says that some before it were withheld
        self._worker = _Worker()
        self.n_withheld = 0
        self.n_passed = 0

    def hide(self, rgb: Rgb) -> Rgb:
        """Return a copy of the picture with everything hidden that is known by now: no picture after it helps.

        Args:
            rgb: uint8 (H, W, 3) RGB; not changed.

        Raises:
            DeviceError: it could not be done, or not in time; do not show the picture.
        """
        self._held.append(self._find(rgb))
        return self._done(partial(self._covered, rgb, list(self._held)))

    def frames(self, frames: Iterable[SourceFrame]) -> Iterator[SourceFrame]:
        """Yield the frames with everything hidden, `delay_frames` later; those that could not be hidden are left out.

        Raises:
            DeviceError: too many in a row could not be hidden; those before were yielded.
            UsageError: a frame that is still encoded.
        """
        waiting: deque[tuple[SourceFrame, list[FoundBox]]] = deque()
        n_in_a_row = self._n_uncovered = 0
        self._lost = False
        for frame in frames:
            if not isinstance(frame, SourceFrame):
                raise UsageError("privacy needs pictures: a stream that is kept as it comes cannot be hidden in")
            try:
                boxes = self._find(frame.rgb)
            except DeviceError as error:
                n_in_a_row, self._lost = n_in_a_row + 1, True
                self._withhold(frame, error)
                if n_in_a_row >= self.settings.failures_in_a_row:
                    yield from self._passed(waiting, 0)
                    raise _ended(error, n_in_a_row) from error
                continue
            waiting.append((replace(frame, lost=PRIVACY) if self._lost else frame, boxes))
            n_in_a_row, self._lost = 0, False
            yield from self._passed(waiting, self.settings.delay_frames)
        yield from self._passed(waiting, 0)

    def _passed(self, waiting: deque[tuple[SourceFrame, list[FoundBox]]], n_left: int) -> Iterator[SourceFrame]:
        """Hide in the oldest frames that wait, with what was found before, in and after them, and yield them.

        Raises:
            DeviceError: too many in a row could not be covered.
        """
        while len(waiting) > n_left:
            frame, boxes = waiting.popleft()
            self._held.append(boxes)
            known = [*self._held, *(later for _, later in waiting)]
            try:
                rgb = self._done(partial(self._covered, frame.rgb, known))
            except DeviceError as error:
                self._n_uncovered += 1
                self._withhold(frame, error)
                if self._n_uncovered >= self.settings.failures_in_a_row:
                    raise _ended(error, self._n_uncovered) from error
                if waiting:
                    waiting[0] = (replace(waiting[0][0], lost=PRIVACY), waiting[0][1])
                else:
                    self._lost = True
                continue
            self.n_passed += 1
            self._n_uncovered = 0
            yield replace(frame, rgb=rgb)

    def _withhold(self, frame: SourceFrame, error: DeviceError) -> None:
        self.n_withheld += 1
        _log.warning("frame_withheld", frame_number=frame.frame_number, reason=str(error))

    def _done(self, work: Callable[[], _T]) -> _T:
        """Let the worker do something, in time.

        Raises:
            DeviceError: it raised, took too long, or is still busy with something earlier.
        """
        doing = self._worker.start(work)
        if doing is None:
            raise DeviceError("privacy: the detector is still busy with an earlier picture")
        try:
            error = doing.exception(self.settings.timeout_s)
        except FutureTimeout:
            raise DeviceError(f"privacy: hiding took longer than {self.settings.timeout_s:g} s") from None
        except CancelledError:
            raise DeviceError("privacy: the stage died") from None
        if error is not None:
            raise DeviceError(f"privacy: {type(error).__name__}: {error}") from error
        return cast(_T, doing.result())

    def _find(self, rgb: Rgb) -> list[FoundBox]:
        """Return what a look finds, nothing where none is due yet; one that failed is due again.

        Raises:
            DeviceError: it was due and failed, or took too long.
        """
        if self._finder is None:
            return []
        found: list[FoundBox] = []
        if self._phase == 0:
            found = self._done(partial(self._finder.find, rgb, self.settings.blur, self.settings.threshold))
        self._phase = (self._phase + 1) % self.settings.every
        return found

    def _covered(self, rgb: Rgb, found: Iterable[Sequence[FoundBox]]) -> Rgb:
        out = rgb.copy()
        for boxes in found:
            for box in boxes:
                _cover(out, *_grown(box, self.settings.margin, rgb.shape), self.settings.style)
        if self.settings.masks:
            self._hide_masks(out)
        return out

    def _hide_masks(self, out: Rgb) -> None:
        if self._masks is None or self._masks[0] != out.shape:
            self._masks = (out.shape, [_placed(region, out) for region in self.settings.masks])
        for (x1, y1, x2, y2), inside in self._masks[1]:
            patch = out[y1:y2, x1:x2].copy()
            _cover(patch, 0, 0, x2 - x1, y2 - y1, self.settings.style)
            np.copyto(out[y1:y2, x1:x2], patch, where=inside[:, :, None])


def private(source: Source, settings: PrivacySettings, *, finder: Finder | None = None) -> Source:
    """Return the camera with everything hidden that the settings name. Arguments and errors as of `Privacy`."""
    return taken(source, Privacy(settings, finder=finder).frames)


def _ended(error: DeviceError, n_in_a_row: int) -> DeviceError:
    return DeviceError(
        f"{error}; {n_in_a_row} pictures in a row were withheld, none was passed on unhidden; "
        "check the detector, or mask the place with [privacy] masks"
    )


def _open(settings: PrivacySettings) -> Finder:
    from infra.onnx_boxes import OnnxBoxes

    assert settings.detector is not None
    try:
        boxes = OnnxBoxes(settings.detector, threads=settings.threads)
    except CamloopError as error:
        raise SettingsError(f"detector: {error}") from error
    if unknown := [name for name in settings.blur if name not in boxes.classes]:
        raise SettingsError(f"blur has {unknown[0]!r}; {settings.detector.name} finds: {', '.join(boxes.classes)}")
    if boxes.simulated_world_only and not settings.simulated:
        raise SettingsError(
            f"detector {settings.detector.name} was trained on the simulated world and finds nobody else; give another, or "
            "say simulated = true where this camera films that world"
        )
    return boxes


def _grown(box: FoundBox, margin: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return a box with its margin in whole pixels, outwards, within the picture."""
    more_x, more_y = margin * (box.x2 - box.x1), margin * (box.y2 - box.y1)
    return (
        max(0, math.floor(box.x1 - more_x)), max(0, math.floor(box.y1 - more_y)),
        min(shape[1], math.ceil(box.x2 + more_x)), min(shape[0], math.ceil(box.y2 + more_y)),
    )  # fmt: skip


def _placed(region: Region, out: Rgb) -> tuple[tuple[int, int, int, int], Any]:
    """Return the pixels around a region, and which of them it covers; one pixel more on each side of a polygon's edge."""
    inside = covered([region], (out.shape[1], out.shape[0]))
    wide = inside.copy()
    wide[1:] |= inside[:-1]
    wide[:-1] |= inside[1:]
    wide[:, 1:] |= wide[:, :-1].copy()
    wide[:, :-1] |= wide[:, 1:].copy()
    ys, xs = np.flatnonzero(wide.any(axis=1)), np.flatnonzero(wide.any(axis=0))
    if not len(ys):
        return (0, 0, 0, 0), wide[:0, :0]
    x1, y1, x2, y2 = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
    return (x1, y1, x2, y2), wide[y1:y2, x1:x2]


def _cover(out: Rgb, x1: int, y1: int, x2: int, y2: int, style: str) -> None:
    """Hide [x1, x2) x [y1, y2) in place: black, or the mean colours of at most CELLS cells on the longer side."""
    if x1 >= x2 or y1 >= y2:
        return
    if style == "fill":
        out[y1:y2, x1:x2] = 0
        return
    side = max(2, math.ceil(max(x2 - x1, y2 - y1) / CELLS))
    for y in range(y1, y2, side):
        for x in range(x1, x2, side):
            cell = out[y : min(y + side, y2), x : min(x + side, x2)]
            cell[:] = cell.mean(axis=(0, 1)).astype(np.uint8)


class _Worker:
    """One daemon thread that does one thing at a time; a thing that never ends holds up nobody, not even the exit."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._last: Future[Any] | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], Any]) -> Future[Any] | None:
        """Begin something; None while the last thing is not done. A thread that died is replaced."""
        if self._thread is None or not self._thread.is_alive() or (self._last is not None and self._last.cancelled()):
            self._queue = queue.SimpleQueue()
            self._thread = threading.Thread(target=self._run, args=(self._queue,), name="privacy", daemon=True)
            self._thread.start()
        elif self._last is not None and not self._last.done():
            return None
        self._last = Future()
        self._queue.put((work, self._last))
        return self._last

    @staticmethod
    def _run(things: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]) -> None:
        while True:
            work, done = things.get()
            try:
                done.set_result(work())
            except _FAULTS as error:
                done.set_exception(error)
            finally:
                done.cancel()  # nothing, unless something else ends this thread: then nobody waits for it in vain
