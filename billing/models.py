"""What is booked: price versions, open holds, and the ledger of usage records.

The data plane writes holds and usage records through two SQL functions (`billing/sql/reserve_batch.sql` and
`settle_batch.sql`), never through the ORM; triggers keep prices and usage records append-only whoever writes.
"""

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from billing.accounts import Account, InvoiceLanguage
from billing.budgets import Budget, BudgetWindow, Period
from billing.idempotency import IdempotentRequest
from billing.invoicing.invoices import (
    CreditDraw,
    CreditGrant,
    Invoice,
    InvoiceDocument,
    InvoiceLine,
    InvoiceNumbers,
    Issuer,
    Payment,
)
from billing.invoicing.seals import UsageSeal
from billing.notifications.alerts import Alert
from billing.notifications.channels import Channel
from billing.notifications.events import Delivery, Event, KeyMark
from billing.price_lists import MICRO_MAX, Allowance, Price, PriceList, PriceTier
from tenants.models import ApiKey, Organization, Team

__all__ = [
    "MICRO_MAX",
    "Account",
    "Alert",
    "Allowance",
    "Budget",
    "BudgetWindow",
    "Channel",
    "CreditDraw",
    "CreditGrant",
    "Delivery",
    "Event",
    "GatewayProcess",
    "Hold",
    "IdempotentRequest",
    "Invoice",
    "InvoiceDocument",
    "InvoiceLanguage",
    "InvoiceLine",
    "InvoiceNumbers",
    "Issuer",
    "KeyMark",
    "Payment",
    "Period",
    "Price",
    "PriceList",
    "PriceTier",
    "Reconciliation",
    "Rollup",
    "RollupMark",
    "UsageRecord",
    "UsageSeal",
]


class OwnerKey(models.ForeignKey):  # type: ignore[type-arg]
    """Points at who or what a booking belongs to; its owner cannot be deleted through the ORM.

    PostgreSQL does not check it: four checks a row would double the cost of the hot path, and the ids come
    from rows that are never deleted while bookings point at them. Nor is there an index that nothing reads.
    """

    def __init__(self, to: type[models.Model] | str, **kwargs: Any) -> None:
        kwargs |= {
            "on_delete": models.PROTECT,
            "related_name": "+",
            "db_constraint": False,
            "db_index": False,
        }
        super().__init__(to, **kwargs)


class Booking(models.Model):
    """What a hold and its usage record both say of a request."""

    request_id = models.UUIDField(primary_key=True, help_text="UUIDv7, made by the gateway.")
    organization = OwnerKey(Organization)
    team = OwnerKey(Team)
    key = OwnerKey(ApiKey)
    model_name = models.CharField(max_length=200)
    backend_name = models.CharField(max_length=64)
    price = OwnerKey(Price)
    received_at = models.DateTimeField()
    tokens_in_text = models.BigIntegerField(help_text="Our count, chat template included.")
    tokens_in_image = models.BigIntegerField()

    class Meta:
        abstract = True


class Hold(Booking):
    """Money set aside for a request that runs: its worst case. Gone when it is settled, voided or expired.

    `window_ids`, `window_pico` and `window_tokens` run side by side: what was taken from each budget's window.
    """

    tokens_out_max = models.BigIntegerField()
    tokens_held = models.BigIntegerField(
        db_default=0, help_text="The worst case in tokens, input included."
    )
    amount_pico = models.BigIntegerField(help_text="The worst case, in pico-units of the currency.")
    canvases = ArrayField(models.CharField(max_length=40), default=list)
    streamed = models.BooleanField()
    process_id = models.UUIDField(null=True, help_text="The gateway process that runs it.")
    window_ids = ArrayField(models.BigIntegerField(), default=list)
    window_pico = ArrayField(models.BigIntegerField(), default=list)
    window_tokens = ArrayField(models.BigIntegerField(), default=list)
    idempotency_key = models.CharField(max_length=255, null=True)  # noqa: DJ001 - absent is not empty
    body_sha256 = models.CharField(max_length=64, null=True)  # noqa: DJ001
    held_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    amount_pico__gte=0,
                    tokens_in_text__gte=0,
                    tokens_in_image__gte=0,
                    tokens_out_max__gte=0,
                ),
                name="hold_is_not_negative",
            )
        ]

    def __str__(self) -> str:
        return f"hold {self.request_id}"


class UsageStatus(models.TextChoices):
    OK = "ok", "completed"
    CUT = "cut", "ran past max_tokens and was cut"
    CLIENT_CLOSED = "client_closed", "the client left early"
    BACKEND_ERROR = "backend_error", "the backend broke off"
    TIMEOUT = "timeout", "cut off at a deadline"
    EXPIRED = "expired", "its process died; settled from the hold"


class UsageSource(models.TextChoices):
    UPSTREAM = "upstream", "reported by the backend"
    COUNTED = "counted", "counted by us with the model's own tokenizer"
    ESTIMATED = "estimated", "estimated"


class UsageKind(models.TextChoices):
    USAGE = "usage", "one request"
    ADJUSTMENT = "adjustment", "the difference to what had been estimated"


class UsageRecord(Booking):
    """One row of the ledger: what was used and what it costs. Written once, never changed, never any content.

    The table is partitioned by month, by the time in `request_id`; a primary key is all that is unique in it.
    A request has one row of kind `usage`. If that was an estimate and the truth came later, a row of kind
    `adjustment` holds the difference, which may be negative.
    """

    kind = models.CharField(max_length=16, choices=UsageKind, db_default=UsageKind.USAGE)
    adjusts_id = models.UUIDField(null=True, help_text="The request whose estimate this corrects.")
    tokens_in_cached = models.BigIntegerField(
        help_text="Billed at the cached price; in no other kind."
    )
    tokens_out = models.BigIntegerField()
    amount_pico = models.BigIntegerField(help_text="In pico-units of the price's currency.")
    held_pico = models.BigIntegerField()
    status = models.CharField(max_length=16, choices=UsageStatus)
    usage_source = models.CharField(
        max_length=16, choices=UsageSource, help_text="Where the billed output tokens come from."
    )
    policy = models.CharField(
        max_length=16,
        blank=True,
        db_default="",
        help_text="The organization's rule for an answer that did not complete.",
    )
    counted_prompt = models.BigIntegerField(help_text="Prompt tokens by our counter.")
    counted_out = models.BigIntegerField(
        null=True, help_text="Output tokens by our counter, if it had to count."
    )
    upstream_prompt = models.BigIntegerField(
        null=True, help_text="Prompt tokens as the backend reported them."
    )
    upstream_out = models.BigIntegerField(null=True)
    upstream_cached = models.BigIntegerField(null=True)
    upstream_id = models.CharField(max_length=200, blank=True)
    canvases = ArrayField(
        models.CharField(max_length=40),
        default=list,
        help_text="One entry an image: format, size and canvas, such as jpeg 840x1400 2x2.",
    )
    streamed = models.BooleanField()
    window_ids = ArrayField(
        models.BigIntegerField(),
        default=list,
        help_text="The budgets' windows that this was spent in.",
    )
    held_at = models.DateTimeField(
        db_default=Now(), help_text="When its hold was made, by the database's clock."
    )
    first_byte_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField()
    recorded_at = models.DateTimeField(db_default=Now(), help_text="By the database's clock.")
    billed_at = models.DateTimeField(
        help_text="Decides its period: when it was received, unless that period was closed."
    )

    class Meta:
        ordering = ["-request_id"]
        indexes = [
            models.Index(fields=["organization", "recorded_at"], name="usage_by_organization"),
            models.Index(fields=["organization", "billed_at"], name="usage_by_period"),
            BrinIndex(fields=["recorded_at"], name="usage_recorded", autosummarize=True),
            models.Index(fields=["key", "recorded_at"], name="usage_by_key"),
            models.Index(
                fields=["organization", "billed_at"],
                condition=Q(kind=UsageKind.ADJUSTMENT),
                name="usage_adjustments",
            ),
            models.Index(
                fields=["recorded_at"],
                condition=Q(kind=UsageKind.USAGE, amount_pico__gt=F("held_pico")),
                name="usage_over_its_hold",
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    amount_pico__gte=0,
                    tokens_in_text__gte=0,
                    tokens_in_image__gte=0,
                    tokens_in_cached__gte=0,
                    tokens_out__gte=0,
                    adjusts_id__isnull=True,
                    kind=UsageKind.USAGE,
                )
                | Q(adjusts_id__isnull=False, kind=UsageKind.ADJUSTMENT),
                name="usage_is_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(status__in=UsageStatus.values) & Q(usage_source__in=UsageSource.values),
                name="usage_words_are_known",
            ),
        ]

    def __str__(self) -> str:
        return f"usage {self.request_id}"

    @property
    def is_late(self) -> bool:
        """Say whether it came after its period was closed, and so is billed in a later one."""
        return self.billed_at > self.received_at

    @property
    def overage_pico(self) -> int:
        """Return by how much the amount passed what was held."""
        return max(0, self.amount_pico - self.held_pico)


class Rollup(models.Model):
    """What the ledger has of one quarter of an hour, by team, key, model and price. Only `billing.rollups` writes it.

    `tokens_…` is what was used, `billed_…` what of it is billed by the organization's rules for broken answers.
    """

    bucket = models.DateTimeField(help_text="When its quarter begins, by `billed_at`.")
    organization = OwnerKey(Organization)
    team = OwnerKey(Team)
    key = OwnerKey(ApiKey)
    model_name = models.CharField(max_length=200)
    price = OwnerKey(Price)
    is_late = models.BooleanField(help_text="Received in a period that was closed before.")
    requests = models.BigIntegerField()
    images = models.BigIntegerField()
    tokens_in_text = models.BigIntegerField()
    tokens_in_image = models.BigIntegerField()
    tokens_in_cached = models.BigIntegerField()
    tokens_out = models.BigIntegerField()
    billed_requests = models.BigIntegerField()
    billed_images = models.BigIntegerField()
    billed_in_text = models.BigIntegerField()
    billed_in_image = models.BigIntegerField()
    billed_in_cached = models.BigIntegerField()
    billed_out = models.BigIntegerField()
    amount_pico = models.DecimalField(max_digits=30, decimal_places=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=[
                    *("organization", "bucket", "team", "key"),
                    *("model_name", "price", "is_late"),
                ],
                name="rollup_once",
            )
        ]

    def __str__(self) -> str:
        return f"{self.model_name} from {self.bucket:%Y-%m-%d %H:%M}"


class RollupMark(models.Model):
    """Up to when the ledger was read for the rollups, by `recorded_at`. One row."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    recorded_until = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="rollup_mark_is_one")]

    def __str__(self) -> str:
        return f"read until {self.recorded_until:%Y-%m-%d %H:%M:%S}"


class GatewayProcess(models.Model):
    """A gateway process, and when it was last heard of. Holds of a process that fell silent are reaped."""

    id = models.UUIDField(primary_key=True)
    host = models.CharField(max_length=200)
    started_at = models.DateTimeField(db_default=Now())
    beat_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "billing_process"

    def __str__(self) -> str:
        return f"{self.host} {self.id}"


class Reconciliation(models.Model):
    """One run of the reconciliation: what it found and did. Append-only; drift is zero, or something is wrong."""

    at = models.DateTimeField(db_default=Now())
    drift_pico = models.DecimalField(
        max_digits=40,
        decimal_places=0,
        help_text="How far all budget windows together are off, in pico-units, before any correction.",
    )
    drift_tokens = models.BigIntegerField()
    drained = models.BigIntegerField(help_text="Rows booked from the spools of dead processes.")
    reaped = models.BigIntegerField(help_text="Holds of dead processes that were settled.")
    details = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"reconciliation of {self.at:%Y-%m-%d %H:%M:%S}"
