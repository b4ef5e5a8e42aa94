"""Prices, holds and usage records in Django's admin. Nothing that is booked can be edited here."""

from django.contrib import admin
from django.http import HttpRequest

from billing.models import Hold, Price, UsageRecord


class ReadOnly:
    """Rows that are written elsewhere."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Price)
class PriceAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A price is corrected by a new version: added, never changed."""

    list_display = [
        "model_name",
        "currency",
        "effective_from",
        "text_in_micro",
        "image_in_micro",
        "cached_in_micro",
        "out_micro",
        "request_micro",
    ]
    list_filter = ["currency"]
    search_fields = ["model_name"]

    def has_change_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False


@admin.register(Hold)
class HoldAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["request_id", "organization", "team", "model_name", "amount_pico", "expires_at"]
    list_select_related = ["organization", "team"]


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
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
        "amount_pico",
    ]
    list_filter = ["status", "usage_source"]
    list_select_related = ["organization", "team"]
    search_fields = ["request_id", "upstream_id"]
    show_full_result_count = False
