"""Payments: what may be reversed, and what a reversal opens again."""

from datetime import timedelta

import pytest

from billing import books
from billing.invoicing import credit_notes, lifecycle, payments, sweeping
from billing.invoicing.invoices import Invoice, Payment
from billing.models import Price
from tests.factories import Tenant
from tests.invoiced import ISSUED, issue, use

pytestmark = pytest.mark.django_db


@pytest.fixture
def issued(acme: Tenant, vlm: Price) -> Invoice:
    use(acme, vlm, text=100_000_000, out=0)
    return issue(acme)


def pay(invoice: Invoice, amount: int) -> Payment:
    return payments.pay(invoice.pk, amount, received_at=ISSUED, by=None, at=ISSUED)


def reverse(payment: Payment) -> Payment:
    return payments.reverse(payment.pk, by=None, at=ISSUED)


def test_a_payment_that_was_refunded_is_not_reversed_too(issued: Invoice) -> None:
    paid, refunded = pay(issued, 100), pay(issued, -100)
    with pytest.raises(ValueError, match="No more"):
        reverse(paid)

    reverse(refunded)
    reverse(paid)
    assert issued.paid_minor == 0
    assert books.check(issued.organization_id) == []


def test_what_a_credit_note_gives_back_goes_back_once(issued: Invoice) -> None:
    pay(issued, 1050)
    note = credit_notes.credit(issued.pk, reason="", by=None, at=ISSUED)

    with pytest.raises(ValueError, match="is a credit note"):
        pay(note, -1050)
    pay(issued, -1050)
    assert books.check(issued.organization_id) == []

    Payment.objects.create(invoice=note, amount_minor=-1050, received_at=ISSUED, created_at=ISSUED)
    (broken,) = books.check(issued.organization_id)
    assert broken.invariant == "paid_is_what_nothing_is_open_of"


def test_a_void_invoice_has_nothing_open_and_nothing_to_reverse(issued: Invoice) -> None:
    both = pay(issued, 100), pay(issued, -100)
    void = lifecycle.void(issued.pk, reason="", by=None, at=ISSUED)

    assert void.total_minor == 1050
    assert void.open_minor == 0
    for each in both:
        with pytest.raises(ValueError, match="is void"):
            reverse(each)


def test_an_invoice_that_a_reversal_opens_again_is_reminded_of_anew(issued: Invoice) -> None:
    assert issued.due_at is not None
    late = issued.due_at + timedelta(days=40)
    assert sweeping.remind(issued.pk, late)
    paid = pay(issued, issued.due_minor)
    assert not sweeping.remind(issued.pk, late)

    reverse(paid)
    assert issued.pk in sweeping.due_reminders(late)
    assert sweeping.remind(issued.pk, late)
    assert not sweeping.remind(issued.pk, late)
