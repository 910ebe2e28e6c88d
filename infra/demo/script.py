"""What is true about a recording before it is filmed: its script. Enough for the annotator, who asks for no boxes.

Rendering gives the same truth with boxes (`infra.demo.render.recording_truth`); this one needs no picture.
"""

from __future__ import annotations

from infra.demo.render import recording_truth, segments
from infra.demo.truth import FrameTruth, RecordingTruth
from infra.demo.world import RecordingPlan


def script_truth(plan: RecordingPlan) -> RecordingTruth:
    """Return the actions of a planned recording, frame by frame, without boxes."""
    frames = [
        FrameTruth(number, plan.sensor_ns(number), segment.action, (), lamp_on=False)
        for segment in segments(plan)
        for number in range(segment.start_frame, segment.end_frame)
    ]
    return recording_truth(plan, frames)
