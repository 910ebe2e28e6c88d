"""The height of the sun against published values."""

from __future__ import annotations

import datetime

import pytest

from infra.errors import UsageError
from infra.sun import SUNSET_DEG, solar_elevation_deg


def utc_ns(text: str) -> int:
    return round(datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()) * 1_000_000_000


def test_the_worked_example_of_nrel() -> None:
    """NREL/TP-560-34302 (Reda and Andreas, 2008), appendix A.5: Golden, Colorado, elevation without refraction 39.872046."""
    assert solar_elevation_deg(utc_ns("2003-10-17T19:30:30"), 39.742476, -105.1786) == pytest.approx(39.872046, abs=0.005)


@pytest.mark.parametrize(
    ("time", "latitude"),
    [
        ("1994-01-02T07:08:13", 35.0), ("1994-01-02T16:59:56", 35.0), ("1996-07-05T07:08:15", -35.0),
        ("1996-07-05T17:01:05", -35.0), ("2004-12-04T04:38:57", -35.0), ("2004-12-04T19:02:03", -35.0),
    ],
)  # fmt: skip
def test_sunrises_and_sunsets_of_nrel(time: str, latitude: float) -> None:
    """The same report, table A2.1, at Greenwich: the sun stands at -.833 degrees at the second of rise and set."""
    assert solar_elevation_deg(utc_ns(time), latitude, 0.0) == pytest.approx(SUNSET_DEG, abs=0.02)


@pytest.mark.parametrize("time", ["2024-06-20T03:43:00", "2024-06-20T20:21:00"])
def test_midsummer_of_noaa(time: str) -> None:
    """NOAA_Solar_Calculations_day for Greenwich, 51.4779 north: rise 03:43, set 20:21 UTC, told to the minute."""
    assert solar_elevation_deg(utc_ns(time), 51.4779, 0.0) == pytest.approx(SUNSET_DEG, abs=0.1)


def test_meeus_declination_at_the_pole() -> None:
    """Meeus, example 25.a: declination -7.78507 on 1992-10-13 at 0 h; at the north pole that is the sun's height."""
    assert solar_elevation_deg(utc_ns("1992-10-13T00:00:00"), 90.0, 0.0) == pytest.approx(-7.78507, abs=0.001)


def test_noon_and_midnight_lie_opposite() -> None:
    """On the equator at an equinox the sun goes from the nadir to the zenith."""
    heights = [solar_elevation_deg(utc_ns("2026-03-20T00:00:00") + hour * 3_600 * 10**9, 0.0, 0.0) for hour in range(24)]
    assert min(heights) < -87 and max(heights) > 87
    assert heights[6] == pytest.approx(0, abs=3) and heights[18] == pytest.approx(0, abs=3)


@pytest.mark.parametrize(("latitude", "longitude"), [(91, 0), (0, 181), (float("nan"), 0)])
def test_places_off_the_earth_are_refused(latitude: float, longitude: float) -> None:
    """One line with the legal values."""
    with pytest.raises(UsageError, match="legal: latitude"):
        solar_elevation_deg(0, latitude, longitude)
