"""camloop ingest on S3: a bucket as the place of the footage, as the store, and both at once (in place)."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate import cli_ingest
from infra import video
from infra.catalog import open_catalog
from infra.clock import FakeClock
from infra.console import Context, Output
from infra.errors import UsageError
from infra.settings import Settings
from infra.store import Store, file_sha256, open_store
from tests.ministack_server import Ministack, ministack


@pytest.fixture(scope="module")
def server() -> Iterator[Ministack]:
    """One S3 server for this file."""
    with ministack() as running:
        yield running


def ingest(settings: Settings, store: Store, *argv: str) -> dict[str, Any]:
    """Run `camloop ingest --json` and return its document."""
    parser = argparse.ArgumentParser()
    cli_ingest.ingest(parser)
    text = io.StringIO()
    args = parser.parse_args(argv)
    context = Context(settings=settings, out=Output(as_json=True, quiet=True, stdout=text), clock=FakeClock(), _store=store)
    assert args.run(args, context) == 0
    return dict(json.loads(text.getvalue()))


def test_bucket_to_bucket_and_in_place(server: Ministack, tmp_path: Path) -> None:
    """Footage in a bucket is copied under its hash, or registered where it lies, free-form keys and all; reruns add nothing."""
    clip = tmp_path / "a.mp4"
    with video.Writer(clip, 32, 32, Fraction(1, 10)) as writer:
        for pts in range(5):
            writer.add(np.full((32, 32, 3), 40 * pts, np.uint8), pts)
    settings = Settings(s3=server.s3)
    bucket = server.new_bucket()
    place = open_store(f"s3://{bucket}", settings)
    place.put_file_if_absent("cards/gate/a.mp4", clip, sha256=file_sha256(clip))
    place.put("cards/gate/notes.txt", b"x")

    copy = open_store(f"s3://{server.new_bucket()}/farm", settings)
    for _ in range(2):
        done = ingest(settings, copy, f"s3://{bucket}/cards")
    assert (done["known"], done["registered"]) == (["gate/a.mp4"], [])
    row = open_catalog(copy).scan("clips").collect().row(0, named=True)
    assert (row["camera_id"], row["source_name"]) == ("gate", "gate/a.mp4")
    assert copy.get(row["key"]) == clip.read_bytes()

    for _ in range(2):
        done = ingest(settings, place, f"s3://{bucket}/cards", "--in-place")
    assert done["known"] == ["gate/a.mp4"]
    row = open_catalog(place).scan("clips").collect().row(0, named=True)
    assert (row["key"], row["camera_id"], row["n_frames"]) == ("cards/gate/a.mp4", "gate", 5)
    assert list(place.list("clips/")) == []
    with pytest.raises(UsageError, match="no video"):
        ingest(settings, place, f"s3://{bucket}/empty")
