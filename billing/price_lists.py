"""What an organization pays: price lists, the versions of prices in them, tiers and free monthly allowances.

Versions, tiers and allowances are only ever added, by triggers; a later version takes over from a moment on. A
version's tiers are sealed with it: it says how many it has, and the database counts them at commit.
"""

from typing import Self

from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from billing.rating import Kind
from billing.tiers import TierMode
from tenants.models import CURRENCY, CURRENCY_VALIDATOR, SLUG, SLUG_VALIDATOR

MICRO_MAX = 10**12  # a million currency units per million tokens: beyond any price, within 64 bits
TOKENS_MAX = 10**15  # of a tier or an allowance: beyond any month
TIERS_MAX = 100  # of one price version, over all kinds

TOKEN_KINDS = [kind.value for kind in Kind if kind is not Kind.REQUEST]
KIND_CHOICES = [(kind, kind.replace("_", " ")) for kind in TOKEN_KINDS]
FLAT, GRADUATED, VOLUME = (mode.value for mode in TierMode)
TIER_MODES = [
    (FLAT, "one price for all"),
    (GRADUATED, "graduated: each tier's tokens at its own price"),
    (VOLUME, "volume: all tokens at the price of the tier that is reached"),
]


class PriceList(models.Model):
    """A named set of prices in one currency. Who has no list of their own pays by the default one of their currency.

    What a list lacks is looked up in the default list.
    """

    slug = models.CharField(max_length=63, unique=True, validators=[SLUG_VALIDATOR])
    name = models.CharField(max_length=200)
    currency = models.CharField(max_length=3, validators=[CURRENCY_VALIDATOR])
    is_default = models.BooleanField(default=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["currency", "-is_default", "slug"]
        constraints = [
            models.UniqueConstraint(
                fields=["currency"], condition=Q(is_default=True), name="price_list_default_once"
            ),
            # What the composite foreign key of a price points at.
            models.UniqueConstraint(fields=["id", "currency"], name="price_list_with_currency"),
            models.CheckConstraint(condition=~Q(name=""), name="price_list_has_a_name"),
            models.CheckConstraint(condition=Q(slug__regex=SLUG), name="price_list_slug_is_plain"),
            models.CheckConstraint(
                condition=Q(currency__regex=CURRENCY), name="price_list_currency_is_iso_4217"
            ),
        ]

    def __str__(self) -> str:
        return self.slug

    @classmethod
    def named(cls, slug: str) -> Self:
        """Return the list of that name; LookupError with a hint if there is none."""
        found = cls.objects.filter(slug=slug).first()
        if found is None:
            raise LookupError(f"There is no price list {slug!r}; `price lists` shows them.")
        return found

    @property
    def is_in_use(self) -> bool:
        """Tell whether requests are booked at it now: by default, or as somebody's own list."""
        return self.is_default or self.accounts.exists()

    @classmethod
    def standard(cls, currency: str) -> Self:
        """Return the default list of the currency; made now if nobody has named another.

        ValidationError for what is no currency.
        """
        CURRENCY_VALIDATOR(currency)
        row, _ = cls.objects.get_or_create(
            currency=currency,
            is_default=True,
            defaults={"slug": f"standard-{currency.lower()}", "name": f"Standard {currency}"},
        )
        return row


class Price(models.Model):
    """A version of a model's price in one list, from `effective_from` on. Never edited: a new version follows.

    All amounts are micro-units of the currency per million tokens (12.50 per million = 12500000). They are the
    first tier where there are tiers, and what budgets hold and spend.
    """

    price_list = models.ForeignKey(PriceList, on_delete=models.PROTECT, related_name="prices")
    model_name = models.CharField(max_length=200)
    currency = models.CharField(
        max_length=3,
        validators=[RegexValidator(r"\A[A-Z]{3}\Z", "Three capital letters, such as TWD.")],
        help_text="Its list's.",
    )
    text_in_micro = models.BigIntegerField(validators=[MinValueValidator(0)])
    image_in_micro = models.BigIntegerField(validators=[MinValueValidator(0)])
    cached_in_micro = models.BigIntegerField(validators=[MinValueValidator(0)])
    out_micro = models.BigIntegerField(validators=[MinValueValidator(0)])
    request_micro = models.BigIntegerField(
        default=0, validators=[MinValueValidator(0)], help_text="Micro-units per request, on top."
    )
    tier_mode = models.CharField(max_length=16, choices=TIER_MODES, default=FLAT, db_default=FLAT)
    tier_count = models.PositiveSmallIntegerField(
        default=0, db_default=0, editable=False, help_text="How many tiers follow its own amounts."
    )
    effective_from = models.DateTimeField(default=timezone.now)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["model_name", "currency", "price_list", "-effective_from"]
        constraints = [
            models.UniqueConstraint(
                fields=["price_list", "model_name", "effective_from"], name="price_version_once"
            ),
            models.CheckConstraint(
                condition=Q(currency__regex=r"^[A-Z]{3}$"), name="price_currency_is_iso"
            ),
            models.CheckConstraint(
                condition=Q(tier_mode=FLAT, tier_count=0)
                | Q(
                    tier_mode__in=[GRADUATED, VOLUME],
                    tier_count__gte=1,
                    tier_count__lte=TIERS_MAX,
                ),
                name="price_has_the_tiers_of_its_mode",
            ),
            *(
                models.CheckConstraint(
                    condition=Q(**{f"{field}__gte": 0, f"{field}__lte": MICRO_MAX}),
                    name=f"price_{field}_in_range",
                )
                for field in (
                    "text_in_micro",
                    "image_in_micro",
                    "cached_in_micro",
                    "out_micro",
                    "request_micro",
                )
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model_name} in {self.currency} from {self.effective_from:%Y-%m-%d %H:%M}"


class PriceTier(models.Model):
    """From how many tokens of a kind in the organization's period on another amount counts. Append-only."""

    price = models.ForeignKey(Price, on_delete=models.PROTECT, related_name="tiers")
    kind = models.CharField(max_length=16, choices=KIND_CHOICES)
    from_tokens = models.BigIntegerField(
        validators=[MinValueValidator(1)],
        help_text="In the period, all of the organization's teams together.",
    )
    micro = models.BigIntegerField(
        validators=[MinValueValidator(0)], help_text="Micro-units per million tokens."
    )

    class Meta:
        ordering = ["price", "kind", "from_tokens"]
        constraints = [
            models.UniqueConstraint(
                fields=["price", "kind", "from_tokens"], name="price_tier_once"
            ),
            models.CheckConstraint(
                condition=Q(kind__in=TOKEN_KINDS), name="price_tier_kind_is_known"
            ),
            models.CheckConstraint(
                condition=Q(
                    from_tokens__gte=1,
                    from_tokens__lte=TOKENS_MAX,
                    micro__gte=0,
                    micro__lte=MICRO_MAX,
                ),
                name="price_tier_in_range",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} from {self.from_tokens} tokens"


class Allowance(models.Model):
    """Tokens of a kind that an organization has free in each period, for one model of a list. Append-only.

    A later version takes over; where it does so within a period, the larger of the two counts for all of it.
    """

    price_list = models.ForeignKey(PriceList, on_delete=models.PROTECT, related_name="allowances")
    model_name = models.CharField(max_length=200)
    kind = models.CharField(max_length=16, choices=KIND_CHOICES)
    tokens_per_month = models.BigIntegerField(
        validators=[MinValueValidator(0)], help_text="All teams together; 0 ends it."
    )
    effective_from = models.DateTimeField(default=timezone.now)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["price_list", "model_name", "kind", "-effective_from"]
        constraints = [
            models.UniqueConstraint(
                fields=["price_list", "model_name", "kind", "effective_from"],
                name="allowance_version_once",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=TOKEN_KINDS), name="allowance_kind_is_known"
            ),
            models.CheckConstraint(
                condition=Q(tokens_per_month__gte=0, tokens_per_month__lte=TOKENS_MAX),
                name="allowance_in_range",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.tokens_per_month} {self.kind} tokens of {self.model_name} a month"
