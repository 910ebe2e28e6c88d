"""Who a camera host is: an Ed25519 key that is made on the device and never leaves it, and what it signs.

    identity = open_identity(Path("/var/lib/camloop"), "barn-pi-1")   # makes the key the first time
    identity.sign({"reason": "disk full", ...})                      # a document: its canonical JSON is signed
    identity.sign_request(body)                                       # the exact bytes of a request to the broker

A document and a request are signed under different first lines, so that one can never be shown as the other. The private
key stands in `host.pem`, mode 0600; a copy that others can read is refused, as ssh does.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from infra import durable
from infra.errors import DeviceError
from infra.keys import check_name

KEY_NAME = "host.pem"
_DOCUMENT = b"camloop document 1\n"
_REQUEST = b"camloop request 1\n"


def canonical(document: object) -> bytes:
    """Return a JSON document in the one form that is signed: sorted keys, no spaces, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True, slots=True)
class Identity:
    """A host's name and private key; the key is never shown."""

    host_id: str
    _key: Ed25519PrivateKey = field(repr=False)

    @property
    def public_key(self) -> str:
        """The public key as 64 hex digits: what the broker's registry holds."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, document: object) -> str:
        """Return the signature (base64) of a JSON document in its canonical form."""
        return base64.b64encode(self._key.sign(_DOCUMENT + canonical(document))).decode()

    def sign_request(self, body: bytes) -> str:
        """Return the signature (base64) of the bytes of a request."""
        return base64.b64encode(self._key.sign(_REQUEST + body)).decode()


def open_identity(folder: Path, host_id: str) -> Identity:
    """Read the host's key from `folder`, making folder (mode 0700) and key (mode 0600) where there are none.

    Raises:
        UsageError: `host_id` cannot stand in a key.
        DeviceError: the key file can be read by others, is damaged, or cannot be written.
    """
    check_name(host_id, "host")
    path = folder / KEY_NAME
    try:
        if not path.exists():
            _make(path)
        if (mode := path.stat().st_mode) & 0o077:
            raise DeviceError(f"{path}: mode {mode & 0o777:o} lets others read the host's key; chmod 600 {path}")
        data = path.read_bytes()
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}; give it to the user that camloop runs as") from error
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise DeviceError(f"{path}: not a private key; restore it, or remove it and enrol this host again") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DeviceError(f"{path}: not an Ed25519 key; remove it and enrol this host again")
    return Identity(host_id, key)


def find_identity(folder: Path, host_id: str) -> Identity | None:
    """Return the host's identity if it has a key in `folder`, else None; nothing is made.

    Raises:
        DeviceError: there is a key that cannot be used.
    """
    return open_identity(folder, host_id) if (folder / KEY_NAME).exists() else None


def _make(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with _private():
        durable.make_dirs(path.parent)
        try:
            durable.create(path, pem)
        except FileExistsError:
            return  # another process of this host was first: its key is the host's


@contextmanager
def _private() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def verify(public_key: str, document: object, signature: str) -> bool:
    """Say whether `signature` is this key's, of this JSON document."""
    return _verify(public_key, _DOCUMENT + canonical(document), signature)


def verify_request(public_key: str, body: bytes, signature: str) -> bool:
    """Say whether `signature` is this key's, of the bytes of this request."""
    return _verify(public_key, _REQUEST + body, signature)


def is_public_key(text: object) -> bool:
    """Say whether `text` is an Ed25519 public key as 64 hex digits."""
    if not isinstance(text, str) or len(text) != 64:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except ValueError:
        return False
    return True


def _verify(public_key: str, data: bytes, signature: str) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(base64.b64decode(signature, validate=True), data)
    except (InvalidSignature, ValueError, TypeError, binascii.Error):
        return False
    return True
