"""What may be released, who signed it, and what stays written about it."""

from __future__ import annotations

import argparse
import io
import stat
from pathlib import Path

import pytest

from infra import keys
from infra.clock import SystemClock
from infra.console import Context, Output
from infra.errors import ObjectChanged, Refused, SettingsError, UsageError
from infra.settings import Settings
from infra.store import DirStore, MemoryStore, Stat
from serve import cli, repository
from serve.release import current, forced_reasons, objection, pointer_path, release
from serve.repository import PREFIX, Repository


def camloop_release(store: DirStore, *argv: str) -> tuple[int, str]:
    """Run the command as infra.cli does and return (exit code, what it printed)."""
    parser, out = argparse.ArgumentParser(), io.StringIO()
    cli.release(parser)
    context = Context(settings=Settings(), out=Output(stdout=out, quiet=True), store_url=store.url)
    arguments = parser.parse_args(list(argv))
    return arguments.run(arguments, context), out.getvalue()


@pytest.fixture
def filled(tmp_path: Path, make_bundle):
    """Return a folder store with one bundle in it, and the bundle."""
    store, bundle = DirStore(tmp_path / "store"), make_bundle()
    store.put(keys.bundle_prefix(bundle.bundle_id) + "model.onnx", bundle.model)
    store.put(keys.bundle_prefix(bundle.bundle_id) + "bundle.json", bundle.spec_bytes())
    return store, bundle


def add_report(store, report) -> str:
    store.put(keys.report_key(report.report_id), report.to_bytes())
    return report.report_id


@pytest.mark.parametrize("verdict", ["failed", "unknown", "not gated"])
def test_what_did_not_pass_is_refused_with_its_slice(filled, make_report, tmp_path, verdict) -> None:
    """Exit 1 (Refused) names the verdict and the slice; nothing was written, no keys were made."""
    store, bundle = filled
    add_report(store, make_report(bundle, verdict))
    with pytest.raises(Refused, match=verdict) as refused:
        camloop_release(store, bundle.bundle_id, "--keys", str(tmp_path / "keys"))
    assert refused.value.exit_code == 1
    assert verdict == "not gated" or "night" in str(refused.value)
    assert not (tmp_path / "keys").exists() and not list(store.list(PREFIX))


def test_without_a_report_it_is_refused(filled, make_bundle, make_report, tmp_path) -> None:
    """A report about another bundle does not count; naming it says so."""
    store, bundle = filled
    other = add_report(store, make_report(make_bundle(0.5)))
    with pytest.raises(Refused, match="no report judges it"):
        camloop_release(store, bundle.bundle_id, "--keys", str(tmp_path / "keys"))
    with pytest.raises(Refused, match="judges bundle"):
        camloop_release(store, bundle.bundle_id, "--report", other, "--keys", str(tmp_path / "keys"))


def test_the_newest_report_decides(filled, make_report, tmp_path) -> None:
    """A later failed report takes back an earlier passed one, unless the earlier is named."""
    store, bundle = filled
    passed = add_report(store, make_report(bundle, "passed", created_ns=1))
    add_report(store, make_report(bundle, "failed", created_ns=2))
    with pytest.raises(Refused):
        camloop_release(store, bundle.bundle_id[:8], "--keys", str(tmp_path / "keys"))
    code, text = camloop_release(store, bundle.bundle_id[:8], "--report", passed, "--keys", str(tmp_path / "keys"))
    assert code == 0 and bundle.bundle_id in text and "--root-sha256" in text


def test_keys_are_made_once_private_and_guarded(filled, make_report, tmp_path, capsys) -> None:
    """Keys are 0600 in 0700, said with the need of a backup; readable by others they are refused; lost ones too."""
    store, bundle = filled
    add_report(store, make_report(bundle))
    folder = tmp_path / "deep" / "keys"
    camloop_release(store, bundle.bundle_id, "--keys", str(folder))
    said = capsys.readouterr().err
    assert str(folder) in said and "Back this folder up" in said
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["root.pem", "snapshot.pem", "targets.pem", "timestamp.pem"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    camloop_release(store, bundle.bundle_id, "--keys", str(folder))
    assert "Back this" not in capsys.readouterr().err
    files[0].chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        camloop_release(store, bundle.bundle_id, "--keys", str(folder))
    with pytest.raises(SettingsError, match="restore the folder from its backup"):
        camloop_release(store, bundle.bundle_id, "--keys", str(tmp_path / "elsewhere"))


def test_foreign_keys_cannot_sign_and_foreign_metadata_is_not_extended(filled, signers, publish, make_bundle, tmp_path) -> None:
    """Other keys are refused; so is a store whose list of targets somebody else rewrote."""
    store, bundle = filled
    publish(store, bundle)
    repository.make_keys(tmp_path / "other")
    other = repository.read_keys(tmp_path / "other")
    with pytest.raises(Refused, match="were not signed with these keys"):
        Repository(store, other, SystemClock())
    rogue = MemoryStore()
    publish_rogue = Repository(rogue, other, SystemClock())
    release(publish_rogue, make_bundle(0.1), None, channel="stable", force="mine", clock=SystemClock())
    name = repository.metadata_key("2.targets.json")
    store.put(name, rogue.get(name))
    with pytest.raises(Refused, match="changed by somebody else"):
        Repository(store, signers, SystemClock())


def test_force_is_marked_for_ever(signers, make_bundle, make_report) -> None:
    """A forced bundle stays marked when it passes later, on every channel; another bundle is not marked."""
    store, bundle, clock = MemoryStore(), make_bundle(), SystemClock()
    open_again = lambda: Repository(store, signers, clock)  # noqa: E731
    first = release(open_again(), bundle, make_report(bundle, "failed"), channel="beta", force="field trial", clock=clock)
    assert first.forced and first.verdict == "failed" and first.reasons[0].startswith("field trial [its gate says failed")
    later = release(open_again(), bundle, make_report(bundle), channel="stable", force=None, clock=clock)
    assert later.forced and later.reasons == first.reasons and later.verdict == "passed"
    clean = make_bundle(0.5)
    assert not release(open_again(), clean, make_report(clean), channel="stable", force=None, clock=clock).forced
    assert forced_reasons(open_again(), bundle.bundle_id) and not forced_reasons(open_again(), clean.bundle_id)
    assert release(open_again(), bundle, make_report(bundle), channel="stable", force=None, clock=clock).forced


def test_force_needs_words(signers, make_bundle) -> None:
    """An empty reason is wrong use."""
    with pytest.raises(UsageError, match="REASON"):
        release(
            Repository(MemoryStore(), signers, SystemClock()),
            make_bundle(),
            None,
            channel="stable",
            force=" ",
            clock=SystemClock(),
        )


def test_going_back_is_a_new_release(signers, publish, make_bundle) -> None:
    """The channel points to the older bundle under a higher sequence."""
    store, old, new = MemoryStore(), make_bundle(1.0), make_bundle(0.5)
    sequences = [publish(store, bundle).sequence for bundle in (old, new, old)]
    assert sequences == sorted(set(sequences))
    found = current(Repository(store, signers, SystemClock()), "stable")
    assert found is not None and (found.bundle_id, found.sequence) == (old.bundle_id, sequences[-1])


def test_two_releases_at_once_do_not_overwrite_each_other(signers, make_bundle, make_report) -> None:
    """The second of two openers is told to run again; the first's release stands."""
    store, clock, first, second = MemoryStore(), SystemClock(), make_bundle(1.0), make_bundle(0.5)
    release(Repository(store, signers, clock), first, make_report(first), channel="stable", force=None, clock=clock)
    one, two = Repository(store, signers, clock), Repository(store, signers, clock)
    release(one, second, make_report(second), channel="stable", force=None, clock=clock)
    with pytest.raises(ObjectChanged, match="run the command again"):
        release(two, first, make_report(first), channel="stable", force=None, clock=clock)
    found = current(Repository(store, signers, clock), "stable")
    assert found is not None and found.bundle_id == second.bundle_id


class Rival(MemoryStore):
    """A store in which somebody else writes the very next object that is put under a key, just before."""

    at: str | None = None

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        if self.at is not None and key.endswith(self.at):
            self.at = None
            super().put_if_absent(key, b"somebody else's")
        return super().put_if_absent(key, data)


@pytest.mark.parametrize("at", ["2.targets.json", "2.snapshot.json"])
def test_a_version_taken_at_the_last_moment_is_said_in_words(signers, make_bundle, make_report, at) -> None:
    """Between the look and the put another release took the number: one line says so, and devices see the old one."""
    store, clock, first, second = Rival(), SystemClock(), make_bundle(1.0), make_bundle(0.5)
    release(Repository(store, signers, clock), first, make_report(first), channel="stable", force=None, clock=clock)
    repository = Repository(store, signers, clock)
    before = repository.next_version
    store.at = at.replace("2", str(before))
    with pytest.raises(ObjectChanged, match="at the same time; run the command again"):
        release(repository, second, make_report(second), channel="stable", force=None, clock=clock)
    assert store.at is None  # it did meet the rival
    found = current(Repository(store, signers, clock), "stable")
    assert found is not None and found.bundle_id == first.bundle_id


def test_a_release_cut_off_anywhere_leaves_the_old_one_and_can_be_repeated(signers, publish, make_bundle) -> None:
    """Stop after each write of a release: the channel still points to the old bundle, and a rerun succeeds."""

    class Cut(MemoryStore):
        left = 10_000

        def _write(self, key, data):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super()._write(key, data)

    old, new = make_bundle(1.0), make_bundle(0.5)
    for n_writes in range(40):
        store = Cut()
        publish(store, old)
        store.left = n_writes
        try:
            publish(store, new)
            finished = True
        except KeyboardInterrupt:
            finished = False
        store.left = 10_000
        found = current(Repository(store, signers, SystemClock()), "stable")
        assert found is not None and found.bundle_id == (new if finished else old).bundle_id
        publish(store, new)
        assert current(Repository(store, signers, SystemClock()), "stable").bundle_id == new.bundle_id
        if finished:
            break
    assert finished and n_writes >= 6


def test_renew_prolongs_without_a_release(signers, publish, make_bundle) -> None:
    """Renewing raises the timestamp's version and keeps the channel."""
    store = MemoryStore()
    made = publish(store, make_bundle())
    before = store.get(repository.metadata_key("timestamp.json"))
    Repository(store, signers, SystemClock()).renew()
    assert store.get(repository.metadata_key("timestamp.json")) != before
    assert current(Repository(store, signers, SystemClock()), "stable") == made


def test_bad_words_get_one_clear_error(filled, tmp_path) -> None:
    """An unknown bundle, no bundle, a bundle with --renew, a channel that is a path: wrong use, said with the remedy."""
    store, bundle = filled
    keys_at = ("--keys", str(tmp_path / "keys"))
    for argv, word in [
        (("feed",), "none of the 1"),
        ((), "name one BUNDLE"),
        ((bundle.bundle_id, "--renew"), "without one"),
        (("--renew",), "nothing was ever released"),
        ((bundle.bundle_id, "--force", "x", "--channel", "../up"), "channel"),
        ((bundle.bundle_id, "--report", "f" * 32), "no report"),
    ]:
        with pytest.raises(UsageError, match=word):
            camloop_release(store, *argv, *keys_at)


def test_the_objection_names_other_labels(make_bundle, make_report) -> None:
    """A report over other labels does not judge this bundle."""
    bundle = make_bundle()
    other = make_report(make_bundle(labels=("night", "day")))
    assert "judges bundle" in (objection(bundle, other) or "")
    assert objection(bundle, make_report(bundle)) is None
    assert pointer_path("stable") == "channels/stable.json"
