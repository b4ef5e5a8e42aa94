"""The address of a backend, as people paste it and as requests are built on it. Pure."""

import re
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError

LENGTH_MAX = 500
CHAT = "/chat/completions"
HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")  # one label will do: services in a cluster


def normalise(text: str) -> str:
    """Return the address without a slash at its end; ValidationError if none can be built on it.

    It is listed, logged and stored in the clear, so it may hold no credential.
    """
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValidationError(f"{text!r} is not an address.") from None
    if "@" in parts.netloc:
        raise ValidationError("An address holds no credential: it is listed in the clear.")
    if parts.scheme not in {"http", "https"} or not HOST.fullmatch(host) or port == 0:
        raise ValidationError(f"{text!r} is not an address such as https://host/v1.")
    if parts.query or parts.fragment or not parts.path.isprintable() or " " in url:
        raise ValidationError(f"{text!r} has more than scheme, host, port and path.")
    if parts.path.endswith(CHAT):
        raise ValidationError(f"Give the address up to and without {CHAT}.")
    if len(url) > LENGTH_MAX:
        raise ValidationError(f"An address has at most {LENGTH_MAX} characters.")
    return parts.geturl()
