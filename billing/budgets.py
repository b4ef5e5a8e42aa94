"""Budgets: how much an organization, a team or a key may spend in a day, a month, or its life.

They are enforced where money is booked, by `billing_reserve_batch`: at every instant and every level
`spent + held <= limit`. This module has their rows, and what a person is told of them.
"""

from datetime import datetime
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from billing.money import MICRO_DECIMALS, parse_micro
from billing.rating import PICO_PER_MICRO
from tenants.models import Actor, ApiKey, AuditEntry, Organization, Team
from tenants.owners import Owned

LIMIT_MICRO_MAX = 10**17  # a hundred thousand million currency units
THRESHOLDS_MAX = 10


def parse_limit(text: str) -> int:
    """Return the micro-units of a limit as a person types it; ValueError with what is wrong."""
    limit = parse_micro(text)
    if limit > LIMIT_MICRO_MAX:
        raise ValueError(f"{text} is more than {LIMIT_MICRO_MAX // 10**MICRO_DECIMALS}.")
    return limit


class Period(models.TextChoices):
    DAY = "day", "per day"
    MONTH = "month", "per month"
    LIFE = "life", "for life (prepaid)"


def default_thresholds() -> list[int]:
    return [50, 80, 100]


class Budget(Owned):
    """A limit in money, in tokens, or in both, over the narrowest of organization, team and key that is set."""

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="budgets")
    team = models.ForeignKey(
        Team, on_delete=models.PROTECT, null=True, blank=True, related_name="budgets"
    )
    key = models.ForeignKey(
        ApiKey, on_delete=models.PROTECT, null=True, blank=True, related_name="budgets"
    )
    name = models.CharField(max_length=100, blank=True)
    period = models.CharField(max_length=8, choices=Period, default=Period.MONTH)
    limit_micro = models.BigIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(LIMIT_MICRO_MAX)],
        help_text="In micro-units of the organization's currency (1000 TWD = 1000000000); empty: no limit in money.",
    )
    limit_tokens = models.BigIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text="Input and output tokens together; empty: no limit in tokens.",
    )
    hold_micro_max = models.BigIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="The most that one request may set aside, so that a few do not starve the rest. What it then costs "
        "beyond that may pass the limit, and shows as overage.",
    )
    hold_tokens_max = models.BigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)]
    )
    alert_percents = ArrayField(
        models.PositiveSmallIntegerField(
            validators=[MinValueValidator(1), MaxValueValidator(1000)]
        ),
        default=default_thresholds,
        blank=True,
        size=THRESHOLDS_MAX,
        help_text="An alert is raised once in a window when so many percent are spent.",
    )
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["organization", "team", "key", "id"]
        indexes = [
            models.Index(fields=["organization", "is_active"], name="budget_by_organization")
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(limit_micro__isnull=False) | Q(limit_tokens__isnull=False),
                name="budget_limits_something",
            ),
            models.CheckConstraint(
                condition=(
                    Q(limit_micro__isnull=True)
                    | Q(limit_micro__gte=0, limit_micro__lte=LIMIT_MICRO_MAX)
                )
                & (Q(limit_tokens__isnull=True) | Q(limit_tokens__gte=0)),
                name="budget_is_not_negative",
            ),
            models.CheckConstraint(
                condition=(Q(hold_micro_max__isnull=True) | Q(hold_micro_max__gte=1))
                & (Q(hold_tokens_max__isnull=True) | Q(hold_tokens_max__gte=1)),
                name="budget_hold_cap_is_positive",
            ),
            models.CheckConstraint(
                condition=Q(period__in=Period.values), name="budget_period_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name or 'budget'} of {self.owner}"

    def clean(self) -> None:
        """Judge the owner, sort the thresholds, and refuse a budget that limits nothing."""
        super().clean()
        self.alert_percents = sorted(set(self.alert_percents or []))
        if self.limit_micro is None and self.limit_tokens is None:
            raise ValidationError("Give a limit in money, in tokens, or both.")

    def change(self, *, by: Actor, at: datetime, **values: Any) -> list[str]:
        """Set the fields that differ, and record who did it, with what they were. Return their names.

        ValidationError if a value is wrong. Owner and period are not among them: a trigger keeps those.
        """
        before = {name: getattr(self, name) for name in values}
        for name, value in values.items():
            setattr(self, name, value)
        self.full_clean()
        after = {
            name: getattr(self, name) for name in values if getattr(self, name) != before[name]
        }
        if after:
            detail = {"before": {name: before[name] for name in after}, "after": after}
            with transaction.atomic():
                self.save(update_fields=list(after))
                AuditEntry.record("budget.change", self, by=by, at=at, detail=detail)
        return list(after)


class BudgetWindow(models.Model):
    """A budget over one day, month or life: what is spent in it, and what is held.

    Only the booking functions write it, and `alerts` its `alerted_percent`. `opened_…` is what had been
    booked in the window before the budget stood; it is added up when the budget is set (a trigger), never by a
    request. What runs then is held in the window from that instant on.
    """

    budget = models.ForeignKey(Budget, on_delete=models.PROTECT, related_name="windows")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True)
    opened_at = models.DateTimeField(
        db_default=Now(),
        help_text="When what is booked began to be counted in it, request by request.",
    )
    opened_pico = models.DecimalField(max_digits=30, decimal_places=0)
    opened_tokens = models.BigIntegerField()
    spent_pico = models.DecimalField(max_digits=30, decimal_places=0)
    spent_tokens = models.BigIntegerField()
    held_pico = models.DecimalField(max_digits=30, decimal_places=0)
    held_tokens = models.BigIntegerField()
    alerted_percent = models.PositiveSmallIntegerField(default=0)

    class Meta:
        indexes = [models.Index(fields=["ends_at"], name="budget_window_by_end")]
        constraints = [
            models.UniqueConstraint(fields=["budget", "starts_at"], name="budget_window_once"),
            models.CheckConstraint(
                condition=Q(held_pico__gte=0, held_tokens__gte=0),
                name="budget_window_holds_nothing_negative",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.budget} from {self.starts_at:%Y-%m-%d}"

    @property
    def left_pico(self) -> int | None:
        """What may still be held, in pico-units; None where the budget does not limit money."""
        if self.budget.limit_micro is None:
            return None
        limit_pico = self.budget.limit_micro * PICO_PER_MICRO
        return max(0, limit_pico - int(self.spent_pico) - int(self.held_pico))

    @property
    def left_tokens(self) -> int | None:
        """What may still be held, in tokens; None where the budget does not limit them."""
        if self.budget.limit_tokens is None:
            return None
        return max(0, self.budget.limit_tokens - self.spent_tokens - self.held_tokens)
