"""`camloop`: one table of commands; a command's module is imported when the command is used.

The table is the one place where rooms are joined, by name: a command is a string, `module:object`, where the object
takes an `argparse` parser, adds its arguments and sets `run`, a function of (arguments, context) that returns the
exit code. `tests/test_architecture.py` resolves every string. A command enters the table when it works.

Exit codes: 0 done; 1 a failed gate or job; 2 wrong use; 130 stopped by Ctrl-C (the same command goes on).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from infra.errors import CamloopError, MissingExtra, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One row of the table: `target` is `module:object`; `extra` is what a light install lacks for it."""

    name: str
    target: str
    summary: str
    example: str
    extra: str | None = None


COMMANDS: tuple[Command, ...] = (
    Command(
        name="demo",
        target="infra.demo.cli:demo",
        summary="Tell the whole loop on simulated cameras, in under five minutes, with a report at the end.",
        example='camloop demo',
        extra="cloud",
    ),
    Command(
        name="ingest",
        target="curate.cli_ingest:ingest",
        summary="Register clips: a folder, a memory card, a bucket, or what uploaders have sent.",
        example='camloop ingest /media/card --cameras cameras.toml',
        extra="cloud",
    ),
    Command(
        name="curate",
        target="curate.cli_curate:curate",
        summary="Scan, detect and tag what was ingested, each clip decoded once; a rerun does what is missing.",
        example='camloop curate --weights yolov8n.onnx --without embed',
        extra="cloud",
    ),
    Command(
        name="query",
        target="curate.cli:query",
        summary="Ask what footage there is, and how it is spread over its factors.",
        example='camloop query "n_person > 0 and lighting = \'night\'" --by camera_id',
        extra="cloud",
    ),
    Command(
        name="label",
        target="curate.cli_ingest:label",
        summary="Bring people's labels in and out, list them, withdraw one.",
        example='camloop label import labels.csv --annotator anna',
        extra="cloud",
    ),
    Command(
        name="sample",
        target="curate.cli:sample",
        summary="Draw a balanced selection, split it without leaks, and say what could not be met.",
        example=(
            'camloop sample night 500 --where "lighting = \'night\'" --by label'
            ' --split train=.7,val=.1,test=.2 --split-by recording_id'
        ),
        extra="cloud",
    ),
    Command(
        name="dataset",
        target="curate.cli:dataset",
        summary="Freeze a selection under a name.",
        example='camloop dataset gestures --selection night',
        extra="cloud",
    ),
    Command(
        name="train",
        target="train.cli:train",
        summary="Train a video model on a data set, by a recipe; a killed run goes on.",
        example='camloop train gestures --recipe gesture_gru',
        extra="cloud",
    ),
    Command(
        name="export",
        target="train.cli:export",
        summary="Export a trained run as a bundle: ONNX with its specification.",
        example='camloop export 3f2a',
        extra="cloud",
    ),
    Command(
        name="evaluate",
        target="train.cli:evaluate",
        summary="Judge the exported file slice by slice; exit code 1 if a gate is not passed.",
        example='camloop evaluate 9c1b --dataset gestures --gate gate.toml --html report.html',
        extra="cloud",
    ),
    Command(
        name="release",
        target="serve.cli:release",
        summary="Sign a bundle that passed its gate into a channel.",
        example='camloop release 9c1b --channel stable',
    ),
    Command(
        name="run",
        target="serve.cli:run",
        summary="On the camera host: fetch, verify and run the released model; keep what it is unsure about.",
        example='camloop run day1.mp4 --from ./camloop-data --outbox outbox',
    ),
    Command(
        name="preview",
        target="ingest.cli_preview:preview",
        summary="Set up a camera: rate, exposure and focus, live; the picture on a page for a headless Pi.",
        example='camloop preview picam://0 --http',
    ),
    Command(
        name="record",
        target="ingest.cli_record:record",
        summary="Film into a spool: a camera, a file, a name and seconds; video, images, raw frames or features.",
        example='camloop record day1/light 60 --as png --size 128x128',
    ),
    Command(
        name="upload",
        target="ingest.cli_upload:upload",
        summary="Carry a spool to the store, or onto a stick: put if absent, proven, then deleted here; cuts cost little.",
        example='camloop upload spool --store s3://bucket/farm',
    ),
    Command(
        name="agent",
        target="ingest.cli_agent:agent",
        summary="Run the cameras of this host as a service: record, upload, heal, and say how it is.",
        example='camloop agent status',
    ),
    Command(
        name="fleet",
        target="serve.cli_fleet:fleet",
        summary="Who belongs to the fleet, how it is doing, and the broker that its cameras send through.",
        example='camloop fleet enroll barn-pi-1 --cameras gate,yard',
    ),
    Command(
        name="doctor",
        target="infra.doctor:doctor",
        summary="Check a store: every byte, the logs, what the store can do; repair and compact.",
        example='camloop doctor --store ./camloop-data --repair',
        extra="cloud",
    ),
)

# Where one room's command uses another room's object, in one process: `run` feeds a predictor from a source, of which it sees
# only what the privacy of this host lets anybody see.
JOINS: Mapping[str, str] = {"source": "ingest.hidden:open_private"}


def join(name: str) -> Callable[..., Any]:
    """Return the object of the table of joins that `name` stands for."""
    module_name, _, attribute = JOINS[name].partition(":")
    made: Callable[..., Any] = getattr(importlib.import_module(module_name), attribute)
    return made


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line and whose exit code is 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _overview() -> str:
    width = max((len(command.name) for command in COMMANDS), default=0)
    rows = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS)
    return (
        "usage: camloop COMMAND [ARGUMENTS] [--store URL] [--json] [--debug]\n\n"
        "camloop turns a fleet of cameras into a data set, a data set into a model, and a model back into a better fleet.\n\n"
        f"commands:\n{rows}\n\n"
        "camloop COMMAND --help shows the arguments and an example.\n"
        "A store is a folder (default ./camloop-data) or s3://bucket/prefix.\n"
    )


def _resolve(command: Command) -> object:
    module_name, _, attribute = command.target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        if command.extra is None or (error.name or "").split(".")[0] in ("infra", "ingest", "curate", "train", "serve"):
            raise
        raise MissingExtra(
            f"camloop {command.name} needs {error.name}, which a light install leaves out: "
            f"pip install 'camloop[{command.extra}]'"
        ) from error


def _parser(command: Command) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"camloop {command.name}",
        description=command.summary,
        epilog=f"example:\n  {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configure = _resolve(command)
    assert callable(configure)
    configure(parser)
    shared = parser.add_argument_group("everywhere")
    shared.add_argument("--store", metavar="URL", help="folder or s3://bucket/prefix (default: ./camloop-data)")
    shared.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    shared.add_argument("--quiet", action="store_true", help="no progress bars")
    shared.add_argument("--debug", action="store_true", help="show tracebacks and debug events")
    return parser


def _find(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    import difflib

    near = difflib.get_close_matches(name, [command.name for command in COMMANDS], n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"no command {name!r}{hint} See camloop --help")


def _run(argv: Sequence[str]) -> int:
    command = _find(argv[0])
    parser = _parser(command)
    arguments = parser.parse_args(argv[1:])
    # Imported late: --help and --version need neither settings nor a terminal library.
    from infra import log
    from infra.console import Context, Output
    from infra.settings import load_settings

    log.configure(debug=arguments.debug)
    context = Context(
        settings=load_settings(),
        out=Output(as_json=arguments.json, quiet=arguments.quiet),
        store_url=arguments.store,
        argv=tuple(argv),
    )
    code = arguments.run(arguments, context)
    return int(code or 0)


def _is_64_bit() -> bool:
    """Say whether this Python is a 64-bit one: a Pi with a 64-bit kernel may have a 32-bit system."""
    return sys.maxsize > 2**32


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the entry point of the `camloop` script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not _is_64_bit():
        import platform

        sys.stderr.write(
            f"camloop needs a 64-bit system; this Python is 32-bit ({platform.machine()}): on a Pi 3 or newer install the "
            "64-bit Raspberry Pi OS\n"
        )
        return 2
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"camloop {version('camloop')}\n")
        return 0
    try:
        return _run(argv)
    except CamloopError as error:
        if "--debug" in argv:
            raise
        sys.stderr.write(f"camloop {argv[0]}: {' '.join(str(error).split())}\n")
        return error.exit_code
    except ModuleNotFoundError as error:
        # A light install that reaches for a library of an extra from inside a command.
        if "--debug" in argv or (error.name or "").split(".")[0] in ("infra", "ingest", "curate", "train", "serve"):
            raise
        missing = f"needs {error.name}, which a light install leaves out: pip install 'camloop[cloud]'"
        sys.stderr.write(f"camloop {argv[0]}: {missing}\n")
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # `camloop query | head`: nobody listens, which is no fault
        return 0
    except OSError as error:
        if "--debug" in argv:
            raise
        where = f" ({error.filename})" if error.filename else ""
        remedy = "free space or mend the disk, then run it again"
        sys.stderr.write(f"camloop {argv[0]}: {error.strerror or error}{where}: {remedy}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"\ncamloop {argv[0]}: stopped; the same command goes on from here\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
