"""Connections to the backends: one aiohttp session per backend, shared by all requests of the process.

aiohttp and not httpx on this path: at 32 requests in flight httpx spends 2.6 ms of CPU a request and leaks pool
slots when a send is cancelled (ADR 0003). Nothing of the client's request reaches a backend but the body that
`gateway.protocol` wrote: the headers are made here.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from gateway.catalog import BackendEntry
from gateway.payloads import Piece

# A longer body is written in pieces, between which other requests get their turn.
BODY_BYTES_AT_ONCE = 2**18


class RequestBody(Payload):
    """The body of one request, and whether any of it went out: before that, nothing was used."""

    _autoclose = True

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__(pieces, content_type="application/json")
        self._pieces = pieces
        self._size = sum(map(len, pieces))
        self.is_sent = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._pieces).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.is_sent = True
        for piece in self._pieces:
            view = memoryview(piece)
            for start in range(0, len(view), BODY_BYTES_AT_ONCE):
                await writer.write(view[start : start + BODY_BYTES_AT_ONCE])


class Lane:
    """The session to one backend, and how many requests use it now."""

    def __init__(self, backend: BackendEntry, *, connections_max: int) -> None:
        self.in_use = 0
        self._url = f"{backend.base_url}/chat/completions"
        self._is_retired = False
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if backend.credential:
            headers["authorization"] = f"Bearer {backend.credential}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections_max, ttl_dns_cache=30),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=backend.connect_timeout_s),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=2**18,
        )

    async def post_chat(
        self, body: RequestBody, *, request_id: UUID, stream: bool
    ) -> aiohttp.ClientResponse:
        """Send the request; return when the answer's head is here. The caller closes the response.

        Raises aiohttp.ClientError and TimeoutError. Redirects are not followed.
        """
        return await self._session.post(
            self._url,
            data=body,
            headers={
                "accept": "text/event-stream" if stream else "application/json",
                "x-request-id": str(request_id),
            },
            allow_redirects=False,
        )

    def release(self) -> None:
        """Say that one request has ended; the last one of a retired lane closes it."""
        self.in_use -= 1
        self._close_if_idle()

    def retire(self) -> None:
        """Take no new requests; close when the last one has ended."""
        self._is_retired = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._is_retired and not self.in_use:
            self._closing = asyncio.ensure_future(self._session.close())

    async def aclose(self) -> None:
        await self._session.close()


class BackendPool:
    """The lanes to all backends. A backend whose address or credential changes gets a new lane."""

    def __init__(self, *, connections_max: int) -> None:
        self._connections_max = connections_max
        self._lanes: dict[BackendEntry, Lane] = {}

    def lane(self, backend: BackendEntry) -> Lane:
        """Return the backend's lane with one more request counted on it; give it back with `release`."""
        lane = self._lanes.get(backend)
        if lane is None:
            lane = self._lanes[backend] = Lane(backend, connections_max=self._connections_max)
        lane.in_use += 1
        return lane

    def keep_only(self, backends: set[BackendEntry]) -> None:
        """Retire the lanes of backends that are no longer in the catalog."""
        for entry in self._lanes.keys() - backends:
            self._lanes.pop(entry).retire()

    async def aclose(self) -> None:
        for lane in self._lanes.values():
            await lane.aclose()
        self._lanes.clear()

    @property
    def in_use(self) -> int:
        return sum(lane.in_use for lane in self._lanes.values())
