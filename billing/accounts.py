"""What an organization is billed by: its price list, discount and tax, and what stands on its invoices."""

from datetime import UTC, datetime
from typing import Any, Self

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import Q

from billing.price_lists import PriceList
from billing.rating import BP
from tenants.models import Actor, AuditEntry, Organization

TAX_BP_DEFAULT = 500  # Taiwan's business tax
PAYMENT_TERMS_DAYS_MAX = 365
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class InvoiceLanguage(models.TextChoices):
    EN = "en", "English"
    ZH_HANT = "zh-hant", "繁體中文"


class Account(models.Model):
    """The one account of an organization, made when it is first asked for."""

    organization = models.OneToOneField(
        Organization, on_delete=models.PROTECT, related_name="account"
    )
    price_list = models.ForeignKey(
        PriceList,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="accounts",
        help_text="Empty for the default list of its currency.",
    )
    discount_bp = models.IntegerField(
        default=0,
        validators=[MinValueValidator(-BP), MaxValueValidator(BP)],
        help_text="In basis points (250 = 2.5 %), on usage after its allowances; below zero: a markup.",
    )
    tax_bp = models.IntegerField(
        default=TAX_BP_DEFAULT,
        validators=[MinValueValidator(0), MaxValueValidator(BP)],
        help_text="In basis points (500 = 5 %).",
    )
    tax_exempt = models.BooleanField(default=False)
    legal_name = models.CharField(max_length=200, blank=True)
    tax_id = models.CharField(max_length=64, blank=True)
    address = models.TextField(max_length=1000, blank=True)
    invoice_language = models.CharField(
        max_length=16, choices=InvoiceLanguage, default=InvoiceLanguage.EN
    )
    payment_terms_days = models.PositiveSmallIntegerField(
        default=30, validators=[MaxValueValidator(PAYMENT_TERMS_DAYS_MAX)]
    )
    closed_until = models.DateTimeField(
        default=EPOCH,
        editable=False,
        help_text="The end of its last closed period: usage from before is billed in the next one.",
    )

    class Meta:
        ordering = ["organization__slug"]
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    discount_bp__gte=-BP, discount_bp__lte=BP, tax_bp__gte=0, tax_bp__lte=BP
                ),
                name="account_shares_in_range",
            ),
            models.CheckConstraint(
                condition=Q(invoice_language__in=InvoiceLanguage.values),
                name="account_language_is_known",
            ),
            models.CheckConstraint(
                condition=Q(payment_terms_days__lte=PAYMENT_TERMS_DAYS_MAX),
                name="account_payment_terms_in_range",
            ),
        ]

    def __str__(self) -> str:
        return f"account of {self.organization}"

    @classmethod
    def of(cls, organization: Organization) -> Self:
        """Return the organization's account; made now, with the defaults, if there is none."""
        row, _ = cls.objects.get_or_create(organization=organization)
        return row

    @classmethod
    def known(cls, organization: Organization) -> Self:
        """Return the organization's account, or what it would be if there is none yet. Writes nothing."""
        return cls.objects.filter(organization=organization).first() or cls(
            organization=organization
        )

    @property
    def rating_list(self) -> PriceList | None:
        """The list of its own that it pays by; None for the default one of its currency."""
        own = self.price_list
        return own if own is not None and own.currency == self.organization.currency else None

    def clean(self) -> None:
        if self.price_list and self.price_list.currency != self.organization.currency:
            raise ValidationError(
                {
                    "price_list": f"{self.price_list} is in {self.price_list.currency}, and "
                    f"{self.organization} pays in {self.organization.currency}."
                }
            )

    def change(self, *, by: Actor, at: datetime, **values: Any) -> list[str]:
        """Set the fields that differ, and record who did it, with what they were. Return their names.

        ValidationError if a value is wrong. Takes a price list as such.
        """
        before = {name: getattr(self, name) for name in values}
        for name, value in values.items():
            setattr(self, name, value)
        self.full_clean()
        after = {name: value for name, value in values.items() if value != before[name]}
        if after:
            detail = {
                "before": {name: _plain(before[name]) for name in after},
                "after": {name: _plain(value) for name, value in after.items()},
            }
            with transaction.atomic():
                self.save(update_fields=list(after))
                AuditEntry.record("account.change", self, by=by, at=at, detail=detail)
        return list(after)

    def close(self, until: datetime) -> bool:
        """Close all up to that instant: what is booked from now on counts after it. False if it is closed already."""
        open_yet = Account.objects.filter(pk=self.pk, closed_until__lt=until)
        closed = open_yet.update(closed_until=until)  # 0: another process got there first
        self.refresh_from_db(fields=["closed_until"])
        return bool(closed)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, models.Model) else value
