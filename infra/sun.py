"""How high the sun stands: what a camera outdoors knows about its light without looking at a picture.

The equations are those of NOAA's solar calculator (https://gml.noaa.gov/grad/solcalc/, its spreadsheet
NOAA_Solar_Calculations_day), which are chapters 25 and 28 of Jean Meeus, Astronomical Algorithms, 2nd edition, 1998, in
their low-accuracy form. T is Julian centuries since 2000-01-01 12:00:

    L0 = 280.46646 + 36000.76983 T + .0003032 T^2                       mean longitude, degrees
    M  = 357.52911 + 35999.05029 T - .0001537 T^2                       mean anomaly
    C  = (1.914602 - .004817 T - .000014 T^2) sin M + (.019993 - .000101 T) sin 2M + .000289 sin 3M
    omega = 125.04 - 1934.136 T
    lambda = L0 + C - .00569 - .00478 sin omega                         apparent longitude
    epsilon = 23.439291 - .0130042 T - .00000016 T^2 + .00256 cos omega obliquity, corrected
    sin(declination) = sin epsilon sin lambda
    y = tan^2(epsilon / 2), e = .016708634 - .000042037 T
    equation of time = 4 deg(y sin 2 L0 - 2 e sin M + 4 e y sin M cos 2 L0 - y^2/2 sin 4 L0 - 5/4 e^2 sin 2M)   minutes
    hour angle = (minutes of the UTC day + equation of time + 4 longitude) / 4 - 180
    sin(elevation) = sin latitude sin declination + cos latitude cos declination cos(hour angle)

Geometric: no refraction (at most .6 degrees, at the horizon). Against NREL's SPA the error is below .01 degrees in our
century, which a threshold on the sun does not notice.
"""

from __future__ import annotations

import math

from infra.errors import UsageError

SUNSET_DEG = -0.833  # the usual definition: half the sun's disc (16') and refraction at the horizon (34')
CIVIL_TWILIGHT_DEG = -6.0  # outdoors one still sees without lamps
_J2000_NS = 946_728_000_000_000_000  # 2000-01-01 12:00 UTC; the 64 s to terrestrial time move the sun by .0007 degrees
_CENTURY_NS = 36_525 * 86_400_000_000_000
_DAY_NS = 86_400_000_000_000


def solar_elevation_deg(utc_ns: int, latitude_deg: float, longitude_deg: float) -> float:
    """Return the height of the sun's centre above the horizon, in degrees, without refraction.

    Args:
        utc_ns: UTC nanoseconds since 1970.
        latitude_deg: north is positive.
        longitude_deg: east is positive.

    Raises:
        UsageError: a place that is not on earth.
    """
    if not (-90 <= latitude_deg <= 90 and -180 <= longitude_deg <= 180):
        raise UsageError(
            f"place {latitude_deg:g}, {longitude_deg:g}; legal: latitude [-90, 90], longitude [-180, 180], degrees"
        )
    declination, equation_min = _declination_and_equation((utc_ns - _J2000_NS) / _CENTURY_NS)
    minutes = utc_ns % _DAY_NS / 60e9
    hour_angle = math.radians((minutes + equation_min + 4 * longitude_deg) / 4 - 180)
    latitude = math.radians(latitude_deg)
    sine = math.sin(latitude) * math.sin(declination) + math.cos(latitude) * math.cos(declination) * math.cos(hour_angle)
    return math.degrees(math.asin(max(-1.0, min(1.0, sine))))


def _declination_and_equation(t: float) -> tuple[float, float]:
    """Return the sun's declination in radians and the equation of time in minutes, `t` Julian centuries after J2000."""
    mean_longitude = math.radians((280.46646 + t * (36000.76983 + t * 0.0003032)) % 360)
    anomaly = math.radians((357.52911 + t * (35999.05029 - t * 0.0001537)) % 360)
    centre = (
        (1.914602 - t * (0.004817 + t * 0.000014)) * math.sin(anomaly)
        + (0.019993 - t * 0.000101) * math.sin(2 * anomaly)
        + 0.000289 * math.sin(3 * anomaly)
    )
    omega = math.radians(125.04 - 1934.136 * t)
    longitude = mean_longitude + math.radians(centre - 0.00569 - 0.00478 * math.sin(omega))
    obliquity = math.radians(23.439291 - t * (0.0130042 + t * 0.00000016) + 0.00256 * math.cos(omega))
    y, e = math.tan(obliquity / 2) ** 2, 0.016708634 - 0.000042037 * t
    equation = (
        y * math.sin(2 * mean_longitude)
        - 2 * e * math.sin(anomaly)
        + 4 * e * y * math.sin(anomaly) * math.cos(2 * mean_longitude)
        - y * y / 2 * math.sin(4 * mean_longitude)
        - 1.25 * e * e * math.sin(2 * anomaly)
    )
    return math.asin(math.sin(obliquity) * math.sin(longitude)), 4 * math.degrees(equation)
