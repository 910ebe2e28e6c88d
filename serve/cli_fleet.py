"""`camloop fleet`: who belongs to the fleet, how it is doing, and the broker that its cameras send through."""

from __future__ import annotations

import argparse
import dataclasses
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.errors import MissingExtra, StoreError, UsageError
from infra.objects import require
from infra.sequence import Audit
from serve import fleet as fleets
from serve import fleet_page, registry
from serve.admission import CAPACITY_CLIPS_S, Admission

if TYPE_CHECKING:
    from infra.console import Context

DEFAULT_ADDRESS = "127.0.0.1:8787"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
N_HOLES = 20


def fleet(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop fleet`."""
    parser.add_argument(
        "action", choices=["enroll", "status", "revoke", "serve", "audit"],
        help="enroll: a one-time code for a host; status: how all are; revoke: take a host's rights; "
        "serve: run the broker; audit: prove what never came",
    )  # fmt: skip
    parser.add_argument("host", nargs="?", metavar="HOST", help="enroll, revoke: which one; status: only this one")
    parser.add_argument("--cameras", metavar="A,B", help="enroll: the cameras of this host, and of no other")
    parser.add_argument("--clips-a-day", type=int, default=registry.CLIPS_A_DAY, metavar="N", help="enroll: quota per camera")
    gb = registry.BYTES_A_DAY // 10**9
    parser.add_argument("--gb-a-day", type=float, default=gb, metavar="GB", help=f"enroll: quota per camera (default: {gb})")
    parser.add_argument("--hours", type=float, default=24.0, metavar="H", help="enroll: life of the code (default: 24)")
    parser.add_argument("--no-holes", action="store_true", help="status: without the sequence audit, which reads each sidecar")
    parser.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help=f"serve (default: {DEFAULT_ADDRESS})")
    parser.add_argument(
        "--capacity", type=float, default=CAPACITY_CLIPS_S, metavar="N",
        help=f"serve: clips a second that the store may get, of all hosts together (default: {CAPACITY_CLIPS_S:g})",
    )  # fmt: skip
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="serve: files for https")
    parser.set_defaults(run=_fleet)


def _fleet(arguments: argparse.Namespace, context: Context) -> int:
    action = arguments.action
    if (arguments.host is None) == (action in ("enroll", "revoke")):
        if action in ("enroll", "revoke"):
            raise UsageError(f"camloop fleet {action} needs the HOST")
        if action != "status":
            raise UsageError(f"camloop fleet {action} takes no HOST")
    if (arguments.cameras is not None) != (action == "enroll"):
        raise UsageError("--cameras A,B belongs to camloop fleet enroll HOST, which needs it")
    run = {"enroll": _enroll, "status": _status, "revoke": _revoke, "serve": _serve, "audit": _audit}[action]
    return run(arguments, context)


def _enroll(arguments: argparse.Namespace, context: Context) -> int:
    registry.require_conditions(context.store)
    cameras = [name.strip() for name in arguments.cameras.split(",") if name.strip()]
    code = registry.Registry(context.store, context.clock).invite(
        arguments.host, cameras, lifetime_s=arguments.hours * 3600, clips_a_day=arguments.clips_a_day,
        bytes_a_day=round(arguments.gb_a_day * 1e9),
    )  # fmt: skip
    out = context.out
    out.line(f"host {arguments.host} with {', '.join(cameras)}: one-time code, good for {arguments.hours:g} hours")
    out.line(f"  {code}", style="bold")
    out.line(f"on that host:  camloop agent join URL --code {code}")
    out.document({"host_id": arguments.host, "cameras": cameras, "code": code, "hours": arguments.hours})
    return 0


def _revoke(arguments: argparse.Namespace, context: Context) -> int:
    host = registry.Registry(context.store, context.clock).revoke(arguments.host)
    out = context.out
    out.line(f"revoked {host.host_id}: its key opens nothing from {registry.FRESH_S:g} s on, and addresses that it holds die")
    out.line("within ten minutes. What it sent stays. camloop fleet enroll gives it, or its successor, a new code.")
    out.document({"host_id": host.host_id, "revoked_ns": host.revoked_ns})
    return 0


def _status(arguments: argparse.Namespace, context: Context) -> int:
    hosts = registry.Registry(context.store, context.clock).hosts()
    audited = None if arguments.no_holes else _audited(context, hosts)
    status = fleets.look(context.store, hosts, context.clock.now_ns(), audited=audited, host_id=arguments.host)
    if arguments.host and not status.hosts:
        raise UsageError(f"no host {arguments.host[:80]!r} in this fleet; known: {', '.join(sorted(hosts)[:10]) or 'none'}")
    if not status.hosts:
        context.out.line("no host yet; camloop fleet enroll HOST --cameras A,B makes a code for one")
    for line in fleet_page.page(status) if status.hosts else ():
        context.out.line(line)
    context.out.document(fleet_page.document(status))
    return 0


def _audit(arguments: argparse.Namespace, context: Context) -> int:
    hosts = registry.Registry(context.store, context.clock).hosts()
    found = _audited(context, hosts)
    rows = [
        (row.camera_id, row.boot_id[:8], row.n_expected, row.n_delivered, sum(row.explained.values()), row.n_missing)
        for row in found.rows
    ]
    out = context.out
    out.table("sequence numbers", ("camera", "boot", "numbered", "delivered", "explained", "missing"), rows)
    kinds: dict[str, int] = {}
    for row in found.rows:
        for kind, n in row.explained.items():
            kinds[kind] = kinds.get(kind, 0) + n
    if kinds:
        out.line("explained: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    holes = [(row.camera_id, row.boot_id[:8], start, stop - 1) for row in found.rows for start, stop in row.holes]
    out.table("neither clip nor reason", ("camera", "boot", "first", "last"), holes[:N_HOLES]) if holes else None
    if len(holes) > N_HOLES:
        out.line(f"and {len(holes) - N_HOLES} more ranges; --json has all")
    wrong = {
        "missing": found.missing_pages,
        "broken": found.broken_pages,
        "not to be read, or not signed by its host": found.refused_pages,
    }
    for what, pages in wrong.items():
        for host_id, boot_id, number in pages[:N_HOLES]:
            out.line(f"ledger page {number} of {host_id}, boot {boot_id[:8]}: {what}", style="red")
    for key in found.refused_sidecars[:N_HOLES]:
        out.line(f"{key}: no sidecar of the clip beside it", style="red")
    out.line(f"{found.n_missing} of {sum(row.n_expected for row in found.rows)} numbers have neither clip nor reason")
    out.document(dataclasses.asdict(found) | {"n_missing": found.n_missing})
    return 1 if found.n_missing or found.refused_sidecars or any(wrong.values()) else 0


def _audited(context: Context, hosts: Mapping[str, registry.Host]) -> Audit:
    with context.out.progress(None, "reading sidecars") as task:
        return fleets.sequences(context.store, hosts, lambda: task.advance())


def _serve(arguments: argparse.Namespace, context: Context) -> int:
    try:
        from serve import fleet_web
    except ModuleNotFoundError as error:
        raise MissingExtra(f"camloop fleet serve needs {error.name}: pip install 'camloop[web]'") from error
    from infra.store import DirStore
    from serve.broker import Broker
    from serve.receiver import FolderReceiver, Receiver

    host, port = _address(arguments.address)
    store = context.store
    registry.require_conditions(store)
    receiver: Receiver
    if isinstance(store, DirStore):
        receiver = FolderReceiver(store, context.clock)
    else:
        from infra.s3 import S3Store
        from infra.s3_receiver import S3Receiver

        if not isinstance(store, S3Store):
            raise StoreError(f"store {store.url} cannot be served; legal: a folder, s3://bucket/prefix")
        require(store, "presign")
        receiver = S3Receiver(store)
    known = registry.Registry(store, context.clock)
    broker = Broker(known, receiver, context.clock, admission=Admission(arguments.capacity))
    app = fleet_web.make_app(broker, receiver if isinstance(receiver, FolderReceiver) else None, store)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"--address {arguments.address}: {error.strerror}; choose another address or port") from error
    with listening:
        shown = f"[{host}]" if ":" in host else host
        url = f"{'https' if arguments.tls else 'http'}://{shown}:{listening.getsockname()[1]}"
        context.out.line(f"broker of {store.url} on {url} for {len(known.hosts())} hosts; Ctrl-C ends it")
        if host not in LOOPBACK and not arguments.tls:
            context.out.note("Plain http: who listens on this network sees the clips, and could use a code before its host.")
        server = fleet_web.make_server(app, host, port, tls=tuple(arguments.tls) if arguments.tls else None)
        server.run(sockets=[listening])
    return 0 if server.started else 1


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65_535:
        raise UsageError(f"--address {text!r}; legal: HOST:PORT, such as {DEFAULT_ADDRESS} or 0.0.0.0:8787")
    return host.strip("[]"), int(port)
