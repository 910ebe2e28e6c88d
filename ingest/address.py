"""Where an address may lead: a stream's host is looked up once, its number is judged, and only that number is connected to.

A camera's address is text that somebody wrote; the machine that opens it stands inside a network that the writer may not reach.
So `resolve` takes RTSP and nothing else, refuses this machine, link-local, private and reserved networks unless they are
listed, and returns the number itself, so that no second look-up (DNS rebinding) can lead elsewhere. What gives out cloud
credentials, "any" addresses and multicast are refused also when they are listed.

What a server says afterwards cannot lead elsewhere either: `relay.py` makes the one connection and ends it at a redirect.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from infra.errors import DeviceError, UsageError
from infra.log import MASK

PORTS: Final = {"rtsp": 554, "rtsps": 322}
_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
METADATA: Final = tuple(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "fd00:ec2::254", "fd00:ec2::23")
)
"""What clouds hand out credentials on: AWS (instance, ECS, EKS), Google, Azure, Alibaba."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_SHARED = ipaddress.IPv4Network("100.64.0.0/10")  # RFC 6598: a provider's own network
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
_TRANSPORTS: Final = frozenset({"udp", "multicast", "udp_multicast", "tcp", "http", "https", "filter_src", "listen"})
"""Words in an address that FFmpeg takes as orders about sockets."""
LookUp = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A stream's address with the number that it was judged by. `shown` is safe to print."""

    scheme: str
    host: str
    ip: str
    port: int
    path: str
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address without user and password."""
        secret = f"{MASK}@" if self.user is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{secret}{host}:{self.port}{self.path.partition('?')[0]}"

    def through(self, port: int) -> str:
        """Return the address of the same stream as seen through a relay on this machine's `port`."""
        secret = ""
        if self.user is not None:
            secret = ":".join(quote(part, safe="") for part in (self.user, self.password) if part is not None) + "@"
        return f"rtsp://{secret}127.0.0.1:{port}{self.path}"


def networks(listed: Sequence[str]) -> tuple[_Network, ...]:
    """Return the networks that somebody listed.

    Raises:
        UsageError: one that is none, with the nearest that is.
    """
    found = []
    for text in listed:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            try:
                near = f"; did you mean {str(ipaddress.ip_network(text, strict=False))!r}?"
            except ValueError:
                near = ""
            raise UsageError(f"allow {text!r} is no network{near} Legal: 192.168.1.0/24, 10.0.0.7, fd12:3456::/32") from error
    return tuple(found)


def resolve(url: str, *, allow: Sequence[str] = (), look_up: LookUp | None = None) -> Address:
    """Look an RTSP address up once and judge where it leads.

    Args:
        url: rtsp:// or rtsps://, with user and password where the camera wants them.
        allow: networks that are not public and yet meant, such as "192.168.1.0/24".
        look_up: (host, port) -> numbers; None: the system's.

    Raises:
        UsageError: not such an address, or it leads where it must not; the message says which line allows it.
        DeviceError: the host's name is not known.
    """
    listed = networks(allow)
    scheme, host, port, path, user, password = _parts(url)
    try:
        numbers = (look_up or _system_look_up)(host, port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DeviceError(f"camera {scheme}://{host}: its name is not known ({reason}); is it right, is it on?") from error
    refused = []
    for number in numbers:
        ip = ipaddress.ip_address(number.partition("%")[0])
        reason_against = _against(ip, listed)
        if reason_against is None:
            return Address(scheme=scheme, host=host, ip=number, port=port, path=path, user=user, password=password)
        refused.append((ip, reason_against))
    if not refused:
        raise DeviceError(f"camera {scheme}://{host}: its name leads nowhere; is it on, is the name right?")
    ip, reason_against = refused[0]
    remedy = "it is never connected to"
    if reason_against in _LISTABLE:
        remedy = f'if this is your camera, allow it: allow = ["{ip}"] in its [[camera]] table'
        if ip.version == 4 and ip.is_private and not ip.is_loopback:
            remedy += f', or its whole network: allow = ["{ipaddress.ip_network(f"{ip}/24", strict=False)}"]'
    raise UsageError(f"camera {scheme}://{host} leads to {ip}, {reason_against}; {remedy}")


def _parts(url: str) -> tuple[str, str, int, str, str | None, str | None]:
    legal = "legal: rtsp://[USER:PASSWORD@]HOST[:PORT]/PATH or rtsps://..., without spaces; @ : / # ? in a password as %40 ..."
    scheme = url.partition(":")[0].lower()
    if scheme not in PORTS or not url[len(scheme) :].startswith("://"):
        raise UsageError(f"source {scheme[:20]!r}:// is no kind of stream; {legal}")
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url or "#" in url or len(url) > 2000:
        raise UsageError(f"source {scheme}://{MASK} holds a character that no address has, or over 2000 of them; {legal}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or not re.fullmatch(r"[0-9a-z_.:%-]+", host) or parts.netloc.count("@") > 1:
        raise UsageError(f"source {scheme}://{MASK} has no host that can be one; {legal}")
    if any(code in parts.path.lower() + parts.query.lower() for code in ("%00", "%0a", "%0d")):
        raise UsageError(f"source {scheme}://{MASK}{host} has a path that no address has; {legal}")
    pieces = re.split(r"([?&])", parts.path + (f"?{parts.query}" if parts.query else ""))
    kept = pieces[0] or "/"
    for joint, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        if piece.lower() not in _TRANSPORTS:
            kept += ("&" if "?" in kept and joint == "&" else "?" if "?" not in kept else joint) + piece
    user = None if parts.username is None else unquote(parts.username)
    return scheme, host, port or PORTS[scheme], kept, user, None if parts.password is None else unquote(parts.password)


def _system_look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(number) for *_, (number, *_) in found))


_LISTABLE: Final = ("this machine", "a link-local network", "a private network", "a reserved network")


def _against(ip: _Ip, listed: Sequence[_Network]) -> str | None:
    """Return what speaks against connecting to a number, None when nothing does."""
    for inner in (ip, *_inside(ip)):
        if inner in METADATA:
            return "which gives out a cloud's credentials"
        if inner.is_unspecified or inner.is_multicast or inner == _BROADCAST:
            return "which is no single machine"
        if any(inner.version == network.version and inner in network for network in listed):
            continue
        if inner.is_loopback:
            return _LISTABLE[0]
        if inner.is_link_local:
            return _LISTABLE[1]
        if inner.is_private or (inner.version == 4 and inner in _SHARED):
            return _LISTABLE[2]
        if inner is ip and (inner.is_reserved or not inner.is_global) and not tuple(_inside(ip)):
            return _LISTABLE[3]
    return None


def _inside(ip: _Ip) -> tuple[ipaddress.IPv4Address, ...]:
    """Return the IPv4 numbers that an IPv6 number stands for: mapped, compatible, 6to4, Teredo, NAT64."""
    if ip.version == 4:
        return ()
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64 or int(ip) >> 32 == 0:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return tuple(number for number in found if number is not None)
