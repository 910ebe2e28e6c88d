"""What a camera host and its broker say to each other: requests, answers, and the rules both sides count by.

A host never names a key. It says what it has (a clip of camera C with this SHA-256, page n of its ledger, ...), and
`key_of` makes the key from that and from the name under which the host is enrolled. A request is one JSON object, signed
as the bytes that are sent (`SIGNATURE_HEADER`); an answer is one JSON object that always tells the broker's time and epoch.

    GET  /v1/hello                the broker's time, epoch, size of the fleet, what its store can do
    POST /v1/enroll               a one-time code and a public key, signed with that key
    POST /v1/ask                  an `Ask`: put, create, part, parts, complete, abort or look
    PUT  <address>                the bytes, to the address that an answer named, with the headers it named

`sequence` is the broker's time in nanoseconds as the host believes it, and always greater than the host's last: the same
number is never taken twice, and neither is one that is older than `WINDOW_S`. `epoch` is a random word of the running
broker: after its restart, which forgets the numbers, nothing that was signed before is worth anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self, get_args

from infra import keys
from infra.errors import UsageError
from infra.identity import canonical
from infra.objects import part_bytes_for

SIGNATURE_HEADER: Final = "camloop-signature"
CHECKSUM_HEADER: Final = "x-amz-checksum-sha256"  # of the answer to a PUT, base64: S3's own name, a folder's broker uses it too
MAX_ASK_BYTES: Final = 16 << 10
WINDOW_S: Final = 300.0  # how far a sequence number may lie from the broker's clock
ADDRESS_S: Final = 600  # how long an address is good: ten minutes
MAX_SMALL_BYTES: Final = 4 << 20  # sidecars, ledger pages, health documents
MAX_CLIP_BYTES: Final = 48 << 30

Verb = Literal["put", "create", "part", "parts", "complete", "abort", "look"]
Kind = Literal["clip", "sidecar", "ledger", "health"]
Lane = Literal["fresh", "backlog"]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UPLOAD = re.compile(r"[A-Za-z0-9._~+/=-]{1,1024}")
_CONTAINER = re.compile(r"(?!json$)[a-z0-9]{1,16}")  # a clip named .json would be its own sidecar


def n_parts(n_bytes: int) -> int:
    """Return how many parts an object of `n_bytes` has."""
    return max(1, -(-n_bytes // part_bytes_for(n_bytes)))


def part_span(n_bytes: int, number: int) -> tuple[int, int]:
    """Return [start, stop) of part `number`, counted from 1, in bytes of the object.

    Raises:
        UsageError: there is no such part.
    """
    if not 1 <= number <= n_parts(n_bytes):
        raise UsageError(f"part {number} of an object of {n_bytes} bytes; legal: 1 to {n_parts(n_bytes)}")
    size = part_bytes_for(n_bytes)
    return (number - 1) * size, min(number * size, n_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request of a host. What a verb does not need is None.

    `sha256` and `n_bytes` are those of the whole object; `part_sha256` that of one part. `lane` says whether the clip was
    made just now or waited for the uplink; `waiting` how many more clips wait, by which the broker plans who comes when.
    """

    host_id: str
    epoch: str
    sequence: int
    verb: Verb
    kind: Kind
    camera_id: str | None = None
    clip_id: str | None = None
    container: str | None = None
    boot_id: str | None = None
    number: int | None = None
    n_bytes: int | None = None
    sha256: str | None = None
    upload: str | None = None
    part: int | None = None
    part_sha256: str | None = None
    lane: Lane = "backlog"
    waiting: int = 0

    def to_bytes(self) -> bytes:
        """Return the bytes that are signed and sent."""
        return canonical({item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None})

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Read a request.

        Raises:
            UsageError: it is not JSON, has unknown fields, or a field of the wrong type or form.
        """
        document = read_object(body)
        unknown = sorted(document.keys() - _TYPES.keys())
        if unknown:
            raise UsageError(f"request has unknown fields {', '.join(unknown)[:80]}")
        for name, kind in _TYPES.items():
            value = document.get(name)
            if name in document and (not isinstance(value, kind) or isinstance(value, bool)):
                raise UsageError(f"request field {name} is not {kind.__name__}")
        if missing := sorted({"host_id", "epoch", "sequence", "verb", "kind"} - document.keys()):
            raise UsageError(f"request lacks {', '.join(missing)}")
        for name, legal in (("verb", get_args(Verb)), ("kind", get_args(Kind)), ("lane", get_args(Lane))):
            if name in document and document[name] not in legal:
                raise UsageError(f"request {name} is {document[name][:40]!r}; legal: {', '.join(legal)}")
        ask = cls(**document)
        ask._check()
        return ask

    def _check(self) -> None:
        for name in ("sha256", "part_sha256"):
            value = getattr(self, name)
            if value is not None and not _SHA256.fullmatch(value):
                raise UsageError(f"request {name} is not 64 hex digits")
        if self.upload is not None and not _UPLOAD.fullmatch(self.upload):
            raise UsageError("request upload is not an upload id")
        for name in ("number", "n_bytes", "part", "waiting", "sequence"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 << 63:
                raise UsageError(f"request {name} {value} is out of range")


_TYPES: Final[Mapping[str, type]] = {
    **dict.fromkeys(
        ("host_id", "epoch", "verb", "kind", "camera_id", "clip_id", "container", "boot_id", "sha256", "upload",
         "part_sha256", "lane"), str),
    **dict.fromkeys(("sequence", "number", "n_bytes", "part", "waiting"), int),
}  # fmt: skip


def read_object(body: bytes) -> dict[str, Any]:
    """Return the one JSON object in `body`.

    Raises:
        UsageError: too long, not JSON, or not an object.
    """
    if len(body) > MAX_ASK_BYTES:
        raise UsageError(f"request of {len(body)} bytes; at most {MAX_ASK_BYTES}")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UsageError("request is not JSON") from error
    if not isinstance(document, dict):
        raise UsageError("request is not a JSON object")
    return document


def key_of(ask: Ask) -> str:
    """Return the object key that a request is about: chosen here, from what the host says it has.

    Raises:
        UsageError: a name that cannot stand in a key, an id that is not one, or a field that is missing.
    """
    if ask.kind in ("clip", "sidecar"):
        if ask.camera_id is None or ask.clip_id is None or not keys.is_clip_id(ask.clip_id):
            raise UsageError(f"a {ask.kind} is named by camera_id and clip_id (32 hex digits)")
        if ask.kind == "sidecar":
            return keys.sidecar_key(keys.clip_key(ask.camera_id, ask.clip_id, "mp4"))
        if ask.container is None or not _CONTAINER.fullmatch(ask.container):
            raise UsageError(f"container {str(ask.container)[:40]!r} cannot be a clip's; legal: a file ending such as mp4, tar")
        return keys.clip_key(ask.camera_id, ask.clip_id, ask.container)
    if ask.boot_id is None or ask.number is None or ask.number > 99_999_999:
        raise UsageError(f"a {ask.kind} document is named by boot_id and number")
    make = keys.ledger_key if ask.kind == "ledger" else keys.health_key
    return make(ask.host_id, ask.boot_id, ask.number)


def named_by(key: str, host_id: str) -> dict[str, Any]:
    """Return the fields of the request whose key is `key`: how an uploader's key becomes a request.

    Raises:
        UsageError: it is no key that a camera host may write.
    """
    parts = keys.check_key(key).split("/")
    named: dict[str, Any] | None = None
    if len(parts) == 3 and parts[0] == "clips" and "." in parts[2]:
        clip_id, _, container = parts[2].partition(".")
        kind = "sidecar" if container == "json" else "clip"
        named = {"kind": kind, "camera_id": parts[1], "clip_id": clip_id}
        named |= {"container": container} if kind == "clip" else {}
    elif len(parts) == 4 and parts[0] in ("ledger", "health") and re.fullmatch(r"\d{8}\.json", parts[3]):
        named = {"kind": parts[0], "boot_id": parts[2], "number": int(parts[3][:8])}
    if named is None or key_of(Ask(host_id=host_id, epoch="", sequence=0, verb="look", **named)) != key:
        raise UsageError(
            f"object key {key[:120]!r} is none that host {host_id} may write through a broker; "
            "legal: clips/CAMERA/CLIP.CONTAINER and its .json, ledger/HOST/BOOT/N.json, health/HOST/BOOT/N.json"
        )
    return named


@dataclass(frozen=True, slots=True)
class Address:
    """Where the bytes go: a URL that is good for this one object, and headers that must be sent with them."""

    url: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """A part that the store has of an unfinished object."""

    number: int
    n_bytes: int
    etag: str
    sha256: str | None  # 64 hex digits, where the store keeps it


@dataclass(frozen=True, slots=True)
class Look:
    """What the store holds under a key.

    `checksum` is the store's SHA-256 as it says it: base64, with `-N` where it is that of N parts' SHA-256s; None where the
    store keeps none. `etag` is without quotes; of a plain S3 put it is the MD5.
    """

    n_bytes: int
    checksum: str | None
    etag: str
