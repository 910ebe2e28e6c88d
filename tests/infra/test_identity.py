"""A host's key: made on the device, readable by its owner alone, its signatures good for what was signed and nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from infra.errors import DeviceError, UsageError
from infra.identity import canonical, find_identity, is_public_key, open_identity, verify, verify_request


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    """A second look finds the same key; file 0600, folder 0700; nothing shows the private part."""
    assert find_identity(tmp_path / "id", "pi-1") is None
    made = open_identity(tmp_path / "id", "pi-1")
    again = find_identity(tmp_path / "id", "pi-1")
    assert again is not None and again.public_key == made.public_key and is_public_key(made.public_key)
    path = tmp_path / "id" / "host.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "PRIVATE" not in repr(made) and made.public_key not in path.read_text()
    assert open_identity(tmp_path / "other", "pi-1").public_key != made.public_key


def test_signatures(tmp_path: Path) -> None:
    """A document's signature holds for its content in any order of keys; not for other content, key or purpose."""
    mine, other = open_identity(tmp_path / "a", "pi-1"), open_identity(tmp_path / "b", "pi-2")
    document = {"reason": "disk full", "seq": 3, "n": [1, 2], "é": "ü"}
    signature = mine.sign(document)
    assert verify(mine.public_key, dict(reversed(document.items())), signature)
    assert not verify(mine.public_key, document | {"seq": 4}, signature)
    assert not verify(other.public_key, document, signature)
    assert not verify_request(mine.public_key, canonical(document), signature), "a document is no request"
    assert verify_request(mine.public_key, b"body", mine.sign_request(b"body"))
    for broken in ("", "AAAA", "not base64!", signature[:-4], signature + "A", "é"):
        assert not verify(mine.public_key, document, broken)
    for key in ("", "00", "zz" * 32, "00" * 31):
        assert not verify(key, document, signature)


def test_a_key_that_cannot_be_used(tmp_path: Path) -> None:
    """A key that others can read, a damaged one and a name with a slash are refused in one line that says what to do."""
    open_identity(tmp_path, "pi-1")
    path = tmp_path / "host.pem"
    path.chmod(0o644)
    with pytest.raises(DeviceError, match="chmod 600"):
        open_identity(tmp_path, "pi-1")
    path.chmod(0o600)
    path.write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n")
    with pytest.raises(DeviceError, match="enrol this host again"):
        open_identity(tmp_path, "pi-1")
    with pytest.raises(UsageError, match="cannot stand"):
        open_identity(tmp_path, "../pi")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere: this needs an ordinary user")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A read-only folder is one clear line."""
    tmp_path.chmod(0o500)
    with pytest.raises(DeviceError):
        open_identity(tmp_path / "id", "pi-1")
