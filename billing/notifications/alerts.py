"""Alerts: told once in a window, that a share of a budget is spent, or that a request passed what was held for it.

What counts is what is settled. Held money is not spent: most of it comes back, and an alert for it would be a
false one.
"""

from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from django.db import connection, models, transaction
from django.db.models import Q

from billing.budgets import Budget, BudgetWindow
from billing.notifications import events
from billing.notifications.events import Delivery, EventType
from billing.notifications.thresholds import spent_percent, standing
from billing.rating import PICO_PER_MICRO
from tenants.models import Organization

LOOKBACK = timedelta(days=2)  # how long the worker may have been away without an alert being missed
OVERAGES_MAX = 1000  # in one run; the next one takes the others


class AlertKind(models.TextChoices):
    THRESHOLD = "threshold", "a share of the budget is spent"
    OVERAGE = "overage", "a request cost more than was held for it"


class Alert(models.Model):
    """What was told, and the figures of that moment. Append-only: a trigger keeps it so."""

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="alerts")
    budget = models.ForeignKey(Budget, on_delete=models.PROTECT, related_name="alerts")
    window = models.ForeignKey(BudgetWindow, on_delete=models.PROTECT, related_name="alerts")
    kind = models.CharField(max_length=16, choices=AlertKind)
    threshold_percent = models.PositiveSmallIntegerField(null=True)
    spent_pico = models.DecimalField(max_digits=30, decimal_places=0)
    spent_tokens = models.BigIntegerField()
    limit_micro = models.BigIntegerField(null=True)
    limit_tokens = models.BigIntegerField(null=True)
    request_id = models.UUIDField(null=True, help_text="The first request that went over.")
    overage_pico = models.BigIntegerField(null=True, help_text="By how much it did.")
    raised_at = models.DateTimeField()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["window"],
                condition=Q(kind=AlertKind.OVERAGE),
                name="alert_of_overage_once_per_window",
            ),
            models.CheckConstraint(
                condition=Q(kind=AlertKind.THRESHOLD, threshold_percent__isnull=False)
                | Q(kind=AlertKind.OVERAGE, request_id__isnull=False, overage_pico__isnull=False),
                name="alert_says_why",
            ),
        ]

    def __str__(self) -> str:
        what = "overage" if self.kind == AlertKind.OVERAGE else f"{self.threshold_percent} %"
        return f"{what} of {self.budget}"

    @property
    def deliveries(self) -> "models.QuerySet[Delivery]":
        return Delivery.objects.filter(event__alert=self)


def raise_due(at: datetime) -> list[Alert]:
    """Raise what is due, each once, whoever else does so at the same time. Sends nothing."""
    raised = [_at_threshold(window, at) for window in _windows_in_use(at)]
    raised += [_of_overage(*overage, at) for overage in _overages(at)]
    return [alert for alert in raised if alert is not None]


def _windows_in_use(at: datetime) -> "models.QuerySet[BudgetWindow]":
    """Return the open windows and those that closed lately, one row for each budget that is in use."""
    return (
        BudgetWindow.objects.filter(budget__is_active=True)
        .filter(Q(ends_at=None) | Q(ends_at__gt=at - LOOKBACK))
        .filter(Q(spent_tokens__gt=0) | Q(spent_pico__gt=0) | Q(alerted_percent__gt=0))
        .select_related("budget")
        .order_by("pk")
    )


def _at_threshold(window: BudgetWindow, at: datetime) -> Alert | None:
    """Move the window to the threshold it stands at, and raise an alert if that is a higher one.

    One window in one transaction: several would be locked in another order than the booking functions lock them.
    """
    alerted = window.alerted_percent
    stands = standing(window.budget.alert_percents, alerted, _percent(window))
    if stands == alerted:
        return None
    with transaction.atomic():
        unclaimed = BudgetWindow.objects.filter(pk=window.pk, alerted_percent=alerted)
        if not unclaimed.update(alerted_percent=stands) or stands < alerted:
            return None  # another process was first; or the threshold is only armed again
        alert = Alert.objects.create(
            window=window,
            kind=AlertKind.THRESHOLD,
            threshold_percent=stands,
            **_figures(window, at),
        )
        _tell(alert)
    return alert


def _percent(window: BudgetWindow) -> Fraction:
    budget = window.budget
    limit_pico = None if budget.limit_micro is None else budget.limit_micro * PICO_PER_MICRO
    return max(
        spent_percent(int(window.spent_pico), limit_pico),
        spent_percent(window.spent_tokens, budget.limit_tokens),
    )


OVERAGES = """
SELECT DISTINCT ON (over.window_id) over.window_id, over.request_id, over.overage_pico
FROM (SELECT unnest(window_ids) AS window_id, request_id, amount_pico - held_pico AS overage_pico
      FROM billing_usagerecord
      WHERE kind = 'usage' AND amount_pico > held_pico AND recorded_at > %s) over
WHERE NOT EXISTS (
    SELECT FROM billing_alert told WHERE told.window_id = over.window_id AND told.kind = 'overage')
ORDER BY over.window_id, over.request_id
LIMIT %s
"""


def _overages(at: datetime) -> list[tuple[BudgetWindow, str, int]]:
    """Return the windows with an overage that nobody was told of: each with its first request and by how much."""
    with connection.cursor() as cursor:
        cursor.execute(OVERAGES, [at - LOOKBACK, OVERAGES_MAX])
        rows = cursor.fetchall()
    windows = BudgetWindow.objects.select_related("budget").in_bulk([row[0] for row in rows])
    return [
        (windows[pk], request_id, pico)
        for pk, request_id, pico in rows
        if windows[pk].budget.is_active
    ]


def _of_overage(
    window: BudgetWindow, request_id: str, overage_pico: int, at: datetime
) -> Alert | None:
    """Raise it unless another process has: a unique constraint knows."""
    overage = {"request_id": request_id, "overage_pico": overage_pico, **_figures(window, at)}
    with transaction.atomic():
        alert, is_new = Alert.objects.get_or_create(
            window=window, kind=AlertKind.OVERAGE, defaults=overage
        )
        if is_new:
            _tell(alert)
    return alert if is_new else None


def _figures(window: BudgetWindow, at: datetime) -> dict[str, Any]:
    budget = window.budget
    return {
        "organization_id": budget.organization_id,
        "budget": budget,
        "spent_pico": window.spent_pico,
        "spent_tokens": window.spent_tokens,
        "limit_micro": budget.limit_micro,
        "limit_tokens": budget.limit_tokens,
        "raised_at": at,
    }


def _tell(alert: Alert) -> None:
    """Make the alert an event, in the same transaction: what is raised is delivered, whatever dies in between."""
    types = {
        AlertKind.THRESHOLD: EventType.BUDGET_THRESHOLD,
        AlertKind.OVERAGE: EventType.BUDGET_OVERAGE,
    }
    events.record(
        types[AlertKind(alert.kind)],
        alert.organization_id,
        f"alert {alert.pk}",
        {},
        alert.raised_at,
        alert=alert,
    )
