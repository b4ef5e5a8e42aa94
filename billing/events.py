"""Events: what an organization is told of, written in the transaction in which it happens. Append-only.

What is written here is delivered (`billing.deliveries`), whatever dies in between.
"""

from datetime import datetime
from typing import Any

from django.db import models

from tenants.models import Organization


class EventType(models.TextChoices):
    BUDGET_THRESHOLD = "budget.threshold"
    BUDGET_OVERAGE = "budget.overage"
    INVOICE_DRAFTED = "invoice.drafted"
    INVOICE_ISSUED = "invoice.issued"
    INVOICE_PAID = "invoice.paid"
    INVOICE_VOID = "invoice.void"
    INVOICE_OVERDUE = "invoice.overdue"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"


class Event(models.Model):
    """Something that happened, and what is said of it. `subject` and `type` make it unique: told once."""

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="events")
    type = models.CharField(max_length=32, choices=EventType)
    subject = models.CharField(max_length=100, help_text="What it happened to, and which time.")
    data = models.JSONField()
    happened_at = models.DateTimeField()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["type", "subject"], name="event_once"),
            models.CheckConstraint(
                condition=models.Q(type__in=EventType.values), name="event_type_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} of {self.subject}"


def record(
    type: EventType, organization_id: int, subject: str, data: dict[str, Any], at: datetime
) -> Event | None:
    """Write down what happened; None if that is known already. Sends nothing."""
    row, is_new = Event.objects.get_or_create(
        type=type,
        subject=subject,
        defaults={"organization_id": organization_id, "data": data, "happened_at": at},
    )
    return row if is_new else None
