"""Events: what an organization is told of, written in the transaction in which it happens. Append-only.

What is written here is delivered (`billing.deliveries`) to whatever channels the organization has then, whatever dies
in between. An event that is known already is not written again, so whoever finds it may say so.
"""

from datetime import datetime, timedelta
from typing import Any

from django.db import connection, models
from django.db.models import Q

from billing.channels import AlertChannel, Medium
from tenants.models import AuditEntry, Organization

LOOKBACK = timedelta(
    days=2
)  # how long the worker may have been away without a key's event being missed
KEYS_AT_ONCE_MAX = 1000  # in one run; the next one takes the others


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


# What people get a mail of; a webhook gets everything.
MAILED = frozenset(
    {
        EventType.BUDGET_THRESHOLD,
        EventType.BUDGET_OVERAGE,
        EventType.INVOICE_ISSUED,
        EventType.INVOICE_VOID,
        EventType.INVOICE_OVERDUE,
    }
)


class Event(models.Model):
    """Something that happened, and what is said of it. `subject` and `type` make it unique: told once.

    What an event of an alert says is read from its alert.
    """

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="events")
    type = models.CharField(max_length=32, choices=EventType)
    subject = models.CharField(max_length=100, help_text="What it happened to, and which time.")
    data = models.JSONField()
    alert = models.OneToOneField(
        "billing.Alert", on_delete=models.PROTECT, null=True, related_name="event"
    )
    happened_at = models.DateTimeField()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["type", "subject"], name="event_once"),
            models.CheckConstraint(
                condition=Q(type__in=EventType.values), name="event_type_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} of {self.subject}"


class Delivery(models.Model):
    """An event on its way to one medium. It is due at `next_attempt_at`; over when that is empty."""

    event = models.ForeignKey(Event, on_delete=models.PROTECT, related_name="deliveries")
    medium = models.CharField(max_length=16, choices=Medium)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True)
    delivered_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=300, blank=True)

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(fields=["event", "medium"], name="delivery_once"),
            models.CheckConstraint(
                condition=Q(medium__in=Medium.values), name="delivery_medium_is_known"
            ),
        ]
        indexes = [
            models.Index(
                fields=["next_attempt_at"],
                condition=Q(next_attempt_at__isnull=False),
                name="delivery_due",
            )
        ]

    def __str__(self) -> str:
        return f"{self.medium} for {self.event}"


def record(
    type: EventType,
    organization_id: int,
    subject: str,
    data: dict[str, Any],
    at: datetime,
    *,
    alert: Any = None,
) -> Event | None:
    """Write down what happened, and put it on its way, in the caller's transaction. None if it is known already."""
    row, is_new = Event.objects.get_or_create(
        type=type,
        subject=subject,
        defaults={
            "organization_id": organization_id,
            "data": data,
            "happened_at": at,
            "alert": alert,
        },
    )
    if is_new:
        _address(row, at)
    return row if is_new else None


def replay(event: Event, at: datetime) -> list[Delivery]:
    """Send it again to every channel that the organization has now, delivered before or not."""
    for medium in _media(event):
        Delivery.objects.update_or_create(
            event=event,
            medium=medium,
            defaults={
                "attempts": 0,
                "next_attempt_at": at,
                "delivered_at": None,
                "last_error": "",
            },
        )
    return list(event.deliveries.all())


# Keys belong to an app that does not know of this one; what happened to them stands in the audit trail.
UNTOLD_KEYS = """
    SELECT entry.id FROM tenants_auditentry entry
    WHERE entry.action IN ('key.create', 'key.revoke') AND entry.at > %s AND entry.organization_id IS NOT NULL
      AND NOT EXISTS (
          SELECT FROM billing_event told WHERE told.subject = 'audit entry ' || entry.id
            AND told.type IN ('key.created', 'key.revoked'))
    ORDER BY entry.id LIMIT %s
"""


def record_keys(at: datetime) -> int:
    """Write down the keys that were created or revoked since; return how many. Each once, however many do so."""
    with connection.cursor() as cursor:
        cursor.execute(UNTOLD_KEYS, [at - LOOKBACK, KEYS_AT_ONCE_MAX])
        ids = [row[0] for row in cursor.fetchall()]
    return sum(_record_key(entry) for entry in AuditEntry.objects.filter(pk__in=ids).order_by("pk"))


def _record_key(entry: AuditEntry) -> bool:
    is_new = entry.action == "key.create"
    data = {"key": entry.subject, "actor": entry.actor, "at": entry.at.isoformat()}
    assert entry.organization_id is not None, "a key has an organization"
    told = record(
        EventType.KEY_CREATED if is_new else EventType.KEY_REVOKED,
        entry.organization_id,
        f"audit entry {entry.pk}",
        data,
        entry.at,
    )
    return told is not None


def _address(event: Event, at: datetime) -> None:
    for medium in _media(event):
        Delivery.objects.create(event=event, medium=medium, next_attempt_at=at)


def _media(event: Event) -> list[Medium]:
    channel = AlertChannel.objects.filter(organization_id=event.organization_id).first()
    media = channel.media if channel else []
    return [each for each in media if each != Medium.EMAIL or event.type in MAILED]
