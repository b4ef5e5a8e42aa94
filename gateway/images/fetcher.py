"""Images that a request names by URL: fetched once, by us; the backend sees bytes, never a URL.

The wall against requests into our own network is `AddressGuard`. A name is resolved once per hop
and every answer must be public; what is dialled is one of those answers, and no socket is made for
anything else. TLS, SNI and Host keep the name. Redirects are followed by hand and judged like the
first URL. No proxy, cookie, credential or kept connection is involved.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway.errors import InvalidImage
from gateway.images import ImageLimits, data_urls
from gateway.images.addresses import AddressRefused, may_dial, parse_url
from gateway.images.data_urls import MeasuredImage
from gateway.images.headers import SIGNATURE_BYTES, check_file_size, sniff_format

Resolve = Callable[[str], Awaitable[Sequence[str]]]  # a name's addresses; OSError: it has none

RESOLVER_THREADS = 8
ADDRESSES_MAX = 8  # dialled of one name; all that it has are judged
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
REQUEST_HEADERS = {
    "accept": "image/png, image/jpeg, image/webp, image/gif",
    "accept-encoding": "identity",
    "user-agent": "Tessera-image-fetcher",
}


class Fetcher:
    """Fetches images by URL, so many at once. Made inside a running loop; owns its connections."""

    def __init__(
        self,
        limits: ImageLimits,
        *,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Resolve by the system and trust its certificate authorities, unless told otherwise."""
        self._limits = limits
        self._guard = AddressGuard(limits, resolve)
        self._session = _open_session(self._guard, limits, tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._session.close()
        await self._guard.close()

    async def fetch(self, url: str | bytes) -> MeasuredImage:
        """Fetch the image and measure it, within `limits.fetch_timeout_s` in all.

        Raises InvalidImage: `invalid_image_url`, in one text, for every URL, name and address that
        is not asked; `failed_to_download_image` for what happens on the way; the codes of
        `gateway.images.headers` for what arrives. No message tells an address.
        """
        # What is not UTF-8 becomes surrogates, and they are refused like all that is not plain.
        text = url if isinstance(url, str) else url.decode(errors="surrogateescape")
        try:
            async with asyncio.timeout(self._limits.fetch_timeout_s):
                body = await self._download(text)
        except TimeoutError as error:
            raise _failed("it took too long") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _failed("the connection failed") from error
        return data_urls.wrap(body, self._limits)

    async def _download(self, text: str) -> bytes:
        url: URL | None = None
        for hop in range(1 + self._limits.redirects_max):
            try:
                url = parse_url(text, self._limits, origin=url)
                answer = await self._ask(url)
            except AddressRefused:
                if hop:
                    raise _failed("it redirects to an address that we do not fetch from") from None
                raise _refused(self._limits) from None
            if isinstance(answer, bytes):
                return answer
            text = answer
        raise _failed("it redirects too often")

    async def _ask(self, url: URL) -> bytes | str:
        """Return the body, or the Location of a redirect."""
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status in REDIRECT_STATUSES:
                return response.headers.get("location", "")
            if response.status != 200:
                raise _failed(f"the server answered with status {response.status}")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise _failed("the server compressed it, though asked not to")
            return await self._read(response)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read the body for as long as it can still be an image that we take."""
        if response.content_length is not None:  # A claim; what arrives is counted all the same.
            check_file_size(response.content_length, self._limits)
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            check_file_size(len(body), self._limits)
            if len(body) - len(chunk) < SIGNATURE_BYTES <= len(body):
                _check_format(body, response.content_type)
        if body:
            _check_format(body, response.content_type)
        return bytes(body)


class AddressGuard(AbstractResolver):
    """The only way to an address: names are resolved through it, and sockets are made by it.

    The resolver refuses a name as soon as one of its addresses is refused. The socket maker sees
    every address there is, those that stand in the URL itself included, and would do alone.
    """

    def __init__(self, limits: ImageLimits, resolve: Resolve | None) -> None:
        self._limits = limits
        self._resolve = resolve or self._ask_system
        # Threads of its own: a name server that hangs must not take the pool that others wait for.
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, "image-resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve the name once. One without addresses is refused like one with private ones."""
        try:
            async with asyncio.timeout(self._limits.resolve_timeout_s):
                addresses = await self._resolve(host)
        except OSError:  # TimeoutError is one
            raise AddressRefused from None
        if not addresses or not all(may_dial(each, port, self._limits) for each in addresses):
            raise AddressRefused
        return [_resolved(host, each, port) for each in addresses[:ADDRESSES_MAX]]

    def make_socket(self, address_info: aiohttp.AddrInfoType) -> socket.socket:
        """Make the socket for one connection, in the knowledge of where it will go."""
        family, kind, protocol, _, address = address_info
        if not may_dial(str(address[0]), int(address[1]), self._limits):
            raise AddressRefused
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask_system(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _system_addresses, host)


def _system_addresses(host: str) -> list[str]:
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in answers]


def _resolved(host: str, address: str, port: int) -> ResolveResult:
    return {
        "hostname": host,
        "host": address,
        "port": port,
        "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
        "proto": 0,
        "flags": socket.AI_NUMERICHOST,
    }


def _open_session(
    guard: AddressGuard, limits: ImageLimits, tls: ssl.SSLContext | None
) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        resolver=guard,
        use_dns_cache=False,
        socket_factory=guard.make_socket,
        force_close=True,  # A kept connection would carry one organization's visit into another's.
        limit=limits.fetches_at_once_max,  # The next one waits here, within its own time.
        ssl=tls or True,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=REQUEST_HEADERS,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_timeout_s),
        auto_decompress=False,
        trust_env=False,
    )


def _check_format(body: bytearray, content_type: str) -> None:
    """Refuse what is no image, and say so when it does not even claim to be one."""
    try:
        sniff_format(body)
    except InvalidImage:
        if content_type.startswith("text/"):
            raise _failed("the server answered with a page, not with an image") from None
        raise


def _refused(limits: ImageLimits) -> InvalidImage:
    """One text for every cause: which names and ports exist inside is nobody's business."""
    return InvalidImage(
        "The image URL must be an http or https address of a public server, on its usual port, "
        f"without user name, at most {limits.url_length_max} characters long.",
        code="invalid_image_url",
    )


def _failed(reason: str) -> InvalidImage:
    return InvalidImage(
        f"The image could not be downloaded: {reason}.", code="failed_to_download_image"
    )
