"""`camloop query --audit`: what each filter of the store lost, with its interval, and what more looks would show."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from infra.errors import UsageError

if TYPE_CHECKING:
    from curate.query import View
    from infra.console import Context

_OWN: Final = ("positive", "moving")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what belongs to --audit."""
    group = parser.add_argument_group("audit (WHERE and --by then make slices of what reached the filters)")
    group.add_argument("--audit", action="store_true", help="recall of the packet gate and of each stage of a cascade")
    group.add_argument("--positive", metavar="W", help='what a cascade is there to find (default "n_person > 0")')
    group.add_argument("--moving", type=float, metavar="X", help="share of the picture from which a GOP moves (default .0015)")


def refuse_alone(arguments: argparse.Namespace) -> None:
    """Refuse what has no meaning without --audit.

    Raises:
        UsageError: one of them was given.
    """
    given = [f"--{name}" for name in _OWN if getattr(arguments, name) is not None]
    if given and not arguments.audit:
        raise UsageError(f"{', '.join(given)}: only together with --audit")


def run(view: View, arguments: argparse.Namespace, context: Context) -> int:
    """Run `camloop query --audit`; `view` has the where-expression, the score and the vault's state."""
    from curate import losses

    found = losses.losses(
        view.footage, slice_text=view.text, by=arguments.by, min_score=view.min_score,
        positive=losses.POSITIVE if arguments.positive is None else arguments.positive,
        moving=losses.MOVING if arguments.moving is None else arguments.moving,
    )  # fmt: skip
    out, rows = context.out, []
    for loss in found:
        known = loss.audit
        recall = "unknown" if known.recall is None else f"{known.recall:.1%}"
        needed = ["-" if n is None else f"{n:,}" for n in loss.needed.values()]
        rows.append(
            [loss.filter, *("unknown" if value is None else str(value) for value in loss.group), f"{known.n_in:,} {loss.unit}s",
             f"{known.n_kept:,}", f"{known.n_dropped:,}", f"{known.n_looked:,}", f"{known.n_found:,}", recall,
             f"{known.low:.1%} - {known.high:.1%}", *needed]
        )  # fmt: skip
    if rows:
        wanted = [f"looks for {share:.0%}" for share in losses.WANTED]
        out.table("", ["filter", *arguments.by, "in", "kept", "dropped", "looked", "found", "recall", "95 %", *wanted], rows)
        if any(loss.filter == losses.GATE for loss in found):
            out.line(losses.GATE_NOTE)
        out.line("looked and found: of the dropped; looks: in all, to show that recall with no further miss; - : none would")
    remarks = losses.remarks(view.footage, found, slice_text=view.text, by=arguments.by)
    for remark in remarks:
        out.line(remark)
    made = losses.table(found, arguments.by).to_dicts() if found else []
    out.document({"audit": made, "where": view.text, "remarks": remarks})
    return 0
