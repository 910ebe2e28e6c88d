"""A real S3 server for the slow suite: Ceph's RADOS gateway (Debian's radosgw), one node in memory, on loopback.

It checks signatures and refuses small parts; it ignores conditions on CompleteMultipartUpload and checksum headers
(RELIABILITY.md, 3.2), which is what makes it worth testing on. Skip with `needs_radosgw` where it is not installed:
apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import S3Settings
from tests.ministack_server import Ministack, free_port

PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "radosgw-admin", "monmaptool", "ceph-authtool")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
needs_radosgw = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (Debian: radosgw ceph-mon ceph-osd ceph-common)"
)
START_S = 60
_CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc secure
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 2
osd pool default pgp num = 2
osd crush chooseleaf type = 0
mon max pg per osd = 1000
mon data avail crit = 1
osd objectstore = memstore
memstore device bytes = {memory_bytes}
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
pid file = {folder}/run/$name.pid
log file = {folder}/log/$name.log
mon data = {folder}/mon
osd data = {folder}/osd/$id
rgw data = {folder}/rgw
keyring = {folder}/keyring
[client]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name = localhost
"""


@contextlib.contextmanager
def radosgw(memory_bytes: int = 2 << 30) -> Iterator[Ministack]:
    """Run a gateway for the length of the `with`; its processes are ended by their own ids."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="rgw-") as name:
        folder = Path(name)
        for part in ("run", "mon", "osd/0", "rgw", "log"):
            (folder / part).mkdir(parents=True)
        fsid, mon_port = str(uuid.uuid4()), free_port()
        conf = folder / "ceph.conf"
        conf.write_text(_CONF.format(fsid=fsid, mon_port=mon_port, folder=folder, port=port, memory_bytes=memory_bytes))
        environment = dict(os.environ) | {"CEPH_CONF": str(conf)}

        def do(*argv: str, seconds: float = START_S) -> None:
            done = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, timeout=seconds)
            if done.returncode:
                raise RuntimeError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace')[-500:]}")

        try:
            do("ceph-authtool", "-C", "keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
            for who in ("client.admin", "client.rgw"):
                caps = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
                do("ceph-authtool", "keyring", "--gen-key", "-n", who, *caps)
            do("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", "monmap")
            do("ceph-mon", "-i", "a", "--mkfs", "--monmap", "monmap", "--keyring", "keyring")
            do("ceph-mon", "-i", "a")
            osd = str(uuid.uuid4())
            do("ceph", "osd", "new", osd)
            do("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
            do("ceph-osd", "-i", "0")
            do("radosgw", "-n", "client.rgw")
            keys = ("--access-key=AKTEST", "--secret-key=SKTEST")
            do("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)
            endpoint = f"http://127.0.0.1:{port}"
            yield Ministack(
                S3Settings(endpoint_url=endpoint, region="us-east-1", access_key_id="AKTEST", secret_access_key="SKTEST"), port
            )
        finally:
            _end([int(path.read_text()) for path in (folder / "run").glob("*.pid")])


def _end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while pids and time.monotonic() < deadline:
        pids = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        time.sleep(0.1)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
