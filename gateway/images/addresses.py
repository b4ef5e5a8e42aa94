"""Which URL may be asked for, and which address may be dialled. Pure: resolves and opens nothing.

What is public, `tenants.addresses` says.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from urllib.parse import quote, urljoin

import idna
from yarl import URL

from gateway.images import ImageLimits
from tenants.addresses import is_loopback, is_public

HOST_LENGTH_MAX = 253
DEFAULT_PORTS = {"http": 80, "https": 443}

# One parser, for the first URL and for every redirect; what it leaves out (user names, other
# schemes, percent signs in hosts) does not exist for us.
WEB_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<host>[^\[\]:/?#@%]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?"
    r"(?:\?(?P<query>[^#]*))?"
    r"(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
HOST_NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*", re.ASCII)
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
# Sent as they stand, so that signed URLs stay signed; everything else is percent-encoded as UTF-8.
KEPT_IN_TARGET = "!#$%&'()*+,-./:;=?@[]_~"


class AddressRefused(Exception):
    """The URL, its host or an address of it is not one that we ask. Says no more, on purpose."""


def may_dial(address: str, port: int, limits: ImageLimits) -> bool:
    """May a connection be opened to this address? `address` is what a resolver returned."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if limits.allow_loopback and is_loopback(ip):
        return True
    return port in limits.ports and is_public(ip)


def parse_url(text: str, limits: ImageLimits, *, origin: URL | None = None) -> URL:
    """Return the URL, its host in ASCII, its target as it was. Raises AddressRefused.

    With an `origin`, `text` is what that URL redirects to: it may be relative, and must not fall
    from https to http. Whether the host's addresses may be dialled is for `may_dial` to say.
    """
    if len(text) > limits.url_length_max or not _is_plain(text):
        raise AddressRefused
    match = WEB_URL.fullmatch(text if origin is None else _join(origin, text))
    if match is None or match.end() > limits.url_length_max:
        raise AddressRefused
    scheme = match["scheme"].lower()
    if origin is not None and origin.scheme == "https" and scheme != "https":
        raise AddressRefused
    return URL.build(
        scheme=scheme,
        host=_ipv6(match["ipv6"]) if match["ipv6"] else _host(match["host"]),
        port=_port(int(match["port"] or DEFAULT_PORTS[scheme]), limits),
        path=quote(match["path"] or "/", safe=KEPT_IN_TARGET),
        query_string=quote(match["query"] or "", safe=KEPT_IN_TARGET),
        encoded=True,
    )


def _is_plain(text: str) -> bool:
    """No blank, control or invisible character and no backslash: parsers differ on them."""
    return text.isprintable() and " " not in text and "\\" not in text


def _join(origin: URL, location: str) -> str:
    try:
        return urljoin(str(origin), location)
    except ValueError:
        raise AddressRefused from None


def _port(port: int, limits: ImageLimits) -> int:
    if port in limits.ports or (limits.allow_loopback and 0 < port < 2**16):
        return port
    raise AddressRefused


def _ipv6(text: str) -> str:
    """Return the address in the brackets that a URL wants around it."""
    try:
        return f"[{IPv6Address(text)}]"
    except AddressValueError:
        raise AddressRefused from None


def _host(text: str) -> str:
    """Return a name in ASCII, or an IPv4 address in plain form: 127.1 and 0x7f.1 are neither."""
    name = _ascii(text).removesuffix(".")
    if len(name) > HOST_LENGTH_MAX or not HOST_NAME.fullmatch(name):
        raise AddressRefused
    if not NUMBER.fullmatch(name.rpartition(".")[2]):
        return name
    try:
        return str(IPv4Address(name))
    except AddressValueError:
        raise AddressRefused from None


def _ascii(text: str) -> str:
    if text.isascii():
        return text.lower()
    try:
        return idna.encode(text, uts46=True).decode()
    except idna.IDNAError:
        raise AddressRefused from None
