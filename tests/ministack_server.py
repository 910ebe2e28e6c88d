"""An S3 server for tests: ministack with signature checks on, in its own process, on a loopback port that is free."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from infra.keys import new_id
from infra.settings import S3Settings

START_S = 60


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Ministack:
    """A running server. `s3` are the settings of its root key; `port` is where it listens on 127.0.0.1."""

    s3: S3Settings
    port: int

    def client(self, service: str = "s3") -> Any:
        """Return a boto3 client with the root key."""
        return boto3.client(
            service, endpoint_url=self.s3.endpoint_url, region_name="us-east-1",
            aws_access_key_id=self.s3.access_key_id, aws_secret_access_key=self.s3.secret_access_key,
            config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    def new_bucket(self, *, versioned: bool = False) -> str:
        """Make a bucket of a fresh name and return the name."""
        name = f"camloop-{new_id()[:12]}"
        self.client().create_bucket(Bucket=name)
        if versioned:
            self.client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name


@contextlib.contextmanager
def ministack() -> Iterator[Ministack]:
    """Run a server for the length of the `with`; its process is ended by its own id."""
    port = free_port()
    environment = dict(os.environ) | {
        "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3,sts,iam", "AUTH": "true", "S3_PERSIST": "0",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, port, log)
            endpoint = f"http://127.0.0.1:{port}"
            yield Ministack(
                S3Settings(endpoint_url=endpoint, region="us-east-1", access_key_id="test", secret_access_key="test"), port
            )
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_ministack/health", timeout=2)
            return
        except urllib.error.HTTPError:
            return  # it answers: it listens
        except OSError:
            time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"ministack did not start on port {port}: {log.read()[-2000:].decode(errors='replace')}")
