"""Capture time: from digits on a camera's clock to UTC."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from curate import cameras, capture_time
from infra.errors import SettingsError, UsageError
from infra.records import CameraRow

HOUR_NS = 3_600_000_000_000


def ns(*when: int) -> int:
    """Return UTC nanoseconds of (year, month, day, hour, ...)."""
    return round(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000_000


def row(valid_from_ns: int = 0, zone: str = "UTC", offset_s: float = 0.0) -> CameraRow:
    """Return a camera row."""
    return CameraRow(camera_id="c", camera_number=1, valid_from_ns=valid_from_ns, time_zone=zone, clock_offset_s=offset_s)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VID_20240312_174500.mp4", datetime(2024, 3, 12, 17, 45)),
        ("a/2024-03-12_17-45-01.avi", datetime(2024, 3, 12, 17, 45, 1)),
        ("2024-03-12T17-45-01.mkv", datetime(2024, 3, 12, 17, 45, 1)),
        ("ch01_20240312174501.mp4", datetime(2024, 3, 12, 17, 45, 1)),
        ("IMG_0001.JPG", None),
        ("20241399_174500.mp4", None),  # month 13
        ("19700101_000000.mp4", None),  # a clock that was never set
        ("120240312_174500.mp4", None),  # digits go on: another number
        ("20240312_174500/clip.mp4", None),  # a folder's name is not the file's
    ],
)
def test_common_names(name: str, expected: datetime | None) -> None:
    """Common file names give their digits, others nothing."""
    assert capture_time.from_name(name) == expected


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("cam_%Y%m%d_%H%M%S", "cam_20240312_174500.mp4", datetime(2024, 3, 12, 17, 45)),
        ("%d.%m.%y %H-%M", "12.03.24 17-45.avi", datetime(2024, 3, 12, 17, 45)),
        ("%Y/%m/%d/%H%M%S", "site/2024/03/12/174500.mp4", datetime(2024, 3, 12, 17, 45)),
        ("%Y%j%H", "202407217.mp4", datetime(2024, 3, 12, 17)),
        ("t%s", "t1710265500.mp4", datetime(2024, 3, 12, 17, 45, tzinfo=UTC)),
        ("%Y%m%d%H%M%S%z", "20240312194500+0200.mp4", datetime(2024, 3, 12, 17, 45, tzinfo=UTC)),
        ("cam_%Y%m%d_%H%M%S", "other_20240312_174500.mp4", None),
    ],
)
def test_declared_patterns(pattern: str, name: str, expected: datetime | None) -> None:
    """A declared pattern is searched for in the stem, one with a slash in the whole path."""
    assert capture_time.from_name(name, [pattern]) == expected


@pytest.mark.parametrize("pattern", ["%Y%m%d", "cam", "%Y%m%d_%Q", "%Y%Y%m%d%H"])
def test_patterns_that_cannot_work_are_refused(pattern: str) -> None:
    """A pattern without date and hour, or with an unknown or doubled directive, is a usage error that names it."""
    with pytest.raises(UsageError, match="time pattern"):
        capture_time.compile_pattern(pattern)


def test_local_time_and_summer_time() -> None:
    """Digits are local time in the camera's zone; a repeated hour is its first, a skipped one as if the clock stood still."""
    assert capture_time.to_ns(datetime(2024, 7, 1, 12), "Europe/Berlin") == ns(2024, 7, 1, 10)
    assert capture_time.to_ns(datetime(2024, 1, 1, 12), "Europe/Berlin") == ns(2024, 1, 1, 11)
    assert capture_time.to_ns(datetime(2024, 10, 27, 2, 30), "Europe/Berlin") == ns(2024, 10, 27, 0, 30)
    assert capture_time.to_ns(datetime(2024, 3, 31, 2, 30), "Europe/Berlin") == ns(2024, 3, 31, 1, 30)
    assert capture_time.to_ns(datetime(2024, 7, 1, 12, tzinfo=UTC), "Europe/Berlin") == ns(2024, 7, 1, 12)


def test_unknown_zone_offers_near_names() -> None:
    """A zone that does not exist is refused with a near one."""
    with pytest.raises(SettingsError, match="Europe/Berlin"):
        capture_time.zone("Europe/Berln")


def test_offset_per_period() -> None:
    """The row whose corrected time lies in its own validity holds: a clock one hour late from June on."""
    rows = [row(), row(valid_from_ns=ns(2024, 6, 1), offset_s=3600.0)]
    assert capture_time.true_start_ns(datetime(2024, 5, 1, 12), rows) == ns(2024, 5, 1, 12)
    assert capture_time.true_start_ns(datetime(2024, 6, 2, 12), rows) == ns(2024, 6, 2, 13)
    assert capture_time.true_start_ns(datetime(2024, 5, 31, 23, 30), rows) == ns(2024, 6, 1, 0, 30)


def test_clock_that_fell_back_to_2000() -> None:
    """A camera that lost its clock in April and was set again in June is mended by one row for that time."""
    lost = (ns(2024, 4, 20) - ns(2000, 1, 1)) / 1e9
    rows = [row(), row(valid_from_ns=ns(2024, 4, 20), offset_s=lost), row(valid_from_ns=ns(2024, 6, 1))]
    assert capture_time.true_start_ns(datetime(2024, 3, 1), rows) == ns(2024, 3, 1)
    assert capture_time.true_start_ns(datetime(2000, 1, 5, 6), rows) == ns(2024, 4, 24, 6)
    assert capture_time.true_start_ns(datetime(2024, 6, 2), rows) == ns(2024, 6, 2)


def test_container_and_exif(tmp_path: Path) -> None:
    """Container digits are local unless declared UTC; a zero date is unknown; EXIF original time is read."""
    from PIL import Image

    assert capture_time.from_container(ns(2024, 3, 12, 17)) == datetime(2024, 3, 12, 17)
    assert capture_time.from_container(ns(2024, 3, 12, 17), "utc") == datetime(2024, 3, 12, 17, tzinfo=UTC)
    assert capture_time.from_container(0) is None
    assert capture_time.from_container(None) is None
    image = Image.new("RGB", (8, 8))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2024:03:12 17:45:00"
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.jpg")
    assert capture_time.from_exif(tmp_path / "a.jpg") == datetime(2024, 3, 12, 17, 45)
    assert capture_time.from_exif(tmp_path / "b.jpg") is None
    assert capture_time.from_exif(io.BytesIO(b"no picture")) is None


def test_registry_periods_and_attributes() -> None:
    """Tables of one id are periods that inherit; unknown keys are attributes; folder defaults to the id."""
    registry = cameras.parse(
        """
        [[camera]]
        id = "creek"
        folder = ["CAM01", "CAM 1"]
        time_zone = "Africa/Nairobi"
        site = "bed"
        lens = "6 mm"
        [[camera]]
        id = "creek"
        valid_from = 2024-03-01T00:00:00
        clock_offset_s = -60
        [[camera]]
        id = "gate"
        match = "*/gate_*.mp4"
        """
    )
    first, second = registry.cameras["creek"].rows
    assert (first.valid_from_ns, second.valid_from_ns) == (0, ns(2024, 2, 29, 21))
    assert (second.site, second.clock_offset_s, second.attributes) == ("bed", -60.0, {"lens": "6 mm"})
    assert registry.camera_of("CAM 1/DCIM/a.avi") == "creek"
    assert registry.camera_of("x/gate_1.mp4") == "gate"
    with pytest.raises(UsageError, match="CAM01"):
        registry.camera_of("CAM02/a.avi")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[[camera]]\nfolder = 'a'", "no id"),
        ("[[camera]]\nid = 'a/b'", "cannot stand in an object key"),
        ("[[camera]]\nid = 'a'\ntime_zone = 'Mars/Base'", "time_zone 'Mars/Base'"),
        ("[[camera]]\nid = 'a'\nindoor = 'yes'", "indoor = 'yes'"),
        ("[[camera]]\nid = 'a'\nclock_offset_s = true", "clock_offset_s = True"),
        ("[[camera]]\nid = 'a'\n[[camera]]\nid = 'a'", "same valid_from"),
        ("[[camera]]\nid = 'a'\ncontainer_time = 'mars'", "'local', 'utc'"),
        ("camera = 3", "no .*camera"),
        ("id = ", "cameras.toml"),
    ],
)
def test_registry_refuses(text: str, match: str) -> None:
    """A wrong registry is refused with the value and what is legal."""
    with pytest.raises((SettingsError, UsageError), match=match):
        cameras.parse(text)
