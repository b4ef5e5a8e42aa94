"""Events: what an organization is told of, written in the transaction in which it happens. Append-only.

What is written here is delivered (`deliveries`) to whatever channels the organization has then, whatever dies
in between. An event that is known already is not written again, so whoever finds it may say so.
"""

from datetime import datetime, timedelta
from typing import Any

from django.db import connection, models, transaction
from django.db.models import Exists, OuterRef, Q

from billing import errands
from billing.notifications.channels import Channel, Medium
from tenants.models import Actor, AuditEntry, Organization

# An entry is dated before its commit, and by the clock of its own host. Whoever is later than this is not told of.
OVERLAP = timedelta(days=2)
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
    """An event on its way to one medium. It is due at `next_attempt_at`; over when that is empty.

    Sent again, it is another delivery: what became of the one before stays.
    """

    event = models.ForeignKey(Event, on_delete=models.PROTECT, related_name="deliveries")
    medium = models.CharField(max_length=16, choices=Medium)
    replay = models.PositiveSmallIntegerField(
        default=0, help_text="0 for the first, n for the n-th time that it is sent again."
    )
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True)
    delivered_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=300, blank=True)

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(fields=["event", "medium", "replay"], name="delivery_once"),
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


class KeyMark(models.Model):
    """Up to when the audit trail was read for events of keys. One row."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    read_until = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="key_mark_is_one")]

    def __str__(self) -> str:
        return f"read until {self.read_until:%Y-%m-%d %H:%M:%S}"


def record(
    type: EventType,
    organization_id: int,
    subject: str,
    data: dict[str, Any],
    at: datetime,
    *,
    alert: Any = None,
) -> Event | None:
    """Write down what happened, and put it on its way: both, or nothing. None if it is known already."""
    with transaction.atomic():
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


def replay(event: Event, at: datetime, *, by: Actor) -> list[Delivery]:
    """Send it again to every channel that the organization has now, delivered before or not; return how.

    What is on its way still is only brought forward. Recorded, as somebody is told something anew.
    """
    with transaction.atomic():
        Event.objects.select_for_update().get(pk=event.pk)  # one replay at a time
        found = [_again(event, medium, at) for medium in _media(event)]
        detail = {"media": [delivery.medium for delivery in found]}
        AuditEntry.record("event.replay", event, by=by, at=at, detail=detail)
    return found


def _again(event: Event, medium: Medium, at: datetime) -> Delivery:
    last = event.deliveries.filter(medium=medium).order_by("replay").last()
    number = 0 if last is None else last.replay + 1
    if last is not None and last.next_attempt_at is not None:
        number = last.replay
        Delivery.objects.filter(pk=last.pk, next_attempt_at__gt=at).update(next_attempt_at=at)
    delivery, _ = Delivery.objects.get_or_create(
        event=event, medium=medium, replay=number, defaults={"next_attempt_at": at}
    )
    errands.after_commit("deliver_event", delivery.pk)
    return delivery


def undelivered() -> "models.QuerySet[Delivery]":
    """Return what waits or was given up, and was not sent again since."""
    later = Delivery.objects.filter(
        event=OuterRef("event"), medium=OuterRef("medium"), replay__gt=OuterRef("replay")
    )
    return Delivery.objects.filter(~Exists(later), delivered_at=None)


# Keys belong to an app that does not know of this one; what happened to them stands in the audit trail.
UNTOLD_KEYS = """
    SELECT entry.id FROM tenants_auditentry entry
    WHERE entry.action IN ('key.create', 'key.revoke') AND entry.at > %s AND entry.organization_id IS NOT NULL
      AND NOT EXISTS (
          SELECT FROM billing_event told WHERE told.subject = 'audit entry ' || entry.id
            AND told.type IN ('key.created', 'key.revoked'))
    ORDER BY entry.at, entry.id LIMIT %s
"""


def record_keys(at: datetime) -> int:
    """Write down the keys that were created or revoked since the last run, however long ago that was.

    Returns how many. Each once, however many do so at once.
    """
    mark = KeyMark.objects.first()
    since = (at if mark is None else mark.read_until) - OVERLAP
    with connection.cursor() as cursor:
        cursor.execute(UNTOLD_KEYS, [since, KEYS_AT_ONCE_MAX])
        ids = [row[0] for row in cursor.fetchall()]
    told = sum(_record_key(entry) for entry in AuditEntry.objects.filter(pk__in=ids).order_by("pk"))
    if len(ids) < KEYS_AT_ONCE_MAX:  # else there is more to read of the same time
        _mark(at)
    return told


def _mark(at: datetime) -> None:
    mark, is_new = KeyMark.objects.get_or_create(id=1, defaults={"read_until": at})
    if not is_new:
        KeyMark.objects.filter(pk=mark.pk, read_until__lt=at).update(read_until=at)


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
        delivery = Delivery.objects.create(event=event, medium=medium, next_attempt_at=at)
        errands.after_commit("deliver_event", delivery.pk)


def _media(event: Event) -> list[Medium]:
    channel = Channel.objects.filter(organization_id=event.organization_id).first()
    media = channel.media if channel else []
    return [each for each in media if each != Medium.EMAIL or event.type in MAILED]
