"""The commands of this room: `release` (where models are made) and `run` (where cameras are)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import UsageError
from infra.shelf import read_bundle
from serve import cli_run, repository
from serve import release as releases

if TYPE_CHECKING:
    from infra.console import Context


def release(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop release`."""
    parser.add_argument(
        "bundle", nargs="?", metavar="BUNDLE", help="id of a bundle, or its first letters (camloop export prints it)"
    )
    parser.add_argument("--report", metavar="ID", help="the report to go by (default: the newest about this bundle)")
    parser.add_argument("--channel", default="stable", metavar="NAME", help="whose devices get it (default: stable)")
    parser.add_argument("--force", metavar="REASON", help="release what did not pass its gate; marked for ever, run prints it")
    parser.add_argument(
        "--keys", type=Path, metavar="DIR", help=f"folder of the signing keys (default: {repository.DEFAULT_KEYS})"
    )
    parser.add_argument(
        "--renew", action="store_true", help="sign what is released afresh, so that it does not expire (weekly)"
    )
    parser.set_defaults(run=_release)


def run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop run`."""
    cli_run.configure(parser)


def _release(arguments: argparse.Namespace, context: Context) -> int:
    if (arguments.bundle is None) == (not arguments.renew):
        raise UsageError("name one BUNDLE to release, or give --renew without one")
    bundle = read_bundle(context.store, arguments.bundle) if arguments.bundle else None
    report = releases.find_report(context.store, bundle.bundle_id, arguments.report) if bundle else None
    against = releases.objection(bundle, report) if bundle else None
    signers = None
    if not (against and arguments.force is None):  # a refusal makes no keys
        signers = _keys(arguments, context)
    if bundle is None:
        if not repository.exists(context.store):
            raise UsageError(f"nothing was ever released in {context.store.url}; name a BUNDLE")
        assert signers is not None
        repository.Repository(context.store, signers, context.clock).renew()
        context.out.line(f"renewed: {context.store.url} is good for {repository.LIFETIME_DAYS['timestamp']} more days")
        context.out.document({"renewed": True})
        return 0
    if signers is None:
        raise releases.refusal(bundle, against or "")
    opened = repository.Repository(context.store, signers, context.clock)
    before = releases.current(opened, arguments.channel)
    made = releases.release(opened, bundle, report, channel=arguments.channel, force=arguments.force, clock=context.clock)
    out = context.out
    if made.forced:
        out.line("FORCED: " + "; ".join(made.reasons), style="bold red")
    out.table(
        f"release {made.sequence} on channel {made.channel}",
        ("what", "value"),
        [
            ("model", made.model_name),
            ("bundle", made.bundle_id),
            ("report", f"{made.report_id or 'none'} ({made.verdict})"),
            ("before", f"{before.model_name} {before.bundle_id}" if before else "nothing"),
            ("root SHA-256", opened.root_sha256),
        ],
    )
    for entry in releases.filtered(report):
        out.line(entry["says"])
    out.line(f"devices trust it with: camloop run SOURCE --from {context.store.url} --root-sha256 {opened.root_sha256}")
    out.document(
        {"channel": made.channel, "sequence": made.sequence, "bundle_id": made.bundle_id, "report_id": made.report_id,
         "verdict": made.verdict, "forced": made.forced, "reasons": list(made.reasons), "root_sha256": opened.root_sha256}
    )  # fmt: skip
    return 0


def _keys(arguments: argparse.Namespace, context: Context) -> Any:
    """Read the signing keys; make them when nothing was ever released in this store and there are none."""
    folder = (arguments.keys or Path(cli_run.serve_table(context.settings).get("keys", repository.DEFAULT_KEYS))).expanduser()
    if not repository.exists(context.store) and not (folder / "root.pem").exists():
        repository.make_keys(folder)
        context.out.note(f"made the signing keys of your releases in {folder} (mode 0600, without password).")
        context.out.note("Back this folder up, offline: without root.pem every device would have to be visited by hand.")
    return repository.read_keys(folder)
