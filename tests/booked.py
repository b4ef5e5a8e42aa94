"""Bookings as the data plane makes them, by the same SQL functions, over the test's own connection."""

import json
from decimal import Decimal
from typing import Any

import msgspec
from django.db import connection

from billing.budgets import Budget, BudgetWindow
from billing.holds import HELD, RESERVE, SETTLE, HoldRow, UsageRow
from billing.models import Price
from gateway.request_ids import new_request_id
from tests import bookings
from tests.factories import Tenant

UNIT_PICO = 10**12  # one unit of the currency


def budget(tenant: Tenant, *, level: str = "organization", **fields: Any) -> Budget:
    return Budget.objects.create(
        organization=tenant.organization,
        team=None if level == "organization" else tenant.team,
        key=tenant.key if level == "key" else None,
        **fields,
    )


def hold(tenant: Tenant, price: Price, **fields: Any) -> HoldRow:
    """Hold one unit of the currency and a hundred tokens, or what `fields` say. Fails if it is refused."""
    process_id = fields.pop("process_id", None) or new_request_id()
    row = bookings.hold_row(
        tenant, price, process_id=process_id, **({"amount_pico": UNIT_PICO} | fields)
    )
    outcome = _book(RESERVE, row)
    assert outcome == HELD, outcome
    return row


def settle(held: HoldRow, **fields: Any) -> None:
    """Settle the hold with what it held, or what `fields` say."""
    _book(SETTLE, bookings.usage(held, **({"tokens_out": 80, "upstream_out": 80} | fields)))


def spend(tenant: Tenant, price: Price, units: int, **fields: Any) -> None:
    """Book a request of so many units of the currency."""
    amount_pico = units * UNIT_PICO
    settle(hold(tenant, price, amount_pico=amount_pico), **fields)


def pico(text: str) -> int:
    """Return the pico-units of an amount as the API writes it."""
    return int(Decimal(text).scaleb(12))


def window(budget: Budget) -> BudgetWindow:
    return BudgetWindow.objects.get(budget=budget)


def _book(statement: str, row: HoldRow | UsageRow) -> str:
    with connection.cursor() as cursor:
        cursor.execute(statement, [json.dumps([msgspec.to_builtins(row)])])
        (_, outcome) = cursor.fetchone()
    return str(outcome)
