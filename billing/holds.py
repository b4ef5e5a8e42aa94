"""Holds: money is set aside before a request runs, and settled or given back when it ends.

`Bookkeeper` is the data plane's one way to the ledger. A hold ends exactly once: settled (a usage record
stands in its place), voided (nothing was used), or expired (its process died).
"""

import asyncio
from datetime import datetime
from uuid import UUID

import msgspec

from billing.batcher import Batcher, RowRefused, StoreUnavailable

RESERVE = "SELECT request_id::text, outcome FROM billing_reserve_batch(%s::json)"
SETTLE = "SELECT request_id::text, outcome FROM billing_settle_batch(%s::json)"


class HoldRow(msgspec.Struct, frozen=True, kw_only=True):
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
    amount_pico: int
    canvases: list[str]
    streamed: bool
    expires_at: datetime


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of billing_usagerecord, as `billing_settle_batch` takes it."""

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


class VoidRow(msgspec.Struct, frozen=True, kw_only=True):
    """Gives a hold back. It writes nothing to the ledger."""

    request_id: UUID
    status: str = "void"


class Bookkeeper:
    """Reserves and settles, each through a batcher of its own, so that neither waits behind the other."""

    def __init__(
        self,
        dsn: str,
        *,
        rows_max: int,
        queue_max: int,
        reserve_timeout_s: float,
        settle_timeout_s: float,
    ) -> None:
        self._reserves = Batcher(dsn, RESERVE, rows_max=rows_max, queue_max=queue_max)
        self._settles = Batcher(dsn, SETTLE, rows_max=rows_max, queue_max=queue_max)
        self._reserve_timeout_s = reserve_timeout_s
        self._settle_timeout_s = settle_timeout_s

    async def start(self) -> None:
        await self._reserves.start()
        await self._settles.start()

    async def stop(self) -> None:
        """Write what still waits; call it after the last request has ended."""
        await self._reserves.stop()
        await self._settles.stop()

    @property
    def is_up(self) -> bool:
        return self._reserves.is_up and self._settles.is_up

    async def reserve(self, hold: HoldRow) -> None:
        """Make the hold durable before anything goes upstream.

        Raises StoreUnavailable when that cannot be had in time; a hold that was written after all is
        then given back behind the caller's back.
        """
        try:
            await self._put(self._reserves, hold, self._reserve_timeout_s)
        except StoreUnavailable:
            self._give_back(hold.request_id)
            raise

    async def settle(self, usage: UsageRow) -> None:
        """Put the usage record in the hold's place. Raises StoreUnavailable if that is not certain."""
        await self._put(self._settles, usage, self._settle_timeout_s)

    async def void(self, request_id: UUID) -> None:
        """Give the hold back: nothing was used. A failure is left to the hold's expiry."""
        await self._put(self._settles, VoidRow(request_id=request_id), self._settle_timeout_s)

    async def _put(
        self, batcher: Batcher, row: HoldRow | UsageRow | VoidRow, timeout_s: float
    ) -> None:
        done = batcher.put(row)
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError as error:
            raise StoreUnavailable("the database did not answer in time") from error
        except RowRefused as error:
            raise StoreUnavailable("the database refused the row") from error

    def _give_back(self, request_id: UUID) -> None:
        try:
            done = self._settles.put(VoidRow(request_id=request_id))
        except StoreUnavailable:
            return  # its expiry gives it back
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
