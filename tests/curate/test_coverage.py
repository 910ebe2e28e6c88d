"""Expected against found, by footage and not by rows; combinations, cameras, hours, wishes; raw against curated; the page."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from curate import cli_coverage, coverage, curated, datasets, factors, tag_quality
from curate.query import open_catalog as open_footage
from curate.share_interval import Share
from infra.artefacts import Selection, SelectionRow, read_gate
from infra.catalog import Catalog, Done
from infra.cli import main
from infra.errors import QueryError, UsageError
from infra.where import parse

SHEET = """
[factor.lighting]
from = "lighting"
expected = { day = 0.5, night = 0.5 }
tolerated = { night = 0.3 }

[factor.people]
from = "rule"
rules = [{ value = "some", where = "n_person > 0" }, { value = "none", where = "n_person = 0" }]

[factor.site]
from = "camera"

[[combination]]
name = "people at night"
where = "lighting = 'night' and people = 'some'"
expected = 0.3
tolerated = 0.2
"""
NOON_NS = 1_750_503_600_000_000_000  # 2025-06-21 11:00 UTC, 13 o'clock in Berlin
HOUR_NS = 3_600_000_000_000
Frame = tuple[float, str | None, str | None]  # p_keep, lighting, people


def clip_id(number: int) -> str:
    return f"{number:032x}"


def add(catalog: Catalog, *clips: tuple[int, Sequence[Frame], dict[str, Any]]) -> None:
    """Add clips of 10 s with 10 frames, of which some were kept: pts 0, 1, ...; number, frames, other columns."""
    made: dict[str, list[dict[str, Any]]] = {"clips": [], "frames": [], "gops": [], "tags": []}
    for number, frames, more in clips:
        camera_id = more.get("camera_id", "yard")
        made["clips"].append({
            "clip_id": clip_id(number), "key": f"clips/{number}.mp4", "camera_id": camera_id, "camera_number": 1,
            "recording_id": f"r{number}", "start_ns": NOON_NS, "time_base_num": 1, "time_base_den": 1, "first_pts": 0,
            "end_pts": 10, "n_frames": 10, "state": "live", "site": f"{camera_id} site", **more,
        })  # fmt: skip
        made["frames"] += [{"clip_id": clip_id(number), "pts": pts, "p_keep": p} for pts, (p, _, _) in enumerate(frames)]
        made["gops"].append({"clip_id": clip_id(number), "gop_index": 0, "start_pts": 0, "end_pts": 10})
        made["tags"] += [
            {"clip_id": clip_id(number), "pts": pts, "factor": factor, "name": name, "score": None, "source": source}
            for pts, (_, lighting, people) in enumerate(frames)
            for factor, name, source in (("lighting", lighting, "lighting@1"), ("people", people, "rule@1"))
            if name is not None
        ]
    for step, tables in (("register", ["clips"]), ("scan", ["frames", "gops"]), ("tag", ["tags"])):
        done = [Done("clip", clip_id(number), step, "f", 1, 1) for number, _, _ in clips]
        catalog.commit({table: made[table] for table in tables}, done)


def test_people_seen_by_a_cascade_are_a_share_of_footage(catalog: Catalog) -> None:
    """Of ten frames two passed, one of them with people; of the other eight two were audited with p = .25."""
    seen = {0: "some", 1: "none", 5: "none", 6: "none"}
    frames: list[Frame] = [(1.0, "day", seen.get(pts)) for pts in range(10)]
    add(catalog, (0, frames, {}))
    same = {"clip_id": clip_id(0), "step": "detect", "stage": "fine", "number": 0, "source": "d@1"}
    looks = [same | {"pts": pts, "p_look": 1.0 if pts < 2 else 0.25, "passed": pts < 2} for pts in seen]
    looks += [same | {"pts": None, "p_look": 0.25}]
    catalog.commit({"looks": looks, "detections": []}, [Done("clip", clip_id(0), "detect", "f", 10, 0)])
    made = coverage.measure(open_footage(catalog.store), factors.parse(SHEET))
    shares = {cover.value: cover.found.value for cover in made.covers if cover.factor in ("people", "lighting")}
    assert shares["some"] == pytest.approx(0.1) and shares["none"] == pytest.approx(0.9) and shares["day"] == 1.0
    assert made.unknown["people"] == 0.0 and made.of("people")[0].footage_s == pytest.approx(1.0)
    cells = made.cells("people", ["camera_id"])
    assert dict(cells.select("value", "share").rows()) == {"some": pytest.approx(0.1), "none": pytest.approx(0.9)}
    rows = (SelectionRow(clip_id=clip_id(0), start_pts=0, end_pts=1),)
    chosen = Selection(name="s", purpose="train", rows=rows, query="", unit="frame")
    table = curated.diff(open_footage(catalog.store), chosen, ["people", "lighting"]).table
    raw = {(row["column"], row["value"]): row["raw"] for row in table.iter_rows(named=True) if row["raw"]}
    assert raw == {
        ("people", "some"): pytest.approx(0.1), ("people", "none"): pytest.approx(0.9), ("lighting", "day"): pytest.approx(1.0),
    }  # fmt: skip


def cascaded_200(catalog: Catalog) -> None:
    """Add 20 clips of 10 kept frames behind a cascade: the first frame of each passed, one or two people on it; of the nine
    others the second was audited with p = 1/9, without people."""
    detect, looks = [], []
    add(catalog, *((n, [(1.0, "day", None)] * 10, {}) for n in range(20)))
    for n in range(20):
        same = {"clip_id": clip_id(n), "step": "detect", "stage": "fine", "number": 0, "source": "d@1"}
        looks += [same | {"pts": None, "p_look": 1 / 9}, same | {"pts": 0, "p_look": 1.0, "passed": True}]
        looks += [same | {"pts": 1, "p_look": 1 / 9, "passed": False}]
        box = {"clip_id": clip_id(n), "pts": 0, "source": "d@1", "class_name": "person", "score": 0.9}
        box |= {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}
        detect += [box | {"det_id": f"{n}-{i}"} for i in range(1 + n % 2)]
    done = [Done("clip", clip_id(n), "detect", "f", 10, 1) for n in range(20)]
    catalog.commit({"looks": looks, "detections": detect}, done)


@pytest.mark.parametrize(
    ("pts", "shares", "distance", "n_unseen"),
    [
        (range(10), {"0": 0.9, "1": 0.05, "2": 0.05}, 0.0, 160),  # all of it is like all of it
        (range(1), {"1": 0.5, "2": 0.5}, 0.9, 0),  # what passed: only itself
        (range(2), {"0": 0.5, "1": 0.25, "2": 0.25}, 0.4, 0),  # chosen by what was seen: each row counts once
        (range(2, 10), {None: 1.0}, 1.0, 160),  # nobody saw any of it
    ],
)
def test_a_selection_behind_a_cascade_against_its_footage(
    catalog: Catalog, pts: range, shares: dict[str | None, float], distance: float, n_unseen: int
) -> None:
    """The unseen rows of a selection are stood for by its audited ones, as those of the footage are."""
    cascaded_200(catalog)
    rows = [SelectionRow(clip_id=clip_id(n), start_pts=at, end_pts=at + 1) for n in range(20) for at in pts]
    chosen = Selection(name="s", purpose="train", rows=tuple(rows), query="", unit="frame")
    found = curated.diff(open_footage(catalog.store), chosen, ["n_person", "lighting"])
    made = found.table.filter(found.table["column"] == "n_person")
    assert {row["value"]: row["curated"] for row in made.iter_rows(named=True) if row["n_rows"]} == {
        value: pytest.approx(share) for value, share in shares.items()
    }
    assert found.distance == {"n_person": pytest.approx(distance, abs=1e-9), "lighting": 0.0} and found.n_unseen == n_unseen


def say(catalog: Catalog, factor: str, names: Sequence[str]) -> None:
    """Let a person name a factor of the clips 0, 1, ..."""
    said = [
        {"label_id": f"{factor}{number}", "clip_id": clip_id(number), "factor": factor, "name": name, "created_ns": 1}
        for number, name in enumerate(names)
    ]
    catalog.append("labels", said)


@pytest.fixture
def filled(catalog: Catalog) -> Catalog:
    """Twelve recordings of a yard by day, each with one frame of a person, and one of a gate by night, without people.

    By day half the time of a clip is kept whole (p_keep 1), half at one in five: 2 + 1 rows stand for 7 frames.
    """
    day: list[Frame] = [(1.0, "day", "some"), (1.0, "day", "none"), (0.2, "day", "none")]
    gate = (12, [(0.1, "night", "none")], {"camera_id": "gate", "start_ns": NOON_NS + 11 * HOUR_NS})
    add(catalog, *((number, day, {}) for number in range(12)), gate)
    catalog.append(
        "cameras",
        [
            {
                "camera_id": "yard",
                "camera_number": 1,
                "valid_from_ns": 0,
                "created_ns": 1,
                "time_zone": "Europe/Berlin",
                "attributes": "{}",
            }
        ],
    )
    return catalog


def measured(catalog: Catalog, sheet: str = SHEET) -> coverage.Coverage:
    return coverage.measure(open_footage(catalog.store), factors.parse(sheet))


def test_shares_are_of_footage(filled: Catalog) -> None:
    """12 x 7 s by day against 10 s by night; people in 12 of 94 s; unknown sites are none."""
    found = measured(filled)
    by = {(cover.factor, cover.value): cover for cover in found.covers}
    assert (found.n_frames, found.footage_s) == (37, pytest.approx(94))
    assert by["lighting", "night"].found.value == pytest.approx(10 / 94)
    assert by["lighting", "dusk"].footage_s == 0 and by["lighting", "dusk"].verdict == "no expectation"
    assert by["people", "some"].found.value == pytest.approx(12 / 94) and by["people", "some"].found.n_groups == 13
    assert by["site", "yard site"].found.value == pytest.approx(84 / 94)
    assert by["lighting", "night"].tolerated == 0.3
    assert found.days == ("2025-06-21", "2025-06-21", 1, 1)


def test_what_is_missing_is_said_in_seconds_and_clips(filled: Catalog) -> None:
    """Night should be half: 74 s more; the gate at 22 UTC is where it was; people at night were found nowhere."""
    found = measured(filled)
    night = found.of("lighting")[2]
    assert night.verdict == "missing" and night.missing_s == pytest.approx((0.5 * 94 - 10) / 0.5)
    both = found.of(coverage.COMBINATION)[0]
    assert (both.value, both.found.value, both.verdict, both.expected) == ("people at night", 0.0, "missing", 0.3)
    first, second = coverage.wishes(found, clip_s=10)
    assert (first.where, first.quota) == ("camera_id = 'gate' and hour_utc in (22)", 8)
    assert "lighting = night: 10.6% of the footage, 50.0% expected" in first.reason
    assert first.certain and (second.where, second.quota) == ("", 5) and "found nowhere" in second.reason
    assert parse(first.where).columns == {"camera_id", "hour_utc"}


def test_what_a_wish_asks_for_can_be_asked_of_the_store(filled: Catalog) -> None:
    """The where-expression of a proposal holds as a combination of the sheet and as a query, over the same footage."""
    where = coverage.wishes(measured(filled), clip_s=10)[0].where
    made = measured(filled, f'[[combination]]\nname = "there"\nwhere = "{where}"\n' + SHEET)
    assert made.of(coverage.COMBINATION)[0].footage_s == pytest.approx(10)
    assert open_footage(filled.store).frames.where(where).to_polars()["camera_id"].to_list() == ["gate"]


def test_a_camera_name_with_a_quote_stays_a_where_expression(catalog: Catalog) -> None:
    """Names come from folders; the proposal must parse."""
    day = [(number, [(1.0, "day", None)], {}) for number in range(30)]
    add(catalog, *day, (30, [(0.5, "night", None)], {"camera_id": "joe's"}))
    wish = next(wish for wish in coverage.wishes(measured(catalog), clip_s=10) if wish.reason.startswith("lighting"))
    assert parse(wish.where).texts() == {"camera_id": {"joe's"}}


@pytest.mark.parametrize(
    ("low", "value", "high", "expected", "verdict"),
    [
        (0.1, 0.2, 0.3, 0.4, "missing"), (0.5, 0.6, 0.7, 0.4, "more"), (0.3, 0.4, 0.5, 0.4, "as expected"),
        (0.1, 0.3, 0.5, 0.4, "unknown"), (0.3, 0.5, 0.9, 0.4, "unknown"), (0.6, 0.8, 1.0, 0.9, "as expected"),
        (0.0, None, 1.0, 0.4, "unknown"), (0.0, 0.1, 0.2, None, "no expectation"), (0.0, 0.0, 0.1, 0.0, "unknown"),
    ],
)  # fmt: skip
def test_verdicts_on_shares(low: float, value: float | None, high: float, expected: float | None, verdict: str) -> None:
    """Outside the interval is missing or more; inside is as expected only where it is known to within a factor of two."""
    found = Share(value=value, low=low, high=high, n=10, n_groups=5)
    assert coverage.judge(found, expected) == verdict


def test_unknown_is_beside_the_shares(catalog: Catalog) -> None:
    """Half of the footage has no lighting: the shares are of the other half; one recording alone gives no verdict."""
    add(catalog, (0, [(1.0, "day", None), (1.0, None, None)], {}))
    found = measured(catalog)
    assert found.unknown["lighting"] == 0.5 and found.unknown["people"] == 1.0
    day, _, night, _ = found.of("lighting")
    assert (day.found.value, day.verdict, night.verdict) == (1.0, "unknown", "unknown")
    assert found.of("people")[0].found.value is None


def test_a_factor_that_was_never_tagged_is_unknown(filled: Catalog) -> None:
    """A sheet with one factor more than the store was tagged by; a class that was never found."""
    more = '[factor.weather]\nfrom = "prompts"\nprompts = { clear = "a", rain = "b" }\nexpected = { rain = 0.5 }\n'
    more += "[[combination]]\nname = 'dogs'\nwhere = 'n_dog > 0'\n"
    found = measured(filled, SHEET + more)
    assert found.unknown["weather"] == 1.0 and found.of("weather")[1].verdict == "unknown"
    assert found.of(coverage.COMBINATION)[1].found.value is None  # no detector looked


def test_cells_by_camera_and_local_hour(filled: Catalog) -> None:
    """The yard's hours are Berlin's, the gate has no zone."""
    found = measured(filled)
    hours = {(row["hour"], row["value"]): row["share"] for row in found.cells("lighting", ["hour"]).iter_rows(named=True)}
    assert hours == {(13, "day"): 1.0, (22, "night"): 1.0}
    cameras = found.cells("people", ["camera_id"])
    assert [row[1:] for row in cameras.select("camera_id", "value", "share").rows() if row[0] == "gate"] == [("none", 1.0)]


def test_a_combination_over_a_column_that_nobody_has(filled: Catalog) -> None:
    """Refused with its line and a near name."""
    with pytest.raises(UsageError, match="line 19: combination 'x': there is no column or factor 'camera'; "):
        measured(filled, SHEET + "[[combination]]\nname = 'x'\nwhere = \"camera = 'yard'\"\n")


def test_machines_are_held_against_people(filled: Catalog) -> None:
    """The machine's tag stays visible where a person spoke; eight labels agree, four do not."""
    say(filled, "lighting", ["day"] * 8 + ["dusk"] * 4)
    rows = tag_quality.pairs(open_footage(filled.store), factors.parse(SHEET))
    assert rows.height == 36 and set(rows["tag"]) == {"day"} and set(rows["factor"]) == {"lighting"}
    day, dusk, _, _ = tag_quality.measure(rows, factors.parse(SHEET))[:4]
    assert (day.precision.value, day.precision.n_groups, day.recall.value) == (pytest.approx(8 / 12), 12, 1.0)
    assert dusk.recall.value == 0 and dusk.belief == "not to be used"
    assert measured(filled).of("lighting")[1].found.value == pytest.approx(28 / 94)  # a person's word counts


def test_values_outside_the_sheet_are_named(filled: Catalog) -> None:
    """A person's "noon" is none of the four; a camera factor without listed values takes any."""
    say(filled, "lighting", ["noon"])
    found = measured(filled)
    assert {cover.value: cover.verdict for cover in found.of("lighting")}["noon"] == "not in the sheet"
    assert {cover.verdict for cover in found.of("site")} == {"no expectation"}


def test_labels_of_a_balanced_draw_count_by_their_chance(filled: Catalog) -> None:
    """Two of twelve days were drawn (p = 1/6): a day's 7 s count 42; a label outside the draw does not count."""
    say(filled, "lighting", ["day", "dusk", "dusk"])
    rows = [SelectionRow(clip_id=clip_id(n), start_pts=0, end_pts=10, p_select=1 / 6) for n in (0, 1)]
    rows.append(SelectionRow(clip_id=clip_id(0), start_pts=0, end_pts=1, p_select=1 / 12))  # again: once is enough
    drawn = Selection(name="s", purpose="label", rows=tuple(rows), query="", unit="clip")
    footage, sheet = open_footage(filled.store), factors.parse(SHEET)
    found = tag_quality.pairs(footage, sheet, drawn)
    assert found.height == 6 and sum(found["weight_s"]) == pytest.approx(84)
    day = tag_quality.measure(found, sheet)[0]
    assert (day.precision.value, day.precision.n_groups) == (pytest.approx(0.5), 2)
    assert tag_quality.measure(tag_quality.pairs(footage, sheet), sheet)[0].precision.value == pytest.approx(1 / 3)


def test_raw_against_curated(filled: Catalog) -> None:
    """Raw is 10 of 94 s by night; two of four curated rows are; a row of an unknown clip is unknown."""
    drawn = [SelectionRow(clip_id=clip_id(n), start_pts=0, end_pts=2) for n in (0, 1)]
    drawn += [SelectionRow(clip_id=clip_id(12), start_pts=pts, end_pts=pts + 1) for pts in (0, 5)]
    chosen = Selection(name="s", purpose="train", rows=tuple(drawn), query="", unit="interval")
    found = curated.diff(open_footage(filled.store), chosen, ["lighting"])
    table = {row["value"]: row for row in found.table.iter_rows(named=True)}
    assert table["night"]["raw"] == pytest.approx(10 / 94) and table["night"]["curated"] == 0.5
    assert found.distance["lighting"] == pytest.approx(0.5 - 10 / 94) and found.n_unmatched == 0
    gone = Selection(
        name="s", purpose="train", rows=(SelectionRow(clip_id=clip_id(99), start_pts=0, end_pts=2),), query="", unit="clip"
    )
    lost = curated.diff(open_footage(filled.store), gone, ["lighting"])
    assert lost.n_unmatched == 1 and lost.table["value"].to_list()[-1] is None and lost.distance["lighting"] == pytest.approx(1)
    with pytest.raises(QueryError, match="no column 'lightin'"):
        curated.diff(open_footage(filled.store), gone, ["lightin"])


def test_tolerances_are_slices_of_a_gate() -> None:
    """The text is a gate file that evaluate reads; the threshold is what is left of 1."""
    _, slices = read_gate('judged = "raw"\n' + cli_coverage.slices_text(factors.parse(SHEET)))
    assert [(s["name"], s["where"], s["threshold"]) for s in slices] == [
        ("lighting night", "lighting = 'night'", 0.7), ("people at night", "lighting = 'night' and people = 'some'", 0.8),
    ]  # fmt: skip
    assert cli_coverage.slices_text(factors.parse(factors.DEFAULT)) == ""


def test_slices_hold_any_value() -> None:
    """Backslashes, quotes, control characters and rare letters come back from the gate file as they went in."""
    values = ["a\\b", 'say "fog"', "joe's", "two\nlines", "del\x7f", "\U0001f327"]
    sheet = factors.parse('[factor.weather]\nfrom = "camera"\n')
    odd = dataclasses.replace(sheet.factors[0], tolerated=dict.fromkeys(values, 0.25))
    _, slices = read_gate('judged = "raw"\n' + cli_coverage.slices_text(dataclasses.replace(sheet, factors=(odd,))))
    assert [each["name"] for each in slices] == [f"weather {value}" for value in values]
    assert [parse(each["where"]).texts() for each in slices] == [{"weather": {value}} for value in values]


def test_all_of_it_expected_asks_for_no_number_of_clips(filled: Catalog) -> None:
    """No footage makes a share 1 once something else was filmed: no seconds, no clips, still said; what is whole is fine."""
    sheet = SHEET.replace("day = 0.5, night = 0.5", "day = 0.0, dusk = 1.0").replace("expected = 0.3", "expected = 1.0")
    found = measured(filled, sheet)
    assert [cover.missing_s for cover in found.covers if cover.expected == 1.0] == [None, None]
    dusk, both = coverage.wishes(found, clip_s=10)
    assert dusk.quota is both.quota is None and dusk.certain and both.certain
    assert "lighting = dusk: 0.0% of the footage, 100.0% expected: all of it is expected" in dusk.reason
    whole = measured(filled, "[[combination]]\nname = 'clips'\nwhere = 'p_keep > 0'\nexpected = 1.0\n" + SHEET)
    assert whole.of(coverage.COMBINATION)[0].missing_s == 0
    assert not any("clips" in wish.reason.split(":")[0] for wish in coverage.wishes(whole, clip_s=10))


def run(capsys: pytest.CaptureFixture[str], catalog: Catalog, *arguments: str) -> tuple[int, Any, str]:
    code = main(["query", *arguments, "--json", "--store", catalog.store.url])
    said = capsys.readouterr()
    return code, json.loads(said.out, parse_constant=pytest.fail) if code == 0 else None, said.err


def test_the_page_and_its_document(filled: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One self-contained file: shares, what is missing, verdicts, money; the same as JSON; text from outside is escaped."""
    say(filled, "lighting", ["day"] * 12)
    sheet, page = tmp_path / "factors.toml", tmp_path / "coverage.html"
    sheet.write_text(SHEET.replace("people at night", "people <b>at</b> night"))
    code, document, _ = run(capsys, filled, "--coverage", str(page), "--factors", str(sheet), "--overlap", "2")
    text = page.read_text()
    assert code == 0 and not re.search(r"https?:|<script|<b>at</b>", text)
    for heading in ("is missing", "Factors", "Combinations", "Which tags may be believed", "Hours and money", "for a gate"):
        assert heading in text
    assert "hour_utc in (22)" in text and "1 of the 12 months" in text
    assert document["missing"][0]["quota"] == 8 and document["costs"][0]["n_pictures"] == 130
    assert document["costs"][1]["ways"][1]["way"] == "Mechanical Turk, 2 people each"
    assert {each["value"]: each["belief"] for each in document["tags"] if each["factor"] == "lighting"}["day"] == "unknown"


def test_wrong_use(
    filled: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 with one line, and no page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(coverage, "measure", lambda *_: pytest.fail("measured"))
    wrong = {
        "--factors belongs to the coverage page": ["--factors", "f.toml"],
        "--curated belongs to the coverage page": ["--curated", "s"],
        "--drawn-by belongs to the coverage page": ["--drawn-by", "s"],
        "leave WHERE out": ["--coverage", "c.html", "n_person > 0"],
        "--factors absent.toml": ["--coverage", "c.html", "--factors", "absent.toml"],
        "no selection 'nobody'": ["--coverage", "c.html", "--curated", "nobody"],
        "no selection 'nothing'": ["--coverage", "c.html", "--drawn-by", "nothing"],
        "--overlap belongs to the coverage page": ["--overlap", "0"],
        "--machine-usd belongs to the coverage page": ["--machine-usd", "-3"],
        "at least 1 person": ["--coverage", "c.html", "--overlap", "0"],
        "legal: 0 or more": ["--coverage", "c.html", "--machine-usd", "-1"],
        "at inf USD; legal: 0 or more, and finite": ["--coverage", "c.html", "--machine-usd", "inf"],
        "at nan USD": ["--coverage", "c.html", "--machine-usd", "nan"],
    }
    for says, arguments in wrong.items():
        code, _, said = run(capsys, filled, *arguments)
        assert code == 2 and says in said and not Path("c.html").exists(), said


def test_an_empty_store_has_no_coverage(catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was curated yet: said, with the remedy."""
    code, _, said = run(capsys, catalog, "--coverage", str(tmp_path / "c.html"))
    assert code == 2 and "run camloop curate" in said


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (".", "--coverage .: not a file"), ("/dev/null", "--coverage /dev/null: not a file"),
        ("no/where/c.html", "there is no folder no/where"), ("/proc/c.html", "--coverage /proc/c.html: it cannot be written"),
        (f"{'c' * 300}.html", "cannot be written"),
    ],
)  # fmt: skip
def test_a_page_that_cannot_be_written_is_refused_first(
    page: str, says: str, filled: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 before anything is measured, or recorded of a vault that was opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_coverage, "find", lambda *_, **__: pytest.fail("measured"))
    code, _, said = run(capsys, filled, "--coverage", page, "--vault")
    assert code == 2 and says in said
    assert filled.scan("runs", ["command"]).collect().is_empty()


def test_a_sheet_of_other_factors_has_nothing_to_hold_a_selection_against(
    filled: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said with the remedy, not a traceback; without --curated the page is made."""
    drawn = (SelectionRow(clip_id=clip_id(0), start_pts=0, end_pts=2),)
    datasets.save(filled, Selection(name="s1", purpose="train", rows=drawn, query="", unit="clip"))
    sheet, page = tmp_path / "factors.toml", tmp_path / "c.html"
    sheet.write_text('[factor.weather]\nfrom = "prompts"\nprompts = { clear = "a", rain = "b" }\n')
    asked = ["--coverage", str(page), "--factors", str(sheet)]
    code, _, said = run(capsys, filled, *asked, "--curated", "s1")
    assert code == 2 and "no factor of this sheet is in the store: camloop curate --factors" in said and not page.exists()
    assert run(capsys, filled, *asked)[0] == 0


def test_the_document_of_a_sheet_that_expects_all_is_json(
    filled: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No Infinity in it, no inf on the page, no number of clips."""
    sheet, page = tmp_path / "factors.toml", tmp_path / "c.html"
    sheet.write_text(SHEET.replace("day = 0.5, night = 0.5", "day = 0.0, dusk = 1.0"))
    code, document, _ = run(capsys, filled, "--coverage", str(page), "--factors", str(sheet))
    dusk = next(each for each in document["coverage"] if each["value"] == "dusk")
    assert code == 0 and dusk["missing_s"] is None and document["missing"][0]["quota"] is None
    assert "inf days" not in page.read_text() and "all of it is expected" in page.read_text()


def test_durations_in_words() -> None:
    """Seconds, minutes, hours, days."""
    from infra.words import duration

    assert [duration(s) for s in (None, 0, 90, 180, 7200, 400_000)] == ["-", "0 s", "90 s", "3.0 min", "2.0 h", "4.6 days"]
