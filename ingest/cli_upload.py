"""`camloop upload`: carries a spool to the store, once or for ever, or onto a memory card or stick that somebody carries."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

from infra.clock import Clock
from infra.console import Context
from infra.errors import StoreError, UsageError
from infra.objects import Destination
from infra.settings import read_table
from ingest.config import agent_config
from ingest.membership import as_member, destination, signer
from ingest.schedule import UploadSettings
from ingest.spool import Spool
from ingest.transfer import Retry
from ingest.uploader import Uploaded, watch
from ingest.uploader import upload as deliver
from ingest.watchdog import Heartbeat
from ingest.wishes import pull_quietly

LAST_WORD_S = 0.5
WISHES_EVERY_NS = 300_000_000_000
STICK = """memory cards and sticks:
  camloop upload SPOOL --to /media/stick     on the camera host: every clip is copied, read back from the stick and compared
  camloop ingest /media/stick                at home; done twice, or from two sticks, nothing doubles
  A stick may be lost on its way, so the clips stay in the spool, where the owner's policy gives them up when it needs the
  room. With --free they are deleted here as soon as they were read back from the stick."""


def upload(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop upload`."""
    parser.add_argument("spool", nargs="?", type=Path, help="a spool (default: that of [agent], else ./camloop-spool)")
    outbox = "take the finished clips of an outbox first"
    parser.add_argument("--outbox", type=Path, action="append", default=[], metavar="DIR", help=outbox)
    parser.add_argument("--tries", type=int, metavar="N", help="try each request N times (default: 4)")
    parser.add_argument("--watch", action="store_true", help="wait for more clips until stopped: what the agent runs")
    parser.add_argument("--to", type=Path, metavar="DIR", help="copy to a memory card or stick instead of the store")
    parser.add_argument("--free", action="store_true", help="with --to: delete here what was read back from the stick")
    parser.add_argument("--heartbeat-fd", type=int, help=argparse.SUPPRESS)
    parser.epilog = f"{parser.epilog or ''}\n\n{STICK}"
    parser.set_defaults(run=_upload)


def _upload(arguments: argparse.Namespace, context: Context) -> int:
    if arguments.spool is None:
        arguments.spool = agent_config(context.settings).spool
    _check(arguments)
    table = context.settings.toml.get("upload", {})
    settings = read_table(UploadSettings, table, context.settings.where("upload"))
    if arguments.tries is not None:
        settings = dataclasses.replace(settings, tries=arguments.tries)
    member = context.settings if context.store_url else as_member(context.settings)
    host_id = member.host_id
    with Spool(arguments.spool, context.clock, host_id=host_id, sign=signer(member)) as spool:
        n_adopted = sum(spool.adopt_outbox(folder) for folder in arguments.outbox if folder.is_dir())
        store: Destination | None = _stick(arguments.to) if arguments.to else None
        if store is None and not context.store_url:
            store = destination(member, context.clock)
        if store is None:
            store = context.store
        if arguments.watch:
            heartbeat = Heartbeat(arguments.heartbeat_fd, context.clock)
            return _watch(spool, store, settings, host_id, context.clock, arguments.outbox, heartbeat)
        retry = Retry(max_tries=1 if arguments.to else settings.tries, clock=context.clock)
        with context.out.progress(spool.counts().get("pending", 0), "uploading") as task:
            result = deliver(
                spool, store, retry=retry, host_id=host_id, keep=arguments.to is not None and not arguments.free,
                settings=UploadSettings(connections=1) if arguments.to else settings,
                on_clip=lambda clip: task.advance(1, note=clip.sidecar.camera_id),
            )  # fmt: skip
        return _tell(arguments, context, result, n_adopted, store, spool.counts())


def _check(arguments: argparse.Namespace) -> None:
    if arguments.tries is not None and arguments.tries < 1:
        raise UsageError(f"--tries {arguments.tries}; legal: 1 or more")
    if arguments.watch and arguments.to:
        raise UsageError("--watch with --to: a stick is filled once; leave one of them out")
    if arguments.free and not arguments.to:
        raise UsageError("--free goes with --to DIR: what a store holds is deleted here anyway, after it was proven")
    for folder in () if arguments.watch else arguments.outbox or (arguments.spool,):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; `camloop record` makes a spool, `camloop run --outbox` an outbox")


def _stick(folder: Path) -> Destination:
    """Return the folder of a card or stick as a store.

    Raises:
        UsageError: it is not there: a stick that is not mounted must not become a folder on the host's own disk.
        StoreError: it cannot be written.
    """
    from infra.store import DirStore

    if not folder.is_dir():
        raise UsageError(f"--to {folder}: no such folder; mount the stick first, or make the folder: mkdir {folder}")
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise StoreError(f"--to {folder} is read-only; unlock the card's switch or mount it for writing; nothing was sent")
    return DirStore(folder)


class _Stop(threading.Event):
    """Says whether to stop. It is asked in each turn, before each rest and as bytes go: to ask is a sign of life."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        super().__init__()
        self._heartbeat = heartbeat

    def is_set(self) -> bool:
        """Return whether to stop."""
        self._heartbeat.busy()
        return super().is_set()


def _watch(
    spool: Spool, store: Destination, settings: UploadSettings, host_id: str, clock: Clock, outboxes: list[Path],
    heartbeat: Heartbeat,
) -> int:  # fmt: skip
    stop, next_ns = _Stop(heartbeat), clock.mono_ns()

    def now_and_then() -> None:
        nonlocal next_ns
        for folder in outboxes:
            if folder.is_dir():  # `camloop run` makes it when it has something
                spool.adopt_outbox(folder)
        if clock.mono_ns() >= next_ns:
            next_ns = clock.mono_ns() + WISHES_EVERY_NS
            pull_quietly(store, spool.folder, clock)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    watch(spool, store, settings=settings, host_id=host_id, stop=stop, between=now_and_then)
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    for thread in others:
        thread.join(LAST_WORD_S)
    if any(thread.is_alive() for thread in others):  # a request that hangs may be cut: every order of writes is made for that
        os._exit(0)
    return 0


def _tell(
    arguments: argparse.Namespace,
    context: Context,
    result: Uploaded,
    n_adopted: int,
    store: Destination,
    counts: dict[str, int],
) -> int:
    waiting = counts.get("pending", 0)
    context.out.line(f"{result.n_clips} clips ({result.n_bytes:,} bytes) delivered to {store.url}")
    if n_adopted:
        context.out.line(f"{n_adopted} of them came from {', '.join(map(str, arguments.outbox))}")
    if arguments.to and not arguments.free:
        context.out.line(f"they stay in {arguments.spool} too, in case the stick is lost; --free deletes them here")
    elif waiting:
        context.out.line(f"{waiting} clips wait in {arguments.spool}: outside the hours or the bytes of [upload]")
    if result.n_quarantined:
        context.out.line(f"{result.n_quarantined} clips put aside; reasons in {arguments.spool / 'quarantine'}", style="red")
    if counts.get("lost"):
        context.out.line(f"{counts['lost']} clips lost their files before they were delivered", style="red")
    document = dataclasses.asdict(result) | {"n_adopted": n_adopted, "store": store.url, "spool": counts}
    context.out.document(json.loads(json.dumps(document)))
    return 1 if result.n_quarantined else 0
