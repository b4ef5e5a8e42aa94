"""Rows as the data plane books them, and a way to the ORM from coroutines."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from django.db import connection

from billing.holds import Bookkeeper, HoldRow, UsageRow
from billing.models import Price
from gateway.request_ids import new_request_id
from tests.factories import Tenant

ESTIMATE = 1_000_000_000
T = TypeVar("T")


async def in_thread(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call what uses the ORM off the event loop, and leave no connection behind."""

    def closing() -> T:
        try:
            return call(*args, **kwargs)
        finally:
            connection.close()

    return await asyncio.to_thread(closing)


async def eventually(is_so: Callable[[], bool], within_s: float = 10) -> None:
    """Wait until it is so, asking in a thread; fail if it never is."""
    deadline = time.monotonic() + within_s
    while not await in_thread(is_so):
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.03)


def hold(tenant: Tenant, price: Price, books: Bookkeeper, **fields: Any) -> HoldRow:
    return hold_row(tenant, price, process_id=books.process_id, **fields)


def hold_row(tenant: Tenant, price: Price, *, process_id: UUID, **fields: Any) -> HoldRow:
    defaults: dict[str, Any] = {
        "request_id": new_request_id(),
        "organization_id": tenant.organization.pk,
        "team_id": tenant.team.pk,
        "key_id": tenant.key.pk,
        "model_name": price.model_name,
        "backend_name": "b",
        "price_id": price.pk,
        "received_at": datetime.now(UTC),
        "tokens_in_text": 20,
        "tokens_in_image": 0,
        "tokens_out_max": 80,
        "tokens_held": 100,
        "amount_pico": ESTIMATE,
        "canvases": [],
        "streamed": False,
        "process_id": process_id,
        "expires_at": datetime.now(UTC) + timedelta(minutes=10),
    }
    return HoldRow(**(defaults | fields))


def usage(held: HoldRow, **fields: Any) -> UsageRow:
    same = {name: getattr(held, name) for name in UsageRow.__struct_fields__ if hasattr(held, name)}
    defaults: dict[str, Any] = {
        "tokens_in_cached": 0,
        "tokens_out": 30,
        "held_pico": held.amount_pico,
        "status": "ok",
        "usage_source": "upstream",
        "policy": "",
        "counted_prompt": 20,
        "counted_out": None,
        "upstream_prompt": 20,
        "upstream_out": 30,
        "upstream_cached": None,
        "upstream_id": "",
        "first_byte_at": datetime.now(UTC),
        "finished_at": datetime.now(UTC),
    }
    return UsageRow(**(same | defaults | fields))
