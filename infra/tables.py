"""The schema of every table: one source of column names, types and units (prose: docs/tables.md).

`batch_id` and `schema_version` stand in every row. How a row becomes visible differs, and is said here:
a *step* table's rows are live when `done` names their (clip_id or scope_id, batch_id) as the newest of that step;
a table *written alone* is visible by its own Delta commit.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1

_ID = pa.string()
_NS = pa.int64()
_PTS = pa.int64()
_SCORE = pa.float32()
_COMMON = [pa.field("batch_id", _ID, nullable=False), pa.field("schema_version", pa.int32(), nullable=False)]


def _schema(*fields: tuple[str, pa.DataType] | tuple[str, pa.DataType, bool]) -> pa.Schema:
    made = [pa.field(f[0], f[1], nullable=f[2] if len(f) == 3 else True) for f in fields]
    return pa.schema([*made, *_COMMON])


_MAP = pa.string()  # JSON text: Delta readers disagree about maps

SCHEMAS: Final[dict[str, pa.Schema]] = {
    "cameras": _schema(
        ("camera_id", _ID, False), ("camera_number", pa.int32(), False), ("valid_from_ns", _NS, False),
        ("host_id", _ID), ("site", pa.string()), ("angle", pa.string()), ("indoor", pa.bool_()),
        ("time_zone", pa.string()), ("clock_offset_s", pa.float64()), ("attributes", _MAP),
        ("created_ns", _NS),  # the rows of a camera with its newest created_ns are in force, older ones are history
    ),
    "clips": _schema(
        ("clip_id", _ID, False), ("key", pa.string(), False), ("source_name", pa.string()), ("container", pa.string()),
        ("camera_id", _ID, False), ("camera_number", pa.int32(), False), ("recording_id", _ID), ("site", pa.string()),
        ("day", pa.string()), ("source_group", pa.string()), ("host_id", _ID), ("boot_id", _ID), ("seq", pa.int64()),
        ("start_ns", _NS), ("start_mono_ns", _NS), ("clock", pa.string()), ("time_base_num", pa.int64()),
        ("time_base_den", pa.int64()), ("first_pts", _PTS), ("end_pts", _PTS), ("n_frames", pa.int64()),
        ("width_px", pa.int32()), ("height_px", pa.int32()), ("codec", pa.string()), ("rotation_deg", pa.int32()),
        ("index", pa.string()), ("n_dropped", pa.int64()), ("n_bytes", pa.int64()), ("sha256", pa.string()),
        ("state", pa.string()),
    ),
    "captures": _schema(  # one row per recorded frame whose sidecar gave a sensor time
        ("clip_id", _ID, False), ("pts", _PTS, False), ("sensor_ns", _NS), ("controls", _MAP),
    ),
    "gaps": _schema(
        ("clip_id", _ID, False), ("before_frame", pa.int64()), ("n_missing", pa.int64()), ("duration_ns", _NS),
        ("cause", pa.string()),
    ),
    "gops": _schema(
        ("clip_id", _ID, False), ("gop_index", pa.int32(), False), ("start_pts", _PTS), ("end_pts", _PTS),
        ("pts", pa.list_(_PTS)), ("n_bytes", pa.int64()), ("packet_score", _SCORE), ("decoded", pa.bool_()),
        ("motion", pa.list_(_SCORE)), ("p_keep", pa.float64()),
    ),
    "frames": _schema(
        ("clip_id", _ID, False), ("pts", _PTS, False), ("brightness", _SCORE), ("contrast", _SCORE), ("blur", _SCORE),
        ("colourfulness", _SCORE), ("motion_score", _SCORE), ("p_keep", pa.float64(), False),
    ),
    "scenes": _schema(  # what a clip shows of its camera, against that camera's usual (ADR 0020); clips without a row: unknown
        ("clip_id", _ID, False), ("n_pictures", pa.int64()), ("noise", _SCORE), ("cast_red", _SCORE), ("cast_blue", _SCORE),
        ("flicker", _SCORE), ("outline", pa.binary()), ("outline_width_px", pa.int32()), ("outline_height_px", pa.int32()),
        ("sharpness", pa.list_(_SCORE)),
    ),
    "detections": _schema(
        ("clip_id", _ID, False), ("pts", _PTS, False), ("det_id", _ID, False), ("source", pa.string(), False),
        ("class_name", pa.string(), False), ("score", _SCORE, False), ("x1", _SCORE), ("y1", _SCORE), ("x2", _SCORE),
        ("y2", _SCORE),
    ),
    "tags": _schema(
        ("clip_id", _ID, False), ("pts", _PTS), ("factor", pa.string(), False), ("name", pa.string(), False),
        ("score", _SCORE), ("source", pa.string(), False),
    ),
    "embeddings": _schema(
        ("clip_id", _ID, False), ("pts", _PTS), ("det_id", _ID), ("source", pa.string(), False),
        ("dim", pa.int32(), False), ("vector", pa.binary(), False),  # little-endian: 2 * dim bytes float16, 4 * dim float32
    ),
    "intervals": _schema(
        ("clip_id", _ID, False), ("event_id", _ID, False), ("layer", pa.string(), False), ("source", pa.string(), False),
        ("start_pts", _PTS, False), ("end_pts", _PTS, False), ("peak", _SCORE), ("params", _MAP),
    ),
    "audits": _schema(
        ("audit_id", _ID, False), ("step", pa.string(), False), ("clip_id", _ID), ("pts", _PTS), ("p_look", pa.float64()),
        ("dropped", pa.bool_()), ("positive", pa.bool_()),
    ),
    "looks": _schema(  # of the stages of a cascade, which look at some frames only; clips without rows were looked at whole
        ("clip_id", _ID, False), ("pts", _PTS), ("step", pa.string(), False), ("stage", pa.string(), False),
        ("number", pa.int32(), False), ("source", pa.string(), False), ("p_look", pa.float64(), False), ("passed", pa.bool_()),
        ("n_in", pa.int64()), ("n_passed", pa.int64()),
    ),
    "labels": _schema(
        ("label_id", _ID, False), ("clip_id", _ID, False), ("start_pts", _PTS), ("end_pts", _PTS), ("factor", pa.string()),
        ("name", pa.string()), ("x1", _SCORE), ("y1", _SCORE), ("x2", _SCORE), ("y2", _SCORE), ("annotator", pa.string()),
        ("created_ns", _NS), ("retracts", _ID),
    ),
    "selections": _schema(
        ("selection_id", _ID, False), ("name", pa.string()), ("purpose", pa.string()), ("key", pa.string()),
        ("n_rows", pa.int64()), ("query", pa.string()), ("seed", pa.int64()), ("created_ns", _NS),
    ),
    "predictions": _schema(
        ("clip_id", _ID, False), ("pts", _PTS, False), ("source", pa.string(), False), ("label", pa.string()),
        ("prob", _SCORE), ("probs", pa.list_(_SCORE)), ("split", pa.string()), ("truth", pa.string()),
    ),
    "reports": _schema(
        ("report_id", _ID, False), ("bundle_id", _ID, False), ("slice", pa.string()), ("metric", pa.string()),
        ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("n", pa.int64()), ("n_groups", pa.int64()),
        ("threshold", pa.float64()), ("verdict", pa.string()), ("created_ns", _NS),
    ),
    "runs": _schema(
        ("run_id", _ID, False), ("command", pa.string()), ("arguments", _MAP), ("inputs", _MAP), ("outputs", _MAP),
        ("trigger", pa.string()), ("start_ns", _NS), ("end_ns", _NS), ("exit_code", pa.int32()), ("message", pa.string()),
    ),
    "failures": _schema(
        ("failure_id", _ID, False), ("source_uri", pa.string()), ("clip_id", _ID), ("step", pa.string()),
        ("error_class", pa.string()), ("message", pa.string()), ("duplicate_of", _ID), ("created_ns", _NS),
    ),
    "health": _schema(
        ("host_id", _ID, False), ("boot_id", _ID), ("at_ns", _NS), ("name", pa.string()), ("value", pa.float64()),
        ("text", pa.string()),
    ),
    "done": _schema(
        ("scope", pa.string(), False), ("scope_id", _ID, False), ("step", pa.string(), False), ("fingerprint", _ID, False),
        ("n_in", pa.int64()), ("n_out", pa.int64()), ("done_ns", _NS, False),
    ),
}

WRITTEN_ALONE: Final = frozenset(
    {"cameras", "labels", "selections", "runs", "failures", "health", "done", "reports", "predictions"}
)
"""Tables visible by their own Delta commit; all others are visible when `done` names their batch."""

STATISTICS: Final[dict[str, tuple[str, ...]]] = {"clips": ("start_ns", "camera_number")}
"""Columns whose min/max may stand in the Delta log: start time and a camera number, never ids, names or messages."""
