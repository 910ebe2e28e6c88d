"""camloop.toml and the environment become one frozen `Settings`: the only reader of os.environ in camloop.

Order of strength: a command's own flags (they are applied by the command line), the environment, `camloop.toml`, the defaults.

    store = "s3://farm/cameras"      # or a folder; the default is ./camloop-data
    host_id = "barn-pi-1"            # the default is the machine's host name
    ray_address = "auto"             # without it, Ray runs on this machine

    [s3]                             # only what botocore's own chain does not already know
    endpoint_url = "https://minio.example"
    role_arn = "arn:aws:iam::1:role/camera"

Keys and secrets never stand in camloop.toml: they come from botocore's chain (environment, ~/.aws, instance role).
A key that nobody knows is refused with its line. Rooms' own tables (`ROOM_TABLES`) pass through in `Settings.toml`; a room
makes its own frozen dataclass of one with `read_table(TriggerSettings, table, settings.where("trigger"))`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import socket
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from infra.errors import SettingsError, UsageError
from infra.keys import check_name
from infra.log import mask

FILE_NAME = "camloop.toml"
ROOM_TABLES = frozenset({"camera", "agent", "privacy", "trigger", "spool", "upload", "serve", "jobs", "fleet", "loop", "ui"})
Addressing = Literal["auto", "path", "virtual"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """How an S3-compatible store is reached. What is None is left to botocore's own chain.

    `role_arn` is assumed through STS (of `endpoint_url`, where one is given) and renewed before it expires.
    The three credential fields come from the environment and are never shown.
    """

    endpoint_url: str | None = None
    region: str | None = None
    addressing: Addressing = "auto"
    profile: str | None = None
    role_arn: str | None = None
    max_attempts: int = 4
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.addressing not in get_args(Addressing):
            raise SettingsError(f"s3.addressing is {self.addressing!r}; legal: {', '.join(get_args(Addressing))}")
        if self.endpoint_url is not None and not re.match(r"https?://[^/\s]+", self.endpoint_url):
            raise SettingsError(f"s3.endpoint_url is {self.endpoint_url!r}; legal: http://HOST[:PORT] or https://HOST[:PORT]")
        if self.max_attempts < 1 or self.connect_timeout_s <= 0 or self.read_timeout_s <= 0:
            raise SettingsError("s3.max_attempts, s3.connect_timeout_s and s3.read_timeout_s must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where a table stands in a TOML file: enough to name the line of each of its keys. `table` may be dotted."""

    file: Path | None
    text: str = field(repr=False)
    table: str
    number: int = 0

    def line(self, key: str | None = None) -> str:
        """Return `FILE line N: ` of the key, or of the table where the key has no line of its own."""
        if self.file is None:
            return ""
        lines = self.text.splitlines()
        first, last = 0, len(lines)
        names = self.table.split(".")
        for depth in range(1, len(names) + 1):  # [[camera]], then [camera.trigger] within it
            is_header = re.compile(rf"\s*\[+\s*{re.escape('.'.join(names[:depth]))}\s*\]")
            starts = [at for at in range(first, last) if is_header.match(lines[at])]
            if not starts:  # trigger = {...}
                inline = [at for at in range(first, last) if _line_of(lines[at], names[depth - 1], 0)]
                first, last = (inline[0], inline[0] + 1) if inline else (first, last)
                break
            number = min(self.number, len(starts) - 1) if depth == 1 else 0
            first, last = starts[number], starts[number + 1] if number + 1 < len(starts) else last
        found = (at for at in range(first, last) if key is not None and _line_of(lines[at], key, 0))
        return f"{self.file} line {next(found, first) + 1}: "

    def __str__(self) -> str:
        return f"[{self.table}]" if self.table[:1].isalpha() else self.table


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a machine is told. `toml` is the whole parsed camloop.toml, for the rooms' own tables such as [[camera]]."""

    store_url: str = "./camloop-data"
    s3: S3Settings = S3Settings()
    host_id: str = "host"
    ray_address: str | None = None
    toml: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)  # may hold a camera's password
    toml_text: str = field(default="", repr=False)
    file: Path | None = None

    def where(self, table: str, number: int = 0) -> Where:
        """Return the place of a table in camloop.toml, for `read_table`; `number` counts the [[tables]] of one name from 0."""
        return Where(file=self.file, text=self.toml_text, table=table, number=number)

    def __post_init__(self) -> None:
        try:
            check_name(self.host_id, "host_id")
        except UsageError as error:
            raise SettingsError(str(error)) from error
        if not self.store_url:
            raise SettingsError("store is empty; legal: a folder, file:///folder, s3://bucket/prefix, memory://")


_TOP: Mapping[str, type] = {"store": str, "host_id": str, "ray_address": str, "s3": dict}
_SECRETS = frozenset({"access_key_id", "secret_access_key", "session_token"})
_S3: Mapping[str, tuple[type, ...]] = {
    "endpoint_url": (str,), "region": (str,), "addressing": (str,), "profile": (str,), "role_arn": (str,),
    "max_attempts": (int,), "connect_timeout_s": (int, float), "read_timeout_s": (int, float),
}  # fmt: skip


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read camloop.toml and the environment.

    Args:
        path: a camloop.toml that must exist; None looks for ./camloop.toml, which may be absent.
        environ: the environment; None is the process's own. Read: CAMLOOP_STORE, CAMLOOP_HOST_ID, CAMLOOP_RAY_ADDRESS,
            CAMLOOP_S3_ENDPOINT (or AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL), AWS_REGION (or AWS_DEFAULT_REGION), AWS_PROFILE,
            AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.

    Raises:
        SettingsError: the file is missing or not TOML, or a key or value is not known; the message names the line.
    """
    env = os.environ if environ is None else environ
    source = path or Path(FILE_NAME)
    text, document = "", cast(dict[str, Any], {})
    if path is not None or source.exists():
        text, document = _read(source)
    _check(document, text, source)
    s3 = dict(document.get("s3", {}))
    from_env = {
        "endpoint_url": _first(env, "CAMLOOP_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "region": _first(env, "AWS_REGION", "AWS_DEFAULT_REGION"),
        "profile": _first(env, "AWS_PROFILE"),
        "access_key_id": _first(env, "AWS_ACCESS_KEY_ID"),
        "secret_access_key": _first(env, "AWS_SECRET_ACCESS_KEY"),
        "session_token": _first(env, "AWS_SESSION_TOKEN"),
    }
    s3.update({name: value for name, value in from_env.items() if value is not None})
    return Settings(
        store_url=_first(env, "CAMLOOP_STORE") or document.get("store", "./camloop-data"),
        s3=S3Settings(**s3),
        host_id=_first(env, "CAMLOOP_HOST_ID") or document.get("host_id") or _host_name(),
        ray_address=_first(env, "CAMLOOP_RAY_ADDRESS") or document.get("ray_address"),
        toml=MappingProxyType(document),
        toml_text=text,
        file=source if text else None,
    )


def read_table(cls: type[_T], table: Mapping[str, Any], where: Where | str) -> _T:
    """Make a frozen, keyword-only dataclass of a TOML table.

    Legal fields: bool, int, float (a whole number will do), str, Path (text), Literal, `X | None`, `tuple[X, ...]`,
    `tuple[X, X]` and `Mapping[str, X]` of those, other such dataclasses (tables in the table) and Any. A value that
    `__post_init__` refuses with a SettingsError whose first word is the field's name is told with that field's line.

    Args:
        cls: the dataclass; a field without a default must be in the table.
        table: what tomllib made of it.
        where: `settings.where("trigger")`, or a few words such as "--size" for what did not come from a file.

    Raises:
        SettingsError: an unknown key (with near names), a wrong type (with the legal one), a missing key, a refused value.
    """
    place = where if isinstance(where, Where) else Where(file=None, text="", table=where.strip("[]"))
    name = str(where)
    if not isinstance(table, Mapping):
        raise SettingsError(f"{place.line()}{name} is {mask(repr(table))}; legal: a table")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    made = {}
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=2, cutoff=0.6)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise SettingsError(f"{place.line(key)}{name}: unknown key {key!r}{meant}; legal: {', '.join(fields)}")
        try:
            made[key] = _typed(hints[key], value, place, key)
        except TypeError as error:
            shown = mask(repr(value))[:120]
            raise SettingsError(f"{place.line(key)}{name}: {key} = {shown}; legal: {error}") from None
    missing = [
        field.name
        for field in fields.values()
        if field.name not in made and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"{place.line()}{name} lacks {', '.join(missing)}")
    try:
        return cls(**made)
    except (SettingsError, UsageError) as error:
        first = str(error).split(" ", 1)[0]
        raise SettingsError(f"{place.line(first if first in made else None)}{name}: {error}") from error


def _typed(hint: Any, value: Any, place: Where, key: str) -> Any:
    """Return `value` as the type `hint`; raises TypeError with the legal type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        legal = []
        for kind in kinds:
            try:
                return _typed(kind, value, place, key)
            except TypeError as error:
                legal.append(str(error))
        raise TypeError(" or ".join(legal))
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != any(isinstance(a, bool) and a == value for a in arguments):
            raise TypeError(", ".join(repr(argument) for argument in arguments))
        return value
    if origin is tuple:
        n_fixed = None if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, list) or (n_fixed is not None and len(value) != n_fixed):
            raise TypeError(f"a list of {n_fixed} values" if n_fixed is not None else "a list [...]")
        kinds = [arguments[0]] * len(value) if n_fixed is None else list(arguments)
        return tuple(_typed(kind, item, place, key) for kind, item in zip(kinds, value, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise TypeError("a table {...}")
        return MappingProxyType({name: _typed(arguments[1], item, place, key) for name, item in value.items()})
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise TypeError("a table {...}")
        return read_table(cast(Any, hint), value, dataclasses.replace(place, table=f"{place.table}.{key}"))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if hint in _IN_WORDS and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError(_IN_WORDS.get(hint, str(hint)))


_IN_WORDS: Mapping[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes", Path: "a path in quotes",
}  # fmt: skip


def child_environment(settings: Settings, *, secrets: bool = True, **more: str) -> dict[str, str]:
    """Return the environment for a camloop command that a process starts: its own, with these settings written into it.

    Without `secrets` the store's credentials are left out: a process that decodes what strangers send needs no store.
    """
    made = dict(os.environ)
    made["CAMLOOP_STORE"] = settings.store_url
    made["CAMLOOP_HOST_ID"] = settings.host_id
    if settings.ray_address:
        made["CAMLOOP_RAY_ADDRESS"] = settings.ray_address
    names = {"endpoint_url": "CAMLOOP_S3_ENDPOINT", "region": "AWS_REGION", "profile": "AWS_PROFILE"}
    names |= {name: f"AWS_{name.upper()}" for name in _SECRETS}
    for name, variable in names.items():
        value = getattr(settings.s3, name)
        if value is not None:
            made[variable] = value
    hidden = () if secrets else tuple(f"AWS_{name.upper()}" for name in _SECRETS)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", *hidden):  # the first three are for this process alone
        made.pop(name, None)
    return made | more


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What systemd tells a service: where it listens, how long it may be silent, its directory in memory."""

    notify_socket: str | None
    watchdog_s: float | None
    runtime_folder: Path


def service_settings(environ: Mapping[str, str] | None = None) -> ServiceSettings:
    """Read NOTIFY_SOCKET, WATCHDOG_USEC and RUNTIME_DIRECTORY (else XDG_RUNTIME_DIR, else /dev/shm) as systemd sets them."""
    env = os.environ if environ is None else environ
    usec = env.get("WATCHDOG_USEC", "")
    folder = env.get("RUNTIME_DIRECTORY", "").split(":")[0] or env.get("XDG_RUNTIME_DIR") or "/dev/shm"
    return ServiceSettings(
        notify_socket=env.get("NOTIFY_SOCKET") or None,
        watchdog_s=int(usec) / 1e6 if usec.isdigit() and int(usec) else None,
        runtime_folder=Path(folder),
    )


def _first(env: Mapping[str, str], *names: str) -> str | None:
    return next((env[name] for name in names if env.get(name)), None)


def _host_name() -> str:
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().split(".")[0]).strip("-")
    return cleaned or "host"


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: no such file; write one or leave the option out") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not TOML: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error


def _line_of(text: str, name: str, default: int = 1) -> int:
    pattern = re.compile(rf"""^\s*(?:\[\[?\s*)?(?:"|')?{re.escape(name)}(?:"|')?\s*[\].=]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), default)


def _check(document: Mapping[str, Any], text: str, path: Path) -> None:
    legal = ", ".join([*sorted(_TOP), *(f"[{name}]" for name in sorted(ROOM_TABLES))])
    for name, value in document.items():
        where = f"{path} line {_line_of(text, name)}"
        if name in ROOM_TABLES:
            if not isinstance(value, (dict, list)):
                raise SettingsError(f"{where}: {name} = {value!r} must be a table [{name}] or [[{name}]]")
        elif name not in _TOP:
            raise SettingsError(f"{where}: unknown key {name!r}; legal: {legal}")
        elif not isinstance(value, _TOP[name]):
            raise SettingsError(f"{where}: {name} = {value!r} must be {'a table' if name == 's3' else 'text'}")
    for name, value in document.get("s3", {}).items():
        where = f"{path} line {_line_of(text, name)}"
        if name in _SECRETS:
            raise SettingsError(f"{where}: s3.{name} does not belong in a file; use the environment or ~/.aws/credentials")
        if name not in _S3:
            raise SettingsError(f"{where}: unknown key s3.{name}; legal: {', '.join(sorted(_S3))}")
        if not isinstance(value, _S3[name]) or isinstance(value, bool):
            raise SettingsError(f"{where}: s3.{name} = {value!r} must be {' or '.join(kind.__name__ for kind in _S3[name])}")


def with_store(settings: Settings, store_url: str) -> Settings:
    """Return the settings with another store: what `--store URL` does."""
    return dataclasses.replace(settings, store_url=store_url)


QUIET_LIBRARIES: Mapping[str, str] = MappingProxyType(
    {
        "YOLO_OFFLINE": "true",  # ultralytics: no look at the network on import, no usage events
        "YOLO_AUTOINSTALL": "false",  # ultralytics: never runs pip
        "YOLO_VERBOSE": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # ray: tracebacks of its own processes stay in its logs, out of our output
        "HF_HUB_OFFLINE": "1",  # open_clip loads weights from disk only
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
)
"""What libraries read from the environment when they are imported; camloop never lets them phone or install."""


def quiet_libraries() -> None:
    """Write `QUIET_LIBRARIES` into the process's environment; call it before importing ultralytics, open_clip or ray."""
    os.environ.update(QUIET_LIBRARIES)
