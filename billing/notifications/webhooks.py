"""Webhooks: a signed POST to an address that an organization named.

Signed as the Standard Webhooks specification says, so that a receiver finds a library for it: `webhook-id`,
`webhook-timestamp`, `webhook-signature: v1,` + base64 of HMAC-SHA256 over "id.timestamp.body".

The address is the tenant's, the network ours: a name is resolved once, every answer must be public, what is
dialled is one of these answers, and redirects are not followed. No proxy, cookie or credential is involved.
"""

import base64
import hashlib
import hmac
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING

from tenants.addresses import is_public

if TYPE_CHECKING:
    import httpx  # otherwise where it is used: the models know this module, and the door sends no webhooks

URL_LENGTH_MAX = 500
ADDRESSES_MAX = 3  # tried of one name; all that it has are judged
TIMEOUT_S, CONNECT_TIMEOUT_S = 10, 5
SECRET_PREFIX = "whsec_"


class WebhookFailed(Exception):
    """The message was not taken. The text is for people, and tells no address that a name has."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent. A receiver knows by the id that it has it already."""

    id: str
    body: bytes
    sent_at: datetime

    def headers(self, secret: str) -> dict[str, str]:
        timestamp = str(int(self.sent_at.timestamp()))
        signed = f"{self.id}.{timestamp}.".encode() + self.body
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
        signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return {
            "content-type": "application/json",
            "user-agent": "Tessera-webhooks",
            "webhook-id": self.id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature}",
        }


def check_url(text: str, *, allow_private: bool) -> "httpx.URL":
    """Return the URL if it may be a webhook's; WebhookFailed with what is wrong. Resolves nothing."""
    import httpx

    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise WebhookFailed("This is not an address") from error
    if len(text) > URL_LENGTH_MAX or not text.isprintable() or " " in text:
        raise WebhookFailed(f"An address is plain and has at most {URL_LENGTH_MAX} characters")
    if url.scheme not in ({"http", "https"} if allow_private else {"https"}) or not url.host:
        raise WebhookFailed("A webhook's address begins with https://")
    if url.userinfo or url.fragment:
        raise WebhookFailed("A webhook's address has no user name and no fragment")
    return url


def post(text: str, message: Message, *, secret: str, allow_private: bool) -> None:
    """Send the message, and read nothing of the answer but its status. WebhookFailed unless that is 2xx."""
    import httpx

    url = check_url(text, allow_private=allow_private)
    addresses = _addresses(url, allow_private=allow_private)
    headers = message.headers(secret) | {"host": url.netloc.decode("ascii")}
    timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    with httpx.Client(
        timeout=timeout, follow_redirects=False, trust_env=False, verify=_tls()
    ) as client:
        for number, address in enumerate(addresses, 1):
            try:
                status = _ask(client, url, address, headers, message.body)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if number == len(addresses):
                    raise WebhookFailed(f"No connection: {type(error).__name__}") from error
            except httpx.HTTPError as error:
                raise WebhookFailed(f"No answer: {type(error).__name__}") from error
            else:
                break
    if not 200 <= status < 300:
        raise WebhookFailed(f"It answered with status {status}")


def _ask(
    client: "httpx.Client", url: "httpx.URL", address: str, headers: dict[str, str], body: bytes
) -> int:
    """Dial this address, while TLS and Host keep the name."""
    with client.stream(
        "POST",
        url.copy_with(host=address),
        content=body,
        headers=headers,
        extensions={"sni_hostname": _host(url)},
    ) as response:
        return response.status_code


def _addresses(url: "httpx.URL", *, allow_private: bool) -> Sequence[str]:
    """Resolve the name once. One that has no address is refused like one that has a private one."""
    try:
        answers = socket.getaddrinfo(_host(url), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise WebhookFailed("Its host is not one that we send to") from error
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in answers))
    if not (allow_private or all(is_public(ip_address(each)) for each in addresses)):
        raise WebhookFailed("Its host is not one that we send to")
    return addresses[:ADDRESSES_MAX]


def _host(url: "httpx.URL") -> str:
    return url.raw_host.decode("ascii")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # the system's authorities, and those of SSL_CERT_FILE
