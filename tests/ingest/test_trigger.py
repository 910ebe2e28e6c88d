"""The trigger's table, its kinds, wishes, and the gate that they open."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from infra.artefacts import Wanted
from infra.errors import SettingsError
from infra.picture import Rgb
from infra.settings import load_settings
from ingest.config import agent_config, camera_configs
from ingest.gate import Seen
from ingest.privacy import PrivacySettings
from ingest.source import EncodedFrame, SourceFrame, StreamFormat, open_source
from ingest.trigger import Always, DuePictures, MotionTrigger, TriggerSettings, When, open_gate, open_trigger
from ingest.trigger_model import ModelTrigger, Wishing
from tests.serve.conftest import HEIGHT_PX, WIDTH_PX, brightness_bundle

S = 10**9
NOON = round(datetime.datetime(2026, 6, 21, 12, tzinfo=datetime.UTC).timestamp()) * S
MIDNIGHT = NOON + 12 * 3600 * S
BERLIN = {"latitude": 52.5, "longitude": 13.4}


def grey(level: int, size: tuple[int, int] = (60, 80)) -> Rgb:
    return np.full((*size, 3), level, np.uint8)


def test_the_table_is_read() -> None:
    """All keys of a full table arrive, rules and regions too."""
    table = {
        "kind": "motion", "pre_roll_s": 3, "masks": [[0, 0, 0.5, 0.5]], "time_zone": "Europe/Berlin", "small": [160, 120],
        "when": [{"sun_below_deg": -6, "least_duration_s": 1.5}, {"hours": ["22:00-05:30"], "off": True}], **BERLIN,
    }  # fmt: skip
    settings = TriggerSettings.from_table(table)
    assert settings.masks == ((0, 0, 0.5, 0.5),)
    assert settings.when == (When(sun_below_deg=-6, least_duration_s=1.5), When(hours=("22:00-05:30",), off=True))
    assert TriggerSettings.from_table({}) == TriggerSettings()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kind": "movement"}, "legal: 'always'"),
        ({"pre_rol_s": 3}, "did you mean pre_roll_s"),
        ({"pre_roll_s": -1}, "legal: 0 to 600 seconds"),
        ({"least_share": 4}, "below 1"),
        ({"sensitivity": 0}, "legal: 0.1"),
        ({"least_duration_s": float("nan")}, "legal: 0 to 60"),
        ({"masks": [[0, 0, 2, 1]]}, "each 0 to 1"),
        ({"when": [{"least_share": 0.1}]}, "says no time"),
        ({"when": [{"hours": ["25:00-05:00"]}]}, "legal: HH:MM-HH:MM"),
        ({"when": [{"sun_below_deg": 99}]}, "-90 to 90"),
        ({"time_zone": "Middle/Earth"}, "Europe/Berlin"),
        ({"kind": "model"}, "a bundle's folder"),
        ({"kind": "model", "model": "m"}, "labels is empty"),
        ({"kind": "model", "model": "m", "labels": ["x"], "threshold": 2}, "a probability"),
        ({"latitude": 91}, "-90 to 90"),
        ({"fps": 0}, "legal: 0.1 to 60"),
        ({"small": [8, 8]}, "each 32 to 1024"),
        ({"max_buffer_bytes": 10}, "legal: 65536"),
        ({"post_roll_s": 1e9}, "legal: 0 to 3600"),
    ],
)
def test_wrong_tables_get_one_line(table: dict[str, object], said: str) -> None:
    """The value, the legal ones, the line."""
    with pytest.raises(SettingsError) as error:
        TriggerSettings.from_table(table)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_value_is_told_with_its_line(tmp_path: Path) -> None:
    """From a file: the line of the key."""
    path = tmp_path / "camloop.toml"
    path.write_text('store = "x"\n[trigger]\nkind = "motion"\nleast_share = 4\n')
    settings = load_settings(path, {})
    with pytest.raises(SettingsError, match=r"camloop.toml line 4.*least_share is 4"):
        TriggerSettings.from_table(settings.toml["trigger"], settings.where("trigger"))


@pytest.mark.parametrize(
    ("rule", "at_noon", "at_midnight"),
    [
        (When(sun_below_deg=-6), False, True),
        (When(sun_above_deg=0), True, False),
        (When(hours=("22:00-05:30",)), False, True),
        (When(hours=("11:00-14:01",)), True, False),
        (When(hours=("22:00-05:30",), sun_above_deg=0), False, False),
    ],
)
def test_rules_by_sun_and_hour(rule: When, at_noon: bool, at_midnight: bool) -> None:
    """Berlin at midsummer, 14:00 and 02:00 local time: the rule of the moment sets the thresholds, or switches off."""
    settings = TriggerSettings(kind="motion", when=(rule,), time_zone="Europe/Berlin")
    trigger = MotionTrigger(settings, **BERLIN)
    assert (trigger._rule(NOON) is not None, trigger._rule(MIDNIGHT) is not None) == (at_noon, at_midnight)
    assert trigger._rule(None) is None  # a camera that does not know the time keeps the usual thresholds


def test_switched_off_by_day() -> None:
    """A rule that is off: things move, and nothing is recorded until it ends; the score still says that they do."""
    settings = TriggerSettings(kind="motion", when=(When(sun_above_deg=0, off=True),), least_duration_s=0)
    for start_ns, expected in ((NOON, False), (MIDNIGHT, True)):
        trigger = MotionTrigger(settings, **BERLIN)
        seen = Seen(False, 0, "")
        for number in range(20):
            rgb = grey(100)
            if number > 15:
                rgb[10:40, 10 + number : 40 + number] = np.arange(30, dtype=np.uint8)[:, None] * 8
            time_ns = (number + 1) * S // 10
            seen = trigger.see(rgb, time_ns, start_ns + time_ns)
        assert (seen.on, seen.score > 0.5) == (expected, True)
        assert ("switched off" in seen.reason) != expected


def test_the_sun_needs_a_place() -> None:
    """A rule by the sun without latitude is refused, and the message says where to write it."""
    with pytest.raises(SettingsError, match=r"latitude and longitude.*\[agent\]"):
        open_trigger(TriggerSettings(kind="motion", when=(When(sun_below_deg=0),)))


def test_always_does_not_look() -> None:
    """No small picture is asked for, none is made."""
    trigger = open_trigger(TriggerSettings())
    assert isinstance(trigger, Always) and trigger.small_px is None
    assert trigger.see(grey(0), 0, None).on


def test_small_pictures_come_at_a_rate_and_a_size() -> None:
    """Thirty frames a second give ten pictures, resized once; a stream's own small pictures are taken as they are."""
    small = DuePictures((40, 30), 10.0)
    made = [small(SourceFrame(grey(9), number * S // 30, number)) for number in range(60)]
    assert sum(rgb is not None for rgb in made) == 20
    assert made[0] is not None and made[0].shape == (30, 40, 3)
    given = grey(9)
    assert DuePictures((400, 300), 10.0)(SourceFrame(given, 0, 0)) is given
    stream = StreamFormat(codec="h264", width_px=80, height_px=60, extradata=b"")
    frames = [
        EncodedFrame(
            data=b"", is_keyframe=True, sensor_ns=number * S, frame_number=number, format=stream,
            small=given if number % 2 else None,
        )
        for number in range(4)
    ]  # fmt: skip
    assert [small(frame) for frame in frames] == [None, given, None, given]
    assert small(SourceFrame(given, 3 * S + S // 2, 9)) is not None  # after a pause the next one is due


def model_trigger(**changes: object) -> ModelTrigger:
    return ModelTrigger(brightness_bundle(uncertain_below=0.6), ["bright"], **changes)  # type: ignore[arg-type]


def test_a_model_by_label_threshold_and_uncertainty() -> None:
    """The brightness model: bright is on, dark is off, grey is kept as uncertain and marked."""
    trigger = model_trigger(threshold=0.7)
    seen = [trigger.see(grey(level), (number + 1) * S // 10, None) for number, level in enumerate((250, 5, 130))]
    assert [(s.on, s.uncertain) for s in seen] == [(True, False), (False, False), (True, True)]
    assert seen[0].score == pytest.approx(250 / 255, abs=0.01) and seen[0].reason.startswith("bright (9")
    assert (seen[0].label, seen[1].reason, seen[2].reason) == ("bright", "other", "uncertain")
    assert trigger.small_px == (WIDTH_PX, HEIGHT_PX) and trigger.name == "model"
    assert not model_trigger(threshold=0.7, keep_uncertain=False).see(grey(130), 1, None).on
    assert model_trigger(threshold=0.9, uncertain_below=0.95).see(grey(200), 1, None).uncertain


def test_a_picture_that_the_model_does_not_want_keeps_the_verdict() -> None:
    """The model wants ten a second: between two of them the last verdict holds."""
    trigger = model_trigger()
    assert trigger.see(grey(250), S, None).on
    assert trigger.see(grey(5), S + 20_000_000, None).on
    assert not trigger.see(grey(5), S + 100_000_000, None).on


class Moves:
    """A first stage that is on as told."""

    name, small_px = "motion", (80, 60)

    def __init__(self) -> None:
        self.on = False

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        return Seen(self.on, 0.9, "moves" if self.on else "still")


def test_motion_then_model() -> None:
    """The model is asked only while something moves; its verdict counts then."""
    first = Moves()
    trigger = model_trigger(first=first)
    assert (trigger.name, trigger.small_px) == ("motion then model", (80, 60))
    assert trigger.see(grey(250), S, None) == Seen(False, 0.0, "still")
    first.on = True
    assert trigger.see(grey(250), 2 * S, None).reason.startswith("bright")
    assert not trigger.see(grey(5), 3 * S, None).on


def test_opening_a_model(tmp_path: Path) -> None:
    """From a bundle's folder; an unknown label and a missing bundle are refused with what there is."""
    brightness_bundle().write(tmp_path / "bundle")
    table = {"kind": "motion then model", "model": str(tmp_path / "bundle"), "labels": ["bright"]}
    assert open_trigger(TriggerSettings.from_table(table)).name == "motion then model"
    with pytest.raises(SettingsError, match=r"labels has 'night'.*dark, bright"):
        open_trigger(TriggerSettings.from_table({**table, "kind": "model", "labels": ["night"]}))
    with pytest.raises(SettingsError, match="give the folder of a bundle"):
        open_trigger(TriggerSettings.from_table({**table, "model": str(tmp_path)}))


def wish(where: str, quota: int = 5, expires_ns: int = 2**62) -> Wanted:
    return Wanted(wanted_id="w1", where=where, quota=quota, expires_ns=expires_ns, reason="few of them")


def wishing(where: str, *, on: bool = True, **more: int) -> tuple[Wishing, Moves]:
    inner = Moves()
    inner.on = on
    return Wishing(inner, {"camera_id": "yard", "site": None}, lambda: [wish(where, **more)]), inner


@pytest.mark.parametrize(
    ("where", "utc_ns", "wanted"),
    [
        ("camera_id = 'yard'", None, "w1"),
        ("camera_id = 'gate'", None, None),
        ("hour >= 22 or hour < 4", MIDNIGHT, "w1"),
        ("hour >= 22 or hour < 4", NOON, None),
        ("hour >= 22 or hour < 4", None, None),  # nobody knows the hour
        ("weather = 'rain'", NOON, None),  # a camera does not know it
        ("site = 'farm'", NOON, None),
        ("hour = 'late'", NOON, None),  # text against a number: said in the log, never met
    ],
)
def test_wishes_mark_what_is_recorded(where: str, utc_ns: int | None, wanted: str | None) -> None:
    """What moves and meets a wish carries its id; what does not move is not recorded for a wish about place and time."""
    trigger, inner = wishing(where)
    seen = trigger.see(grey(0), S, utc_ns)
    assert (seen.on, seen.wanted_id) == (True, wanted)
    inner.on = False
    assert not trigger.see(grey(0), 2 * S, utc_ns).on


def test_a_wish_about_the_model_starts_a_recording() -> None:
    """`label` and `prob` are known where a model looks: a wish for them is on although the trigger is not."""
    asked: list[int] = []

    def wishes() -> Sequence[Wanted]:
        asked.append(1)
        return [wish("label = 'dark' and prob > 0.9")]

    trigger = Wishing(model_trigger(keep_uncertain=False), {}, wishes)
    seen = [trigger.see(grey(level), (number + 1) * S // 10, None) for number, level in enumerate((5, 130, 250))]
    assert [(s.on, s.wanted_id) for s in seen] == [(True, "w1"), (True, None), (True, None)]
    assert seen[0].reason == "wanted w1: few of them"
    assert len(asked) == 1  # once a minute of sensor time
    trigger.see(grey(5), 62 * S, None)
    assert len(asked) == 2


def test_quota_and_expiry_of_a_wish() -> None:
    """Two occasions, half a minute apart at least, then it is enough; an expired wish is none."""
    trigger, _ = wishing("camera_id = 'yard'", quota=2)
    met = [second for second in range(0, 200) if trigger.see(grey(0), second * S, None).wanted_id]
    assert met == list(range(60))
    trigger, _ = wishing("camera_id = 'yard'", expires_ns=NOON)
    assert trigger.see(grey(0), S, NOON - 1).wanted_id == "w1"
    assert trigger.see(grey(0), 2 * S, NOON).wanted_id is None


def test_a_gate_on_a_simulated_camera() -> None:
    """Motion on a recording of the simulated world in which a person walks: one event or more, facts for the spool."""
    source = open_source("sim://97/harbour1-hall?lighting=day&seconds=8")
    gate = open_gate(TriggerSettings(kind="motion", pre_roll_s=1, post_roll_s=1), source, wishes=lambda: [wish("hour < 24")])
    events = [(event, len(list(event))) for event in gate.events(source)]
    assert events and sum(n for _, n in events) + sum(row.n_frames for row in gate.take_skipped()) == 80
    facts = events[0][0].facts()
    assert facts["kind"] == "motion" and 0.5 <= float(str(facts["peak"])) <= 1 and facts["wanted_id"] == "w1"


def test_always_on_a_simulated_camera() -> None:
    """The very frames of the source, in one event."""
    source = open_source("sim://97/harbour1-hall?lighting=day&seconds=1")
    [n_frames] = [len(list(event)) for event in open_gate(TriggerSettings(), source).events(source)]
    assert n_frames == 10


GUIDE = Path(__file__).resolve().parents[2] / "infra" / "docs" / "guides" / "trigger.md"


@pytest.mark.parametrize("number", range(3))
def test_the_guide_is_executed(number: int, tmp_path: Path) -> None:
    """Each TOML of the guide is a camloop.toml that is read as the agent reads it."""
    blocks = re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    path = tmp_path / "camloop.toml"
    path.write_text(blocks[number])
    settings = load_settings(path, {})
    if "camera" in settings.toml:
        agent, (yard, stable) = agent_config(settings), camera_configs(settings)
        trigger = TriggerSettings.from_table(yard.trigger)
        opened = MotionTrigger(trigger, latitude=agent.latitude, longitude=agent.longitude)
        midnight, milk = opened._rule(MIDNIGHT - 3600 * S), opened._rule(NOON - 6 * 3600 * S + 600 * S)
        assert midnight is not None and midnight.least_duration_s == 1.5
        assert milk is not None and milk.off
        assert opened._rule(NOON) is None and trigger.pre_roll_s == 5 and len(trigger.masks) == 2
        rules = TriggerSettings.from_table(stable.trigger)
        assert (rules.kind, rules.time_zone, rules.when[0].sensitivity) == ("motion", "Europe/Berlin", 0.7)
    if "kind" in settings.toml.get("trigger", {}):
        assert TriggerSettings.from_table(settings.toml["trigger"], settings.where("trigger")).kind != "always"
    if "privacy" in settings.toml:
        hidden = PrivacySettings.from_table(settings.toml["privacy"], settings.where("privacy"))
        assert hidden.blur == ("person",) and hidden.masks == ((0.6, 0.0, 1.0, 0.4),)
