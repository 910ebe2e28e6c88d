"""One structured event format: JSON lines on standard error. Set up by the command line, never on import.

    log = Log("ingest.upload")
    log.info("uploaded", clip_id=clip_id, n_bytes=n_bytes)
    -> {"time":"2026-11-21T12:00:00.000Z","level":"info","room":"ingest.upload","event":"uploaded","clip_id":"...","n_bytes":5}

An event is a fixed name in the past tense; what varies stands in fields. Secrets are masked in every field and message:
passwords in URLs, access keys, signatures, and whole fields whose name says that they hold one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO

ROOT = "camloop"
MASK = "***"
_URL_PASSWORD = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s'\"]+@")  # up to the last @ before the path
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b")
_ASSIGNED = re.compile(
    r"(?i)(?P<name>[\w-]*(?:secret|password|passwd|token|signature|credential|authorization|api_?key)[\w-]*)"
    r"(?P<is>['\"]?\s*[=:]\s*)(?:(?:Basic|Bearer|AWS4-HMAC-SHA256)\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s&,;'\"}]+)"
)
_SECRET_FIELD = re.compile(r"(?i)secret|password|passwd|token|signature|credential|authorization|api_?key")


def mask(text: str) -> str:
    """Return `text` without the secrets that it shows: passwords in URLs, access keys, `secret=...`."""
    text = _URL_PASSWORD.sub(rf"\g<scheme>{MASK}@", text)
    text = _ACCESS_KEY.sub(MASK, text)
    return _ASSIGNED.sub(rf"\g<name>\g<is>{MASK}", text)


def _clean(name: str, value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if _SECRET_FIELD.search(name):
        return MASK
    if isinstance(value, Mapping):
        return {str(key): _clean(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(name, item) for item in value]
    return mask(str(value))


class JsonLines(logging.Formatter):
    """Formats one record as one line of JSON, secrets masked."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {
            "time": time,
            "level": record.levelname.lower(),
            "room": record.name.removeprefix(f"{ROOT}."),
            "event": mask(record.getMessage()),
        }
        fields: Mapping[str, object] = getattr(record, "fields", {})
        line.update({name: _clean(name, value) for name, value in fields.items() if name not in line})
        if record.exc_info:
            line["traceback"] = mask(self.formatException(record.exc_info))
        return json.dumps(line, separators=(",", ":"), ensure_ascii=False)


class Log:
    """The events of one part of camloop. Making one has no effect until `configure` was called.

    Args:
        room: dotted name of the part, such as `ingest.upload`.
    """

    def __init__(self, room: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{room}")

    def _event(self, level: int, event: str, fields: Mapping[str, object]) -> None:
        self._logger.log(level, event, extra={"fields": fields})

    def debug(self, event: str, **fields: object) -> None:
        """Tell what only a developer wants to know."""
        self._event(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Tell that something happened as planned."""
        self._event(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Tell what somebody should look at; the work goes on."""
        self._event(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Tell what did not work."""
        self._event(logging.ERROR, event, fields)


def configure(stream: IO[str] | None = None, *, level: str = "warning", debug: bool = False) -> None:
    """Send the events of camloop to `stream` (standard error) from `level` on (all with `debug`); the command line calls it.

    Raises:
        ValueError: `level` is not debug, info, warning or error.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel("DEBUG" if debug else level.upper())
    logger.propagate = False
