"""What of invoicing is due: found in the database, so that nothing depends on what a broker remembers."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models import Case, OuterRef, Q, QuerySet, Subquery, When
from django.db.models.functions import Coalesce

from billing.accounts import EPOCH
from billing.invoicing import drafts, notices
from billing.invoicing.invoices import Invoice, InvoiceStatus
from billing.models import UsageRecord
from billing.notifications.events import EventType
from tenants.models import Organization

REFRESH_EVERY = timedelta(minutes=15)
REMINDERS_AT_ONCE_MAX = 500
# How long after it was due an invoice is reminded of, for the first time, the second, and so on.
REMINDED_AFTER = tuple(timedelta(days=days) for days in (1, 7, 14, 30))


def due_organizations(at: datetime) -> list[int]:
    """Return the organizations with a step that is due: a draft to make, refresh, close or issue."""
    drafts = Invoice.objects.filter(status=InvoiceStatus.DRAFT)
    margin, grace = settings.CLOSE_MARGIN_S, settings.INVOICE_GRACE_S
    open_drafts = Q(closed_at=None) & (
        Q(drafted_at__lte=at - REFRESH_EVERY)
        | Q(period_end__lte=at - timedelta(seconds=grace), drafted_at__lt=at)
    )
    closed_drafts = Q(closed_at__lte=at - timedelta(seconds=margin))
    due = set(drafts.filter(open_drafts | closed_drafts).values_list("organization_id", flat=True))
    drafted = drafts.filter(closed_at=None).values("organization_id")
    return sorted(due | _ended(Organization.objects.exclude(pk__in=drafted), at))


def due_reminders(at: datetime) -> list[int]:
    """Return the ids of overdue invoices whose next reminder is due."""
    stages = Q(pk__in=[])
    for count, after in enumerate(REMINDED_AFTER):
        stages |= Q(reminders__lte=count, due_at__lte=at - after)
    found = Invoice.objects.filter(stages, status=InvoiceStatus.ISSUED).order_by("due_at", "pk")
    return list(found.values_list("pk", flat=True)[:REMINDERS_AT_ONCE_MAX])


def remind(invoice_id: int, at: datetime) -> bool:
    """Remind of an overdue invoice if that is due and nobody else does: a conditional UPDATE knows.

    Once for all reminders that were missed while nobody was at work.
    """
    invoice = Invoice.objects.filter(pk=invoice_id).first()
    if invoice is None or invoice.due_at is None:
        return False
    stage = sum(invoice.due_at + after <= at for after in REMINDED_AFTER)
    with transaction.atomic():
        unclaimed = Invoice.objects.filter(
            pk=invoice.pk, status=InvoiceStatus.ISSUED, reminders__lt=stage
        )
        claimed = unclaimed.update(reminders=stage, reminded_at=at)
        if claimed:
            notices.tell(EventType.INVOICE_OVERDUE, invoice, at)
    return bool(claimed)


def _ended(organizations: QuerySet[Organization], at: datetime) -> set[int]:
    """Return those that have a period which has ended and is not closed. One query, however many they are."""
    used = UsageRecord.objects.filter(organization=OuterRef("pk")).order_by("billed_at")
    known = organizations.annotate(closed_until=Coalesce("account__closed_until", EPOCH)).annotate(
        first_billed_at=Case(
            When(closed_until__gt=EPOCH, then=None), default=Subquery(used.values("billed_at")[:1])
        )
    )
    rows = known.values_list("pk", "timezone", "closed_until", "first_billed_at")
    return {
        pk
        for pk, timezone, closed_until, first_billed_at in rows.iterator()
        for period in [drafts.open_period(ZoneInfo(timezone), closed_until, first_billed_at)]
        if period is not None and period.end <= at
    }
