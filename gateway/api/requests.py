"""The request as the data plane sees it: Django's, with a body that is read late, bounded, and only once."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest

from gateway.errors import (
    InvalidRequest,
    RequestTimeout,
    ShuttingDown,
    TooLarge,
    UnsupportedMediaType,
)
from gateway.patience import Patience
from gateway.request_ids import new_request_id

if TYPE_CHECKING:
    from gateway.plane import DataPlane
    from tenants.principals import Principal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


LAST_WAIT_S = 1.0


class ClientLeft(Exception):
    """The client closed the connection; there is nobody to answer."""


class DataPlaneRequest(ASGIRequest):
    """A request whose body stays on the network until `read_body`, after its key was checked."""

    def __init__(self, scope: Scope, receive: Receive, plane: "DataPlane") -> None:
        super().__init__(scope, BytesIO())
        self.plane = plane
        self.request_id = new_request_id()
        self.received_at = datetime.now(UTC)
        self.principal: Principal | None = None
        self.answer_headers: dict[str, str] = {}  # on whatever the answer will be
        self._receive = receive
        self._when_left: Callable[[], object] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._when_cut_off: Callable[[], object] | None = None
        self._is_cut_off = False
        self._patience = Patience()  # with the client

    async def read_json(self) -> bytes:
        """Return the body. Raises UnsupportedMediaType, TooLarge, RequestTimeout, ClientLeft."""
        if self.content_type != "application/json":
            raise UnsupportedMediaType("The body must be sent with content-type: application/json.")
        if self.META.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
            raise UnsupportedMediaType(
                "Compressed request bodies are not supported.", code="unsupported_content_encoding"
            )
        self._check_size(self._announced_size())
        try:
            with self.patience(settings.BODY_READ_TIMEOUT_S):
                return await self._read()
        except TimeoutError:
            raise RequestTimeout(
                f"The body did not arrive within {settings.BODY_READ_TIMEOUT_S} s."
            ) from None

    def when_client_leaves(self, call: Callable[[], object]) -> None:
        """Call once if the client closes the connection before `close_watch`. Only after the body is read."""
        self._when_left = call
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def client_left(self) -> None:
        """Say that the client is gone, or as good as: it does not read."""
        if self._when_left is not None:
            self._when_left()
            self._when_left = None

    def when_cut_off(self, call: Callable[[], object]) -> None:
        """Call once if the process must stop before the request ends. Raises ShuttingDown if it must already."""
        if self._is_cut_off:
            raise ShuttingDown
        self._when_cut_off = call

    def cut_off(self) -> None:
        """End the request soon: the process must stop. A client that keeps us waiting is given a second more."""
        self._is_cut_off = True
        if self._when_cut_off is not None:
            self._when_cut_off()
        self._patience.hurry(LAST_WAIT_S)

    def patience(self, timeout_s: float) -> Patience:
        """Return the bound of a wait for the client: so long, or LAST_WAIT_S once the request is cut off."""
        return self._patience.of(timeout_s)

    def close_watch(self) -> None:
        """Let go of the connection: request and view form a cycle, which would hold it until a collection."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._patience.close()
        del self._receive

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_left()

    async def _read(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part = message.get("body", b"")
            size += len(part)
            self._check_size(size)
            if not message.get("more_body", False):
                return b"".join([*parts, part]) if parts else part
            parts.append(part)

    def _announced_size(self) -> int:
        announced = self.META.get("CONTENT_LENGTH") or "0"
        if not (announced.isascii() and announced.isdigit() and len(announced) < 20):
            raise InvalidRequest("content-length is not a number.", code="invalid_header")
        return int(announced)

    def _check_size(self, size: int) -> None:
        if size > settings.BODY_BYTES_MAX:
            raise TooLarge(
                f"The body is larger than {settings.BODY_BYTES_MAX} bytes, the most that is accepted."
            )
