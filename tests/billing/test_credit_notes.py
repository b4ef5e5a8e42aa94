"""Credit notes: what they give back, and that no line is credited beyond its invoice."""

from datetime import timedelta

import pytest
from django.db import connection
from django.utils.timezone import now

from billing import books
from billing.accounts import Account
from billing.invoicing import credit, credit_notes, payments
from billing.invoicing.invoices import CreditGrant, Invoice
from billing.models import Price
from tests import booked, factories
from tests.factories import Tenant
from tests.invoiced import ISSUED, NOON, OVER, issue, use

pytestmark = pytest.mark.django_db

MONTH = timedelta(days=30)


def untaxed(tenant: Tenant) -> None:
    Account.of(tenant.organization)
    Account.objects.filter(organization=tenant.organization).update(tax_exempt=True)


def take_back(invoice: Invoice, *lines: int) -> Invoice:
    credit_notes.credit(invoice.pk, lines or None, reason="", by=None, at=ISSUED)
    return Invoice.objects.get(pk=invoice.pk)


def test_what_was_paid_too_much_does_not_come_back_as_credit(acme: Tenant, vlm: Price) -> None:
    bought = CreditGrant.objects.create(
        organization=acme.organization,
        source="purchased",
        currency="TWD",
        amount_minor=600,
        created_at=NOON,
    )
    untaxed(acme)
    use(acme, vlm, text=40_000_000, out=20_000_000)  # lines of 400 and 600
    issued = issue(acme)
    payments.pay(issued.pk, 900, received_at=ISSUED, by=None, at=ISSUED)
    assert issued.open_minor == -500

    issued = take_back(issued, 1)
    assert (credit.remaining(bought), issued.open_minor) == (400, -500)
    assert books.check(acme.organization.pk) == []


@pytest.fixture
def corrected(acme: Tenant, vlm: Price) -> Invoice:
    """April, with a line of 1000 and one that takes 300 back of what March had estimated."""
    untaxed(acme)
    past = now() - timedelta(seconds=1)
    held = booked.hold(acme, vlm, received_at=NOON, expires_at=past, tokens_in_text=30_000_000)
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_reap('1 hour', 1000)")
    issue(acme)
    booked.settle(held, tokens_in_text=0, tokens_out=0, amount_pico=0)
    use(acme, factories.price("other"), at=NOON + MONTH, text=100_000_000, out=0)
    return issue(acme, OVER + MONTH)


def test_no_line_is_credited_beyond_its_invoice(corrected: Invoice) -> None:
    amounts = [line.amount_minor for line in corrected.lines.order_by("position")]
    more, less = amounts.index(1000) + 1, amounts.index(-300) + 1

    with pytest.raises(ValueError, match="more than the invoice"):
        take_back(corrected, more)
    with pytest.raises(ValueError, match="below zero themselves"):
        take_back(corrected, less)
    assert take_back(corrected).credited_minor == -corrected.total_minor
