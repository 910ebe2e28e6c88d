"""The commands of a camera host: `record` films sources into a spool, `upload` carries the spool to the store."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
from pathlib import Path

from infra.console import Context
from infra.errors import UsageError
from infra.records import Sidecar
from ingest.spool import Spool
from ingest.uploader import Retry
from ingest.uploader import upload as deliver

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


def upload(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop upload`."""
    parser.add_argument("spool", nargs="?", type=Path, default=DEFAULT_SPOOL, help="a spool (default: ./camloop-spool)")
    outbox = "take the finished clips of an outbox first"
    parser.add_argument("--outbox", type=Path, action="append", default=[], metavar="DIR", help=outbox)
    parser.add_argument("--tries", type=int, default=4, metavar="N", help="try each request N times (default: 4)")
    parser.set_defaults(run=_upload)


def _upload(arguments: argparse.Namespace, context: Context) -> int:
    if arguments.tries < 1:
        raise UsageError(f"--tries {arguments.tries}; legal: 1 or more")
    for folder in (*arguments.outbox, *(() if arguments.outbox else (arguments.spool,))):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; `camloop record` makes a spool, `camloop run --outbox` an outbox")
    with Spool(arguments.spool, context.clock) as spool:
        n_adopted = sum(spool.adopt_outbox(folder) for folder in arguments.outbox)
        with context.out.progress(len(spool.pending()), "uploading") as task:
            result = deliver(
                spool,
                context.store,
                retry=Retry(max_tries=arguments.tries, clock=context.clock),
                on_clip=lambda clip: task.advance(1, note=clip.sidecar.camera_id),
            )
        counts = spool.counts()
    context.out.line(f"{result.n_clips} clips ({result.n_bytes:,} bytes) delivered to {context.store.url}")
    if n_adopted:
        context.out.line(f"{n_adopted} of them came from {', '.join(map(str, arguments.outbox))}")
    if result.n_quarantined:
        context.out.line(f"{result.n_quarantined} clips put aside; reasons in {arguments.spool / 'quarantine'}", style="red")
    if counts.get("lost"):
        context.out.line(f"{counts['lost']} clips lost their files before they were delivered", style="red")
    document = dataclasses.asdict(result) | {"n_adopted": n_adopted, "store": context.store.url, "spool": counts}
    context.out.document(json.loads(json.dumps(document)))
    return 1 if result.n_quarantined else 0
