"""Prices, holds and usage records in Django's admin. Nothing that is booked can be edited here."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.widgets import AdminSplitDateTime
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.timezone import now

from billing import prices
from billing.models import Hold, Price, UsageRecord
from billing.money import format_micro, format_pico
from billing.worked_example import KINDS
from tenants.admin import AuditedAdmin


class AmountField(forms.CharField):
    """An amount of a price: typed in currency units, kept in micro-units."""

    def clean(self, value: Any) -> int:
        try:
            return prices.parse_amount(super().clean(value))
        except ValueError as error:
            raise ValidationError(str(error)) from error


class PriceForm(forms.ModelForm):  # type: ignore[type-arg]
    text_in_micro = AmountField(label="text in", help_text="Per million tokens, such as 12.5.")
    image_in_micro = AmountField(label="image in", help_text="Per million tokens.")
    cached_in_micro = AmountField(
        label="cached in", help_text="Per million tokens that the backend had in its cache."
    )
    out_micro = AmountField(label="out", help_text="Per million tokens.")
    request_micro = AmountField(label="per request", initial="0", help_text="On top.")
    effective_from = forms.SplitDateTimeField(
        required=False, widget=AdminSplitDateTime, help_text="In UTC; empty for now."
    )

    def clean_effective_from(self) -> datetime:
        starts: datetime | None = self.cleaned_data["effective_from"]
        if starts and starts < now():
            raise ValidationError("It has passed: a price cannot reach back to what is booked.")
        return starts or now()


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
    list_display = ["model_name", "currency", "effective_from", *AMOUNTS]
    list_filter = ["currency"]
    search_fields = ["model_name"]

    def get_fields(self, request: HttpRequest, obj: Price | None = None) -> Any:
        kinds = list(KINDS.values()) if obj is None else AMOUNTS
        return ["model_name", "currency", "effective_from", *kinds]

    def get_readonly_fields(self, request: HttpRequest, obj: Price | None = None) -> Any:
        return [] if obj is None else self.get_fields(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False

    def save_model(
        self, request: HttpRequest, obj: Price, form: "forms.ModelForm[Price]", change: bool
    ) -> None:
        """Save the new version, and show what it means."""
        doubts = prices.doubts(obj)
        super().save_model(request, obj, form, change)
        for line in prices.meaning(obj):
            self.message_user(request, f"At this price {line}.")
        for doubt in doubts:
            self.message_user(request, f"Look again: {doubt}", messages.WARNING)


class ReadOnly(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows that are written elsewhere."""

    readonly_fields = ["amount"]
    list_select_related = ["organization", "team", "price"]
    show_full_result_count = False

    @admin.display(description="amount", ordering="amount_pico")
    def amount(self, booking: Hold | UsageRecord) -> str:
        return f"{booking.price.currency} {format_pico(booking.amount_pico)}"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Hold)
class HoldAdmin(ReadOnly):
    list_display = ["request_id", "organization", "team", "model_name", "amount", "expires_at"]


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnly):
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
