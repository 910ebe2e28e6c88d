"""A host gone mad, as a process: asks for addresses of ever new clips as fast as it can, over several connections.

    python -m tests.serve.flood URL KEY_FOLDER HOST CAMERA N_CONNECTIONS
"""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from infra.identity import Identity, open_identity
from infra.protocol import SIGNATURE_HEADER, Ask


def ask_once(connection: http.client.HTTPConnection, identity: Identity, epoch: str, camera: str, word: str) -> int:
    """Ask for the address of one clip; return the status."""
    sha256 = hashlib.sha256(word.encode()).hexdigest()
    body = Ask(
        host_id=identity.host_id, epoch=epoch, sequence=time.time_ns(), verb="put", kind="clip", camera_id=camera,
        clip_id=sha256[:32], container="mp4", n_bytes=1000, sha256=sha256,
    ).to_bytes()  # fmt: skip
    connection.request("POST", "/v1/ask", body, {SIGNATURE_HEADER: identity.sign_request(body)})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def main(url: str, folder: str, host_id: str, camera: str, n_connections: int) -> None:
    """Flood until the process is ended."""
    identity = open_identity(Path(folder), host_id)
    parts = urlsplit(url)

    def one(number: int) -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        connection.request("GET", "/v1/hello")
        epoch = json.loads(connection.getresponse().read())["epoch"]
        n = 0
        while True:
            n += 1
            ask_once(connection, identity, epoch, camera, f"{number} {n}")

    for number in range(n_connections):
        threading.Thread(target=one, args=(number,), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
