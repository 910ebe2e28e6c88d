"""The device's side of a release: pull, verify, stage, try, keep or go back. Every state is on disk before it is acted on.

    idle -> downloaded -> verified -> staged -> trial -> committed
                                                   \\-> rolled-back

    <home>/root.json            what this device trusts: given at installation, never changed by what is pulled
    <home>/tuf/                 the newest metadata seen (fsynced after each refresh: TUF's client does not)
    <home>/slots/<bundle_id>.<sequence>/   bundle.json model.onnx release.json [report.json]
    <home>/current              a link to the slot that runs; swung atomically
    <home>/state.json           State

`update()` does one round. Whatever goes wrong on the way (no network, a changed byte, old or expired metadata, a full
disk), the running model is not touched and the outcome says why. A bundle that fails its trial, or in whose trial the
process died three times, is left for the one that ran before and never tried again; a new release of it has another
sequence and is. `recover()` is called first in every start: it ends what a power cut left half done.

A clock that stands before the newest signed time this device has seen is not believed: it keeps running, without updates.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from infra import durable, keys
from infra.artefacts import Bundle, Report
from infra.clock import Clock
from infra.errors import ArtefactError, Refused
from infra.onnx_check import MAX_MODEL_BYTES
from infra.predictor import Predictor
from serve import golden
from serve.origin import Origin
from serve.release import FILES, Release, pointer_path, release_path

if TYPE_CHECKING:
    from tuf.ngclient import Updater

Stage = Literal["idle", "downloaded", "verified", "staged", "trial", "committed", "rolled-back"]
MAX_TRIALS = 3
MAX_DOCUMENT_BYTES = 8 << 20
STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where the device stands. Slots are named `<bundle_id>.<sequence>`.

    `slot` is the one that `stage` is about, `good` the last one committed, `previous` the one before it; `bad` were rolled
    back. `sequences` holds the highest sequence seen per channel, `floor_ns` the newest signed UTC time seen.
    """

    stage: Stage = "idle"
    slot: str | None = None
    good: str | None = None
    previous: str | None = None
    trials: int = 0
    bad: tuple[str, ...] = ()
    sequences: dict[str, int] = dataclasses.field(default_factory=dict)
    floor_ns: int = 0
    why: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps({"version": STATE_VERSION, **dataclasses.asdict(self)}, sort_keys=True, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a state.

        Raises:
            ArtefactError: not a state of this version.
        """
        try:
            document = json.loads(data)
            if document.pop("version") != STATE_VERSION:
                raise ArtefactError("state.json: another version")
            return cls(**{**document, "bad": tuple(document["bad"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtefactError(f"state.json: {type(error).__name__}: {error}; remove it to begin anew") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a round of `update` came to, in words in `why`."""

    kind: Literal["installed", "unchanged", "refused", "rolled-back"]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The bundle that a device runs, with its release."""

    bundle: Bundle
    release: Release
    folder: Path


class Puller:
    """One device's installation below `home`.

    Args:
        home: a folder of this device's own; one process at a time.
        clock: for the time floor and the trial's latency.
        trial: what judges a staged bundle; raises ArtefactError to send it back. The golden frames by default.
    """

    def __init__(self, home: Path, clock: Clock, trial: Callable[[Bundle, Release], object] | None = None) -> None:
        self.home = home
        self._clock = clock
        self._trial = trial or (lambda bundle, release: golden.run(Predictor(bundle), release.golden, clock))
        path = home / "state.json"
        self.state = State.from_bytes(path.read_bytes()) if path.exists() else State()

    @property
    def is_trusting(self) -> bool:
        """Whether this device has been told whom to trust."""
        return (self.home / "root.json").exists()

    def trust(self, root: bytes, *, sha256: str | None = None) -> str:
        """Trust these root metadata from now on; returns their SHA-256.

        Raises:
            Refused: they do not hash to `sha256`, or the device trusts others already.
        """
        found = keys.sha256_hex(root)
        if sha256 is not None and found != sha256.lower():
            raise Refused(f"root.json hashes to {found}, pinned is {sha256}; nothing was trusted")
        path = self.home / "root.json"
        if path.exists() and path.read_bytes() != root:
            raise Refused(
                f"{self.home} trusts root {keys.sha256_hex(path.read_bytes())} already; use another --home for {found}"
            )
        durable.write(path, root)
        return found

    def installed(self) -> Installed | None:
        """Return the bundle that runs, verified, or None when nothing was ever committed.

        Raises:
            ArtefactError: the files of the slot were changed or lost.
        """
        if self.state.good is None:
            return None
        return self._read_slot(self.home / "slots" / self.state.good)

    def recover(self) -> Outcome | None:
        """End what was cut off: a trial is tried again, at most three times in all; anything earlier is dropped."""
        if self.state.stage == "trial":
            return self._try()
        if self.state.stage in ("downloaded", "verified", "staged"):
            self._save(stage="idle", slot=None, why="cut off; pulled again at the next round")
        self._point()
        self._clean()
        return None

    def update(self, origin: Origin, channel: str) -> Outcome:
        """Do one round: pull the channel's release and, if it is a new one, install it.

        The running model is replaced only if everything holds; every failure comes back as an Outcome.

        Raises:
            Refused: the device has not been told whom to trust.
        """
        from tuf.api.exceptions import DownloadError, RepositoryError

        if not self.is_trusting:
            raise Refused(f"{self.home} trusts no root yet: give --root FILE or --root-sha256")
        if self._clock.now_ns() < self.state.floor_ns:
            return Outcome(kind="refused", why="this machine's clock is behind the newest release it has seen; not updating")
        try:
            updater = self._updater(origin)
            updater.refresh()
            self._sync_metadata()
            return self._pull(updater, channel)
        except (RepositoryError, DownloadError) as error:
            return Outcome(kind="refused", why=f"{origin.name}: {' '.join(str(error).split()) or type(error).__name__}")
        except (ArtefactError, OSError) as error:
            return Outcome(kind="refused", why=f"{origin.name}: {error}")

    def _pull(self, updater: Updater, channel: str) -> Outcome:
        pointer = Release.from_bytes(self._download(updater, pointer_path(channel), MAX_DOCUMENT_BYTES))
        slot = f"{pointer.bundle_id}.{pointer.sequence}"
        seen = self.state.sequences.get(channel, 0)
        if pointer.channel != channel or pointer.sequence < seen:
            raise Refused(f"channel {channel} points to {pointer.channel}/{pointer.sequence}, {seen} was seen before")
        if slot in self.state.bad:
            return Outcome(kind="unchanged", why=f"release {pointer.sequence} failed its trial here: {self.state.why}")
        self._save(
            sequences={**self.state.sequences, channel: pointer.sequence},
            floor_ns=max(self.state.floor_ns, pointer.created_ns),
        )
        if slot == self.state.good:
            return Outcome(kind="unchanged", why=f"release {pointer.sequence} runs already")
        names = [name for name in FILES if name != "report.json" or pointer.report_id is not None]
        files = {
            name: self._download(
                updater,
                release_path(channel, pointer.bundle_id, name),
                MAX_MODEL_BYTES if name == "model.onnx" else MAX_DOCUMENT_BYTES,
            )
            for name in names
        }
        self._save(stage="downloaded", slot=slot, trials=0)
        _verify(files, pointer)
        self._save(stage="verified")
        for name, data in files.items():
            durable.write(self.home / "slots" / slot / name, data)
        self._save(stage="staged")
        return self._try()

    def _try(self) -> Outcome:
        """Swing `current` to the staged slot and put it to the proof; go back unless it stands."""
        slot = self.state.slot
        assert slot is not None
        if self.state.trials >= MAX_TRIALS:
            return self._roll_back(f"the process died in {MAX_TRIALS} trials")
        self._save(stage="trial", trials=self.state.trials + 1)
        durable.point(self.home / "current", f"slots/{slot}")
        try:
            tried = self._read_slot(self.home / "slots" / slot)
            self._trial(tried.bundle, tried.release)
        except (ArtefactError, OSError) as error:
            return self._roll_back(str(error))
        self._save(stage="committed", good=slot, previous=self.state.good, why="")
        self._clean()
        return Outcome(kind="installed", why=f"release {tried.release.sequence}: {tried.release.model_name} {slot[:12]}")

    def _roll_back(self, why: str) -> Outcome:
        slot = self.state.slot
        assert slot is not None
        self._save(stage="rolled-back", bad=(*self.state.bad, slot), why=why)
        self._point()
        self._clean()
        return Outcome(kind="rolled-back", why=f"bundle {slot[:12]} failed its trial: {why}")

    def _point(self) -> None:
        """Let `current` name the last good slot, or nothing."""
        link = self.home / "current"
        if self.state.good is None:
            durable.remove(link)
        elif not link.is_symlink() or str(link.readlink()) != f"slots/{self.state.good}":
            durable.point(link, f"slots/{self.state.good}")

    def _clean(self) -> None:
        """Keep the good slot and the one before it; the rest of `slots` is dropped."""
        slots = self.home / "slots"
        for folder in slots.iterdir() if slots.is_dir() else ():
            if folder.name not in (self.state.good, self.state.previous):
                shutil.rmtree(folder)

    def _read_slot(self, folder: Path) -> Installed:
        bundle = Bundle.read(folder)
        try:
            release = Release.from_bytes((folder / "release.json").read_bytes())
        except FileNotFoundError as error:
            raise ArtefactError(f"{folder}: release.json is missing") from error
        if folder.name != f"{bundle.bundle_id}.{release.sequence}" or release.bundle_id != bundle.bundle_id:
            raise ArtefactError(f"{folder}: holds bundle {bundle.bundle_id}, release {release.sequence} of {release.bundle_id}")
        return Installed(bundle=bundle, release=release, folder=folder)

    def _save(self, **changes: object) -> None:
        state = dataclasses.replace(self.state, **changes)  # type: ignore[arg-type]
        durable.write(self.home / "state.json", state.to_bytes())
        self.state = state

    def _updater(self, origin: Origin) -> Updater:
        from tuf.ngclient import Updater

        metadata = self.home / "tuf"
        durable.make_dirs(metadata)
        return Updater(
            str(metadata), origin.base_url + "metadata/", str(metadata), origin.base_url + "targets/", origin.fetcher,
            bootstrap=(self.home / "root.json").read_bytes(),
        )  # fmt: skip

    def _download(self, updater: Updater, path: str, max_bytes: int) -> bytes:
        """Download one target and verify it against the signed metadata."""
        target = updater.get_targetinfo(path)
        if target is None:
            raise Refused(f"no signed file {path}: nothing was released on this channel")
        if target.length > max_bytes:
            raise Refused(f"{path} is announced with {target.length} bytes; at most {max_bytes} are accepted")
        with self._scratch() as file:
            updater.download_target(target, str(file))
            return file.read_bytes()

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        path = self.home / "download"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _sync_metadata(self) -> None:
        folder = self.home / "tuf"
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        durable.sync(*files, folder / "root_history", folder, self.home)


def _verify(files: dict[str, bytes], pointer: Release) -> None:
    """Check that the files are one bundle with its report, as the pointer says.

    Raises:
        ArtefactError: they are not; nothing was installed.
    """
    bundle = Bundle.from_bytes(files["bundle.json"], files["model.onnx"])
    if bundle.bundle_id != pointer.bundle_id:
        raise Refused(f"the channel names bundle {pointer.bundle_id}, the files are {bundle.bundle_id}")
    if Release.from_bytes(files["release.json"]) != pointer:
        raise Refused(f"release.json of bundle {pointer.bundle_id} is not what the channel points to")
    if "report.json" in files:
        report = Report.from_bytes(files["report.json"])
        if (report.report_id, report.bundle_id) != (pointer.report_id, pointer.bundle_id):
            raise Refused(f"report.json is {report.report_id} about bundle {report.bundle_id}")
        if not pointer.forced and report.verdict != "passed":
            raise Refused(f"report {report.report_id} says {report.verdict} and the release was not forced")
