"""Drafts of invoices: which period is next, and what it comes to so far. A draft may be drawn up again at any time."""

from datetime import datetime
from zoneinfo import ZoneInfo

from django.db import transaction

from billing import rollups
from billing.accounts import EPOCH, Account
from billing.invoicing import content, metered, snapshots
from billing.invoicing.freezing import write_lines
from billing.invoicing.invoices import Invoice, InvoiceStatus, Issuer, totals
from billing.invoicing.locks import locked, locked_account
from billing.invoicing.notices import tell
from billing.invoicing.snapshots import Snapshot
from billing.models import UsageRecord
from billing.notifications.events import EventType
from billing.periods import Period, period_after, period_of
from billing.price_lists import PriceList
from billing.rating import Rated

CLOSED_AT_ONCE_MAX = 1296  # drafts that are looked at in one go


def draft(organization_id: int, at: datetime) -> Invoice | None:
    """Draft the oldest period that has ended and is not closed, or refresh its draft. None if there is none.

    It is told of once there is something on it: a draft of nothing closes its period, and goes.
    """
    with transaction.atomic():
        account = locked_account(organization_id)
        invoice = _open_draft(account, at)
        if invoice is not None and fill(invoice, account, at).teams:
            tell(EventType.INVOICE_DRAFTED, invoice, at, once=True)
        return invoice


def refresh(invoice_id: int, at: datetime) -> None:
    """Draw the draft up again from what is booked now. Does nothing to what is issued."""
    with transaction.atomic():
        account, invoice = locked(invoice_id)
        if invoice.status == InvoiceStatus.DRAFT:
            fill(invoice, account, at)


def closed(organization_id: int | None = None) -> list[Invoice]:
    """Return the drafts whose period is closed, the oldest first: of one organization, or of all."""
    drafts = Invoice.objects.filter(status=InvoiceStatus.DRAFT, closed_at__isnull=False)
    if organization_id is not None:
        drafts = drafts.filter(organization_id=organization_id)
    return list(drafts.order_by("period_start", "pk")[:CLOSED_AT_ONCE_MAX])


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
    return new(account, period, at)


def new(
    account: Account,
    period: Period,
    at: datetime,
    *,
    replaces: Invoice | None = None,
    rated_under: PriceList | None = None,
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
        rated_under=rated_under,
        closed_at=closed_at,
        closing_seen_at=closing_seen_at,
    )


def fill(invoice: Invoice, account: Account, at: datetime) -> Snapshot:
    """Draw the draft up from the rollups of its period."""
    snapshot = content.compose(invoice, account, rated_now(invoice, account))
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
    """Return the invoice's period in money: from the rollups, or from the ledger if it is rated under another list."""
    period = Period(invoice.period_start, invoice.period_end)
    if invoice.rated_under is None:
        usage = rollups.quantities(invoice.organization_id, period)
        return content.rated(account, period, usage)
    under = metered.Under(invoice.rated_under.pk, invoice.rated_under.currency)
    usage = metered.quantities_under(invoice.organization_id, period, under)
    return content.rated(account, period, usage, price_list=invoice.rated_under)
