"""Addresses of Ray clusters are looked at before Ray waits for them."""

from __future__ import annotations

import socket

import pytest

from infra.cluster import check_address
from infra.errors import JobError, UsageError


def test_what_answers_is_fine() -> None:
    """`local` and `auto` are Ray's own business; a port that listens is enough."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in ("local", "auto", f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            check_address(address)


def test_what_does_not_answer_is_one_line() -> None:
    """A closed port is named, with what to do, at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(JobError, match=rf"no Ray cluster answers at ray://127\.0\.0\.1:{port} .*ray start"):
        check_address(f"ray://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["", "here", "http://10.0.0.1:80/x", "10.0.0.1", "host:port", "host:123456"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """The legal forms are shown."""
    with pytest.raises(UsageError, match="legal: local, auto, HOST:PORT"):
        check_address(address)
