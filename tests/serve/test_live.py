"""The live loop and `camloop run`: lines, dropped frames, unsure clips, swaps, Ctrl-C."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from infra import cli as infra_cli
from infra import video
from infra.artefacts import Bundle, Outbox
from infra.clock import FakeClock, SystemClock
from infra.console import Context, Output
from infra.errors import MediaError, Refused, SettingsError, UsageError
from infra.predictor import Predictor, stream_recording
from infra.records import Clip
from infra.settings import Settings
from infra.store import DirStore
from serve import cli, wanted
from serve.frames import LiveFrame, Recording, at_their_pace, from_file, newest_first
from serve.health import Health
from serve.live import Live, Model

SIZE = (32, 16)
MS = 1_000_000


def recording(name: str = "r") -> Recording:
    return Recording(
        name=name, camera_id="cam", host_id="host", boot_id="boot", recording_id=name, clock="sensor",
        utc_ns=lambda sensor_ns: 1_700_000_000_000_000_000 + sensor_ns, site="yard",
    )  # fmt: skip


def frames_of(levels: list[int], *, source: Recording | None = None, period_ms: int = 100) -> Iterator[LiveFrame]:
    """Yield one flat frame of each brightness, 100 ms apart."""
    source = source or recording()
    for number, level in enumerate(levels):
        rgb = np.full((SIZE[1], SIZE[0], 3), level, np.uint8)
        yield LiveFrame(rgb=lambda _, rgb=rgb: rgb, sensor_ns=number * period_ms * MS, recording=source)


@pytest.fixture
def live(make_bundle, tmp_path):
    """Return what makes a loop over the brightness model: `live(**changes)`, with the lines that it says."""

    def make(**changes):
        lines: list[str] = []
        model = Model(predictor=Predictor(make_bundle(**changes.pop("spec", {}))))
        made = Live(model=model, clock=SystemClock(), outbox=Outbox(tmp_path / "outbox"), say=lines.append, **changes)
        return made, lines

    return make


def test_a_line_when_the_label_changes_and_once_a_second(live) -> None:
    """Seed 003's line, `label (xx%)`: at the first frame, at changes, and each second."""
    loop, lines = live()
    counts = loop.run(frames_of([0] * 5 + [255] * 15 + [0]))
    assert lines == ["dark (100%)", "bright (100%)", "bright (100%)", "dark (100%)"]
    assert (counts.n_frames, counts.n_predictions, counts.n_unsure, counts.n_sent) == (21, 21, 0, 0)
    assert counts.latency_s(0.5) is not None and counts.latency_s(0.95) >= counts.latency_s(0.5)


def test_an_unsure_moment_comes_back_with_its_reason(live, tmp_path) -> None:
    """The clip spans the seconds around the moment; its sidecar names bundle, prediction, reason and sensor times."""
    loop, _ = live(spec={"uncertain_below": 0.6})
    counts = loop.run(frames_of([0] * 40 + [130] + [0] * 40))
    found = Outbox(tmp_path / "outbox").finished()
    assert len(found) == 1 == counts.n_sent and counts.n_unsure == 1
    path, sidecar = found[0]
    assert sidecar.outbox is not None and sidecar.outbox["reason"] == "uncertain"
    assert sidecar.outbox["bundle_id"] == loop.model.predictor.bundle.bundle_id
    assert sidecar.outbox["label"] == "bright" and 0.5 < sidecar.outbox["prob"] < 0.6
    assert sidecar.outbox["sensor_ns"] == 4000 * MS and sidecar.sensor_ns == tuple(t * MS for t in range(2000, 5001, 100))
    assert (sidecar.camera_id, sidecar.site, sidecar.recording_id, sidecar.clock) == ("cam", "yard", "r", "sensor")
    assert sidecar.start_ns == 1_700_000_002_000_000_000
    decoded = list(video.decode(path))
    assert sum(len(frames) for frames in decoded) == 31
    pts = np.concatenate([frames.pts for frames in decoded])
    assert [round(p * decoded[0].time_base * 1000) for p in pts.tolist()] == list(range(0, 3001, 100))


def test_unsure_moments_are_rationed_and_recordings_kept_apart(live, tmp_path) -> None:
    """All unsure: one clip per 30 s of sensor time; none spans two recordings; the last one is not lost at the end."""
    loop, _ = live(spec={"uncertain_below": 0.6})
    one, two = frames_of([128] * 400), frames_of([128] * 5, source=recording("second"))
    counts = loop.run(itertools.chain(one, two))
    found = Outbox(tmp_path / "outbox").finished()
    assert sorted((s.recording_id, len(s.sensor_ns)) for _, s in found) == [("r", 11), ("r", 31), ("second", 5)]
    assert counts.n_sent == 3


def test_a_full_outbox_keeps_nothing_and_says_so(live, tmp_path, monkeypatch, caplog) -> None:
    """Beyond its limit the outbox takes no clip; the loop goes on."""
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "old").write_bytes(b"x" * 100)
    monkeypatch.setattr("serve.unsure.MAX_BYTES", 10)
    loop, lines = live(spec={"uncertain_below": 0.6})
    counts = loop.run(frames_of([128] * 40))
    assert counts.n_sent == 0 and lines and "outbox_full" in [record.getMessage() for record in caplog.records]


def test_a_disk_that_fails_ends_no_loop(live, tmp_path, caplog) -> None:
    """An outbox that cannot be written is an event, not an end."""
    (tmp_path / "outbox").write_text("a file, not a folder")
    loop, _ = live(spec={"uncertain_below": 0.6})
    counts = loop.run(frames_of([128] * 40))
    assert counts.n_predictions == 40 and counts.n_sent == 0
    assert "clip_not_written" in [record.getMessage() for record in caplog.records]


def test_a_wish_is_fulfilled_up_to_its_quota(live, tmp_path) -> None:
    """What somebody asked for is kept although the model is sure."""
    clock, store = FakeClock(), DirStore(tmp_path / "store")
    wish = wanted.create(store, "label = 'bright' and site = 'yard'", quota=2, days=1, reason="more light", clock=clock)
    loop, _ = live(wishes=[wish], outbox_every_s=1.0)
    assert loop.run(frames_of([0] * 20 + [255] * 100)).n_sent == 2
    reasons = {s.outbox["reason"] for _, s in Outbox(tmp_path / "outbox").finished()}
    assert reasons == {f"wanted {wish.wanted_id}: more light"}


def test_the_newest_frame_comes_first_and_the_rest_is_counted() -> None:
    """A slow consumer sees fewer frames, in order, the last one too; seen + dropped = all."""
    seen = []
    for frame in newest_first(at_their_pace(frames_of([0] * 100, period_ms=4), SystemClock()), SystemClock()):
        seen.append(frame)
        time.sleep(0.02)
    times = [frame.sensor_ns for frame in seen]
    assert times == sorted(times) and times[-1] == 99 * 4 * MS and 5 <= len(seen) < 60
    assert len(seen) + sum(frame.n_dropped for frame in seen) == 100
    assert all(frame.arrived_ns is not None for frame in seen)


def test_a_source_that_fails_is_heard_and_one_that_is_left_stops() -> None:
    """An error in the taking thread arrives in the asking one; a consumer that leaves ends the thread."""

    def broken() -> Iterator[LiveFrame]:
        yield from frames_of([0, 0])
        raise MediaError("unplugged")

    with pytest.raises(MediaError, match="unplugged"):
        for _ in newest_first(broken(), SystemClock()):
            pass
    n_before = threading.active_count()
    endless = newest_first(at_their_pace(frames_of([0] * 10_000, period_ms=1), SystemClock()), SystemClock())
    next(endless)
    endless.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > n_before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= n_before


def test_frames_are_held_back_until_their_time() -> None:
    """A file at its own pace takes as long as it was filmed."""
    clock = FakeClock()
    assert len(list(at_their_pace(frames_of([0] * 21), clock))) == 21 and clock.mono_ns() == 2000 * MS


def test_a_new_model_takes_over_between_two_frames(live, make_bundle) -> None:
    """`renew` swaps; the new one begins without the old one's state."""
    loop, lines = live()
    new = Model(predictor=Predictor(make_bundle(0.1)), report_id="new")
    answers = iter([None] * 5 + [new])
    loop.renew = lambda: next(answers, None)
    loop.run(frames_of([255] * 10))
    assert lines == ["bright (100%)", "dark (90%)"] and loop.model is new


def test_ctrl_c_leaves_whole_clips_and_last_figures(live, tmp_path) -> None:
    """Stopped in the middle: the moment under way is written, figures too."""

    def stopped() -> Iterator[LiveFrame]:
        yield from frames_of([128] * 8)
        raise KeyboardInterrupt

    loop, _ = live(spec={"uncertain_below": 0.6})
    loop.health = Health(tmp_path / "health.jsonl", host_id="h", boot_id="b", clock=SystemClock())
    with pytest.raises(KeyboardInterrupt):
        loop.run(stopped())
    assert [len(s.sensor_ns) for _, s in Outbox(tmp_path / "outbox").finished()] == [8]
    rows = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert {row["name"]: row["value"] for row in rows}["predictions"] == 8
    assert {"host_id", "boot_id", "at_ns", "name", "value", "text"} == set(rows[0])


@pytest.fixture
def film(tmp_path) -> Path:
    """Return a clip of 30 frames at 10 per second that goes from dark to bright."""
    path = tmp_path / "film.mp4"
    with video.Writer(path, 64, 32, Fraction(1, 1000)) as writer:
        for number in range(30):
            level = 20 if number < 15 else 230
            writer.add(np.full((32, 64, 3), level, np.uint8), number * 100)
    return path


def test_a_file_runs_as_the_gate_streams_it(make_bundle, film, live) -> None:
    """The same file through the loop and through `stream_recording`: equal probabilities, to the last bit."""
    log = io.StringIO()
    loop, _ = live(spec={"smoothing": 0.8}, predictions=log)
    loop.run(from_file(film, host_id="h"))
    seen = video.probe(film)
    clip = Clip(
        clip_id="0" * 32, key="k", source_name="film.mp4", container="mp4", camera_id="film", recording_id="r",
        time_base_num=seen.time_base.numerator, time_base_den=seen.time_base.denominator, first_pts=seen.first_pts,
        end_pts=seen.end_pts, n_frames=30, width_px=64, height_px=32, codec="h264", n_bytes=1, sha256="0" * 64,
    )  # fmt: skip
    judged = {pts: p.probs for _, pts, p in stream_recording(Predictor(make_bundle(smoothing=0.8)), [(film, clip)])}
    ran = {row["pts"]: tuple(row["probs"]) for row in map(json.loads, log.getvalue().splitlines())}
    assert ran == judged and len(ran) == 30


def camloop_run(store: DirStore, *argv: str, as_json: bool = False, settings: Settings | None = None) -> tuple[int, str]:
    """Run the command as infra.cli does and return (exit code, standard output)."""
    parser, out = argparse.ArgumentParser(), io.StringIO()
    cli.run(parser)
    context = Context(settings=settings or Settings(), out=Output(as_json=as_json, stdout=out, quiet=True), store_url=store.url)
    arguments = parser.parse_args(list(argv))
    return arguments.run(arguments, context), out.getvalue()


@pytest.fixture
def store(tmp_path) -> DirStore:
    (tmp_path / "store").mkdir()
    return DirStore(tmp_path / "store")


def test_run_pulls_verifies_and_predicts(store, publish, make_bundle, film, tmp_path, capsys) -> None:
    """The first run trusts a folder of this machine, loudly; it prints lines and latency; the second says nothing of it."""
    publish(store, make_bundle())
    home = str(tmp_path / "home")
    code, text = camloop_run(store, str(film), "--home", home)
    said = capsys.readouterr().err
    assert code == 0 and "dark (" in text and "bright (" in text and "latency p50" in text and "FORCED" not in text
    assert "TRUSTED ON FIRST USE" in said and "installed release 2" in said
    code, text = camloop_run(store, str(film), "--home", home, "--frames", "3", as_json=True)
    document = json.loads(text)
    assert code == 0 and document["n_frames"] == 3 and document["forced"] == [] and document["lines"][0]["label"] == "dark"
    assert "TRUSTED" not in capsys.readouterr().err


def test_run_prints_forced(store, publish, make_bundle, film, tmp_path) -> None:
    """A release against its gate is named at every start, with its reason."""
    publish(store, make_bundle(), force="field trial")
    for _ in range(2):
        text = camloop_run(store, str(film), "--home", str(tmp_path / "home"), "--frames", "2")[1]
        assert "FORCED: field trial" in text


def test_run_goes_on_with_the_old_model_when_tampered_with(store, publish, make_bundle, film, tmp_path, capsys) -> None:
    """The new model's file has one other byte: said on standard error, the old model predicts."""
    publish(store, make_bundle(1.0))
    home = str(tmp_path / "home")
    camloop_run(store, str(film), "--home", home, "--frames", "1")
    before = set(Path(store.url).rglob("*.model.onnx"))
    publish(store, make_bundle(0.5))
    (new,) = set(Path(store.url).rglob("*.model.onnx")) - before
    data = bytearray(new.read_bytes())
    data[10] ^= 1
    new.write_bytes(data)
    capsys.readouterr()
    code, text = camloop_run(store, str(film), "--home", home, "--frames", "5")
    assert code == 0 and "running brightness-1.0" in text and "dark (" in text
    assert "not updated (refused" in capsys.readouterr().err


def test_run_works_without_any_network(store, publish, make_bundle, film, tmp_path) -> None:
    """--offline, and a place that is gone: what is installed runs."""
    publish(store, make_bundle())
    home = str(tmp_path / "home")
    camloop_run(store, str(film), "--home", home, "--frames", "1")
    assert camloop_run(store, str(film), "--home", home, "--frames", "2", "--offline")[0] == 0
    code, text = camloop_run(store, str(film), "--home", home, "--frames", "2", "--from", "http://127.0.0.1:9/releases")
    assert code == 0 and "running brightness-1.0" in text
    gone = ("--from", str(tmp_path / "no-stick"))
    code, text = camloop_run(store, str(film), "--home", home, "--frames", "2", *gone)
    assert code == 0 and "running brightness-1.0" in text
    with pytest.raises(SettingsError, match="no such folder"):  # nothing is installed there, so nothing can run
        camloop_run(store, str(film), "--home", str(tmp_path / "new"), *gone)


def test_run_asks_for_releases_after_a_trial_that_a_power_cut_ended(store, publish, make_bundle, film, tmp_path) -> None:
    """A start that first ends such a trial keeps asking afterwards: the next release takes over without a restart."""
    publish(store, make_bundle(1.0))
    home = tmp_path / "home"
    camloop_run(store, str(film), "--home", str(home), "--frames", "1")
    state = json.loads((home / "state.json").read_text())
    (home / "state.json").write_text(json.dumps(state | {"stage": "trial", "slot": state["good"], "trials": 1}))
    timer = threading.Timer(0.5, publish, (store, make_bundle(0.25)))
    timer.start()
    code, text = camloop_run(store, str(film), str(film), "--home", str(home), "--realtime", "--poll-s", "0.1")
    timer.join()
    assert code == 0 and "running brightness-0.25" in text


def test_a_place_that_comes_later_is_asked_as_well(store, publish, make_bundle, film, tmp_path) -> None:
    """A stick that is not in its slot when the loop begins, and is later, brings its release without a restart."""
    publish(store, make_bundle(1.0))
    home, stick = tmp_path / "home", tmp_path / "stick"
    camloop_run(store, str(film), "--home", str(home), "--frames", "1")
    publish(store, make_bundle(0.25))
    timer = threading.Timer(0.5, store.path.rename, (stick,))
    timer.start()
    code, text = camloop_run(
        store, str(film), str(film), "--home", str(home), "--realtime", "--poll-s", "0.1", "--from", str(stick)
    )
    timer.join()
    assert code == 0 and "running brightness-0.25" in text


def test_run_refuses_what_it_must(store, publish, make_bundle, film, tmp_path) -> None:
    """No release at all, an unpinned remote place, a wrong pin, a demo model on real footage, a busy home."""
    home = str(tmp_path / "home")
    with pytest.raises(Refused, match="holds no releases"):
        camloop_run(store, str(film), "--home", home)
    publish(store, make_bundle(simulated_world_only=True))
    with pytest.raises(UsageError, match="trusts nobody yet"):
        camloop_run(store, str(film), "--home", home, "--from", "http://127.0.0.1:9/releases")
    with pytest.raises(Refused, match="pinned"):
        camloop_run(store, str(film), "--home", home, "--root-sha256", "0" * 64)
    with pytest.raises(Refused, match="simulated world only"):
        camloop_run(store, str(film), "--home", home)
    assert camloop_run(store, str(film), "--home", home, "--simulated")[0] == 0
    from serve.cli_run import _alone

    with _alone(tmp_path / "home"), pytest.raises(UsageError, match="another camloop run"):
        camloop_run(store, str(film), "--home", home)
    with pytest.raises(UsageError, match="no file"):
        camloop_run(store, "nothing.mp4", "--home", home, "--simulated")
    rules = Settings(toml={"serve": {"on": [{"label": "Cat", "command": ["x"]}]}})
    with pytest.raises(SettingsError, match="labels are dark, bright"):
        camloop_run(store, str(film), "--home", home, "--simulated", settings=rules)


def test_run_sends_what_the_store_wants(store, publish, make_bundle, film, tmp_path) -> None:
    """A wish in the store that the models are pulled from is met by a sure prediction too."""
    publish(store, make_bundle())
    wish = wanted.create(
        store, "camera_id = 'door7' and label = 'bright'", quota=1, days=1, reason="light", clock=SystemClock()
    )
    home = tmp_path / "home"
    arguments = (str(film), "--home", str(home), "--camera", "door7", "--from", store.url)
    assert camloop_run(store, *arguments)[0] == 0
    ((_, sidecar),) = Outbox(home / "outbox").finished()
    assert sidecar.outbox is not None and sidecar.outbox["reason"] == f"wanted {wish.wanted_id}: light"
    assert sidecar.seq > sidecar.start_mono_ns // 1_000_000  # behind whatever the recorder made of this recording


def test_run_takes_an_unsigned_bundle_from_a_folder(store, make_bundle, film, tmp_path, capsys) -> None:
    """For trying out; said as what it is."""
    bundle: Bundle = make_bundle()
    bundle.write(tmp_path / "bundle")
    assert camloop_run(store, str(film), "--home", str(tmp_path / "home"), "--bundle", str(tmp_path / "bundle"))[0] == 0
    assert "unsigned" in capsys.readouterr().err


def test_run_plays_a_file_like_a_camera_and_swaps_while_it_runs(store, publish, make_bundle, film, tmp_path) -> None:
    """--realtime asks for releases beside the loop; a release made meanwhile takes over."""
    publish(store, make_bundle(1.0))
    home = str(tmp_path / "home")
    camloop_run(store, str(film), "--home", home, "--frames", "1")
    timer = threading.Timer(0.5, publish, (store, make_bundle(0.25)))
    timer.start()
    code, text = camloop_run(store, str(film), str(film), "--home", home, "--realtime", "--poll-s", "0.1")
    timer.join()
    assert code == 0 and "running brightness-1.0" in text and "running brightness-0.25" in text


def test_run_joins_a_source_by_name(store, publish, make_bundle, tmp_path, monkeypatch) -> None:
    """A URL is opened by what the table of joins names; its identity reaches the predictions."""

    class Source:
        camera_id, host_id, boot_id, recording_id, site, clock = "c7", "h7", "b7", "r7", "yard", "sensor"

        def utc_ns(self, sensor_ns: int) -> int:
            return sensor_ns

        def __iter__(self):
            for number in range(12):
                yield SimpleNamespace(rgb=np.full((40, 60, 3), 200, np.uint8), sensor_ns=number * 100 * MS)

    monkeypatch.setattr(infra_cli, "join", lambda name: lambda url, **_: Source())
    publish(store, make_bundle(uncertain_below=0.99, simulated_world_only=True))
    log, home = tmp_path / "p.jsonl", tmp_path / "home"
    arguments = ("sim://1/x", "--home", str(home), "--all-frames", "--predictions", str(log))
    assert camloop_run(store, *arguments)[0] == 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 12 and rows[3]["sensor_ns"] == 300 * MS and rows[3]["camera_id"] == "c7" and rows[3]["report_id"]
    assert [s.camera_id for _, s in Outbox(home / "outbox").finished()] == ["c7"]


def test_what_privacy_hides_the_model_never_sees(store, publish, make_bundle, film, tmp_path) -> None:
    """[privacy] of the host, or of the camera's own table, holds for `run`: camera and file, model and outbox."""
    publish(store, make_bundle(uncertain_below=1.1, simulated_world_only=True))
    masks = {"masks": [[0.0, 0.0, 1.0, 1.0]], "style": "fill"}
    url = "sim://7/harbour1-yard?lighting=day&seconds=2"
    tables = ({"privacy": masks}, {"camera": [{"id": "yard", "url": url + "&counter=1", "privacy": masks}]}, {})
    for number, (source, toml) in enumerate([(str(film), tables[0]), (url, tables[0]), (url, tables[1]), (url, tables[2])]):
        log, home = tmp_path / f"{number}.jsonl", tmp_path / f"home{number}"
        arguments = (source, "--home", str(home), "--all-frames", "--simulated", "--predictions", str(log))
        assert camloop_run(store, *arguments, settings=Settings(toml=toml))[0] == 0
        clips = [path for path, _ in Outbox(home / "outbox").finished()]
        brightest = [max(picture.rgb(None).max() for picture in video.pictures(path)) for path in clips]
        sure = {round(json.loads(line)["prob"], 3) for line in log.read_text().splitlines()}
        assert (sure == {1.0}) == (toml != {}), "black is dark for sure"
        assert brightest and (max(brightest) < 16) == (toml != {})
