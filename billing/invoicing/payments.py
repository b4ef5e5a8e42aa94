"""Payments that a person enters: what came in, what went back, and what was entered by mistake. Only ever added to."""

from datetime import datetime

from django.db import transaction

from billing.invoicing.invoices import Invoice, InvoiceStatus, Payment
from billing.invoicing.lifecycle import settle_status
from billing.invoicing.locks import locked
from billing.invoicing.snapshots import Document
from tenants.models import Actor, AuditEntry

AMOUNT_MAX = 10**15  # minor units: beyond any invoice


def pay(
    invoice_id: int,
    amount_minor: int,
    *,
    received_at: datetime,
    by: Actor,
    at: datetime,
    method: str = "",
    reference: str = "",
) -> Payment:
    """Enter a payment, or a refund (below zero). The invoice is paid once nothing is open. ValueError if it cannot be.

    A reference is entered once for an invoice, so that a payment that is sent twice counts once.
    """
    if not amount_minor or abs(amount_minor) > AMOUNT_MAX:
        raise ValueError("A payment is an amount other than nothing.")
    with transaction.atomic():
        _, invoice = locked(invoice_id)
        _check(invoice, amount_minor)
        if reference and invoice.payments.filter(reference=reference, reverses=None).exists():
            raise ValueError(f"{reference!r} is entered already for {invoice}.")
        payment = Payment.objects.create(
            invoice=invoice,
            amount_minor=amount_minor,
            received_at=received_at,
            method=method,
            reference=reference,
            created_at=at,
        )
        _record("invoice.pay", invoice, payment, by, at)
    return payment


def reverse(payment_id: int, *, by: Actor, at: datetime) -> Payment:
    """Take back a payment that was a mistake, by one of the opposite amount. ValueError if it cannot be."""
    found = Payment.objects.get(pk=payment_id)
    with transaction.atomic():
        _, invoice = locked(found.invoice_id)
        if found.reverses_id is not None:
            raise ValueError(f"{found} is a reversal itself.")
        if Payment.objects.filter(reverses=found).exists():
            raise ValueError(f"{found} is reversed already.")
        _check(invoice, -found.amount_minor)
        payment = Payment.objects.create(
            invoice=invoice,
            amount_minor=-found.amount_minor,
            received_at=at,
            method=found.method,
            reference=found.reference,
            reverses=found,
            created_at=at,
        )
        _record("invoice.reverse_payment", invoice, payment, by, at)
    return payment


def _check(invoice: Invoice, amount_minor: int) -> None:
    """See that the amount can be entered: ValueError if not.

    No more goes back than came in; but of an invoice below zero, all that it owes.
    """
    if invoice.kind != Document.INVOICE:
        raise ValueError(
            f"{invoice} is a credit note: what it gives back goes back on its invoice."
        )
    if invoice.status not in (InvoiceStatus.ISSUED, InvoiceStatus.PAID):
        raise ValueError(f"{invoice} is {invoice.status}: nothing can be paid on it.")
    owed_minor = invoice.total_minor - invoice.drawn_minor + invoice.credited_minor
    if invoice.paid_minor + amount_minor < min(0, owed_minor):
        raise ValueError(f"No more can go back than came in for {invoice}.")


def _record(action: str, invoice: Invoice, payment: Payment, by: Actor, at: datetime) -> None:
    detail = {"payment": payment.pk, "amount_minor": payment.amount_minor}
    AuditEntry.record(action, invoice, by=by, at=at, detail=detail)
    settle_status(invoice, at)
