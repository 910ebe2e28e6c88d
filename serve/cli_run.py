"""`camloop run`: get the newest release, verify it, run it on a source.

What fails while updating is said and changes nothing: the model that was installed before goes on.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from infra import cli, durable, keys
from infra.artefacts import Bundle, Outbox, Wanted
from infra.errors import CamloopError, Refused, SettingsError, StoreError, UsageError
from infra.predictor import Predictor
from infra.settings import Settings
from infra.store import open_store
from serve import frames as live_frames
from serve import wanted as wishes
from serve.actions import read_rules
from serve.frames import LiveFrame
from serve.health import Health
from serve.live import Live, Model
from serve.origin import Origin, open_origin, store_origin
from serve.puller import Installed, Outcome, Puller

if TYPE_CHECKING:
    from infra.console import Context

DEFAULT_HOME = Path("camloop-device")
POLL_S = 300.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop run`."""
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="video file or sim://SEED/CAMERA, one after the other")
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--from", dest="place", metavar="PLACE", help="store, copy of its releases/ or https:// (default: --store)"
    )
    model.add_argument("--channel", default="stable", metavar="NAME", help="which releases (default: stable)")
    model.add_argument("--bundle", type=Path, metavar="DIR", help="run this unsigned bundle instead of a release")
    model.add_argument("--root", type=Path, metavar="FILE", help="root.json to trust, on a device that trusts none yet")
    model.add_argument("--root-sha256", metavar="HEX", help="or its SHA-256, as camloop release prints it")
    model.add_argument("--offline", action="store_true", help="run what is installed; ask nobody")
    model.add_argument(
        "--poll-s", type=float, default=POLL_S, metavar="S", help="ask for a new release so often (default: 300)"
    )
    model.add_argument("--threads", type=int, default=1, metavar="N", help="of the model (default: 1)")
    loop = parser.add_argument_group("the loop")
    pace = loop.add_mutually_exclusive_group()
    pace.add_argument("--all-frames", action="store_true", help="every due frame, however long it takes (default for files)")
    pace.add_argument("--realtime", action="store_true", help="play files at their own pace, newest frame first")
    loop.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    loop.add_argument("--camera", metavar="ID", help="who filmed the file (default: its name)")
    loop.add_argument(
        "--home", type=Path, default=DEFAULT_HOME, metavar="DIR", help=f"this device's folder (default: {DEFAULT_HOME})"
    )
    loop.add_argument("--outbox", type=Path, metavar="DIR", help="clips of unsure moments (default: HOME/outbox)")
    loop.add_argument(
        "--outbox-every-s", type=float, default=30.0, metavar="S", help="at most one clip in so long (default: 30)"
    )
    loop.add_argument("--predictions", type=Path, metavar="FILE", help="write every prediction there, one JSON document a line")
    loop.add_argument("--simulated", action="store_true", help="these files were filmed in the simulated world")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace, context: Context) -> int:
    _check(arguments)
    rules = read_rules(serve_table(context.settings).get("on", []))
    with ExitStack() as stack:
        stack.enter_context(_alone(arguments.home))
        # A service is stopped as Ctrl-C stops a person's command.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        poller: Poller | None = None
        if arguments.bundle is not None:
            context.out.note(f"unsigned bundle from {arguments.bundle}: for trying out; devices run releases")
            model, update = Model(predictor=Predictor(Bundle.read(arguments.bundle), threads=arguments.threads)), "unsigned"
        else:
            poller = Poller(arguments, context)
            model, update = poller.start()
            stack.callback(poller.close)
        _check_world(model, arguments)
        live = Live(
            model=model, clock=context.clock, rules=rules, say=context.out.line, update=update,
            outbox=Outbox(arguments.outbox or arguments.home / "outbox"), outbox_every_s=arguments.outbox_every_s,
            predictions=_opened(arguments.predictions, stack), wishes=_wishes(arguments, context),
            health=Health(
                arguments.home / "health.jsonl", host_id=context.settings.host_id, boot_id=_boot_id(), clock=context.clock
            ),
        )  # fmt: skip
        if poller is not None and _is_realtime(arguments) and arguments.poll_s > 0:
            live.renew = poller.poll
        try:
            live.run(_frames(arguments, context), max_frames=arguments.frames)
        finally:
            _summary(live, context)
    return 0


def serve_table(settings: Settings) -> dict[str, Any]:
    """Return the table [serve] of camloop.toml: `keys` (folder of the signing keys) and [[serve.on]].

    Raises:
        SettingsError: it holds something else.
    """
    table = settings.toml.get("serve", {})
    if not isinstance(table, dict):
        raise SettingsError("camloop.toml: [serve] must be one table")
    unknown = sorted(table.keys() - {"keys", "on"})
    if unknown:
        raise SettingsError(f"camloop.toml: unknown key serve.{unknown[0]}; legal: keys, [[serve.on]]")
    return table


def _check(arguments: argparse.Namespace) -> None:
    if arguments.threads < 1 or arguments.outbox_every_s < 0 or arguments.poll_s < 0 or (arguments.frames or 1) < 1:
        raise UsageError("--threads and --frames must be at least 1; --outbox-every-s and --poll-s at least 0")
    for source in arguments.source:
        if "://" not in source and not Path(source).is_file():
            raise UsageError(f"no file {source}; SOURCE is a video file, or a URL such as sim://SEED/CAMERA")
    if arguments.bundle is not None and (arguments.place or arguments.offline):
        raise UsageError("--bundle runs an unsigned bundle; leave --from and --offline out")


def _check_world(model: Model, arguments: argparse.Namespace) -> None:
    is_simulated = arguments.simulated or all(source.startswith("sim://") for source in arguments.source)
    spec = model.predictor.spec
    if spec.simulated_world_only and not is_simulated:
        raise Refused(
            f"{spec.model_name} was made for the simulated world only and says nothing about real pictures; "
            "train on your own clips, or add --simulated if these are simulated"
        )


def _is_realtime(arguments: argparse.Namespace) -> bool:
    """Whether the newest frame comes first: asked for, or a source that is no file."""
    return bool(arguments.realtime or (any("://" in source for source in arguments.source) and not arguments.all_frames))


def _frames(arguments: argparse.Namespace, context: Context) -> Iterator[LiveFrame]:
    allow = [network for table in context.settings.toml.get("camera", ()) for network in table.get("allow", ())]
    frames = _one_after_the_other(arguments.source, arguments.camera, context.settings, allow)
    if _is_realtime(arguments):
        return live_frames.newest_first(live_frames.at_their_pace(frames, context.clock), context.clock)
    return frames


def _one_after_the_other(
    sources: Sequence[str], camera_id: str | None, settings: Settings, allow: Sequence[str]
) -> Iterator[LiveFrame]:
    """Yield the frames of all sources; `allow` lists the networks that the [[camera]] tables allow streams to lead to.

    What the privacy of this host hides is hidden before the model, the predictions and the outbox, in files as well.
    """
    host_id, tables = settings.host_id, settings.toml.get("camera", ())
    hides = "privacy" in settings.toml or any("privacy" in table for table in tables)
    for source in sources:
        if "://" in source or hides:
            opened = cli.join("source")(source, settings=settings, camera_id=camera_id, host_id=host_id, allow=allow)
            yield from live_frames.from_source(opened, source)
        else:
            yield from live_frames.from_file(Path(source), host_id=host_id, camera_id=camera_id)


def _wishes(arguments: argparse.Namespace, context: Context) -> list[Wanted]:
    """Return what the store wants filmed; none where the place is no store or cannot be asked."""
    place = arguments.place
    if arguments.bundle is not None or arguments.offline or (place or "").startswith(("http://", "https://")):
        return []
    try:
        return wishes.current(context.store if place is None else open_store(place, context.settings), context.clock)
    except CamloopError as error:
        context.out.note(f"wishes not read: {error}")
        return []


class Poller:
    """Keeps a device's installation new: once before the loop, then beside it."""

    def __init__(self, arguments: argparse.Namespace, context: Context) -> None:
        self._arguments = arguments
        self._context = context
        self._puller = Puller(arguments.home, context.clock)
        self._workers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="update")
        self._future: Future[Outcome] | None = None
        self._origin: Origin | None = None
        self._next_ns = context.clock.mono_ns() + round(arguments.poll_s * 1e9)

    def start(self) -> tuple[Model, str]:
        """End what was cut off, update, and return what is to run.

        Raises:
            Refused: nothing is installed and nothing could be.
        """
        out, arguments = self._context.out, self._arguments
        outcome = self._puller.recover()
        if not arguments.offline:
            outcome = self._first_round(outcome)
        update = f"{outcome.kind}: {outcome.why}" if outcome is not None else "offline"
        if outcome is not None and outcome.kind in ("refused", "rolled-back"):
            out.note(f"not updated ({update})")
        elif outcome is not None and outcome.kind == "installed":
            out.note(f"installed {outcome.why}")
        installed = self._puller.installed()
        if installed is None:
            raise Refused(f"{arguments.home} has no model and none could be installed: {update}")
        self._announce(installed)
        return self._model(installed), update

    def _first_round(self, recovered: Outcome | None) -> Outcome:
        """Open the place, which later rounds ask too, and update from it, unless the start has just ended a trial."""
        try:
            self._origin = self._open()
        except (SettingsError, StoreError) as error:  # no stick in the slot, no credentials: what is installed runs
            if self._puller.state.good is None:
                raise
            return recovered or Outcome(kind="refused", why=str(error))
        if recovered is not None:
            return recovered
        self._trust(self._origin)
        return self._puller.update(self._origin, self._arguments.channel)

    def poll(self) -> Model | None:
        """Return a new model when an update that runs beside the loop has installed one."""
        now_ns = self._context.clock.mono_ns()
        if self._future is None:
            if not self._arguments.offline and now_ns >= self._next_ns:
                self._next_ns = now_ns + round(self._arguments.poll_s * 1e9)
                self._future = self._workers.submit(self._round)
            return None
        if not self._future.done():
            return None
        outcome, self._future = self._future.result(), None
        if outcome.kind in ("refused", "rolled-back"):
            self._context.out.note(f"not updated ({outcome.kind}: {outcome.why})")
        installed = self._puller.installed() if outcome.kind == "installed" else None
        if installed is None:
            return None
        self._announce(installed)
        return self._model(installed)

    def _round(self) -> Outcome:
        """Update from the place, which may not have been there before: a stick comes later, a network comes back."""
        try:
            self._origin = self._origin or self._open()
        except (SettingsError, StoreError) as error:
            return Outcome(kind="refused", why=str(error))
        return self._puller.update(self._origin, self._arguments.channel)

    def close(self) -> None:
        """Wait for an update that is under way."""
        self._workers.shutdown(wait=True)

    def _open(self) -> Origin:
        place = self._arguments.place
        return store_origin(self._context.store) if place is None else open_origin(place, self._context.settings)

    def _model(self, installed: Installed) -> Model:
        predictor = Predictor(installed.bundle, threads=self._arguments.threads)
        return Model(predictor=predictor, report_id=installed.release.report_id, reasons=installed.release.reasons)

    def _announce(self, installed: Installed) -> None:
        made = installed.release
        self._context.out.line(f"running {made.model_name} {made.bundle_id[:12]}, release {made.sequence} of {made.channel}")
        if made.forced:
            self._context.out.line("FORCED: " + "; ".join(made.reasons), style="bold red")

    def _trust(self, origin: Origin) -> None:
        """On a device that trusts nobody yet: trust the root that was given, pinned, or lies in a folder of this machine."""
        arguments, puller = self._arguments, self._puller
        if arguments.root is not None:
            try:
                puller.trust(arguments.root.read_bytes(), sha256=arguments.root_sha256)
            except OSError as error:
                raise UsageError(f"--root {arguments.root}: {error.strerror}") from error
        if puller.is_trusting:
            return
        if arguments.root_sha256 is None and not origin.is_local:
            raise UsageError(
                f"{arguments.home} trusts nobody yet, and {origin.name} is not a folder of this machine: give --root FILE "
                "or --root-sha256 HEX (camloop release prints it)"
            )
        found = puller.trust(_first_root(origin), sha256=arguments.root_sha256)
        if arguments.root_sha256 is None:
            self._context.out.note(f"TRUSTED ON FIRST USE: whoever signs with root {found}")
            self._context.out.note(
                f"  found in {origin.name}; compare it with what camloop release printed. From now on only this."
            )


def _first_root(origin: Origin) -> bytes:
    from tuf.api.exceptions import DownloadError

    try:
        return origin.fetcher.download_bytes(f"{origin.base_url}metadata/1.root.json", 1 << 20)
    except DownloadError as error:
        raise Refused(f"{origin.name} holds no releases ({error}); camloop release makes the first") from error


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Keep a second process out of a device's folder."""
    durable.make_dirs(home)
    fd = os.open(home / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UsageError(f"another camloop run uses {home}; give this one another --home") from error
    finally:
        os.close(fd)


def _opened(path: Path | None, stack: ExitStack) -> IO[str] | None:
    return None if path is None else stack.enter_context(path.open("w", encoding="utf-8"))


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    except OSError:
        return keys.new_id()


def _summary(live: Live, context: Context) -> None:
    counts, spec = live.counts, live.model.predictor.spec
    p50_s, p95_s = counts.latency_s(0.5), counts.latency_s(0.95)
    if p50_s is not None and p95_s is not None:
        context.out.line(
            f"{counts.n_predictions} predictions of {counts.n_frames} frames ({counts.n_dropped} dropped), latency p50 "
            f"{1000 * p50_s:.1f} ms, p95 {1000 * p95_s:.1f} ms (the model wants one per {1000 * spec.period_s:.0f} ms)"
        )
        if counts.n_resets > 2 + counts.n_predictions // 2:
            context.out.note(
                f"state was reset {counts.n_resets} times: frames come farther apart than {spec.reset_after_periods:g} periods "
                f"of {spec.period_s:g} s, so this model sees no sequence"
            )
        context.out.line(f"{counts.n_unsure} unsure, {counts.n_sent} clips in the outbox, {counts.n_calls} actions")
    document: dict[str, Any] = {
        "bundle_id": live.model.predictor.bundle.bundle_id, "report_id": live.model.report_id,
        "forced": list(live.model.reasons), "model_name": spec.model_name,
        "update": live.update, "n_frames": counts.n_frames, "n_dropped": counts.n_dropped,
        "n_predictions": counts.n_predictions, "n_unsure": counts.n_unsure, "n_sent": counts.n_sent, "n_calls": counts.n_calls,
        "latency_ms": {"p50": _ms(p50_s), "p95": _ms(p95_s)}, "lines": list(live.lines),
    }  # fmt: skip
    context.out.document(document)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
