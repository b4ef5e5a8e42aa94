"""The life of an invoice: drafted when its period ends, refreshed, its period closed, issued, and then only added to.

Every step is idempotent and claims what it does under the lock of the invoice, so that any number of workers may take
it at once, and one that dies is followed by another. A step that is not due does nothing.
"""

import logging
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from billing import (
    books,
    credit,
    errands,
    events,
    invoice_content,
    ledger,
    metered,
    numbering,
    rollups,
    snapshots,
)
from billing.accounts import EPOCH, Account
from billing.events import EventType
from billing.invoice_content import Stamp
from billing.invoices import Invoice, InvoiceLine, InvoiceStatus, Issuer, totals
from billing.models import UsageRecord
from billing.periods import Period, period_after, period_of
from billing.rating import Rated
from billing.snapshots import Line, Snapshot
from tenants.models import Actor, AuditEntry, Organization

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
    for invoice in closed_drafts(organization_id):
        try:
            issued.append(issue(invoice.pk, at))
        except NotDue:
            pass
        except BooksAreWrong as error:
            logger.error("%s cannot be issued: %s", invoice, error)
        except (
            ValueError
        ) as error:  # prices that do not fit together, or a period that cannot be rated
            _hold_back(invoice, str(error))
            logger.exception("%s cannot be issued", invoice)
    for _ in range(PERIODS_AT_ONCE_MAX):
        draft_of_period = draft(organization_id, at)
        if draft_of_period is None or not close(draft_of_period.pk, at):
            break
    return [invoice for invoice in issued if invoice is not None]


def draft(organization_id: int, at: datetime) -> Invoice | None:
    """Draft the oldest period that has ended and is not closed, or refresh its draft. None if there is none.

    It is told of once there is something on it: a draft of nothing closes its period, and goes.
    """
    with transaction.atomic():
        account = locked_account(organization_id)
        invoice = _open_draft(account, at)
        if invoice is not None and _fill(invoice, account, at).teams:
            tell(EventType.INVOICE_DRAFTED, invoice, at, once=True)
        return invoice


def refresh(invoice_id: int, at: datetime) -> None:
    """Draw the draft up again from what is booked now. Does nothing to what is issued."""
    with transaction.atomic():
        account, invoice = locked(invoice_id)
        if invoice.status == InvoiceStatus.DRAFT:
            _fill(invoice, account, at)


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
        snapshot = _fill(invoice, account, at)
        if not snapshot.teams:
            invoice.delete()
            return None
        credits = credit.draw(invoice, snapshot.totals.total_minor, at)
        due_at = at + timedelta(days=account.payment_terms_days)
        number = numbering.take(invoice.issuer_id, at)
        stamp = Stamp(number.text, at, due_at, number.previous_sha256)
        freeze(invoice, invoice_content.stamped(snapshot, stamp, credits), number)
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
        if (
            invoice.status == InvoiceStatus.PAID
        ):  # by credit alone: it is owed again before it is void
            _move(invoice, InvoiceStatus.ISSUED)
        invoice.voided_at, invoice.void_reason = at, reason
        _move(invoice, InvoiceStatus.VOID, "voided_at", "void_reason")
        credit.give_back(invoice, at)
        AuditEntry.record("invoice.void", invoice, by=by, at=at, detail={"reason": reason})
        tell(EventType.INVOICE_VOID, invoice, at)
    return invoice


def reissue(invoice_id: int, *, by: Actor, at: datetime) -> Invoice:
    """Draft a void invoice's period anew, as account and issuer are now. It is issued as any other. ValueError."""
    with transaction.atomic():
        account, old = locked(invoice_id)
        if old.status != InvoiceStatus.VOID:
            raise ValueError(f"{old} is not void.")
        taken = Invoice.objects.exclude(status=InvoiceStatus.VOID).filter(
            organization_id=old.organization_id, period_start=old.period_start, kind="invoice"
        )
        if existing := taken.first():
            raise ValueError(f"Its period is on {existing}.")
        period = Period(old.period_start, old.period_end)
        closing = {"closed_at": old.closed_at, "closing_seen_at": old.closing_seen_at}
        invoice = _new_draft(account, period, at, replaces=old, **closing)
        _fill(invoice, account, at)
        AuditEntry.record("invoice.reissue", old, by=by, at=at)
    return invoice


def closed_drafts(organization_id: int | None = None) -> list[Invoice]:
    """Return the drafts whose period is closed, the oldest first: of one organization, or of all."""
    drafts = Invoice.objects.filter(status=InvoiceStatus.DRAFT, closed_at__isnull=False)
    if organization_id is not None:
        drafts = drafts.filter(organization_id=organization_id)
    return list(drafts.order_by("period_start", "pk")[: 36 * PERIODS_AT_ONCE_MAX])


def current_period(account: Account) -> Period | None:
    """Return the period that is open for the organization: after the last closed one. None before its first use."""
    used = UsageRecord.objects.filter(organization_id=account.organization_id)
    first_billed_at = used.order_by("billed_at").values_list("billed_at", flat=True).first()
    zone = ZoneInfo(account.organization.timezone)
    return open_period(zone, account.closed_until, first_billed_at)


def open_period(
    zone: ZoneInfo, closed_until: datetime, first_billed_at: datetime | None
) -> Period | None:
    """Return the period after the last that was closed, or that of the first use if none was."""
    if closed_until > EPOCH:
        return period_after(closed_until, zone)
    return period_of(first_billed_at, zone) if first_billed_at else None


def freeze(invoice: Invoice, snapshot: Snapshot, number: numbering.Number) -> None:
    """Make the invoice what the snapshot says, for good. Its lines are written: nothing slow follows a number."""
    invoice.status = InvoiceStatus.ISSUED
    invoice.number, invoice.year, invoice.serial = number.text, number.year, number.serial
    invoice.issued_at, invoice.due_at = snapshot.issued_at, snapshot.due_at
    invoice.snapshot = snapshots.to_json(snapshot)
    invoice.content_sha256 = snapshots.sha256(snapshot)
    invoice.previous_sha256 = number.previous_sha256
    invoice.held_back = ""
    for name, value in totals(snapshot).items():
        setattr(invoice, name, value)
    invoice.save()
    number.chain(invoice.content_sha256)
    errands.after_commit("draw_document", invoice.pk)


def write_lines(invoice: Invoice, snapshot: Snapshot) -> None:
    """Make the draft's lines those of the snapshot."""
    invoice.lines.all().delete()
    InvoiceLine.objects.bulk_create(
        InvoiceLine(
            invoice=invoice,
            position=position,
            team_slug=team.slug,
            model_name=item.model,
            kind=item.kind,
            is_allowance=not isinstance(item, Line),
            quantity=item.quantity,
            late_quantity=item.late_quantity if isinstance(item, Line) else 0,
            amount_pico=item.amount_pico,
            amount_minor=item.amount_minor,
        )
        for position, (team, item) in enumerate(snapshots.items_of(snapshot), 1)
    )


def settle_status(invoice: Invoice, at: datetime) -> None:
    """Move the invoice to paid if nothing is open any more, and back if something is again."""
    is_settled = invoice.open_minor <= 0
    if is_settled and invoice.status == InvoiceStatus.ISSUED:
        _move(invoice, InvoiceStatus.PAID)
        tell(EventType.INVOICE_PAID, invoice, at)
    elif not is_settled and invoice.status == InvoiceStatus.PAID:
        _move(invoice, InvoiceStatus.ISSUED)


def tell(type: EventType, invoice: Invoice, at: datetime, *, once: bool = False) -> None:
    """Write the event down. An invoice that is paid a second time is told of a second time, unless `once`."""
    told = events.Event.objects.filter(type=type, subject__startswith=f"invoice {invoice.pk}.")
    times = 0 if once else told.count()
    data = {
        "invoice_id": invoice.pk,
        "number": invoice.number,
        "kind": invoice.kind,
        "status": invoice.status,
        "period_start": invoice.period_start.isoformat(),
        "period_end": invoice.period_end.isoformat(),
        "currency": invoice.currency,
        "total_minor": invoice.total_minor,
        "due_minor": invoice.due_minor,
        "due_at": invoice.due_at.isoformat() if invoice.due_at else None,
        "content_sha256": invoice.content_sha256 or None,
    }
    subject = f"invoice {invoice.pk}.{times + 1}"
    events.record(type, invoice.organization_id, subject, data, at)


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
    drafts = Invoice.objects.filter(pk=invoice.pk, status=InvoiceStatus.DRAFT)
    drafts.update(held_back=reason[:HELD_BACK_CHARS_MAX])


def _open_draft(account: Account, at: datetime) -> Invoice | None:
    drafts = Invoice.objects.select_for_update().filter(
        organization_id=account.organization_id, status=InvoiceStatus.DRAFT, kind="invoice"
    )
    if existing := drafts.filter(closed_at=None).first():
        return existing
    period = current_period(account)
    if period is None or period.end > at:
        return None
    account.close(period.start)  # the first one: what is found of the time before goes into it, too
    return _new_draft(account, period, at)


def _new_draft(
    account: Account,
    period: Period,
    at: datetime,
    *,
    replaces: Invoice | None = None,
    closed_at: datetime | None = None,
    closing_seen_at: datetime | None = None,
) -> Invoice:
    return Invoice.objects.create(
        issuer=Issuer.standard(),
        organization=account.organization,
        period_start=period.start,
        period_end=period.end,
        currency=account.organization.currency,
        language=account.invoice_language,
        drafted_at=at,
        replaces=replaces,
        closed_at=closed_at,
        closing_seen_at=closing_seen_at,
    )


def _fill(invoice: Invoice, account: Account, at: datetime) -> Snapshot:
    """Draw the draft up from the rollups of its period."""
    snapshot = invoice_content.compose(invoice, account, rated_now(invoice, account))
    write_lines(invoice, snapshot)
    invoice.currency, invoice.language = snapshot.currency, snapshot.language
    invoice.snapshot, invoice.drafted_at = snapshots.to_json(snapshot), at
    sums = totals(snapshot)
    for name, value in sums.items():
        setattr(invoice, name, value)
    fields = ["currency", "language", "snapshot", "drafted_at", *sums]
    invoice.save(update_fields=fields)
    return snapshot


def rated_now(invoice: Invoice, account: Account) -> Rated:
    """Return the invoice's period in money, from the rollups."""
    period = Period(invoice.period_start, invoice.period_end)
    usage = rollups.quantities(invoice.organization_id, period)
    return invoice_content.rated(account, period, usage)


def _move(invoice: Invoice, status: InvoiceStatus, *fields: str) -> None:
    invoice.status = status
    invoice.save(update_fields=["status", *fields])


def locked(invoice_id: int) -> tuple[Account, Invoice]:
    """Lock the invoice, and before it its organization's account: everybody locks in this order."""
    account = locked_account(Invoice.objects.get(pk=invoice_id).organization_id)
    return account, Invoice.objects.select_for_update().get(pk=invoice_id)


def locked_account(organization_id: int) -> Account:
    organization = Organization.objects.get(pk=organization_id)
    Account.of(organization)
    locked = Account.objects.select_for_update(of=("self",))
    return locked.select_related("organization", "price_list").get(organization=organization)
