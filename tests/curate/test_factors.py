"""The factor sheet: what is legal, and what its rules and prompts say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curate import factors, tagging
from curate.plan import Options
from curate.sheet_lines import Lines
from infra.errors import QueryError, UsageError

ROOT = Path(__file__).resolve().parents[2]

SHEET = """
[factor.people]
from = "rule"
rules = [{ value = "some", where = "n_person > 0" }, { value = "none", where = "n_person = 0" }]
expected = { some = 0.2 }

[factor.weather]
from = "prompts"
prompts = { clear = "a photo in clear weather", rain = "a photo of rain" }
floor = 0.7

[factor.site]
from = "camera"
"""


def test_a_sheet_is_read() -> None:
    """Values follow from rules and prompts, in the order of the file."""
    sheet = factors.parse(SHEET)
    people, weather, site = sheet.factors
    assert (people.values, people.source, dict(people.expected)) == (("some", "none"), "rule@1", {"some": 0.2})
    assert (weather.values, weather.floor) == (("clear", "rain"), 0.7)
    assert site.values is None and sheet.of("camera") == (site,)
    assert factors.parse(SHEET + "# a remark\n").text_sha256 == sheet.text_sha256


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[factor.a]\nfrom = 'magic'", "legal: lighting, prompts, rule, camera"),
        ("[factor.a]\nfrom = 'camera'\ncolour = 1", "unknown colour"),
        ("[factor.a]\nfrom = 'prompts'\nprompts = { x = 'a' }", "at least two"),
        ("[factor.a]\nfrom = 'rule'", "are needed there"),
        ("[factor.a]\nfrom = 'rule'\nrules = [{ value = 'x', where = 'n_person >' }]", "rule for 'x'"),
        ("[factor.a]\nfrom = 'camera'\nvalues = ['x']\nexpected = { y = 0.5 }", "y is not among its values"),
        ("[factor.a]\nfrom = 'camera'\nvalues = ['x']\nexpected = { x = 1.5 }", "0 to 1"),
        ("[factor.'a b']\nfrom = 'camera'", "becomes a column"),
        ("[colour]\n", "legal: \\[factor.NAME\\]"),
        ("\n\n[factor.a]\nfrom = 'magic'", "factors.toml line 4: factor a: from = 'magic'"),
        ("[factor.a]\nfrom = 'rule'\nrules = [\n{ value = 'x', where = 'n >' }]", "line 4: factor a: rule for 'x'"),
        ("[factor.a]\nfrom = 'rule'\nrules = 'n > 0'", "line 3: factor a: a rule is"),
        (
            "[factor.a]\nfrom = 'prompts'\n[factor.a.prompts]\nx = 'a'\ny = []",
            "line 5: factor a: y = \\[\\]; legal: a sentence, or",
        ),
        ("[factor.a]\nfrom = 'prompts'\nprompts = ['a']", "line 3: factor a: prompts = .* legal: value = a sentence"),
        ("[factor.a]\nfrom = 'camera'\nvalues = ['x', 'x']", "a list of texts, each once"),
        ("[factor.a]\nfrom = 'lighting'\nvalues = ['day']", "dusk, infrared, night is not among its values: day"),
        (
            "[factor.a]\nfrom = 'camera'\nvalues = ['x', 'y']\nexpected = { x = 0.7, y = 0.7 }",
            "line 4: factor a: .* add up to 1.4, more",
        ),
        (
            "[factor.a]\nfrom = 'camera'\nvalues = ['x', 'y']\nexpected = { x = 0.7, y = 0.2 }",
            "line 4: factor a: .* all values add up to 0.9, not",
        ),
        ("[factor.a]\nfrom = 'camera'\nexpected = 0.5", "line 3: factor a: expected = 0.5; legal: a table"),
        ("[factor.a]\nfrom = 'camera'\ntolerated = 0.5", "line 3: factor a: one number for all values needs values"),
        (
            "[factor.a]\nfrom = 'sun'\nfloors = { dawn = 0.5 }",
            "line 3: factor a: dawn is not among its values: day, twilight, night",
        ),
        (SHEET + "[[combination]]\nname = 'x'", "line 14: a combination has name and where"),
        (SHEET + "[[combination]]\nname = 'x'\nwhere = 'site >'", "line 14: combination 'x': where-expression"),
        (
            SHEET + "[[combination]]\nname = 'x'\nwhere = \"people = 'sme'\"",
            "'sme' is no value of factor people; did you mean some",
        ),
        (SHEET + "[[combination]]\nname = 'x'\nwhere = 'site = 1'\n" * 2, "stands twice"),
        (SHEET + "[[combination]]\nname = 'x'\nwhere = 'site = 1'\ntolerated = 2", "tolerated = 2; legal: a number"),
        (
            "[factor.a]\nfrom = 'camera'\nvalues = ['x']\n"
            + "[factor.b]\nfrom = 'rule'\nrules = [{ value = 'u', where = \"a = 'y'\" }]",
            "line 6: 'y' is no value of factor a",
        ),
        ("[factor.a", "factors.toml"),
    ],
)
def test_a_wrong_sheet_is_refused(text: str, says: str) -> None:
    """One line with the value and what is legal."""
    with pytest.raises(UsageError, match=says):
        factors.parse(text)


def test_the_first_rule_that_holds_gives_the_value() -> None:
    """Null where the detector did not look: unknown stays unknown."""
    people = factors.parse(SHEET).factors[0]
    rows = pl.DataFrame({"n_person": [0, 2, None]})
    assert rows.select(tagging.by_rules(people, rows.schema)).to_series().to_list() == ["none", "some", None]
    with pytest.raises(QueryError, match="n_person"):
        tagging.by_rules(people, pl.Schema({"n_persons": pl.Int64}))


def test_prompts_are_compared_by_softmax() -> None:
    """Cosines of 1 and 0 at scale 2 give e^2 / (e^2 + 1)."""
    weather = factors.parse(SHEET).factors[1]
    images = np.array([[1, 0], [0, 1]], np.float32)
    best, probs = tagging.by_prompts(weather, images, np.eye(2, dtype=np.float32), 2.0)
    assert best.tolist() == [0, 1]
    np.testing.assert_allclose(probs, np.exp(2) / (np.exp(2) + 1), rtol=1e-6)


def test_several_sentences_of_a_value_are_averaged() -> None:
    """The mean of two unit vectors, made a unit vector again, is what the picture is compared with."""
    text = SHEET.replace('"a photo of rain" }', '["rain", "a wet lens"] }')
    weather = factors.parse(text).factors[1]
    assert weather.sentences == ["a photo in clear weather", "rain", "a wet lens"]
    texts = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32)
    images = np.array([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]], np.float32)
    best, probs = tagging.by_prompts(weather, images, texts, 3.0)
    assert best.tolist() == [1, 0]
    np.testing.assert_allclose(probs, np.exp(3) / (np.exp(3) + 1), rtol=1e-5)


def test_expectations_are_read_and_tolerances_tag_nothing_again() -> None:
    """One number counts for every value; tolerances and combinations do not change the fingerprint, prompts do."""
    plain, more = (
        SHEET,
        SHEET.replace("floor = 0.7", "floor = 0.7\ntolerated = 0.1")
        + (
            "[[combination]]\nname = 'wet people'\nwhere = \"people = 'some' and weather = 'rain'\"\n"
            "expected = 0.01\ntolerated = 0.3\n"
        ),
    )
    sheet = factors.parse(more)
    assert dict(sheet.factors[1].tolerated) == {"clear": 0.1, "rain": 0.1}
    combination = sheet.combinations[0]
    assert (combination.name, combination.expected, combination.tolerated) == ("wet people", 0.01, 0.3)
    assert sheet.text_sha256 == factors.parse(plain).text_sha256
    assert factors.parse(more.replace("a photo of rain", "rain")).text_sha256 != sheet.text_sha256


def test_sheets_that_stand_keep_their_fingerprints() -> None:
    """Hashes of issue 1: the default sheet and the demo's; a store that was tagged by them is not tagged again."""
    demo = factors.parse((ROOT / "infra" / "demo" / "factors.toml").read_text())
    default = factors.parse(factors.DEFAULT)
    assert default.text_sha256 == "b0a3d87749b81921d6418b3d7c7666cc3da1c77b8ee8fd4fd624ab5c845fca19"
    assert demo.text_sha256 == "04c319b0b0b86d5e37294802e6f7fa1720e08216fe43065d0546bc7c66f6b809"
    upstream = {"scan": "a", "detect": "b", "embed": None}
    assert Options(steps=("scan",), sheet=default).fingerprint("tag", upstream) == "5dfb86031fa3f582be36e4d8321c497d"


def test_columns_are_checked_before_anything_is_decoded() -> None:
    """A rule or combination over a column that nobody has is refused with its line; counts and factors are known."""
    text = SHEET + "[[combination]]\nname = 'x'\nwhere = \"people = 'some' and n_dog = 0 and brightnes < 3\"\n"
    sheet = factors.parse(text)
    assert set(sheet.columns()) == {"n_person", "n_dog", "brightnes"}
    with pytest.raises(
        UsageError, match="line 14: combination 'x': there is no column or factor 'brightnes'; did you mean brightness"
    ):
        sheet.check_columns(["brightness", "site"])
    sheet.check_classes(["n_person", "n_dog"], "yolo.onnx")
    with pytest.raises(
        UsageError, match=r"line 14: combination 'x': yolo.onnx knows no class behind 'n_dog'; did you mean n_dogs"
    ):
        sheet.check_classes(["n_person", "n_dogs"], "yolo.onnx")


def test_prompts_without_a_model_name_their_line() -> None:
    """Refused when a run is asked for, long before a clip is opened."""
    with pytest.raises(UsageError, match=r"factors.toml line 7: factor weather: the factor sheet has prompts"):
        Options(steps=("scan", "tag"), sheet=factors.parse(SHEET))


def test_lines_are_found() -> None:
    """Headers with quoted keys, keys and values below them, repeated tables, comments; an unknown word keeps the last line."""
    lines = Lines("# a b\n[factor.'a b']\nfrom = 1 # values\nvalues = [\n 'x-y',\n 'x' ]\n[[c]]\n[[c]]\nname = 2\n", "f")
    assert lines.at("factor", "a b") == "f line 2"
    assert lines.at("factor", "a b", "values", "x") == "f line 6"
    assert lines.at("factor", "a b", "name") == "f line 2"
    assert (lines.at("c", nth=1), lines.at("c", "name", nth=1), lines.at("d")) == ("f line 8", "f line 9", "f line 1")


def test_the_default_sheet_is_legal() -> None:
    """What a store without a sheet is tagged by."""
    assert [factor.name for factor in factors.parse(factors.DEFAULT).factors] == ["lighting", "people"]


def test_the_example_has_the_eight_factors_of_the_article() -> None:
    """infra/docs/factors.toml is legal, and its values are those of seed 002 (blurriness in steps)."""
    sheet = factors.parse((ROOT / "infra" / "docs" / "factors.toml").read_text())
    assert {factor.name: len(factor.values or ()) for factor in sheet.factors} == {
        "weather": 4, "lighting": 5, "angle": 4, "reflective": 2, "motion": 2, "people": 2, "blurriness": 3, "resolution": 3,
    }  # fmt: skip
    assert sheet.factors[0].values == ("sunny", "windy", "rainy", "snowy") and len(sheet.combinations) == 3
    assert sheet.factors[1].values == ("pitch dark", "dark", "dim", "normal", "bright")


def test_the_sheet_of_the_guide_is_legal() -> None:
    """Conditional tags, the sun, floors and averaged prompts, as guides/factors.md shows them."""
    text = (ROOT / "infra" / "docs" / "guides" / "factors.md").read_text().split("```toml\n")[1].split("```")[0]
    sheet = factors.parse(text)
    assert [(factor.name, factor.origin) for factor in sheet.factors] == [
        ("place", "rule"), ("daylight", "sun"), ("weather", "prompts"),
    ]  # fmt: skip
    assert sheet.factors[2].floors == {"fog": 0.8} and len(sheet.factors[2].sentences) == 5
