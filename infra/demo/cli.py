"""`camloop demo`: the whole loop on simulated cameras, told step by step."""

from __future__ import annotations

import argparse
from pathlib import Path

from infra.console import Context
from infra.errors import UsageError


def demo(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop demo`."""
    parser.add_argument("--folder", type=Path, default=Path("camloop-demo"), help="where it all lies (default: ./camloop-demo)")
    parser.add_argument("--seed", type=int, default=1, help="of the simulated world (default: 1)")
    parser.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace, context: Context) -> int:
    """Tell the story and write the report; its path is the last line of standard output."""
    from infra import durable
    from infra.demo.plot import tell
    from infra.demo.report import build
    from infra.demo.story import Story

    folder: Path = arguments.folder
    if folder.exists() and not (folder / "story.json").exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} holds other things than a demo; name an empty folder with --folder")
    out = context.out
    out.line("One turn of the loop, and another: cameras -> data set -> model -> cameras", style="bold")
    out.line("Everything here is simulated and stays on this machine.")
    start_ns = context.clock.mono_ns()
    story = Story.begin(folder, arguments.seed, out, context.clock)
    tell(story)
    report = folder / "report.html"
    durable.write(report, build(story).encode())
    story.save(ended=True)
    out.line()
    out.line(f"{(context.clock.mono_ns() - start_ns) / 1e9:.0f} s in all. With footage of your own:")
    for line in (
        "camloop ingest FOLDER",
        "camloop curate --weights yolov8n.onnx --without embed",
        "camloop query --by camera_id,lighting",
    ):
        out.line(f"  {line}")
    out.document({"report": str(report.resolve()), "facts": story.facts})
    out.line(str(report.resolve()))
    return 0
