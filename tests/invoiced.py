"""A month of usage and its invoice, with time passed in."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings

from billing import ledger, rollups
from billing.invoicing import lifecycle
from billing.invoicing.invoices import Invoice
from billing.models import Price
from billing.periods import month_of
from tests import booked
from tests.door import eventually
from tests.factories import Tenant

TAIPEI = ZoneInfo("Asia/Taipei")
MARCH = month_of(2026, 3, TAIPEI)
NOON = datetime(2026, 3, 10, 4, 7, tzinfo=UTC)
ENDED = MARCH.end
OVER = ENDED + timedelta(seconds=settings.INVOICE_GRACE_S)  # the grace time is
ISSUED = OVER + timedelta(seconds=settings.CLOSE_MARGIN_S)


def use(tenant: Tenant, price: Price, at: datetime = NOON, **fields: Any) -> None:
    """Book a request of 200,000 tokens of text and 50,000 of output, rated as the data plane would."""
    text, out = fields.pop("text", 200_000), fields.pop("out", 50_000)
    amount = text * price.text_in_micro + out * price.out_micro + price.request_micro * 10**6
    held = booked.hold(
        tenant, price, received_at=at, tokens_in_text=text, amount_pico=max(amount, 1)
    )
    booked.settle(held, tokens_out=out, amount_pico=amount, counted_prompt=text, **fields)


def draft(tenant: Tenant, at: datetime = ENDED) -> Invoice:
    rollups.recompute()
    found = lifecycle.draft(tenant.organization.pk, at)
    assert found is not None
    return found


def close(tenant: Tenant, at: datetime = OVER) -> Invoice:
    invoice = draft(tenant, at)
    assert lifecycle.close(invoice.pk, at)
    _wait_for_bookings(invoice)
    return invoice


def issue(tenant: Tenant, closed_at: datetime = OVER) -> Invoice:
    """Draft, close and issue the organization's next period."""
    invoice = close(tenant, closed_at)
    at = closed_at + timedelta(seconds=settings.CLOSE_MARGIN_S)
    issued = lifecycle.issue(invoice.pk, at)
    assert issued is not None
    return issued


def _wait_for_bookings(closed: Invoice) -> None:
    """Wait for what a door in the same database may have begun before the closing, as the margin does in production."""
    closed.refresh_from_db()
    assert closed.closing_seen_at is not None
    seen_at = closed.closing_seen_at
    eventually(lambda: ledger.has_all_before(seen_at), 10)
