"""The life of an invoice: drafted when its period ends, refreshed, its period closed, issued, and then only added to.

Every step is idempotent and claims what it does under the lock of the invoice, so that any number of workers may take
it at once, and one that dies is followed by another. A step that is not due does nothing.
"""

import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from billing import books, ledger, rollups
from billing.invoicing import content, credit, drafts, metered, numbering, seals
from billing.invoicing.content import Stamp
from billing.invoicing.drafts import draft, refresh
from billing.invoicing.freezing import freeze
from billing.invoicing.invoices import Invoice, InvoiceStatus
from billing.invoicing.locks import locked
from billing.invoicing.notices import tell
from billing.notifications.events import EventType
from billing.periods import Period
from billing.price_lists import PriceList
from tenants.models import Actor, AuditEntry

__all__ = [
    "BooksAreWrong",
    "NotDue",
    "advance",
    "close",
    "draft",
    "issue",
    "refresh",
    "reissue",
    "settle_status",
    "void",
]

logger = logging.getLogger(__name__)

HELD_BACK_CHARS_MAX = 300
PERIODS_AT_ONCE_MAX = 36  # that one run of `advance` catches up with


class NotDue(Exception):
    """It is not time yet."""


class BooksAreWrong(Exception):
    """The organization's books do not reconcile, so nothing is issued."""


def advance(organization_id: int, at: datetime) -> list[Invoice]:
    """Take every step that is due for the organization, and return the invoices that were issued.

    Several, if the workers were away for months: what is closed is issued once the margin has passed.
    """
    issued = []
    for invoice in drafts.closed(organization_id):
        try:
            issued.append(issue(invoice.pk, at))
        except NotDue:
            pass
        except BooksAreWrong as error:
            logger.error("%s cannot be issued: %s", invoice, error)
        except ValueError as error:  # prices that do not fit together, or cannot be rated
            _hold_back(invoice, str(error))
            logger.exception("%s cannot be issued", invoice)
    rollups.recompute_of(organization_id)  # a draft of nothing would be told to nobody
    for _ in range(PERIODS_AT_ONCE_MAX):
        draft_of_period = draft(organization_id, at)
        if draft_of_period is None or not close(draft_of_period.pk, at):
            break
    return [invoice for invoice in issued if invoice is not None]


def close(invoice_id: int, at: datetime) -> bool:
    """Close the draft's period if its grace is over: what is booked from now on is late, and billed in the next one."""
    is_closed = _close(invoice_id, at)
    if is_closed:
        _see_closing(invoice_id)
    return is_closed


def _close(invoice_id: int, at: datetime) -> bool:
    with transaction.atomic():
        account, invoice = locked(invoice_id)
        if invoice.status != InvoiceStatus.DRAFT or invoice.closed_at is not None:
            return invoice.closed_at is not None
        if at < invoice.period_end + timedelta(seconds=settings.INVOICE_GRACE_S):
            return False
        account.close(invoice.period_end)
        invoice.closed_at = at
        invoice.save(update_fields=["closed_at"])
    return True


def _see_closing(invoice_id: int) -> None:
    """Note the time by the database's clock, now that the closing is committed; once, by whoever comes first."""
    closed = Invoice.objects.filter(pk=invoice_id, status="draft", closed_at__isnull=False)
    closed.filter(closing_seen_at=None).update(closing_seen_at=Now())


def issue(invoice_id: int, at: datetime, *, by: Actor = None) -> Invoice | None:
    """Issue the draft: number it, freeze it, draw its credit down. Once: what is issued is returned as it is.

    None if nothing was used: then the draft goes. NotDue before its period is closed, the margin has passed, and every
    transaction has ended that may still book into it. BooksAreWrong if they do not reconcile; the draft says why.
    """
    invoice = Invoice.objects.get(pk=invoice_id)
    if invoice.status != InvoiceStatus.DRAFT:
        return invoice
    margin = timedelta(seconds=settings.CLOSE_MARGIN_S)
    if invoice.closed_at is None or at < invoice.closed_at + margin:
        raise NotDue(f"The period of {invoice} is not closed long enough.")
    if invoice.closing_seen_at is None:  # who closed it died before the look
        _see_closing(invoice.pk)
        raise NotDue(f"The closing of {invoice} was seen only now.")
    if not ledger.has_all_before(invoice.closing_seen_at):
        raise NotDue(f"A transaction runs that began before the period of {invoice} was closed.")
    _reconcile(invoice)
    with transaction.atomic():
        account, invoice = locked(invoice_id)
        if invoice.status != InvoiceStatus.DRAFT:
            return invoice  # another worker got there first
        snapshot = drafts.fill(invoice, account, at)
        if not snapshot.teams:
            invoice.delete()
            return None
        credits = credit.draw(invoice, snapshot.totals.total_minor, at)
        due_at = at + timedelta(days=account.payment_terms_days)
        usage_sha256 = seals.seal(invoice)  # it may take a while: the number comes last
        number = numbering.take(invoice.issuer_id, at)
        stamp = Stamp(number.text, at, due_at, number.previous_sha256, usage_sha256)
        freeze(invoice, content.stamped(snapshot, stamp, credits), number)
        AuditEntry.record("invoice.issue", invoice, by=by, at=at)
        tell(EventType.INVOICE_ISSUED, invoice, at)
        settle_status(invoice, at)
    return invoice


def void(invoice_id: int, *, reason: str, by: Actor, at: datetime) -> Invoice:
    """Void an issued invoice that nothing was paid on. Number, lines and PDF stay. ValueError if it cannot be."""
    with transaction.atomic():
        _, invoice = locked(invoice_id)
        if invoice.kind != "invoice" or invoice.status == InvoiceStatus.DRAFT:
            raise ValueError(f"{invoice} is no invoice that was issued.")
        if invoice.status == InvoiceStatus.VOID:
            raise ValueError(f"{invoice} is void already.")
        if invoice.paid_minor:
            raise ValueError(f"{invoice} has payments: reverse them first.")
        if invoice.credit_notes.exists():
            raise ValueError(f"{invoice} has credit notes: credit what is left of it instead.")
        if invoice.status == InvoiceStatus.PAID:  # by credit alone: owed again before it is void
            _move(invoice, InvoiceStatus.ISSUED)
        invoice.voided_at, invoice.void_reason = at, reason
        _move(invoice, InvoiceStatus.VOID, "voided_at", "void_reason")
        credit.give_back(invoice, at)
        AuditEntry.record("invoice.void", invoice, by=by, at=at, detail={"reason": reason})
        tell(EventType.INVOICE_VOID, invoice, at)
    return invoice


def reissue(
    invoice_id: int, *, by: Actor, at: datetime, price_list: PriceList | None = None
) -> Invoice:
    """Draft a void invoice's period anew, as account and issuer are now. It is issued as any other. ValueError.

    Its usage is rated as it was booked, or under the list: at the versions that it had when each request came in.
    """
    with transaction.atomic():
        account, old = locked(invoice_id)
        if price_list is not None and price_list.currency != account.organization.currency:
            paid_in = account.organization.currency
            raise ValueError(f"{price_list} is in {price_list.currency}, not {paid_in}.")
        if old.status != InvoiceStatus.VOID:
            raise ValueError(f"{old} is not void.")
        taken = Invoice.objects.exclude(status=InvoiceStatus.VOID).filter(
            organization_id=old.organization_id, period_start=old.period_start, kind="invoice"
        )
        if existing := taken.first():
            raise ValueError(f"Its period is on {existing}.")
        period = Period(old.period_start, old.period_end)
        closing = {"closed_at": old.closed_at, "closing_seen_at": old.closing_seen_at}
        invoice = drafts.new(account, period, at, replaces=old, rated_under=price_list, **closing)
        drafts.fill(invoice, account, at)
        detail = {"price_list": price_list.slug} if price_list else None
        AuditEntry.record("invoice.reissue", old, by=by, at=at, detail=detail)
    return invoice


def settle_status(invoice: Invoice, at: datetime) -> None:
    """Move the invoice to paid if nothing is open any more, and back if something is again: it is reminded anew."""
    is_settled = invoice.open_minor <= 0
    if is_settled and invoice.status == InvoiceStatus.ISSUED:
        _move(invoice, InvoiceStatus.PAID)
        tell(EventType.INVOICE_PAID, invoice, at)
    elif not is_settled and invoice.status == InvoiceStatus.PAID:
        invoice.reminders, invoice.reminded_at = 0, None
        _move(invoice, InvoiceStatus.ISSUED, "reminders", "reminded_at")


def _reconcile(invoice: Invoice) -> None:
    """See that the books of this period are right, and its rollups what the ledger says. BooksAreWrong.

    Of this period only: the one before was looked at when its invoice was issued, and the ledger is only added to.
    """
    rollups.recompute_of(invoice.organization_id)
    period = Period(invoice.period_start, invoice.period_end)
    broken = [violation.invariant for violation in books.check(invoice.organization_id, period)]
    if not metered.rollups_agree(invoice.organization_id, period):
        broken.append("rollups_are_the_ledger")
    if broken:
        reason = f"The books are wrong: {', '.join(broken)}."
        _hold_back(invoice, reason)
        raise BooksAreWrong(reason)


def _hold_back(invoice: Invoice, reason: str) -> None:
    """Say on the draft why it is not issued."""
    unissued = Invoice.objects.filter(pk=invoice.pk, status=InvoiceStatus.DRAFT)
    unissued.update(held_back=reason[:HELD_BACK_CHARS_MAX])


def _move(invoice: Invoice, status: InvoiceStatus, *fields: str) -> None:
    invoice.status = status
    invoice.save(update_fields=["status", *fields])
