"""One request between its hold and its usage record.

An `Exchange` owns the hold and the upstream call. However it ends, and there are six ways in which a stream can
end, it settles the hold or gives it back, exactly once, and closes the upstream:

* the backend finishes                                → settled `ok`, then the last bytes go out
* the backend refuses, or cannot be reached           → voided, an error answer
* the backend breaks off or misbehaves in the middle  → settled `backend_error`, an error event, no [DONE]
* the client leaves while we wait for the backend     → upstream closed, settled `client_closed`
* the client leaves or stalls while we write to it    → the same
* a deadline passes                                   → settled `timeout`, an error event, no [DONE]

Nothing here is ever cancelled from outside: whoever wants it to stop calls `stop`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import aiohttp
import msgspec

from billing.batcher import StoreUnavailable
from billing.holds import Bookkeeper, HoldRow, UsageRow
from billing.rating import Rates, Tokens, amount_pico, worst_case_pico
from gateway.backends import BackendPool
from gateway.catalog import BackendEntry, ModelEntry, RouteEntry
from gateway.completions import Answer, UpstreamUsage, error_event, read_error, usage_chunk
from gateway.counting.counters import INLINE_CHARS_MAX
from gateway.errors import (
    BackendBusy,
    BackendFailed,
    BackendRateLimited,
    BackendRefused,
    BackendTimeout,
    GatewayError,
    MeteringUnavailable,
)
from gateway.listener import Listener
from gateway.metering import Metered, PromptCount, is_credible, meter
from gateway.sse import DONE, EventSplitter, StreamBroken
from tenants.principals import Principal

logger = logging.getLogger(__name__)

TOKEN_CHARS_MAX = 128  # the longest token of any tokenizer here: a run of spaces
HOLD_GRACE_S = 120  # how long after its last possible instant a hold waits before it expires
MALFORMED_EVENTS_MAX = 3
RETRY_AFTER_S_MAX = 60
ERROR_BODY_BYTES_MAX = 64 * 1024
HEARTBEAT = b": waiting\n\n"


class Stop(StrEnum):
    """Why an exchange was stopped before the backend finished."""

    CLIENT_LEFT = "client_closed"
    TOO_SLOW = "timeout"
    BACKEND_BROKE = "backend_error"


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of an exchange."""

    answer_bytes_max: int
    event_bytes_max: int
    heartbeat_s: int


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done: everything that was decided before money is held."""

    request_id: UUID
    principal: Principal
    model: ModelEntry
    route: RouteEntry
    rates: Rates
    prompt: PromptCount
    canvases: list[str]
    out_max: int  # over all choices
    stream: bool
    include_usage: bool
    received_at: datetime

    @property
    def worst_case_pico(self) -> int:
        return worst_case_pico(
            self.rates,
            text_in=self.prompt.text_upper_bound,
            image_in=self.prompt.image_upper_bound,
            out_max=self.out_max,
        )


class Exchange:
    """One request on its way through the door. Use as `async with`: leaving it settles or voids the hold."""

    def __init__(
        self, job: Job, *, books: Bookkeeper, backends: BackendPool, limits: Limits
    ) -> None:
        self.job = job
        self._books = books
        self._backends = backends
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._lane = backends.lane(job.route.backend)
        self._opening: asyncio.Task[aiohttp.ClientResponse] | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._waits_until = 0.0
        self._deadline = 0.0
        self._stop: Stop | None = None
        self._is_held = False
        self._first_byte_at: datetime | None = None
        self._listener: Listener | None = None
        self._answer: Answer | None = None
        self._is_dispatched = False
        self._finished: Metered | None = None

    # ------------------------------------------------------------ the hold

    async def __aenter__(self) -> "Exchange":
        """Hold the worst case, durably. Raises MeteringUnavailable: then nothing went upstream."""
        try:
            await self._books.reserve(self._hold_row())
        except StoreUnavailable as error:
            self._lane.release()
            raise MeteringUnavailable(
                "Usage cannot be recorded now, so the request was not sent on. Try again shortly.",
                headers={"retry-after": "1"},
            ) from error
        self._is_held = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the upstream; settle what was generated, or give the hold back if nothing was.

        A client that leaves once its request is with the backend pays for its prompt, as that work is done.
        """
        self._close_upstream()
        self._lane.release()
        if not self._is_held:
            return
        has_left = self._stop is Stop.CLIENT_LEFT and self._is_dispatched
        try:
            if has_left or self._first_byte_at is not None:
                await self._settle(self._stop or Stop.BACKEND_BROKE)
            else:
                await self._void()
        except StoreUnavailable:
            logger.exception("request %s is left to the expiry of its hold", self.job.request_id)

    def stop(self, reason: Stop) -> None:
        """End the exchange from outside: close the upstream, so that whoever waits for it wakes up."""
        if self._stop is None and self._finished is None:
            self._stop = reason
            self._close_upstream()

    # ------------------------------------------------------------ the upstream call

    async def open(self, body: bytes) -> None:
        """Send the request to the backend and wait for the head of its answer.

        Raises BackendRefused, BackendFailed, BackendBusy, BackendTimeout.
        """
        backend = self.job.route.backend
        self._deadline = self._loop.time() + backend.total_timeout_s
        self._expect(backend.first_byte_timeout_s)
        self._is_dispatched = True
        self._opening = self._loop.create_task(
            self._lane.post_chat(body, request_id=self.job.request_id, stream=self.job.stream)
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

    async def answer(self) -> bytes:
        """Read the whole answer, settle, and return it as the client is to see it."""
        assert self._response is not None
        body = await self._read_all(self._response, self._limits.answer_bytes_max)
        self._first_byte_at = datetime.now(UTC)
        try:
            answer = self._answer = Answer(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._stop = Stop.BACKEND_BROKE
            raise BackendFailed(
                "The model's backend sent an answer that is not a chat completion.",
                code="upstream_invalid_response",
            ) from error
        metered = await self._settle_or_refuse()
        return answer.shaped(model=self.job.model.name, usage=metered.shown)

    async def events(self) -> AsyncIterator[bytes]:
        """Relay the stream: every event as it came, but the usage and [DONE], which wait for the settling."""
        assert self._response is not None
        splitter = EventSplitter(self._limits.event_bytes_max)
        listener = self._listener = Listener(
            public_name=self.job.model.name,
            is_renamed=self.job.route.backend_model != self.job.model.name,
            bytes_max=self._limits.answer_bytes_max,
        )
        try:
            async for data in self._chunks(self._response):
                passed = listener.hear(splitter.feed(data)) if data else HEARTBEAT
                self._first_byte_at = self._first_byte_at or listener.heard_at
                if passed:
                    yield passed
                if listener.is_done:
                    break
            listener.check_end()
        except (aiohttp.ClientError, OSError, StreamBroken) as error:
            if self._stop is None:
                logger.warning("backend %s broke off: %r", self.job.route.backend.name, error)
                self._stop = Stop.BACKEND_BROKE
        async for tail in self._tail(listener):
            yield tail

    async def _tail(self, listener: Listener) -> AsyncIterator[bytes]:
        """Settle, then say how it ended. The client sees [DONE] only if its usage record is written."""
        if self._stop is Stop.CLIENT_LEFT:
            return
        if self._stop is not None:
            yield error_event(self._interruption().envelope())
            return
        try:
            metered = await self._settle_or_refuse()
        except GatewayError as error:
            yield error_event(error.envelope())
            return
        if self.job.include_usage:
            yield usage_chunk(
                id=listener.id,
                created=listener.created,
                model=self.job.model.name,
                usage=metered.shown,
            )
        yield b"data: " + DONE + b"\n\n"

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield what the network brings; b"" where it brought nothing for a heartbeat's time."""
        read = response.content.readany
        timeout_s = self.job.route.backend.chunk_timeout_s
        self._expect(timeout_s)
        while True:
            try:
                async with asyncio.timeout(self._limits.heartbeat_s):
                    data = await read()
            except TimeoutError:
                yield b""
                continue
            if not data:
                return
            self._expect(None)  # while the client is slow to take it, the backend is not to blame
            yield data
            self._expect(timeout_s)

    async def _read_all(self, response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        self._expect(self.job.route.backend.chunk_timeout_s)
        try:
            while data := await response.content.readany():
                parts.append(data)
                size += len(data)
                if size > bytes_max:
                    raise StreamBroken(f"the answer is longer than {bytes_max} bytes")
        except (aiohttp.ClientError, OSError, StreamBroken) as error:
            logger.warning("backend %s broke off: %r", self.job.route.backend.name, error)
            raise self._failure() from error
        return b"".join(parts)

    async def _check_head(self, response: aiohttp.ClientResponse) -> None:
        expected = "text/event-stream" if self.job.stream else "application/json"
        if response.status == 200 and response.content_type == expected:
            return
        if response.status == 200:
            raise BackendFailed(
                f"The model's backend answered with {response.content_type} instead of {expected}.",
                code="upstream_invalid_response",
            )
        body = await self._read_all(response, ERROR_BODY_BYTES_MAX)
        raise _refusal(response, body, self.job.route.backend)

    # ------------------------------------------------------------ stopping

    def _expect(self, timeout_s: float | None) -> None:
        """Give the backend so long to show a sign of life, within the deadline of the whole exchange.

        None: as long as that deadline allows. One timer an exchange: it looks at the clock when it fires and
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

    def _close_upstream(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._opening is not None:
            self._opening.cancel()
        if self._response is not None and not self._response.closed:
            if self._finished is not None:
                self._response.release()
            else:
                self._response.close()

    def _failure(self) -> GatewayError:
        """Return the error for a call that never gave an answer."""
        if self._stop is Stop.TOO_SLOW:
            return BackendTimeout("The model's backend did not answer in time.")
        return BackendFailed("The model's backend cannot be reached or broke off.")

    def _interruption(self) -> GatewayError:
        if self._stop is Stop.TOO_SLOW:
            return BackendTimeout("The model's backend took too long.", code="upstream_timeout")
        return BackendFailed(
            "The model's backend broke the stream off.", code="upstream_stream_interrupted"
        )

    # ------------------------------------------------------------ the books

    async def _settle_or_refuse(self) -> Metered:
        try:
            return await self._settle(None)
        except StoreUnavailable as error:
            raise MeteringUnavailable(
                "The answer is complete, but its usage could not be recorded; it is withheld."
            ) from error

    async def _settle(self, stop: Stop | None) -> Metered:
        """Write the usage record in the hold's place. What the backend failed to finish costs nothing."""
        job = self.job
        heard = self._heard
        upstream = heard.usage if heard else None
        counted_out = None
        if heard and not is_credible(upstream, out_max=job.out_max):
            # A model that stops by itself writes one token more than it shows.
            counted_out = await self._count("".join(heard.generated())) + heard.stops
        metered = meter(job.prompt, upstream, counted_out=counted_out or 0, out_max=job.out_max)
        is_free = stop in {Stop.BACKEND_BROKE, Stop.TOO_SLOW}
        self._finished = metered
        self._is_held = False
        try:
            await self._books.settle(
                self._usage_row(
                    metered,
                    status=stop.value if stop else "ok",
                    amount=0 if is_free else amount_pico(job.rates, metered.tokens),
                    counted_out=counted_out,
                )
            )
        except StoreUnavailable:
            self._is_held = True
            raise
        return metered

    async def _void(self) -> None:
        self._is_held = False
        await self._books.void(self.job.request_id)

    @property
    def _heard(self) -> Answer | Listener | None:
        """Return what the backend has said so far."""
        return self._answer or self._listener

    async def _count(self, text: str) -> int:
        counter = self.job.model.counter
        text = text[: self.job.out_max * TOKEN_CHARS_MAX]  # more cannot be billed
        if len(text) < INLINE_CHARS_MAX:
            return counter.count_text(text)
        return await asyncio.to_thread(counter.count_text, text)

    def _hold_row(self) -> HoldRow:
        job = self.job
        expires_s = job.route.backend.total_timeout_s + HOLD_GRACE_S
        return HoldRow(
            **self._booking(),
            tokens_in_text=job.prompt.text,
            tokens_in_image=job.prompt.image,
            tokens_out_max=job.out_max,
            amount_pico=job.worst_case_pico,
            expires_at=datetime.fromtimestamp(job.received_at.timestamp() + expires_s, UTC),
        )

    def _usage_row(
        self, metered: Metered, *, status: str, amount: int, counted_out: int | None
    ) -> UsageRow:
        tokens: Tokens = metered.tokens
        heard = self._heard
        upstream = (heard.usage if heard else None) or UpstreamUsage(None, None, None)
        return UsageRow(
            **self._booking(),
            tokens_in_text=tokens.text_in,
            tokens_in_image=tokens.image_in,
            tokens_in_cached=tokens.cached_in,
            tokens_out=tokens.out,
            amount_pico=amount,
            held_pico=self.job.worst_case_pico,
            status=status,
            usage_source=metered.source,
            counted_prompt=self.job.prompt.text + self.job.prompt.image,
            counted_out=counted_out,
            upstream_prompt=upstream.prompt,
            upstream_out=upstream.out,
            upstream_cached=upstream.cached,
            upstream_id=heard.id[:200] if heard else "",
            first_byte_at=self._first_byte_at,
            finished_at=datetime.now(UTC),
        )

    def _booking(self) -> dict[str, Any]:
        job = self.job
        return {
            "request_id": job.request_id,
            "organization_id": job.principal.organization_id,
            "team_id": job.principal.team_id,
            "key_id": job.principal.key_id,
            "model_name": job.model.name,
            "backend_name": job.route.backend.name,
            "price_id": job.rates.price_id,
            "received_at": job.received_at,
            "canvases": job.canvases,
            "streamed": job.stream,
        }


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
