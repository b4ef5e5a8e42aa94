"""Invoices and credit notes, their lines and payments, and credit that was granted or bought beforehand.

A draft may change until it is issued. From then on triggers keep it: of an issued invoice only the status moves, and
lines, payments and draws are only ever added. What an invoice shows is its snapshot (`snapshots`); the rows of lines
are there to be queried.
"""

from datetime import datetime
from typing import Any, Self

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q, Sum
from django.db.models.functions import Now
from django.utils import timezone

from billing.accounts import InvoiceLanguage
from billing.invoicing import snapshots
from billing.invoicing.snapshots import Document, Snapshot
from billing.price_lists import PriceList
from billing.rating import Kind
from tenants.models import CURRENCY_VALIDATOR, Organization, validate_timezone

PREFIX = r"\A[A-Z0-9]{1,8}\Z"
NUMBER_DIGITS = 6
REASON_LENGTH_MAX = 300


class Issuer(models.Model):
    """Who bills. Its invoices are numbered and chained together, by the years of its time zone."""

    name = models.CharField(max_length=200)
    tax_id = models.CharField(max_length=64, blank=True)
    address = models.TextField(max_length=1000, blank=True)
    timezone = models.CharField(
        max_length=64, default="Asia/Taipei", validators=[validate_timezone]
    )
    prefix = models.CharField(
        max_length=8, unique=True, default="TSR", validators=[RegexValidator(PREFIX)]
    )

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.CheckConstraint(condition=~Q(name=""), name="issuer_has_a_name"),
            models.CheckConstraint(condition=Q(prefix__regex=PREFIX), name="issuer_prefix_plain"),
        ]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def standard(cls) -> Self:
        """Return the issuer of this installation: the first one, made now if there is none."""
        return (
            cls.objects.first()
            or cls.objects.get_or_create(prefix="TSR", defaults={"name": "Tessera"})[0]
        )


class InvoiceNumbers(models.Model):
    """The last number of an issuer's year, and the hash that the next invoice names. Locked while one is issued."""

    issuer = models.ForeignKey(Issuer, on_delete=models.PROTECT, related_name="numbers")
    year = models.PositiveSmallIntegerField()
    last_number = models.PositiveIntegerField(default=0)
    last_sha256 = models.CharField(max_length=64, default=snapshots.GENESIS_SHA256)

    class Meta:
        verbose_name_plural = "invoice numbers"
        constraints = [
            models.UniqueConstraint(fields=["issuer", "year"], name="invoice_numbers_once")
        ]

    def __str__(self) -> str:
        return f"{self.issuer.prefix}-{self.year}: {self.last_number}"


class InvoiceStatus(models.TextChoices):
    DRAFT = "draft"
    ISSUED = "issued"
    PAID = "paid"
    VOID = "void"


class Invoice(models.Model):
    """An invoice or a credit note, from its draft on. Overdue is derived: issued, and past `due_at`."""

    issuer = models.ForeignKey(Issuer, on_delete=models.PROTECT, related_name="invoices")
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="invoices"
    )
    kind = models.CharField(
        max_length=16, choices=[(each.value, each.value) for each in Document], default="invoice"
    )
    corrects = models.ForeignKey(
        "self", on_delete=models.PROTECT, null=True, related_name="credit_notes"
    )
    replaces = models.ForeignKey(
        "self", on_delete=models.PROTECT, null=True, related_name="replacements"
    )
    rated_under = models.ForeignKey(
        PriceList,
        on_delete=models.PROTECT,
        null=True,
        related_name="+",
        help_text="The list it is rated under anew; empty for the prices that its usage was booked at.",
    )
    number = models.CharField(max_length=32, null=True, unique=True)  # noqa: DJ001 - a draft has none
    year = models.PositiveSmallIntegerField(null=True)
    serial = models.PositiveIntegerField(null=True, help_text="Gapless in the issuer's year.")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    status = models.CharField(max_length=16, choices=InvoiceStatus, default=InvoiceStatus.DRAFT)
    currency = models.CharField(max_length=3, validators=[CURRENCY_VALIDATOR])
    language = models.CharField(max_length=16, choices=InvoiceLanguage)
    subtotal_minor = models.BigIntegerField(default=0)
    discount_minor = models.BigIntegerField(default=0)
    tax_minor = models.BigIntegerField(default=0)
    total_minor = models.BigIntegerField(default=0)
    credits_minor = models.BigIntegerField(default=0)
    due_minor = models.BigIntegerField(default=0)
    drafted_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, help_text="When its period was closed.")
    closing_seen_at = models.DateTimeField(
        null=True,
        help_text="When the closing was committed, by the database's clock: who began before may not know of it.",
    )
    issued_at = models.DateTimeField(null=True)
    due_at = models.DateTimeField(null=True)
    voided_at = models.DateTimeField(null=True)
    void_reason = models.CharField(max_length=REASON_LENGTH_MAX, blank=True)
    reminders = models.PositiveSmallIntegerField(default=0, help_text="How often it was dunned.")
    reminded_at = models.DateTimeField(null=True)
    held_back = models.CharField(
        max_length=300, blank=True, help_text="Why it could not be issued when it was due to be."
    )
    snapshot = models.JSONField(null=True)
    content_sha256 = models.CharField(max_length=64, blank=True)
    previous_sha256 = models.CharField(max_length=64, blank=True)

    class Meta:
        ordering = ["-period_start", "-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "period_start"],
                condition=Q(kind="invoice") & ~Q(status="void"),
                name="invoice_once_per_period",
            ),
            models.UniqueConstraint(
                fields=["organization"],
                condition=Q(kind="invoice", status="draft", closed_at__isnull=True),
                name="invoice_one_open_draft",
            ),
            models.UniqueConstraint(
                fields=["issuer", "year", "serial"], name="invoice_serial_once"
            ),
            models.UniqueConstraint(
                fields=["issuer", "previous_sha256"],
                condition=~Q(previous_sha256=""),
                name="invoice_chain_does_not_fork",
            ),
            models.CheckConstraint(
                condition=Q(status="draft", number__isnull=True, issued_at__isnull=True)
                | Q(
                    status__in=["issued", "paid", "void"],
                    number__isnull=False,
                    serial__isnull=False,
                    year__isnull=False,
                    issued_at__isnull=False,
                    snapshot__isnull=False,
                    content_sha256__regex=r"^[0-9a-f]{64}$",
                    previous_sha256__regex=r"^[0-9a-f]{64}$",
                ),
                name="invoice_is_whole_once_issued",
            ),
            models.CheckConstraint(
                condition=Q(
                    total_minor=F("subtotal_minor") + F("discount_minor") + F("tax_minor"),
                    due_minor=F("total_minor") + F("credits_minor"),
                    credits_minor__lte=0,
                ),
                name="invoice_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(period_start__lt=F("period_end")), name="invoice_period_runs_forward"
            ),
            models.CheckConstraint(
                condition=Q(kind="invoice", corrects__isnull=True)
                | Q(kind="credit_note", corrects__isnull=False, total_minor__lte=0),
                name="invoice_credit_note_corrects",
            ),
        ]
        indexes = [
            models.Index(fields=["due_at"], condition=Q(status="issued"), name="invoice_by_due_at"),
            models.Index(fields=["period_end"], condition=Q(status="draft"), name="invoice_drafts"),
        ]

    def __str__(self) -> str:
        return self.number or f"draft {self.pk} of {self.organization}"

    @property
    def frozen(self) -> Snapshot:
        """Return what it shows."""
        return snapshots.from_json(self.snapshot)

    @property
    def canonical(self) -> bytes:
        """Return the text that was hashed, made of what is kept: later versions of `Snapshot` do not change it."""
        assert self.snapshot is not None
        return snapshots.canonical(self.snapshot)

    @property
    def paid_minor(self) -> int:
        return int(self.payments.aggregate(sum=Sum("amount_minor"))["sum"] or 0)

    @property
    def credited_minor(self) -> int:
        """Return what its credit notes took off. Below zero."""
        return int(self.credit_notes.aggregate(sum=Sum("total_minor"))["sum"] or 0)

    @property
    def open_minor(self) -> int:
        """Return what is still to be paid; below zero, what was paid too much. Nothing of a void one."""
        return self.open_after(
            drawn_minor=self.drawn_minor,
            credited_minor=self.credited_minor,
            paid_minor=self.paid_minor,
        )

    def open_after(self, *, drawn_minor: int, credited_minor: int, paid_minor: int) -> int:
        """Return the same for who has read these sums of many invoices at once. Reads nothing."""
        if self.status == InvoiceStatus.VOID:
            return 0
        return self.total_minor - drawn_minor + credited_minor - paid_minor

    @property
    def drawn_minor(self) -> int:
        """Return what it took of credit, less what came back when it was voided or credited."""
        return int(self.draws.aggregate(sum=Sum("amount_minor"))["sum"] or 0)

    def is_overdue(self, at: datetime) -> bool:
        return self.status == InvoiceStatus.ISSUED and self.due_at is not None and self.due_at < at

    def standing(self, at: datetime) -> str:
        """Return its status as people see it: `overdue` too."""
        return "overdue" if self.is_overdue(at) else self.status


class InvoiceLine(models.Model):
    """A line, or a free allowance of one, as the snapshot has it: to be queried."""

    invoice = models.ForeignKey(Invoice, on_delete=models.CASCADE, related_name="lines")
    position = models.PositiveIntegerField()
    team_slug = models.CharField(max_length=63)
    model_name = models.CharField(max_length=200)
    kind = models.CharField(
        max_length=16, choices=[(kind.value, kind.replace("_", " ")) for kind in Kind]
    )
    is_allowance = models.BooleanField(default=False)
    quantity = models.BigIntegerField()
    late_quantity = models.BigIntegerField(default=0)
    amount_pico = models.DecimalField(max_digits=30, decimal_places=0)
    amount_minor = models.BigIntegerField()

    class Meta:
        ordering = ["invoice", "position"]
        constraints = [
            models.UniqueConstraint(fields=["invoice", "position"], name="invoice_line_once")
        ]

    def __str__(self) -> str:
        return f"line {self.position} of {self.invoice}"


class InvoiceDocument(models.Model):
    """The PDF of an issued invoice, as it was drawn when it was issued: it stays, whatever draws the next ones."""

    invoice = models.OneToOneField(Invoice, on_delete=models.PROTECT, related_name="document")
    sha256 = models.CharField(max_length=64)
    content = models.BinaryField()
    drawn_by = models.CharField(max_length=100, help_text="Name and version of what drew it.")
    drawn_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"PDF of {self.invoice}"


class Payment(models.Model):
    """Money that came in, or went back (below zero). A mistaken one is reversed by another."""

    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, related_name="payments")
    amount_minor = models.BigIntegerField()
    received_at = models.DateTimeField()
    method = models.CharField(max_length=64, blank=True)
    reference = models.CharField(max_length=200, blank=True)
    reverses = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="reversal"
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["received_at", "pk"]
        constraints = [
            models.CheckConstraint(condition=~Q(amount_minor=0), name="payment_is_not_nothing"),
            models.UniqueConstraint(
                fields=["invoice", "reference"],
                condition=~Q(reference="") & Q(reverses__isnull=True),
                name="payment_reference_once",
            ),
        ]

    def __str__(self) -> str:
        return f"payment {self.pk} of {self.invoice}"


class GrantSource(models.TextChoices):
    GRANTED = "granted", "given for free"
    PURCHASED = "purchased", "paid beforehand"


class CreditGrant(models.Model):
    """Credit of an organization, drawn down when its invoices are issued: granted before purchased."""

    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="credit_grants"
    )
    source = models.CharField(max_length=16, choices=GrantSource)
    currency = models.CharField(max_length=3, validators=[CURRENCY_VALIDATOR])
    amount_minor = models.BigIntegerField()
    priority = models.PositiveSmallIntegerField(default=0, help_text="The lower one first.")
    expires_at = models.DateTimeField(null=True, blank=True)
    note = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["organization", "pk"]
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0), name="credit_grant_is_above_zero"
            ),
            models.CheckConstraint(
                condition=Q(source__in=GrantSource.values), name="credit_grant_source_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"credit {self.pk} of {self.organization}"


class CreditDraw(models.Model):
    """What an invoice took of a grant; below zero, what came back when it was voided or credited."""

    grant = models.ForeignKey(CreditGrant, on_delete=models.PROTECT, related_name="draws")
    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, related_name="draws")
    amount_minor = models.BigIntegerField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=~Q(amount_minor=0), name="credit_draw_is_not_nothing")
        ]

    def __str__(self) -> str:
        return f"draw of {self.grant}"


def number_of(issuer: Issuer, year: int, serial: int) -> str:
    """Return an invoice's number, such as TSR-2026-000123."""
    return f"{issuer.prefix}-{year}-{serial:0{NUMBER_DIGITS}d}"


def totals(snapshot: Snapshot) -> dict[str, Any]:
    """Return the sums of a snapshot, as fields of its invoice."""
    sums = snapshot.totals
    return {name: getattr(sums, name) for name in sums.__struct_fields__}
