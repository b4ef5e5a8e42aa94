"""Prices, budgets, holds and usage records in Django's admin. Nothing that is booked can be edited here."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.widgets import AdminSplitDateTime
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.timezone import now

from billing import events, prices
from billing import invoice_admin as invoice_admin
from billing.accounts import Account
from billing.alerts import Alert
from billing.budgets import Budget, BudgetWindow, parse_limit
from billing.channels import AlertChannel
from billing.events import Delivery, Event
from billing.models import Hold, UsageRecord
from billing.money import format_micro, format_pico
from billing.price_lists import TOKEN_KINDS, Allowance, Price, PriceList, PriceTier
from billing.tiers import TierMode
from billing.worked_example import KINDS
from tenants.admin import AuditedAdmin

REPLAYED_AT_ONCE_MAX = 100


class AmountField(forms.CharField):
    """An amount of a price: typed in currency units, kept in micro-units."""

    def clean(self, value: Any) -> int:
        try:
            return prices.parse_amount(super().clean(value))
        except ValueError as error:
            raise ValidationError(str(error)) from error


class VersionForm(forms.ModelForm):  # type: ignore[type-arg]
    """A version of something that is never edited: it begins now or later."""

    effective_from = forms.SplitDateTimeField(
        required=False, widget=AdminSplitDateTime, help_text="In UTC; empty for now."
    )

    def clean_effective_from(self) -> datetime:
        starts: datetime | None = self.cleaned_data["effective_from"]
        if starts and starts < now():
            raise ValidationError("It has passed: a price cannot reach back to what is booked.")
        return starts or now()


class PriceForm(VersionForm):
    text_in_micro = AmountField(label="text in", help_text="Per million tokens, such as 12.5.")
    image_in_micro = AmountField(label="image in", help_text="Per million tokens.")
    cached_in_micro = AmountField(
        label="cached in", help_text="Per million tokens that the backend had in its cache."
    )
    out_micro = AmountField(label="out", help_text="Per million tokens.")
    request_micro = AmountField(label="per request", initial="0", help_text="On top.")
    tiers = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text="One a line, KIND:FROM:AMOUNT, such as image_in:10_000_000:12.5: from so many "
        "tokens a month on another amount counts. Kinds: " + ", ".join(TOKEN_KINDS),
    )

    def clean_tiers(self) -> list[PriceTier]:
        try:
            return [prices.parse_tier(line) for line in self.cleaned_data["tiers"].split()]
        except ValueError as error:
            raise ValidationError(str(error)) from error

    def clean(self) -> dict[str, Any]:
        """A price is in the currency of its list, and has the tiers of its mode."""
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("price_list"):
            self.instance.currency = cleaned["price_list"].currency
        tiers = cleaned.get("tiers")
        if tiers is not None:
            self.instance.tier_count = len(tiers)
            if bool(tiers) != (cleaned.get("tier_mode") != TierMode.FLAT):
                self.add_error("tiers", "Graduated and volume need tiers, and nothing else does.")
        return cleaned


def _amount(kind: str) -> Callable[[Price], str]:
    """Return a column that shows an amount of a price in currency units."""
    field = KINDS[kind]

    @admin.display(description=kind.replace("_", " "), ordering=field)
    def column(price: Price) -> str:
        return format_micro(getattr(price, field))

    column.__name__ = kind
    return column


AMOUNTS = [_amount(kind) for kind in KINDS]


@admin.register(Price)
class PriceAdmin(AuditedAdmin[Price]):
    """A price is corrected by a new version: added, never changed. Amounts are per million tokens."""

    form = PriceForm
    list_display = ["model_name", "price_list", "currency", "effective_from", *AMOUNTS]
    list_select_related = ["price_list"]
    list_filter = ["currency", "price_list"]
    search_fields = ["model_name"]

    def get_fields(self, request: HttpRequest, obj: Price | None = None) -> Any:
        kinds = list(KINDS.values()) if obj is None else AMOUNTS
        tiers = ["tier_mode", "tiers" if obj is None else "tiers_shown"]
        return ["price_list", "model_name", "effective_from", *kinds, *tiers]

    def get_readonly_fields(self, request: HttpRequest, obj: Price | None = None) -> Any:
        return [] if obj is None else self.get_fields(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False

    @admin.display(description="tiers")
    def tiers_shown(self, price: Price) -> str:
        return prices.tiers(price)

    def save_model(
        self, request: HttpRequest, obj: Price, form: "forms.ModelForm[Price]", change: bool
    ) -> None:
        """Save the new version with its tiers, and show what it means."""
        assert request.user.is_authenticated, "the admin has let a person in"
        tiers: list[PriceTier] = form.cleaned_data["tiers"]
        doubts = prices.doubts(obj, tiers)
        prices.add(obj, tiers, by=request.user)
        for line in prices.meaning(obj, tiers):
            self.message_user(request, f"At this price {line}.")
        for doubt in doubts:
            self.message_user(request, f"Look again: {doubt}", messages.WARNING)


@admin.register(PriceList)
class PriceListAdmin(AuditedAdmin[PriceList]):
    """A list keeps its currency, as prices in it do."""

    list_display = ["slug", "name", "currency", "is_default"]
    list_filter = ["currency"]

    def get_readonly_fields(self, request: HttpRequest, obj: PriceList | None = None) -> list[str]:
        return ["currency", "is_default"] if obj else []


@admin.register(Allowance)
class AllowanceAdmin(AuditedAdmin[Allowance]):
    """An allowance is changed by a new version: added, never changed."""

    form = VersionForm
    list_display = ["model_name", "price_list", "kind", "tokens_per_month", "effective_from"]
    list_select_related = ["price_list"]
    list_filter = ["price_list"]
    search_fields = ["model_name"]

    def has_change_permission(self, request: HttpRequest, obj: Allowance | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Allowance | None = None) -> bool:
        return False


@admin.register(Account)
class AccountAdmin(AuditedAdmin[Account]):
    """What an organization is billed by. Which of its periods are closed is not decided here."""

    list_display = ["organization", "price_list", "discount_bp", "tax_bp", "tax_exempt"]
    list_select_related = ["organization", "price_list"]
    search_fields = ["organization__slug", "legal_name", "tax_id"]
    raw_id_fields = ["organization"]

    def get_readonly_fields(self, request: HttpRequest, obj: Account | None = None) -> list[str]:
        return ["organization", "closed_until"] if obj else ["closed_until"]

    def has_delete_permission(self, request: HttpRequest, obj: Account | None = None) -> bool:
        return False

    def save_model(
        self, request: HttpRequest, obj: Account, form: "forms.ModelForm[Account]", change: bool
    ) -> None:
        """Save it, and record a change with what was before."""
        if not change:
            super().save_model(request, obj, form, change)
            return
        assert request.user.is_authenticated, "the admin has let a person in"
        values = {name: form.cleaned_data[name] for name in form.changed_data}
        Account.objects.get(pk=obj.pk).change(by=request.user, at=now(), **values)


class LimitField(forms.CharField):
    """A limit of a budget: typed in currency units, kept in micro-units; empty for none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(required=False, empty_value=None, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return format_micro(value) if isinstance(value, int) else value

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        try:
            return None if text is None else parse_limit(text)
        except ValueError as error:
            raise ValidationError(str(error)) from error

    def run_validators(self, value: Any) -> None:
        """The model validates what is stored; the validators of text do not fit a number."""


class BudgetForm(forms.ModelForm):  # type: ignore[type-arg]
    limit_micro = LimitField(
        label="limit in money", help_text="In units of the organization's currency, such as 1000."
    )
    hold_micro_max = LimitField(
        label="most money in one hold",
        help_text="So that a few requests do not starve the rest. What a request costs beyond it "
        "may pass the limit, and shows as overage.",
    )


class BudgetWindowInline(admin.TabularInline):  # type: ignore[type-arg]
    model = BudgetWindow
    verbose_name_plural = "windows, the latest first"
    fields = [
        *("starts_at", "ends_at", "spent", "held", "left"),
        *("spent_tokens", "held_tokens", "left_tokens", "alerted_percent"),
    ]
    readonly_fields = fields  # type: ignore[assignment]
    ordering = ["-starts_at"]
    extra = 0
    can_delete = False

    @admin.display(description="spent")
    def spent(self, window: BudgetWindow) -> str:
        return _in_currency(window, int(window.spent_pico))

    @admin.display(description="held")
    def held(self, window: BudgetWindow) -> str:
        return _in_currency(window, int(window.held_pico))

    @admin.display(description="left")
    def left(self, window: BudgetWindow) -> str | None:
        left = window.left_pico
        return None if left is None else _in_currency(window, left)

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


def _in_currency(window: BudgetWindow, pico: int) -> str:
    return f"{window.budget.organization.currency} {format_pico(pico)}"


@admin.register(Budget)
class BudgetAdmin(AuditedAdmin[Budget]):
    """A budget keeps its owner and its period; it is switched off, never deleted, as its windows are history."""

    form = BudgetForm
    inlines = [BudgetWindowInline]
    list_display = ["__str__", "level", "period", "limit", "limit_tokens", "is_active"]
    list_select_related = ["organization", "team__organization", "key"]
    list_filter = ["is_active", "period"]
    search_fields = ["name", "organization__slug", "team__slug", "key__public_id"]
    raw_id_fields = ["organization", "team", "key"]
    fields = [
        *("organization", "team", "key", "period", "name"),
        *("limit_micro", "limit_tokens", "hold_micro_max", "hold_tokens_max"),
        *("alert_percents", "is_active"),
    ]

    @admin.display(description="limit", ordering="limit_micro")
    def limit(self, budget: Budget) -> str | None:
        if budget.limit_micro is None:
            return None
        return f"{budget.organization.currency} {format_micro(budget.limit_micro)}"

    def get_readonly_fields(self, request: HttpRequest, obj: Budget | None = None) -> Any:
        return ["organization", "team", "key", "period"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Budget | None = None) -> bool:
        return False

    def save_model(
        self, request: HttpRequest, obj: Budget, form: "forms.ModelForm[Budget]", change: bool
    ) -> None:
        """Save it, and record a change with what was before."""
        if not change:
            super().save_model(request, obj, form, change)
            return
        assert request.user.is_authenticated, "the admin has let a person in"
        values = {name: form.cleaned_data[name] for name in form.changed_data}
        Budget.objects.get(pk=obj.pk).change(by=request.user, at=now(), **values)


class Unchangeable(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows that are written elsewhere."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class BookingAdmin(Unchangeable):
    """Bookings, with their amount in units of the currency."""

    readonly_fields = ["amount"]
    list_select_related = ["organization", "team", "price"]
    show_full_result_count = False

    @admin.display(description="amount", ordering="amount_pico")
    def amount(self, booking: Hold | UsageRecord) -> str:
        return f"{booking.price.currency} {format_pico(booking.amount_pico)}"


@admin.register(Hold)
class HoldAdmin(BookingAdmin):
    list_display = ["request_id", "organization", "team", "model_name", "amount", "expires_at"]


@admin.register(UsageRecord)
class UsageRecordAdmin(BookingAdmin):
    list_display = [
        "request_id",
        "recorded_at",
        "organization",
        "team",
        "model_name",
        "tokens_in_text",
        "tokens_in_image",
        "tokens_in_cached",
        "tokens_out",
        "usage_source",
        "status",
        "amount",
    ]
    list_filter = ["status", "usage_source"]
    search_fields = ["request_id", "upstream_id"]


@admin.register(AlertChannel)
class AlertChannelAdmin(AuditedAdmin[AlertChannel]):
    """Where an organization is told. The webhook's secret is shown once, when it is made."""

    list_display = ["organization", "has_webhook", "emails"]
    list_select_related = ["organization"]
    search_fields = ["organization__slug"]
    raw_id_fields = ["organization"]
    actions = ["renew_secret"]

    @admin.display(description="webhook", boolean=True)
    def has_webhook(self, channel: AlertChannel) -> bool:
        return bool(channel.webhook_url)

    def get_readonly_fields(
        self, request: HttpRequest, obj: AlertChannel | None = None
    ) -> list[str]:
        return ["organization"] if obj else []

    def save_model(
        self,
        request: HttpRequest,
        obj: AlertChannel,
        form: "forms.ModelForm[AlertChannel]",
        change: bool,
    ) -> None:
        super().save_model(request, obj, form, change)
        if obj.lacks_secret:
            self._renew(request, obj)

    @admin.action(description="Replace the webhook's secret", permissions=["change"])
    def renew_secret(self, request: HttpRequest, queryset: QuerySet[AlertChannel]) -> None:
        for channel in queryset.exclude(webhook_url="").select_related("organization"):
            self._renew(request, channel)

    def _renew(self, request: HttpRequest, channel: AlertChannel) -> None:
        secret = channel.renew_secret()
        fields = ["webhook_secret_encrypted"]
        with transaction.atomic():
            channel.save(update_fields=fields)
            self.audit(request, "change", channel, detail={"fields": fields})
        self.message_user(
            request,
            f"Copy the webhook secret of {channel.organization} now, it is not shown again: {secret}",
            messages.WARNING,
        )


@admin.register(Alert)
class AlertAdmin(Unchangeable):
    list_display = ["raised_at", "organization", "kind", "threshold_percent", "budget"]
    list_select_related = [
        *("organization", "budget__organization", "budget__team__organization", "budget__key")
    ]
    list_filter = ["kind"]
    show_full_result_count = False


class DeliveryInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Delivery
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Event)
class EventAdmin(Unchangeable):
    """What organizations were told of. The action sends it again."""

    list_display = ["happened_at", "organization", "type", "subject"]
    list_select_related = ["organization"]
    list_filter = ["type"]
    search_fields = ["organization__slug", "subject"]
    inlines = [DeliveryInline]
    actions = ["replay"]
    show_full_result_count = False

    @admin.action(description="Send again", permissions=["view"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Event]) -> None:
        for event in queryset[:REPLAYED_AT_ONCE_MAX]:
            events.replay(event, now())
        self.message_user(request, "They are on their way again.")
