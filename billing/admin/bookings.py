"""Holds and usage records in Django's admin. Nothing that is booked can be edited."""

from typing import Any, TypeVar

from django.contrib import admin
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest

from billing.models import Hold, UsageRecord
from billing.money import format_pico
from tenants.admin import ReadOnlyAdmin

B = TypeVar("B", Hold, UsageRecord)


class BookingAdmin(ReadOnlyAdmin[B]):
    """Bookings, with their amount in units of the currency."""

    readonly_fields = ["amount"]
    list_select_related = ["organization", "team", "price"]

    @admin.display(description="amount", ordering="amount_pico")
    def amount(self, booking: B) -> str:
        return f"{booking.price.currency} {format_pico(booking.amount_pico)}"


@admin.register(Hold)
class HoldAdmin(BookingAdmin[Hold]):
    list_display = ["request_id", "organization", "team", "model_name", "amount", "expires_at"]


class LateFilter(admin.SimpleListFilter):
    """Usage that came after its period was closed, and so is billed in a later one."""

    title = "late"
    parameter_name = "late"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Yes"), ("no", "No")]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[UsageRecord]
    ) -> QuerySet[UsageRecord]:
        is_late = Q(billed_at__gt=F("received_at"))
        match self.value():
            case "yes":
                return queryset.filter(is_late)
            case "no":
                return queryset.exclude(is_late)
        return queryset


@admin.register(UsageRecord)
class UsageRecordAdmin(BookingAdmin[UsageRecord]):
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
        "billed_at",
        "is_late",
    ]
    list_filter = ["status", "usage_source", LateFilter]
    search_fields = ["request_id", "upstream_id"]

    @admin.display(description="late", boolean=True)
    def is_late(self, record: UsageRecord) -> bool:
        return record.is_late
