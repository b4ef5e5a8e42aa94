"""Budgets in Django's admin: limits in money are typed in units of the currency; windows are shown, latest first."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from billing.budgets import Budget, BudgetWindow, parse_limit
from billing.money import format_micro, format_pico
from tenants.admin import ChangingAdmin, ReadOnlyInline


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


class BudgetWindowInline(ReadOnlyInline):
    model = BudgetWindow
    verbose_name_plural = "windows, the latest first"
    fields = [
        *("starts_at", "ends_at", "spent", "held", "left"),
        *("spent_tokens", "held_tokens", "left_tokens", "alerted_percent"),
    ]
    readonly_fields = fields  # type: ignore[assignment]
    ordering = ["-starts_at"]

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


def _in_currency(window: BudgetWindow, pico: int) -> str:
    return f"{window.budget.organization.currency} {format_pico(pico)}"


@admin.register(Budget)
class BudgetAdmin(ChangingAdmin[Budget]):
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
