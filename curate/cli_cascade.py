"""`camloop curate --cascade FILE`: the argument, and what it excludes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import UsageError

if TYPE_CHECKING:
    from curate.cascade import Cascade


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument to `camloop curate`."""
    parser.add_argument(
        "--cascade",
        type=Path,
        metavar="FILE",
        help="[[stage]] tables (TOML): models from cheap to expensive, each with a condition",
    )


def read(arguments: argparse.Namespace) -> Cascade | None:
    """Return the cascade that was asked for.

    Raises:
        UsageError: weights were given beside it, or see `curate.cascade.read`.
    """
    if arguments.cascade is None:
        return None
    for name in ("weights", "openclip_weights", "openclip_model"):
        if getattr(arguments, name) is not None:
            raise UsageError(
                f"--cascade and --{name.replace('_', '-')} exclude each other: {arguments.cascade} names its weights"
            )
    from curate import cascade

    return cascade.read(arguments.cascade)


def without_stage(cascade: Cascade | None) -> set[str]:
    """Return the steps that a run leaves out, because its cascade has no stage for them."""
    return {"detect", "embed"} - cascade.steps if cascade else set()
