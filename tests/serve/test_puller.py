"""A device and its releases: what is installed, what is refused, what survives a power cut."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import durable
from infra.clock import FakeClock, SystemClock
from infra.errors import ArtefactError, Refused, SettingsError
from infra.store import DirStore
from serve import golden, repository
from serve.origin import Origin, open_origin, store_origin
from serve.puller import Puller, State
from serve.release import release
from serve.repository import PREFIX, Repository

DAY_S = 86_400


@pytest.fixture
def store(tmp_path: Path) -> DirStore:
    return DirStore(tmp_path / "store")


@pytest.fixture
def device(tmp_path: Path, store: DirStore) -> Callable[..., Puller]:
    """Return what starts the device at `tmp_path/home`, trusting the store's first root; each call is a new process."""

    def start(**arguments: object) -> Puller:
        puller = Puller(tmp_path / "home", SystemClock(), **arguments)  # type: ignore[arg-type]
        if not puller.is_trusting:
            puller.trust(store.get(repository.metadata_key("1.root.json")))
        return puller

    return start


def runs(puller: Puller) -> str | None:
    """Return the model that the device runs; what the link, the slot and the state say must agree."""
    found = puller.installed()
    link = puller.home / "current"
    if found is None:
        assert not link.is_symlink()
        return None
    assert link.resolve() == found.folder.resolve()
    return found.bundle.spec.model_name


def test_a_release_is_installed_once_and_followed_by_the_next(store, device, publish, make_bundle) -> None:
    """First release, no change, second release, back to the first: each is what runs afterwards; two slots are kept."""
    old, new = make_bundle(1.0), make_bundle(0.5)
    publish(store, old)
    puller = device()
    assert puller.update(store_origin(store), "stable").kind == "installed" and runs(puller) == "brightness-1.0"
    assert puller.update(store_origin(store), "stable").kind == "unchanged"
    publish(store, new)
    assert puller.update(store_origin(store), "stable").kind == "installed" and runs(puller) == "brightness-0.5"
    publish(store, old)
    assert device().update(store_origin(store), "stable").kind == "installed" and runs(device()) == "brightness-1.0"
    assert len(list((puller.home / "slots").iterdir())) == 2
    assert puller.update(store_origin(store), "beta").kind == "refused" and runs(device()) == "brightness-1.0"


def changed(path: Path) -> Callable[[], None]:
    """Change one byte in the middle of a file; return what puts it back."""
    before = path.read_bytes()
    after = bytearray(before)
    after[len(after) // 2] ^= 0x01
    path.write_bytes(after)
    return lambda: path.write_bytes(before) and None


def test_one_changed_byte_anywhere_is_refused_and_the_old_model_goes_on(store, device, publish, make_bundle) -> None:
    """Every file of the new release in turn: metadata of each role, bundle.json, model, report, release, pointer."""
    publish(store, make_bundle(1.0))
    device().update(store_origin(store), "stable")
    folder = Path(store.url) / PREFIX
    before = {path for path in folder.rglob("*") if path.is_file()}
    timestamp = folder / "metadata" / "timestamp.json"
    publish(store, make_bundle(0.5))
    new = sorted({path for path in folder.rglob("*") if path.is_file()} - before | {timestamp})
    names = {path.name.split(".", 1)[1] for path in new}
    assert names >= {"targets.json", "snapshot.json", "json", "bundle.json", "onnx", "report.json", "release.json"} - {"onnx"}
    for path in new:
        mend = changed(path)
        outcome = device().update(store_origin(store), "stable")
        assert outcome.kind == "refused", path
        assert runs(device()) == "brightness-1.0"
        mend()
    assert device().update(store_origin(store), "stable").kind == "installed" and runs(device()) == "brightness-0.5"


def test_a_changed_root_is_refused(store, device, publish, make_bundle, tmp_path) -> None:
    """A root with another hash than the pinned one, and a second root on the same device, are not trusted."""
    publish(store, make_bundle())
    root = store.get(repository.metadata_key("1.root.json"))
    with pytest.raises(Refused, match="pinned"):
        Puller(tmp_path / "fresh", SystemClock()).trust(root, sha256="0" * 64)
    assert not (tmp_path / "fresh" / "root.json").exists()
    with pytest.raises(Refused, match="trusts root"):
        device().trust(root + b" ")
    with pytest.raises(Refused, match="trusts no root"):
        Puller(tmp_path / "fresh", SystemClock()).update(store_origin(store), "stable")
    (tmp_path / "home" / "root.json").write_bytes(root[:-40])
    assert device().update(store_origin(store), "stable").kind == "refused"


def test_an_older_release_replayed_is_refused(store, device, publish, make_bundle, tmp_path) -> None:
    """The whole earlier repository comes back: refused, even when the device lost its TUF metadata."""
    publish(store, make_bundle(1.0))
    shutil.copytree(store.url, tmp_path / "replay")
    publish(store, make_bundle(0.5))
    device().update(store_origin(store), "stable")
    replay = open_origin(str(tmp_path / "replay"))
    assert device().update(replay, "stable").kind == "refused" and runs(device()) == "brightness-0.5"
    shutil.rmtree(tmp_path / "home" / "tuf")
    outcome = device().update(replay, "stable")
    assert outcome.kind == "refused" and "seen before" in outcome.why and runs(device()) == "brightness-0.5"


def test_mixed_metadata_of_two_releases_is_refused(store, device, publish, make_bundle, tmp_path) -> None:
    """The new timestamp with the old snapshot under the new name."""
    publish(store, make_bundle(1.0))
    device().update(store_origin(store), "stable")
    folder = Path(store.url) / PREFIX / "metadata"
    old = max(folder.glob("*.snapshot.json"), key=lambda path: int(path.name.split(".")[0]))
    kept = old.read_bytes()
    publish(store, make_bundle(0.5))
    max(folder.glob("*.snapshot.json"), key=lambda path: int(path.name.split(".")[0])).write_bytes(kept)
    assert device().update(store_origin(store), "stable").kind == "refused" and runs(device()) == "brightness-1.0"


def test_expired_metadata_are_refused_until_renewed(store, device, publish, make_bundle, signers) -> None:
    """A timestamp made 9 days ago says so and installs nothing; after --renew the device goes on."""
    now_ns = SystemClock().now_ns()
    past = FakeClock(now_ns - 9 * DAY_S * 1_000_000_000)
    publish(store, make_bundle(1.0), clock=past)
    outcome = device().update(store_origin(store), "stable")
    assert outcome.kind == "refused" and "expired" in outcome.why and runs(device()) is None
    Repository(store, signers, SystemClock()).renew()
    assert device().update(store_origin(store), "stable").kind == "installed"
    assert runs(device()) == "brightness-1.0"


def test_root_is_renewed_in_a_chain(store, device, publish, make_bundle, signers) -> None:
    """A root near its end is replaced by a new version, signed by the old: the device follows."""
    past = FakeClock(SystemClock().now_ns() - 300 * DAY_S * 1_000_000_000)
    publish(store, make_bundle(1.0), clock=past)
    Repository(store, signers, SystemClock()).renew()
    assert store.head(repository.metadata_key("2.root.json")) is not None
    assert device().update(store_origin(store), "stable").kind == "installed"


def test_a_clock_before_the_newest_release_is_not_believed(store, device, publish, make_bundle, tmp_path) -> None:
    """A Pi that woke up in 1970 keeps running and does not update."""
    publish(store, make_bundle(1.0))
    device().update(store_origin(store), "stable")
    publish(store, make_bundle(0.5))
    waking = Puller(tmp_path / "home", FakeClock(now_ns=0))
    outcome = waking.update(store_origin(store), "stable")
    assert outcome.kind == "refused" and "clock" in outcome.why and runs(waking) == "brightness-1.0"


def failing(*_: object) -> None:
    raise ArtefactError("too hot")


def test_a_model_that_fails_its_trial_goes_back_by_itself_and_is_not_tried_again(store, device, publish, make_bundle) -> None:
    """Rolled back with its reason, not tried again by any later process, but tried when it is released afresh."""
    publish(store, make_bundle(1.0))
    device().update(store_origin(store), "stable")
    publish(store, make_bundle(0.5))
    outcome = device(trial=failing).update(store_origin(store), "stable")
    assert outcome.kind == "rolled-back" and "too hot" in outcome.why and runs(device()) == "brightness-1.0"
    again = device().update(store_origin(store), "stable")
    assert again.kind == "unchanged" and "too hot" in again.why
    publish(store, make_bundle(0.5))
    assert device().update(store_origin(store), "stable").kind == "installed" and runs(device()) == "brightness-0.5"


def test_a_first_model_that_fails_leaves_none(store, device, publish, make_bundle) -> None:
    """Without an earlier model there is nothing to go back to: no link, no model."""
    publish(store, make_bundle(1.0))
    assert device(trial=failing).update(store_origin(store), "stable").kind == "rolled-back"
    assert runs(device()) is None


@pytest.mark.parametrize(
    ("gain", "spec", "word"),
    [(float("nan"), {}, "not probabilities"), (300.0, {}, "no probabilities"), (1.0, {"period_s": 1e-6}, "95th percentile")],
)
def test_the_golden_frames_catch_bad_models(make_bundle, gain, spec, word) -> None:
    """Not finite, not a distribution, too slow for its own period."""
    from infra.predictor import Predictor

    with pytest.raises(ArtefactError, match=word):
        golden.run(Predictor(make_bundle(gain, **spec)), (), SystemClock())


def test_the_golden_frames_catch_another_answer(make_bundle) -> None:
    """A device on which the model answers differently than at release does not keep it."""
    from infra.predictor import Predictor

    expected = golden.answers(Predictor(make_bundle(1.0)))
    trial = golden.run(Predictor(make_bundle(1.0)), expected, SystemClock())
    assert trial.difference is not None and trial.difference < 1e-5 and trial.p95_s < 0.1
    with pytest.raises(ArtefactError, match="differ by"):
        golden.run(Predictor(make_bundle(0.5)), expected, SystemClock())


class PowerCut(BaseException):
    """The plug is pulled."""


class CutDisk(durable.Disk):
    """Pulls the plug at call number `at`; counts calls."""

    def __init__(self, at: int) -> None:
        self.at, self.n_calls = at, 0

    def __getattribute__(self, name: str):
        found = object.__getattribute__(self, name)
        if name in ("write", "append", "fsync", "rename", "link", "symlink", "unlink", "mkdir"):
            self.n_calls += 1
            if self.n_calls > self.at:
                raise PowerCut
        return found


def test_a_power_cut_at_any_call_leaves_the_old_or_the_new(store, device, publish, make_bundle, tmp_path, monkeypatch) -> None:
    """Cut an update at every disk call: the next start runs old or new, the next round ends with the new one."""
    publish(store, make_bundle(1.0))
    device().update(store_origin(store), "stable")
    shutil.copytree(tmp_path / "home", tmp_path / "before", symlinks=True)
    publish(store, make_bundle(0.5))
    seen, at = set(), 0
    while True:
        shutil.rmtree(tmp_path / "home")
        shutil.copytree(tmp_path / "before", tmp_path / "home", symlinks=True)
        disk = CutDisk(at)
        monkeypatch.setattr(durable, "disk", disk)
        try:
            device().update(store_origin(store), "stable")
            finished = True
        except PowerCut:
            finished = False
        monkeypatch.setattr(durable, "disk", durable.Disk())
        started = device()
        started.recover()
        seen.add(runs(started))
        assert device().update(store_origin(store), "stable").kind in ("installed", "unchanged")
        assert runs(device()) == "brightness-0.5"
        if finished:
            break
        at += 1
    print(f"{at} cuts")
    assert seen == {"brightness-1.0", "brightness-0.5"} and at > 40


def test_a_process_that_dies_in_three_trials_goes_back(store, device, publish, make_bundle) -> None:
    """A model that kills the process is left after three attempts, without anybody's help."""
    publish(store, make_bundle(1.0))
    device().update(store_origin(store), "stable")
    publish(store, make_bundle(0.5))

    def dies(*_: object) -> None:
        raise PowerCut

    with pytest.raises(PowerCut):
        device(trial=dies).update(store_origin(store), "stable")
    for _ in range(2):
        with pytest.raises(PowerCut):
            device(trial=dies).recover()
    outcome = device(trial=dies).recover()
    assert outcome is not None and outcome.kind == "rolled-back" and runs(device()) == "brightness-1.0"
    assert device().update(store_origin(store), "stable").kind == "unchanged"


def test_damaged_metadata_cache_and_slot_are_noticed(store, device, publish, make_bundle, tmp_path) -> None:
    """Zero-length cached metadata (no fsync before a power cut) are fetched anew; a changed slot is refused at the start."""
    publish(store, make_bundle(1.0))
    device().update(store_origin(store), "stable")
    for path in (tmp_path / "home" / "tuf").rglob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"")
    publish(store, make_bundle(0.5))
    assert device().update(store_origin(store), "stable").kind == "installed"
    changed(tmp_path / "home" / "current" / "model.onnx")
    with pytest.raises(ArtefactError):
        device().installed()


def test_a_bundle_that_lies_about_itself_is_refused(store, device, signers, make_bundle, make_report, monkeypatch) -> None:
    """Signed by us but wrong all the same: a pointer whose files are another bundle, or whose report failed unforced."""
    good, clock = make_bundle(1.0), SystemClock()
    release(Repository(store, signers, clock), good, make_report(good), channel="stable", force=None, clock=clock)
    opened = Repository(store, signers, clock)
    failed = make_report(good, "failed")
    made = dataclasses.replace(_pointer(opened), report_id=failed.report_id, sequence=opened.next_version)
    opened.publish(
        {
            "channels/stable.json": made.to_bytes(),
            f"stable/{good.bundle_id}/release.json": made.to_bytes(),
            f"stable/{good.bundle_id}/report.json": failed.to_bytes(),
        }
    )
    outcome = device().update(store_origin(store), "stable")
    assert outcome.kind == "refused" and "was not forced" in outcome.why and runs(device()) is None


def _pointer(opened: Repository):
    from serve.release import current

    found = current(opened, "stable")
    assert found is not None
    return found


def test_forced_is_known_on_the_device(store, device, publish, make_bundle) -> None:
    """A forced release is installed and carries its reason."""
    publish(store, make_bundle(1.0), force="field trial")
    assert device().update(store_origin(store), "stable").kind == "installed"
    found = device().installed()
    assert found is not None and found.release.forced and "field trial" in found.release.reasons[0]


def test_an_unknown_state_is_refused_in_one_line(tmp_path) -> None:
    """A damaged state.json says what to do."""
    (tmp_path / "state.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ArtefactError, match=r"state\.json"):
        Puller(tmp_path, SystemClock())
    assert State.from_bytes(State(stage="trial", slot="x.1", bad=("y.2",)).to_bytes()).bad == ("y.2",)


def test_a_usb_stick_holds_a_copy_of_the_releases(store, device, publish, make_bundle, tmp_path) -> None:
    """The folder `releases` alone, or a store: both are places to pull from; a missing folder is said."""
    publish(store, make_bundle(1.0))
    shutil.copytree(Path(store.url) / "releases", tmp_path / "stick")
    assert device().update(open_origin(str(tmp_path / "stick")), "stable").kind == "installed"
    with pytest.raises(SettingsError, match="no such folder"):
        open_origin(str(tmp_path / "nothing"))


@pytest.fixture
def web(store: DirStore) -> Iterator[Origin]:
    """Return the store's releases on a web server on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def copyfile(self, source, outputfile) -> None:
            data = source.read()
            outputfile.write(data[: len(data) // 2] if self.path.endswith(self.server.cut) else data)

    Path(store.url).mkdir(exist_ok=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=store.url))
    server.cut = "nothing"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = open_origin(f"http://127.0.0.1:{server.server_port}/releases")
    yield dataclasses.replace(origin, name=server)  # type: ignore[arg-type]
    server.shutdown()
    server.server_close()


def test_over_http_and_with_a_line_that_breaks(store, device, publish, make_bundle, web) -> None:
    """A model that breaks off in the middle is refused; the next round installs it; a dead server changes nothing."""
    publish(store, make_bundle(1.0))
    server = web.name
    server.cut = ".model.onnx"
    assert device().update(web, "stable").kind == "refused" and runs(device()) is None
    server.cut = "nothing"
    assert device().update(web, "stable").kind == "installed"
    server.shutdown()
    server.server_close()
    assert device().update(web, "stable").kind == "refused" and runs(device()) == "brightness-1.0"
