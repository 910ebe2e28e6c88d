"""The factor sheet: what is legal, and what its rules and prompts say."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from curate import factors
from infra.errors import QueryError, UsageError

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
    assert rows.select(factors.by_rules(people, rows.schema)).to_series().to_list() == ["none", "some", None]
    with pytest.raises(QueryError, match="n_person"):
        factors.by_rules(people, pl.Schema({"n_persons": pl.Int64}))


def test_prompts_are_compared_by_softmax() -> None:
    """Cosines of 1 and 0 at scale 2 give e^2 / (e^2 + 1)."""
    weather = factors.parse(SHEET).factors[1]
    images = np.array([[1, 0], [0, 1]], np.float32)
    best, probs = factors.by_prompts(weather, images, np.eye(2, dtype=np.float32), 2.0)
    assert best.tolist() == [0, 1]
    np.testing.assert_allclose(probs, np.exp(2) / (np.exp(2) + 1), rtol=1e-6)


def test_the_default_sheet_is_legal() -> None:
    """What a store without a sheet is tagged by."""
    assert [factor.name for factor in factors.parse(factors.DEFAULT).factors] == ["lighting", "people"]
