"""Limits: how much an organization, a team or a key may ask for in a minute, and at once.

This is what a person sets. `gateway.limits` keeps the count, per request, outside the database.
"""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from tenants.owners import Owned

MAXIMUM_MAX = 1_000_000_000  # times the milliseconds of a window it is still exact in Lua's numbers
LIMITS_OF_ONE_OWNER_MAX = 64  # every key carries them


class LimitKind(models.TextChoices):
    REQUESTS = "requests", "requests per minute"
    TOKENS = "tokens", "tokens per minute"
    IMAGES = "images", "images per minute"
    CONCURRENT = "concurrent", "requests at once"


class Limit(Owned):
    """The most of one kind that its owner may use: the narrowest of organization, team and key that is set.

    A shadow limit refuses nothing, it only tells; so one can stand beside the limit that it may replace.
    """

    organization = models.ForeignKey(
        "tenants.Organization", on_delete=models.CASCADE, related_name="limits"
    )
    team = models.ForeignKey(
        "tenants.Team", on_delete=models.CASCADE, null=True, blank=True, related_name="limits"
    )
    key = models.ForeignKey(
        "tenants.ApiKey", on_delete=models.CASCADE, null=True, blank=True, related_name="limits"
    )
    model_name = models.CharField(
        max_length=200, blank=True, help_text="What it counts; empty for all models together."
    )
    kind = models.CharField(max_length=16, choices=LimitKind)
    maximum = models.PositiveIntegerField(
        validators=[MinValueValidator(1), MaxValueValidator(MAXIMUM_MAX)]
    )
    is_shadow = models.BooleanField(
        "shadow", default=False, help_text="Report what it would refuse, and refuse nothing."
    )

    class Meta:
        ordering = ["organization", "team", "key", "model_name", "kind", "is_shadow"]
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "team", "key", "model_name", "kind", "is_shadow"],
                nulls_distinct=False,
                name="limit_once_per_owner",
                violation_error_message="This owner has such a limit already: change that one.",
            ),
            models.CheckConstraint(
                condition=Q(key__isnull=True) | Q(team__isnull=False),
                name="limit_of_a_key_names_its_team",
            ),
            models.CheckConstraint(
                condition=Q(maximum__gte=1, maximum__lte=MAXIMUM_MAX),
                name="limit_maximum_is_in_range",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=LimitKind.values), name="limit_kind_is_known"
            ),
        ]

    def __str__(self) -> str:
        of_model = f" of {self.model_name}" if self.model_name else ""
        shadow = " (shadow)" if self.is_shadow else ""
        what = LimitKind(self.kind).label
        return f"{self.maximum} {what}{of_model} for {self.level} {self.owner}{shadow}"

    def clean(self) -> None:
        """Judge the owner, and refuse one limit too many."""
        super().clean()
        others = Limit.objects.filter(
            organization=self.organization_id, team=self.team_id, key=self.key_id
        )
        if self._state.adding and others.count() >= LIMITS_OF_ONE_OWNER_MAX:
            raise ValidationError(f"An owner has at most {LIMITS_OF_ONE_OWNER_MAX} limits.")
