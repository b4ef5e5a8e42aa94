"""Holds: money is set aside before a request runs, and settled or given back when it ends.

`Bookkeeper` is the data plane's one way to the ledger. A hold ends exactly once: settled (a usage record
stands in its place), voided (nothing was used), or expired (its process died).
"""

import asyncio
import logging
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from billing.batcher import Batcher, Patience, RowRefused, StoreUnavailable
from billing.idempotency import Claimed, KeyClaimed
from billing.spool import Record, Spool, SpoolUnavailable

logger = logging.getLogger(__name__)

SPOOL_POLL_S = 0.5
DRAIN_ROWS_MAX = 256
DRAIN_TIMEOUT_S = 10.0
LAST_DRAIN_TIMEOUT_S = 2.0
GIVEN_BACK_MAX = 1000
RESERVE = "SELECT request_id::text, outcome FROM billing_reserve_batch(%s::json)"
HELD = "held"
SETTLE = "SELECT request_id::text, outcome FROM billing_settle_batch(%s::json)"


class HoldRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of billing_hold, as `billing_reserve_batch` takes it."""

    request_id: UUID
    organization_id: int
    team_id: int
    key_id: int
    model_name: str
    backend_name: str
    price_id: int
    received_at: datetime
    tokens_in_text: int
    tokens_in_image: int
    tokens_out_max: int
    tokens_held: int
    amount_pico: int
    canvases: list[str]
    streamed: bool
    process_id: UUID
    expires_at: datetime
    idempotency_key: str | None = None
    body_sha256: str | None = None


class UsageRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of billing_usagerecord, as `billing_settle_batch` takes it; `answer` is kept for its idempotency key."""

    request_id: UUID
    organization_id: int
    team_id: int
    key_id: int
    model_name: str
    backend_name: str
    price_id: int
    received_at: datetime
    tokens_in_text: int
    tokens_in_image: int
    tokens_in_cached: int
    tokens_out: int
    amount_pico: int
    held_pico: int
    status: str
    usage_source: str
    policy: str
    counted_prompt: int
    counted_out: int | None
    upstream_prompt: int | None
    upstream_out: int | None
    upstream_cached: int | None
    upstream_id: str
    canvases: list[str]
    streamed: bool
    first_byte_at: datetime | None
    finished_at: datetime
    answer: str | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="budget"):
    """Which budget refuses a hold, and why: what `billing_refusal` writes."""

    budget_id: int
    name: str
    period: str  # day, month, life
    level: str  # key, team, organization
    unit: str  # money, tokens
    limit_pico: int | None
    limit_tokens: int | None
    spent_pico: int
    spent_tokens: int
    held_pico: int
    held_tokens: int
    needed_pico: int | None
    needed_tokens: int | None
    resets_at: datetime | None

    @property
    def limit(self) -> int:
        """The limit, in pico-units or tokens."""
        return (self.limit_pico if self.unit == "money" else self.limit_tokens) or 0

    @property
    def spent(self) -> int:
        return self.spent_pico if self.unit == "money" else self.spent_tokens

    @property
    def held(self) -> int:
        return self.held_pico if self.unit == "money" else self.held_tokens

    @property
    def needed(self) -> int:
        return (self.needed_pico if self.unit == "money" else self.needed_tokens) or 0


class BudgetExceeded(Exception):
    """A budget has no room for the hold. Nothing was held."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"budget {refusal.budget_id}")
        self.refusal = refusal


_refused: msgspec.json.Decoder[Refusal | Claimed] = msgspec.json.Decoder(Refusal | Claimed)


class VoidRow(msgspec.Struct, frozen=True, kw_only=True):
    """Gives a hold back. It writes nothing to the ledger."""

    request_id: UUID
    status: str = "void"


class Bookkeeper:
    """Reserves and settles, each through a batcher of its own, so that neither waits behind the other.

    While PostgreSQL is away nothing is reserved; what is to be settled waits `settle_timeout_s` for it and then
    goes to the spool in `spool_directory`, from where it is booked once PostgreSQL is back. Without a spool such
    a row is refused.
    """

    def __init__(
        self,
        dsn: str,
        *,
        rows_max: int,
        queue_max: int,
        reserve_timeout_s: float,
        settle_timeout_s: float,
        silence_max_s: float = 5.0,
        spool_directory: Path | None = None,
        spool_bytes_max: int = 2**28,
    ) -> None:
        self.process_id = uuid4()
        self._reserve_timeout_s = reserve_timeout_s
        self._settle_timeout_s = settle_timeout_s
        self._spool = (
            Spool(spool_directory, self.process_id, bytes_max=spool_bytes_max)
            if spool_directory
            else None
        )
        patience = Patience(answer_timeout_s=reserve_timeout_s, silence_max_s=silence_max_s)
        self._reserves = Batcher(
            dsn,
            RESERVE,
            name=f"tessera reserve {self.process_id.hex[:12]}",
            rows_max=rows_max,
            queue_max=queue_max,
            patience=patience,
            refuses_while_away=True,
            when_abandoned=self._give_back,
        )
        self._settles = Batcher(
            dsn,
            SETTLE,
            name=f"tessera settle {self.process_id.hex[:12]}",
            rows_max=rows_max,
            queue_max=queue_max,
            patience=patience,
        )
        self._given_back: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._spool is not None:
            await self._spool.open()
        await asyncio.gather(self._reserves.start(), self._settles.start())
        self._keeper = asyncio.create_task(self._keep_spool(), name="spool-keeper")

    async def stop(self) -> None:
        """Write what still waits, to the spool if need be; call it after the last request has ended."""
        await self._reserves.stop()
        if self._given_back:
            await asyncio.wait(self._given_back)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        await self._drain_for_the_last_time()
        await self._settles.stop()
        if self._spool is not None:
            await self._spool.close()

    @property
    def is_up(self) -> bool:
        """Tell whether holds can be made now, as far as is known."""
        return self._reserves.is_up and self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Say why nothing may be promised now, although PostgreSQL may be up; None if all is well."""
        return self._spool.trouble if self._spool is not None else None

    @property
    def spooled(self) -> int:
        """Return how many rows of this process are on disk and not yet in PostgreSQL."""
        return self._spool.rows if self._spool is not None else 0

    async def reserve(self, hold: HoldRow) -> None:
        """Make the hold durable before anything goes upstream.

        Raises BudgetExceeded, KeyClaimed; StoreUnavailable when it cannot be had in time: a hold that was written after
        all is then given back behind the caller's back.
        """
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)
        outcome = await self._put(self._reserves, hold, self._reserve_timeout_s)
        if outcome == HELD:
            return
        match _refused.decode(outcome):
            case Claimed() as claimed:
                raise KeyClaimed(claimed)
            case Refusal() as refusal:
                raise BudgetExceeded(refusal)

    async def settle(self, usage: UsageRow) -> None:
        """Put the usage record in the hold's place, or where it is sure to be booked later.

        Raises StoreUnavailable if neither PostgreSQL nor the disk takes it.
        """
        await self._settle(usage)

    async def void(self, request_id: UUID) -> None:
        """Give the hold back: nothing was used. Raises StoreUnavailable; its expiry then gives it back."""
        await self._settle(VoidRow(request_id=request_id))

    async def _settle(self, row: UsageRow | VoidRow) -> None:
        # Those who come later do not wait again for a database that is known to be away.
        patience_s = max(0.0, self._settle_timeout_s - self._settles.away_s)
        try:
            await self._put(self._settles, row, patience_s)
        except StoreUnavailable:
            if self._spool is None:
                raise
            await self._to_spool(self._spool, row)

    async def _to_spool(self, spool: Spool, row: UsageRow | VoidRow) -> None:
        try:
            await spool.append(msgspec.json.encode(row))
        except SpoolUnavailable as error:
            logger.critical("request %s is neither in PostgreSQL nor in the spool", row.request_id)
            raise StoreUnavailable(str(error)) from error

    async def _put(
        self, batcher: Batcher, row: HoldRow | UsageRow | VoidRow, timeout_s: float
    ) -> str:
        done = batcher.put(row.request_id, msgspec.json.encode(row))
        # Not asyncio.timeout: it raises also where the outcome came in the same turn of the loop, and a hold that
        # was made would be forgotten. Here whoever comes first decides.
        timer = asyncio.get_running_loop().call_later(timeout_s, _give_up, done)
        try:
            return await done
        except RowRefused as error:
            raise StoreUnavailable("the database refused the row") from error
        finally:
            timer.cancel()

    def _give_back(self, request_id: UUID) -> None:
        """Void a hold that may have been written although its request was refused."""
        if len(self._given_back) >= GIVEN_BACK_MAX:
            return  # its expiry gives it back
        task = asyncio.create_task(self._void_quietly(request_id))
        self._given_back.add(task)
        task.add_done_callback(self._given_back.discard)

    async def _void_quietly(self, request_id: UUID) -> None:
        with suppress(StoreUnavailable):
            await self.void(request_id)

    # ------------------------------------------------------------ the spool

    async def _keep_spool(self) -> None:
        """Book what is in the spool when PostgreSQL is back, and find out when the disk is well again."""
        while self._spool is not None:
            await asyncio.sleep(SPOOL_POLL_S)
            try:
                if self._spool.trouble is not None:
                    await self._spool.check()
                if self._spool.rows and self._settles.is_up:
                    await self._drain(self._spool)
            except Exception:  # it goes on: the rows are safe where they are
                logger.exception("the spool cannot be drained")

    async def _drain_for_the_last_time(self) -> None:
        """Leave as little as can be to whoever finds the file."""
        if self._spool is None:
            return
        with suppress(StoreUnavailable, TimeoutError, OSError):
            async with asyncio.timeout(LAST_DRAIN_TIMEOUT_S):
                await self._drain(self._spool)

    async def _drain(self, spool: Spool) -> None:
        """Book the spool's rows. They leave the disk after they were committed, so that a crash books them again."""
        offset = booked = 0
        while spool.rows and self._settles.is_up:
            reading = await spool.read(offset)
            if reading.end == offset:
                if await spool.clear(offset):
                    break
                continue
            for start in range(0, len(reading.records), DRAIN_ROWS_MAX):
                refused = await self._book(reading.records[start : start + DRAIN_ROWS_MAX])
                if refused:
                    await spool.keep_refused(refused)
            booked += len(reading.records)
            offset = reading.end
        if booked:
            logger.warning("%d rows from the spool are booked", booked)

    async def _book(self, records: list[Record]) -> list[Record]:
        """Book the records; return those that PostgreSQL refuses. Raises StoreUnavailable."""
        waiting = [self._settles.put(record.request_id, record.body) for record in records]
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        except TimeoutError as error:
            raise StoreUnavailable("the database did not answer in time") from error
        if any(isinstance(outcome, StoreUnavailable) for outcome in outcomes):
            raise StoreUnavailable("the spool is not booked yet")
        return [
            record
            for record, outcome in zip(records, outcomes, strict=True)
            if isinstance(outcome, RowRefused)
        ]


def _give_up(done: asyncio.Future[str]) -> None:
    """Wait no longer for a row's outcome; the batcher drops the row, or what became of it is undone."""
    if not done.done():
        done.set_exception(StoreUnavailable("the database did not answer in time"))
