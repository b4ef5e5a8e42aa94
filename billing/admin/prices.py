"""Prices, price lists, allowances and accounts in Django's admin: amounts are typed in units of the currency."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.widgets import AdminSplitDateTime
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now

from billing import prices
from billing.accounts import Account
from billing.money import format_micro
from billing.price_lists import TOKEN_KINDS, Allowance, Price, PriceList, PriceTier
from billing.tiers import TierMode
from billing.worked_example import KINDS
from tenants.admin import AuditedAdmin, ChangingAdmin


class AmountField(forms.CharField):
    """An amount of a price: typed in currency units, kept in micro-units."""

    def clean(self, value: Any) -> int:
        try:
            return prices.parse_amount(super().clean(value))
        except ValueError as error:
            raise ValidationError(str(error)) from error


class VersionForm(forms.ModelForm):  # type: ignore[type-arg]
    """A version of something that is never edited: it begins now or later, unless nobody pays by its list."""

    effective_from = forms.SplitDateTimeField(
        required=False, widget=AdminSplitDateTime, help_text="In UTC; empty for now."
    )

    def clean_effective_from(self) -> datetime | None:
        starts: datetime | None = self.cleaned_data["effective_from"]
        price_list: PriceList | None = self.cleaned_data.get("price_list")
        if price_list is None:
            return starts  # that is an error already
        try:
            return prices.begin(price_list, starts, now())
        except ValueError as error:
            raise ValidationError(str(error)) from error


class PriceForm(VersionForm):
    """A price, which is valid only once the person has seen what it means and has confirmed just that.

    A price is in force as it is saved, and is never taken back: so the first answer shows, and the second saves.
    """

    meaning: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    confirmed = forms.CharField(required=False)  # the digest of what was shown
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
            tiers = [prices.parse_tier(line) for line in self.cleaned_data["tiers"].split()]
        except ValueError as error:
            raise ValidationError(str(error)) from error
        try:
            prices.check_tiers(tiers)
        except ValidationError as error:
            raise ValidationError(error.messages) from error
        return tiers

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

    def _post_clean(self) -> None:
        """Ask for the confirmation last: only what could be saved can mean anything."""
        super()._post_clean()  # type: ignore[misc]
        if self.errors:
            return
        tiers: list[PriceTier] = self.cleaned_data["tiers"]
        self.meaning = tuple(prices.meaning(self.instance, tiers))
        self.doubts = tuple(prices.doubts(self.instance, tiers))
        if self.cleaned_data["confirmed"] != self.digest:
            self.add_error("confirmed", "Nothing is saved yet: see what it means, and confirm it.")

    @property
    def digest(self) -> str:
        """What a confirmation belongs to: all that was entered, and the doubts it was shown with."""
        entered = {name: self[name].data for name in self.fields if name != "confirmed"}
        shown = json.dumps([entered, self.doubts], sort_keys=True)
        return hashlib.sha256(shown.encode()).hexdigest()


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

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """To be asked for a confirmation is no error of the person's."""
        form = context["adminform"].form
        if form.errors.keys() == {"confirmed"}:
            context["errors"] = []
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="tiers")
    def tiers_shown(self, price: Price) -> str:
        return prices.tiers(price)

    def save_model(
        self, request: HttpRequest, obj: Price, form: "forms.ModelForm[Price]", change: bool
    ) -> None:
        """Save the new version with its tiers, as they were confirmed."""
        assert request.user.is_authenticated, "the admin has let a person in"
        prices.add(obj, form.cleaned_data["tiers"], by=request.user)


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
class AccountAdmin(ChangingAdmin[Account]):
    """What an organization is billed by. Which of its periods are closed is not decided here."""

    list_display = ["organization", "price_list", "discount_bp", "tax_bp", "tax_exempt"]
    list_select_related = ["organization", "price_list"]
    search_fields = ["organization__slug", "legal_name", "tax_id"]
    raw_id_fields = ["organization"]

    def get_readonly_fields(self, request: HttpRequest, obj: Account | None = None) -> list[str]:
        return ["organization", "closed_until"] if obj else ["closed_until"]

    def has_delete_permission(self, request: HttpRequest, obj: Account | None = None) -> bool:
        return False
