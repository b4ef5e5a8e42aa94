"""One call to a backend: opened, read, and closed, within its deadlines.

A call is never cancelled from outside: whoever wants it to end calls `stop`, which closes the connection, so that
whoever waits for it wakes up.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from uuid import UUID

import aiohttp

from gateway.backends import BackendPool, RequestBody
from gateway.catalog import BackendEntry
from gateway.completions import read_error
from gateway.errors import (
    BackendBusy,
    BackendFailed,
    BackendRateLimited,
    BackendRefused,
    BackendTimeout,
    GatewayError,
    ShuttingDown,
)
from gateway.patience import Patience
from gateway.payloads import Piece
from gateway.sse import StreamBroken

logger = logging.getLogger(__name__)

RETRY_AFTER_S_MAX = 60
ERROR_BODY_BYTES_MAX = 64 * 1024
BROKEN = (aiohttp.ClientError, OSError, StreamBroken)  # whatever says that the backend broke off


class Stop(StrEnum):
    """Why a call ended before the backend finished."""

    CLIENT_LEFT = "client_closed"
    TOO_SLOW = "timeout"
    BACKEND_BROKE = "backend_error"
    SHUT_DOWN = "shut_down"

    @property
    def status(self) -> str:
        """Return the usage record's word for it (billing.models.UsageStatus)."""
        return "timeout" if self is Stop.SHUT_DOWN else self.value


class UpstreamCall:
    """One request to one backend. Close it, also when it was never opened."""

    def __init__(
        self, backend: BackendEntry, backends: BackendPool, *, request_id: UUID, stream: bool
    ) -> None:
        self.backend = backend
        self.stopped: Stop | None = None
        self._request_id = request_id
        self._stream = stream
        self._lane = backends.lane(backend)
        self._loop = asyncio.get_running_loop()
        self._quiet = Patience()
        self._body: RequestBody | None = None
        self._opening: asyncio.Task[aiohttp.ClientResponse] | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._waits_until = 0.0
        self._deadline = 0.0

    @property
    def is_sent(self) -> bool:
        """Return whether any of the request went out to the backend."""
        return self._body is not None and self._body.is_sent

    def stop(self, reason: Stop) -> None:
        """End the call from outside; the first reason stays."""
        if self.stopped is None:
            self.stopped = reason
            self._disconnect()

    def close(self) -> None:
        """Give back the connection if the answer was read to its end, close it if not."""
        self._disconnect()
        self._quiet.close()
        self._lane.release()

    def broke(self, error: BaseException) -> None:
        """Note that the backend broke off, unless the call was stopped: then that is why."""
        if self.stopped is None:
            logger.warning("backend %s broke off: %r", self.backend.name, error)
            self.stopped = Stop.BACKEND_BROKE

    async def open(self, body: Sequence[Piece]) -> None:
        """Send the request to the backend and wait for the head of its answer.

        Raises BackendRefused, BackendFailed, BackendBusy, BackendTimeout.
        """
        if self.stopped is not None:
            raise self._failure()  # the client left while its money was being held
        backend = self.backend
        self._deadline = self._loop.time() + backend.total_timeout_s
        self._expect(backend.first_byte_timeout_s)
        self._body = RequestBody(body)
        self._opening = self._loop.create_task(
            self._lane.post_chat(self._body, request_id=self._request_id, stream=self._stream)
        )
        try:
            self._response = await self._opening
        except asyncio.CancelledError:
            raise self._failure() from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("backend %s cannot be reached: %r", backend.name, error)
            raise self._failure() from error
        finally:
            self._opening = None
        await self._check_head(self._response)

    async def chunks(self, *, heartbeat_s: float) -> AsyncIterator[bytes]:
        """Yield what the network brings; b"" where it brought nothing for a heartbeat's time."""
        assert self._response is not None
        read = self._response.content.readany
        timeout_s = self.backend.chunk_timeout_s
        self._expect(timeout_s)
        while True:
            try:
                with self._quiet.of(heartbeat_s):
                    data = await read()
            except TimeoutError:
                yield b""
                continue
            if not data:
                return
            self._expect(None)  # while the client is slow to take it, the backend is not to blame
            yield data
            self._expect(timeout_s)

    async def read_all(self, bytes_max: int) -> bytes:
        """Return the whole body. Raises BackendFailed, BackendTimeout."""
        assert self._response is not None
        parts: list[bytes] = []
        size = 0
        self._expect(self.backend.chunk_timeout_s)
        try:
            while data := await self._response.content.readany():
                parts.append(data)
                size += len(data)
                if size > bytes_max:
                    raise StreamBroken(f"the answer is longer than {bytes_max} bytes")
        except BROKEN as error:
            self.broke(error)
            raise self._failure() from error
        return b"".join(parts)

    async def _check_head(self, response: aiohttp.ClientResponse) -> None:
        expected = "text/event-stream" if self._stream else "application/json"
        if response.status == 200 and response.content_type == expected:
            return
        if response.status == 200:
            raise BackendFailed(
                f"The model's backend answered with {response.content_type} instead of {expected}.",
                code="upstream_invalid_response",
            )
        body = await self.read_all(ERROR_BODY_BYTES_MAX)
        raise _refusal(response, body, self.backend)

    def _expect(self, timeout_s: float | None) -> None:
        """Give the backend so long to show a sign of life, within the deadline of the whole call.

        None: as long as that deadline allows. One timer a call: it looks at the clock when it fires and
        sleeps on if there was a sign meanwhile.
        """
        self._waits_until = self._deadline
        if timeout_s is not None:
            self._waits_until = min(self._loop.time() + timeout_s, self._deadline)
        if self._watchdog is None or self._watchdog.when() > self._waits_until:
            if self._watchdog is not None:
                self._watchdog.cancel()
            self._watchdog = self._loop.call_at(self._waits_until, self._look)

    def _look(self) -> None:
        if self._loop.time() < self._waits_until:
            self._watchdog = self._loop.call_at(self._waits_until, self._look)
        else:
            self._watchdog = None
            self.stop(Stop.TOO_SLOW)

    def _disconnect(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._opening is not None:
            self._opening.cancel()
        if self._response is not None and not self._response.closed:
            self._response.release()  # aiohttp closes the connection unless the body was read to its end

    def _failure(self) -> GatewayError:
        """Return the error for a call that never gave an answer."""
        if self.stopped is Stop.SHUT_DOWN:
            return ShuttingDown()
        if self.stopped is Stop.TOO_SLOW:
            return BackendTimeout("The model's backend did not answer in time.")
        return BackendFailed("The model's backend cannot be reached or broke off.")

    def interruption(self) -> GatewayError:
        """Return the error for a stream that was broken off."""
        if self.stopped is Stop.SHUT_DOWN:
            return ShuttingDown()
        if self.stopped is Stop.TOO_SLOW:
            return BackendTimeout("The model's backend took too long.", code="upstream_timeout")
        return BackendFailed(
            "The model's backend broke the stream off.", code="upstream_stream_interrupted"
        )


def _refusal(response: aiohttp.ClientResponse, body: bytes, backend: BackendEntry) -> GatewayError:
    """Translate the backend's error status. Its headers, address and credential stay here."""
    status = response.status
    logger.warning("backend %s answered %d", backend.name, status)
    if status in {429, 503}:
        wait_s = _retry_after_s(response.headers.get("retry-after", ""))
        busy = BackendRateLimited if status == 429 else BackendBusy
        return busy("The model's backend is busy.", retry_after_s=wait_s)
    if status in {400, 413, 415, 422}:
        said = read_error(body)
        if backend.base_url in said.message or (
            backend.credential and backend.credential in said.message
        ):
            return BackendRefused("The model's backend refused the request.", status=status)
        return BackendRefused(said.message, status=status, code=said.code, param=said.param)
    if status in {401, 403}:
        return BackendFailed("The model's backend does not accept this gateway's credential.")
    return BackendFailed("The model's backend failed.")


def _retry_after_s(value: str) -> int:
    return min(int(value), RETRY_AFTER_S_MAX) if value.isascii() and value.isdigit() else 1
