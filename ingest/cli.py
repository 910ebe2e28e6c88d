"""`camloop record`: films sources into a spool; `camloop upload` (`cli_upload.py`) carries the spool to the store."""

from __future__ import annotations

import argparse
import dataclasses
import signal
from pathlib import Path

from infra.console import Context
from infra.errors import UsageError
from infra.records import Sidecar
from ingest.spool import Spool

DEFAULT_SPOOL = Path("camloop-spool")


def record(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop record`."""
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="video file, or sim://SEED/CAMERA[?recording=0&seconds=12]"
    )
    parser.add_argument("--spool", type=Path, default=DEFAULT_SPOOL, help="finished clips (default: ./camloop-spool)")
    parser.add_argument("--camera", metavar="ID", help="who filmed a video file (default: the file's name)")
    parser.add_argument("--label", metavar="CLASS", help="what is being shown, said by the person who films")
    parser.add_argument("--segment-s", type=float, default=60.0, metavar="S", help="a new file every S seconds (default: 60)")
    parser.add_argument("--frames", type=int, metavar="N", help="stop each source after N frames")
    parser.set_defaults(run=_record)


def _record(arguments: argparse.Namespace, context: Context) -> int:
    from ingest.recorder import Recorder
    from ingest.source import open_source

    if arguments.frames is not None and arguments.frames < 1:
        raise UsageError(f"--frames {arguments.frames}; legal: 1 or more")
    host_id = context.settings.host_id
    sources = [open_source(url, camera_id=arguments.camera, host_id=host_id) for url in arguments.sources]
    made = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service is stopped as Ctrl-C stops a person's command
    with Spool(arguments.spool, context.clock) as spool, context.out.progress(len(sources), "recording") as task:
        for source in sources:
            recorder = Recorder(source, spool, segment_s=arguments.segment_s, label=arguments.label)

            def clip_done(sidecar: Sidecar) -> None:
                task.advance(0, note=f"{sidecar.camera_id} {sidecar.clip_id[:8]}")

            made.append((source.camera_id, recorder.record(max_frames=arguments.frames, on_clip=clip_done)))
            task.advance(1, note=source.camera_id)
        waiting = spool.counts().get("pending", 0)
    rows = [(camera, r.n_clips, r.n_frames, r.n_dropped, r.n_bytes) for camera, r in made]
    context.out.table(f"recorded into {arguments.spool}", ["camera", "clips", "frames", "dropped", "bytes"], rows)
    context.out.line(f"{waiting} clips wait in {arguments.spool}: camloop upload {arguments.spool}")
    recorded = [{"camera_id": camera} | dataclasses.asdict(result) for camera, result in made]
    context.out.document({"spool": str(arguments.spool), "recorded": recorded, "pending": waiting})
    return 0
