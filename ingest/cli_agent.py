"""`camloop agent`: run the cameras of this host, say how they are, join a fleet."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from infra import log
from infra.console import Context
from infra.errors import UsageError
from infra.settings import service_settings
from ingest import host
from ingest.agent_state import is_running, read_state
from ingest.config import agent_config, camera_configs
from ingest.status import page, troubles


def agent(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop agent`."""
    parser.add_argument(
        "action", nargs="?", choices=["run", "status", "join"], default="run",
        help="run: film with the [[camera]] tables of camloop.toml until told to stop (default); "
        "status: a page of text; join: enrol this host in a fleet",
    )  # fmt: skip
    parser.add_argument("url", nargs="?", metavar="URL", help="join: the broker, such as https://fleet.example")
    parser.add_argument("--code", metavar="CODE", help="join: the one-time code that `camloop fleet enroll` printed")
    parser.add_argument("--spool", type=Path, metavar="DIR", help="where clips wait (default: [agent] spool)")
    parser.set_defaults(run=_agent)


def _agent(arguments: argparse.Namespace, context: Context) -> int:
    if arguments.action != "join" and (arguments.url or arguments.code):
        raise UsageError(f"camloop agent {arguments.action} takes no URL and no --code; they belong to `camloop agent join`")
    if arguments.action == "status":
        return _status(arguments, context)
    return _join(arguments, context) if arguments.action == "join" else _run(arguments, context)


def _run(arguments: argparse.Namespace, context: Context) -> int:
    from importlib.metadata import version

    from ingest.agent import Agent
    from ingest.membership import as_member

    config, cameras = agent_config(context.settings), camera_configs(context.settings)
    if arguments.spool is not None:
        config = dataclasses.replace(config, spool=arguments.spool)
    log.configure(level="info", debug=arguments.debug)  # its events are few, and what somebody looks for later
    settings = as_member(context.settings)
    Agent(config, cameras, settings, service_settings(), context.clock, version=version("camloop")).run()
    return 0


def _status(arguments: argparse.Namespace, context: Context) -> int:
    spool = arguments.spool or agent_config(context.settings).spool
    state, running = read_state(spool), is_running(spool)
    if state is None:
        raise UsageError(f"no agent ever ran on {spool}; `camloop agent` starts one, --spool DIR names another spool")
    clock = context.clock
    for line in page(state, running=running, now_ns=clock.now_ns(), mono_ns=clock.mono_ns(), boot_id=host.boot_id()):
        context.out.line(line)
    context.out.document({"running": running, "troubles": troubles(state), **state})
    return 0


def _join(arguments: argparse.Namespace, context: Context) -> int:
    from ingest.membership import fleet_config, join

    if not arguments.url or not arguments.code:
        raise UsageError("camloop agent join URL --code CODE; `camloop fleet enroll` on the broker's side prints both")
    enrolled = join(context.settings, arguments.url, arguments.code)
    folder = fleet_config(context.settings).identity
    context.out.line(
        f"this host is {enrolled.host_id} of the fleet at {enrolled.url}; its cameras: {', '.join(enrolled.cameras)}"
    )
    context.out.line(f"its key and its place are kept in {folder}; from now on the agent uploads there")
    context.out.document({"host_id": enrolled.host_id, "url": enrolled.url, "cameras": list(enrolled.cameras)})
    return 0
