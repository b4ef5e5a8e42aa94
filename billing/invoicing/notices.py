"""What an organization is told of its invoices."""

from datetime import datetime

from billing.invoicing.invoices import Invoice
from billing.notifications import events
from billing.notifications.events import EventType


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
