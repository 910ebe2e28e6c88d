"""The line from a camera host to its broker: HTTP with bounds, and the host's place in a fleet, kept beside its key.

identity = open_identity(folder, host_id)
enrolled = enroll("https://broker.example", folder, identity, code)    # once: the operator's code becomes a name
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from infra.errors import SettingsError, StoreError, StoreForbidden
from infra.identity import Identity, canonical
from infra.log import mask
from infra.protocol import CHECKSUM_HEADER, SIGNATURE_HEADER
from infra.s3_parts import Body
from ingest.enrolled import Enrolled

CONNECT_S, READ_S = 10.0, 60.0
_ANSWER_BYTES: Final = 4 << 20


def enroll(url: str, folder: Path, identity: Identity, code: str) -> Enrolled:
    """Give this host its place in a fleet: send the code and the public key, keep the answer beside the key.

    Args:
        url: the broker's address.
        folder: where the key lies.
        identity: the key; the name in it does not matter, the code says who this is.
        code: from `camloop fleet enroll`.

    Raises:
        StoreForbidden: the code is not good.
        StoreError: the broker cannot be reached.
    """
    body = canonical({"code": code, "public_key": identity.public_key})
    status, answer = Wire(url).post("/v1/enroll", body, identity.sign_request(body))
    if status != 200:
        kind = StoreForbidden if status == 403 else StoreError
        raise kind(f"broker {url}: {said(answer)}")
    with understood(url):
        enrolled = Enrolled(
            url=url, host_id=str(answer["host_id"]), cameras=tuple(answer["cameras"]), window_s=float(answer["window_s"])
        )
    enrolled.save(folder)
    return enrolled


@dataclass(frozen=True, slots=True)
class Put:
    """The answer to a PUT: its status, the SHA-256 (base64) that the store says it checked, whether it named a version."""

    status: int
    checksum: str | None
    has_etag: bool

    @property
    def is_a_stores(self) -> bool:
        """Whether a store answered: a login page on the way (a guest network's) says 200 to anything."""
        return self.has_etag or self.checksum is not None

    def proves(self, sha256: str) -> bool:
        """Say whether the store checked these very bytes (hex digest)."""
        return self.checksum == base64.b64encode(bytes.fromhex(sha256)).decode()


class Wire:
    """HTTP to one broker: no redirects, no repetition behind our back, answers of bounded size."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise SettingsError(f"broker {mask(url)!r} is not an address; legal: https://HOST[:PORT] or http://HOST[:PORT]")
        self.url = url.rstrip("/") + "/"
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
        self._pool = urllib3.PoolManager(timeout=timeout, retries=False, maxsize=8, cert_reqs="CERT_REQUIRED")

    def post(self, path: str, body: bytes, signature: str) -> tuple[int, dict[str, Any]]:
        """Send a signed request; return status and document of the answer."""
        headers = {"Content-Type": "application/json", SIGNATURE_HEADER: signature}
        return self._answered("POST", path, body, headers)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and document of what lies at `path`."""
        return self._answered("GET", path, None, {})

    def _answered(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        status, data = self.fetch(method, path, body, headers)
        try:
            document = json.loads(data)
        except ValueError as error:
            raise StoreError(f"broker {self.url} answered {status} and no JSON; is it a camloop broker?") from error
        if not isinstance(document, dict):
            raise StoreError(f"broker {self.url} answered {status} and no JSON object; is it a camloop broker?")
        return status, document

    def fetch(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> tuple[int, bytes]:
        """Return status and body of an answer; StoreError when there is none, or more than 4 MiB of it."""
        with self._explained():
            answer = self._pool.request(
                method, urljoin(self.url, path.lstrip("/")), body=body, headers=dict(headers), redirect=False,
                preload_content=False,
            )  # fmt: skip
            try:
                data: bytes = answer.read(_ANSWER_BYTES + 1)
            finally:
                answer.release_conn()
        if len(data) > _ANSWER_BYTES:
            raise StoreError(f"broker {self.url}: an answer of more than {_ANSWER_BYTES} bytes")
        return answer.status, data

    def put(self, address: str, headers: Mapping[str, str], body: Body | bytes) -> Put:
        """Send bytes to an address that the broker named; return what was answered."""
        with self._explained():
            url = urljoin(self.url, address.lstrip("/")) if address.startswith("/") else address
            answer = self._pool.request("PUT", url, body=cast("IO[bytes] | bytes", body), headers=dict(headers), redirect=False)
            return Put(int(answer.status), answer.headers.get(CHECKSUM_HEADER), "etag" in answer.headers)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (HTTPError, OSError) as error:
            raise StoreError(f"broker {self.url} or its store cannot be reached: {mask(str(error))[:160]}") from error


@contextlib.contextmanager
def understood(url: str) -> Iterator[None]:
    """Read an answer inside the `with`; one of another form is a StoreError, not a traceback."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = mask(f"{type(error).__name__}: {error}")[:120]
        raise StoreError(
            f"broker {url}: an answer that this version does not understand ({why}); bring host and broker to one version"
        ) from error


def address_of(answer: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return where bytes go and with which headers; KeyError, TypeError or AttributeError if the answer does not say."""
    url, headers = answer["url"], dict(answer["headers"].items())
    if not isinstance(url, str) or not all(isinstance(text, str) for pair in headers.items() for text in pair):
        raise TypeError("address is not text")
    return url, headers


def said(answer: Mapping[str, Any]) -> str:
    """Return what a refusal says, in one line."""
    return f"{answer.get('error', 'refused')}: {mask(str(answer.get('message', '')))[:200]}"
