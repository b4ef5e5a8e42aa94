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
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from billing.batcher import StoreUnavailable
from billing.holds import Bookkeeper, BudgetExceeded, HoldRow, UsageRow
from billing.idempotency import Claim
from billing.rating import Rates, Tokens, amount_pico, worst_case_pico
from gateway.backends import BackendPool
from gateway.catalog import ModelEntry, RouteEntry
from gateway.completions import Answer, UpstreamUsage, error_event
from gateway.counting.counters import INLINE_CHARS_MAX
from gateway.errors import BackendFailed, GatewayError, MeteringUnavailable
from gateway.listener import Listener, OutputMeter
from gateway.metering import Metered, PromptCount, is_credible, meter, of_all_choices
from gateway.payloads import Piece
from gateway.quota import insufficient_quota
from gateway.sse import DONE, EventSplitter
from gateway.upstream import BROKEN, Stop, UpstreamCall
from tenants.principals import Principal

logger = logging.getLogger(__name__)

TOKEN_CHARS_MAX = 128  # the longest token of any tokenizer here: a run of spaces
HOLD_GRACE_S = 120  # how long after its last possible instant a hold waits before it expires
Compose = Callable[[Metered], bytes]
HEARTBEAT = b": waiting\n\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of an exchange."""

    answer_bytes_max: int
    event_bytes_max: int
    heartbeat_s: int
    kept_bytes_max: int


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
    choices: int = 1
    claim: Claim | None = None

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
        self._limits = limits
        self._call = UpstreamCall(
            job.route.backend, backends, request_id=job.request_id, stream=job.stream
        )
        self._is_held = False
        self._first_byte_at: datetime | None = None
        self._listener: Listener | None = None
        self._answer: Answer | None = None
        self._keeps = job.claim is not None
        self._sent: list[bytes] = []
        self._sent_bytes = 0
        self._finished: Metered | None = None

    # ------------------------------------------------------------ the hold

    async def __aenter__(self) -> "Exchange":
        """Hold the worst case, durably. Raises InsufficientQuota, MeteringUnavailable, KeyClaimed.

        Then nothing was held, and nothing went upstream.
        """
        try:
            await self._books.reserve(self._hold_row())
        except BaseException as error:
            self._call.close()
            if isinstance(error, BudgetExceeded):
                raise insufficient_quota(error.refusal, self.job.rates.currency) from None
            if isinstance(error, StoreUnavailable):
                raise MeteringUnavailable(
                    "Usage cannot be recorded now, so the request was not sent on. Try again shortly.",
                    headers={"retry-after": "1"},
                ) from error
            raise
        self._is_held = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the upstream; settle what was generated, or give the hold back if nothing was.

        A client that leaves once its request is with the backend pays for its prompt, as that work is done.
        """
        self._call.close()
        if not self._is_held:
            return
        stopped = self._call.stopped
        has_left = stopped is Stop.CLIENT_LEFT and self._call.is_sent
        try:
            if has_left or self._first_byte_at is not None:
                await self._settle(stopped or Stop.BACKEND_BROKE)
            else:
                await self._void()
        except StoreUnavailable:
            logger.exception("request %s is left to the expiry of its hold", self.job.request_id)

    def stop(self, reason: Stop) -> None:
        """End the exchange from outside: close the upstream, so that whoever waits for it wakes up."""
        if self._finished is None:
            self._call.stop(reason)

    # ------------------------------------------------------------ the answer

    async def open(self, body: Sequence[Piece]) -> None:
        """Send the request to the backend. Raises BackendRefused, BackendFailed, BackendBusy, BackendTimeout."""
        await self._call.open(body)

    async def answer(self) -> bytes:
        """Read the whole answer, settle, and return it as the client is to see it."""
        body = await self._call.read_all(self._limits.answer_bytes_max)
        self._first_byte_at = datetime.now(UTC)
        try:
            answer = self._answer = Answer(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._call.broke(error)
            raise BackendFailed(
                "The model's backend sent an answer that is not a chat completion.",
                code="upstream_invalid_response",
            ) from error

        def compose(metered: Metered) -> bytes:
            return answer.shaped(model=self.job.model.name, usage=metered.shown)

        return compose(await self._settle_or_refuse(compose))

    async def events(self) -> AsyncIterator[bytes]:
        """Relay the stream: every event as it came, but the usage and [DONE], which wait for the settling."""
        splitter = EventSplitter(self._limits.event_bytes_max)
        listener = self._listener = Listener(
            public_name=self.job.model.name,
            is_renamed=self.job.route.backend_model != self.job.model.name,
            bytes_max=self._limits.answer_bytes_max,
            meter=OutputMeter(self.job.model.counter, self.job.out_max),
        )
        try:
            async for data in self._call.chunks(heartbeat_s=self._limits.heartbeat_s):
                passed = listener.hear(splitter.feed(data)) if data else HEARTBEAT
                self._first_byte_at = self._first_byte_at or listener.heard_at
                if passed:
                    self._keep(passed)
                    yield passed
                if listener.is_over:
                    break
            listener.check_end()
        except BROKEN as error:
            self._call.broke(error)
        async for tail in self._tail(listener):
            yield tail

    async def _tail(self, listener: Listener) -> AsyncIterator[bytes]:
        """Settle, then say how it ended. The client sees [DONE] only if its usage record is written."""
        if self._call.stopped is Stop.CLIENT_LEFT:
            return
        if self._call.stopped is not None:
            yield error_event(self._call.interruption().envelope())
            return

        def end(metered: Metered) -> bytes:
            done = b"data: " + DONE + b"\n\n"
            return listener.usage_event(metered.shown) + done if self.job.include_usage else done

        try:
            yield end(
                await self._settle_or_refuse(lambda metered: b"".join(self._sent) + end(metered))
            )
        except GatewayError as error:
            yield error_event(error.envelope())

    # ------------------------------------------------------------ the books

    def _keep(self, passed: bytes) -> None:
        """Remember what was sent, for the idempotency key; give up on an answer that is too long to keep."""
        if self._keeps:
            self._sent.append(passed)
            self._sent_bytes += len(passed)
            if self._sent_bytes > self._limits.kept_bytes_max:
                self._keeps = False
                self._sent.clear()

    def _sealed(self, compose: Compose, metered: Metered) -> str | None:
        """Return the answer as it is kept for the request's idempotency key; None if it has none."""
        if self.job.claim is None or not self._keeps:
            return None
        answer = compose(metered)
        return self.job.claim.seal(answer) if len(answer) <= self._limits.kept_bytes_max else None

    async def _settle_or_refuse(self, compose: Compose) -> Metered:
        """Settle a complete answer. `compose` writes what is kept of it, should somebody ask for it again."""
        try:
            return await self._settle(None, compose)
        except StoreUnavailable as error:
            raise MeteringUnavailable(
                "The answer is complete, but its usage could not be recorded; it is withheld."
            ) from error

    async def _settle(self, stop: Stop | None, compose: Compose | None = None) -> Metered:
        """Write the usage record in the hold's place. Its organization rules what an unfinished answer costs."""
        job = self.job
        heard = self._heard
        upstream = of_all_choices(
            heard.usage if heard else None, choices=job.choices, kind=job.route.backend.kind
        )
        counted_out = None
        if heard and not is_credible(upstream, out_max=job.out_max):
            # A model that stops by itself writes one token more than it shows.
            counted_out = heard.stops
            for text in heard.generated():
                counted_out += await self._count(text)
        metered = meter(job.prompt, upstream, counted_out=counted_out or 0, out_max=job.out_max)
        policy = self._policy(stop)
        self._finished = metered
        self._is_held = False
        try:
            await self._books.settle(
                self._usage_row(
                    metered,
                    status=stop.status if stop else self._complete_status,
                    amount=amount_pico(job.rates, metered.tokens, share=policy),
                    policy=policy if stop else "",
                    counted_out=counted_out,
                    answer=self._sealed(compose, metered) if compose else None,
                )
            )
        except StoreUnavailable:
            self._is_held = True
            raise
        return metered

    async def _void(self) -> None:
        self._is_held = False
        await self._books.void(self.job.request_id)

    def _policy(self, stop: Stop | None) -> str:
        """Return how much of the answer is billed (tenants.models.Share)."""
        if stop is None:
            return "delivered"
        principal = self.job.principal
        return principal.bills_aborted if stop is Stop.CLIENT_LEFT else principal.bills_failed

    @property
    def tokens_used(self) -> int:
        """Return what was metered, input and output together; 0 if nothing was, or not yet."""
        return self._finished.tokens.total if self._finished else 0

    @property
    def _complete_status(self) -> str:
        return "cut" if self._listener is not None and self._listener.is_cut else "ok"

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
            tokens_held=job.prompt.text_upper_bound + job.prompt.image_upper_bound + job.out_max,
            amount_pico=job.worst_case_pico,
            process_id=self._books.process_id,
            idempotency_key=job.claim.idempotency_key if job.claim else None,
            body_sha256=job.claim.body_sha256 if job.claim else None,
            expires_at=datetime.fromtimestamp(job.received_at.timestamp() + expires_s, UTC),
        )

    def _usage_row(
        self,
        metered: Metered,
        *,
        status: str,
        amount: int,
        policy: str,
        counted_out: int | None,
        answer: str | None,
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
            policy=policy,
            counted_prompt=self.job.prompt.text + self.job.prompt.image,
            counted_out=counted_out,
            upstream_prompt=upstream.prompt,
            upstream_out=upstream.out,
            upstream_cached=upstream.cached,
            upstream_id=heard.id[:200].replace("\0", "") if heard else "",
            first_byte_at=self._first_byte_at,
            finished_at=datetime.now(UTC),
            answer=answer,
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
