"""Shares with intervals over recordings; which tags may be believed; floors by the labels; what people would cost."""

from __future__ import annotations

import tomllib

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate import costs, factors, tag_quality
from curate.share_interval import Share, share, student_t, wilson
from curate.tag_quality import calibrate, floors_text, judge, lowest_floor, measure, recordings_needed
from infra.catalog import Catalog
from infra.errors import UsageError

WEATHER = '[factor.weather]\nfrom = "prompts"\nprompts = { clear = "a", rain = "b", "thick fog" = "c" }'


def test_quantiles_of_student() -> None:
    """Published values, and a straight line between them."""
    assert [student_t(n) for n in (1, 9)] == [12.706, 2.262]
    assert student_t(10) == pytest.approx(2.228, abs=1e-3) and student_t(120) == pytest.approx(1.980, abs=1e-3)
    assert student_t(1.5) == pytest.approx((12.706 + 4.303) / 2)


def test_wilson_by_hand() -> None:
    """8 of 10 with z = 2: centre (.8 + .2) / 1.4, half 2 / 1.4 sqrt(.016 + .01)."""
    low, high = wilson(0.8, 10, 2.0)
    assert (low, high) == pytest.approx((1 / 1.4 - 2 / 1.4 * 0.026**0.5, 1 / 1.4 + 2 / 1.4 * 0.026**0.5))


def test_recordings_count_not_their_frames() -> None:
    """Five perfect recordings prove the same with 10 frames each as with 10,000; one recording proves nothing."""
    few, many = share([10] * 5, [10] * 5), share([10_000] * 5, [10_000] * 5)
    assert (few.value, few.high) == (1.0, 1.0) and few.low == many.low == pytest.approx(5 / (5 + 2.776**2))
    one = share([9], [10])
    assert (one.value, one.low, one.high, one.n_groups) == (0.9, 0.0, 1.0, 1)
    nothing = share([], [])
    assert nothing.value is None and (nothing.low, nothing.high) == (0, 1) and str(nothing).startswith("unknown")


def test_alike_recordings_are_told_from_unlike_ones() -> None:
    """Twenty recordings each 80 % right are known much better than sixteen right and four wrong."""
    alike, unlike = share([8] * 20, [10] * 20), share([10] * 16 + [0] * 4, [10] * 20)
    assert alike.value == unlike.value == pytest.approx(0.8)
    assert unlike.low < 0.65 < 0.9 < unlike.high
    assert alike.high - alike.low < unlike.high - unlike.low


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=40))
def test_an_interval_holds_its_value_whatever_the_order(groups: list[tuple[int, float]]) -> None:
    """In [0, 1], around the value, the same for the groups in another order and for the opposite share turned round."""
    totals = [float(total) for total, _ in groups]
    hits = [total * part for total, part in groups]
    found, other = share(hits, totals), share(hits[::-1], totals[::-1])
    assert found.value is not None and 0 <= found.low <= found.value <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=1e-6)
    opposite = share([total - hit for hit, total in zip(hits, totals, strict=True)], totals)
    assert (opposite.low, opposite.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-6)


def test_hits_that_cannot_be_are_refused() -> None:
    """More hits than there are, or lists of other lengths."""
    for hits, totals in (([3], [2]), ([1, 1], [2]), ([-1], [2])):
        with pytest.raises(UsageError, match="0 <= hits <= totals"):
            share(hits, totals)


def known(value: float | None, low: float, high: float) -> Share:
    return Share(value=value, low=low, high=high, n=100, n_groups=20)


@pytest.mark.parametrize(
    ("precision", "recall", "belief"),
    [
        (known(0.9, 0.8, 0.95), known(0.85, 0.75, 0.9), "believed"),
        (known(0.9, 0.8, 0.95), known(0.78, 0.74, 0.85), "unknown"),
        (known(0.9, 0.8, 0.95), known(0.5, 0.3, 0.79), "not to be used"),
        (known(0.77, 0.76, 0.79), known(0.9, 0.8, 0.95), "believed"),
        (known(None, 0, 1), known(0.1, 0, 0.3), "not to be used"),
        (known(None, 0, 1), known(None, 0, 1), "unknown"),
    ],
)
def test_verdicts(precision: Share, recall: Share, belief: str) -> None:
    """Both must reach 75 % to the lower end; one that stays under 80 % to the upper end condemns; else nobody knows."""
    assert judge(precision, recall) == belief


def test_labels_needed() -> None:
    """Fifteen faultless recordings would do; a hopeless tag is told by four; one on the border never."""
    assert recordings_needed(1.0) == 15 and recordings_needed(0.0) == 4
    assert recordings_needed(0.775) is None or (recordings_needed(0.775) or 0) > 200


def rows(*said: tuple[int, str | None, str, float], factor: str = "weather") -> pl.DataFrame:
    """Return pairs: (recording, tag, truth, score), one frame of one second each."""
    made = [
        {"factor": factor, "clip_id": f"c{g}", "pts": n, "group": f"r{g}", "weight_s": 1.0, "tag": t, "truth": y, "score": s}
        for n, (g, t, y, s) in enumerate(said)
    ]
    return pl.DataFrame(made, schema=tag_quality._SCHEMA)


def test_precision_and_recall_by_hand() -> None:
    """Rain is right in 20 of 25 frames called so, and found in 20 of 30; a silent machine has missed it."""
    said = [(g, "rain", "rain", 0.9) for g in range(20)] + [(g, "rain", "clear", 0.9) for g in range(5)]
    said += [(g, None, "rain", 0.0) for g in range(20, 30)]
    clear, rain, fog = measure(rows(*said), factors.parse(WEATHER))
    assert (rain.precision.value, rain.precision.n, rain.precision.n_groups) == (0.8, 25, 20)
    assert (rain.recall.value, rain.recall.n) == (pytest.approx(2 / 3), 30)
    assert clear.recall.value == 0 and clear.belief == "not to be used"
    assert fog.precision.value is None and fog.belief == "unknown" and fog.recordings_needed == 15
    assert "no labelled footage has this tag" in fog.why


def test_footage_counts_not_frames() -> None:
    """A frame that stands for nine seconds outweighs one that stands for one."""
    said = rows((1, "rain", "rain", 0.9), (2, "rain", "clear", 0.9)).with_columns(weight_s=pl.Series([9.0, 1.0]))
    assert measure(said, factors.parse(WEATHER))[1].precision.value == 0.9


def test_a_floor_is_the_lowest_that_is_precise() -> None:
    """From 0.6 on four of five are right; 0.5 lets a wrong one in; nothing helps a tag that is always wrong."""
    tagged = rows(*[(1, "rain", truth, score) for truth, score in
                    (("rain", 0.9), ("rain", 0.8), ("clear", 0.7), ("rain", 0.65), ("rain", 0.6), ("clear", 0.5))])  # fmt: skip
    assert lowest_floor(tagged, "rain", 0.8) == pytest.approx(0.6)
    assert lowest_floor(tagged, "clear", 0.8) is None


def test_floors_are_judged_on_other_recordings() -> None:
    """High scores are right and low ones wrong in all recordings: the floor holds, and is proposed as lines for the sheet."""
    said = [(g, "thick fog", truth, score) for g in range(40) for truth, score in (("thick fog", 0.9), ("clear", 0.4))]
    clear, rain, fog = calibrate(rows(*said), factors.parse(WEATHER))
    assert fog.floor == pytest.approx(0.9) and fog.holds and fog.precision.value == 1.0 and fog.recall.value == 1.0
    assert 10 < fog.precision.n_groups < 30
    assert (clear.floor, clear.why) == (None, "no such tag where people looked") and rain.floor is None
    text = floors_text([clear, rain, fog])
    assert text == '[factor.weather]\nfloors = { "thick fog" = 0.899 }' or text.endswith("= 0.9 }")
    assert dict(factors.parse(WEATHER + "\n" + text.split("\n")[1]).factors[0].floors)["thick fog"] <= 0.9


def test_a_floor_that_the_other_half_refutes_is_not_proposed() -> None:
    """Right in the half that chooses, wrong in the half that judges."""
    first = [g for g in range(40) if tag_quality.keys.uniform("calibrate", f"r{g}") < 0.5]
    said = [(g, "rain", "rain" if g in first else "clear", 0.9) for g in range(40)]
    said += [(g, "rain", "clear", 0.5) for g in range(40)]
    rain = calibrate(rows(*said), factors.parse(WEATHER))[1]
    assert rain.floor == pytest.approx(0.9) and not rain.holds and "bear it out" in rain.why
    assert floors_text([rain]) == ""


def test_keys_are_toml_whatever_the_value() -> None:
    """Quotes, backslashes, control characters and letters outside ASCII: what is written is read back."""
    values = ["rain", "thick fog", 'a"b', "a\\b", "two\nlines", "del\x7f", "\U0001f327", ""]
    text = "\n".join(f"{tag_quality.keys_of(value)} = 1" for value in values)
    assert list(tomllib.loads(text)) == values
    found = known(0.9, 0.8, 1.0)
    floor = tag_quality.Calibration(factor="größe", value='a"b', floor=0.5, precision=found, recall=found, holds=True, why="")
    assert tomllib.loads(floors_text([floor])) == {"factor": {"größe": {"floors": {'a"b': 0.5}}}}


def test_prices_of_the_article() -> None:
    """A day of ten cameras: 27 million pictures, five tags: about 38,000 hours, 6.75 million dollars at the service."""
    tags = costs.count(27_000_000, [0.0] * 5)
    assert (tags.n_saved, tags.n_needed) == (0, 135_000_000)
    service, turk = costs.bills(tags, overlap=1)
    assert service.needed_hours == pytest.approx(37_500) and service.needed_usd == pytest.approx(6_750_000)
    assert turk.needed_usd == pytest.approx(1_350_000) and turk.way.endswith("one person each")
    assert costs.bills(costs.count(1, [0.0] * 5))[0].needed_usd == pytest.approx(0.25)
    assert costs.bills(tags, overlap=3)[1].needed_hours == pytest.approx(3 * 37_500)


def test_believed_tags_are_saved() -> None:
    """Two factors, one believed for all and one for a quarter of the footage."""
    tags = costs.count(1000, [1.0, 0.25])
    assert (tags.n_saved, tags.n_needed) == (1250, 750)
    with pytest.raises(UsageError, match="0 to 1 each"):
        costs.count(10, [1.5])
    with pytest.raises(UsageError, match="at least 1 person"):
        costs.check(0, 0.4)
    with pytest.raises(UsageError, match="overlap 0"):
        costs.bills(tags, overlap=0)


@pytest.mark.parametrize("usd", [float("nan"), float("inf"), -0.1])
def test_a_price_that_is_none_is_no_bill(catalog: Catalog, usd: float) -> None:
    """Whoever asks in Python is refused as the command is."""
    assert costs.spent(catalog, 0.0).usd == 0
    with pytest.raises(UsageError, match="0 or more, and finite"):
        costs.spent(catalog, usd)
