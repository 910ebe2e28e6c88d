"""`camloop curate --device --providers --workers`: what a run works on, from words."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from infra.errors import UsageError

if TYPE_CHECKING:
    from curate.resources import Resources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to `camloop curate`."""
    parser.add_argument(
        "--device", default="auto", metavar="D", help="of torch models: cpu, cuda:0 ... (default: CUDA where there is one)"
    )
    parser.add_argument(
        "--providers", nargs="+", default=[], metavar="P", help="of .onnx models: onnxruntime's, in order (default: the CPU)"
    )
    parser.add_argument(
        "--workers", nargs="+", default=[], metavar="STAGE=LEAST..MOST", help="of a Ray job, such as decode=2..8 detect=1..2"
    )


def read(arguments: argparse.Namespace) -> Resources:
    """Return what was asked for; whether it is there is asked later, where the models will work.

    Raises:
        UsageError: --workers in a run without Ray, or see `curate.resources.parse_workers`.
    """
    from curate.resources import Resources, parse_workers

    if arguments.workers and arguments.local:
        raise UsageError("--workers sizes the pools of a Ray job, and --local is one loop: leave one of them out")
    providers = tuple(name for word in arguments.providers for name in word.split(",") if name)
    return Resources(device=arguments.device, providers=providers, workers=parse_workers(arguments.workers))
