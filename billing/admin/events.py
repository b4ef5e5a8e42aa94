"""What organizations are told, in Django's admin: their channels, alerts, and events with their deliveries."""

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.timezone import now

from billing.notifications import events
from billing.notifications.alerts import Alert
from billing.notifications.channels import Channel
from billing.notifications.events import Delivery, Event
from tenants.admin import AuditedAdmin, ReadOnlyAdmin, ReadOnlyInline

REPLAYED_AT_ONCE_MAX = 100


@admin.register(Channel)
class ChannelAdmin(AuditedAdmin[Channel]):
    """Where an organization is told. The webhook's secret is shown once, when it is made."""

    list_display = ["organization", "has_webhook", "emails"]
    list_select_related = ["organization"]
    search_fields = ["organization__slug"]
    raw_id_fields = ["organization"]
    actions = ["renew_secret"]

    @admin.display(description="webhook", boolean=True)
    def has_webhook(self, channel: Channel) -> bool:
        return bool(channel.webhook_url)

    def get_readonly_fields(self, request: HttpRequest, obj: Channel | None = None) -> list[str]:
        return ["organization"] if obj else []

    def save_model(
        self,
        request: HttpRequest,
        obj: Channel,
        form: "forms.ModelForm[Channel]",
        change: bool,
    ) -> None:
        super().save_model(request, obj, form, change)
        if obj.lacks_secret:
            self._renew(request, obj)

    @admin.action(description="Replace the webhook's secret", permissions=["change"])
    def renew_secret(self, request: HttpRequest, queryset: QuerySet[Channel]) -> None:
        for channel in queryset.exclude(webhook_url="").select_related("organization"):
            self._renew(request, channel)

    def _renew(self, request: HttpRequest, channel: Channel) -> None:
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
class AlertAdmin(ReadOnlyAdmin[Alert]):
    list_display = ["raised_at", "organization", "kind", "threshold_percent", "budget"]
    list_select_related = [
        *("organization", "budget__organization", "budget__team__organization", "budget__key")
    ]
    list_filter = ["kind"]


class DeliveryInline(ReadOnlyInline):
    model = Delivery
    ordering = ["medium", "replay"]


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin[Event]):
    """What organizations were told of. The action sends it again."""

    list_display = ["happened_at", "organization", "type", "subject"]
    list_select_related = ["organization"]
    list_filter = ["type"]
    search_fields = ["organization__slug", "subject"]
    inlines = [DeliveryInline]
    actions = ["replay"]

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Ask for the permission to change events, although nobody may edit one."""
        return request.user.has_perm("billing.change_event")

    @admin.action(description="Send again", permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Event]) -> None:
        by = request.user
        assert isinstance(by, User), "the admin has let a person in"
        for event in queryset[:REPLAYED_AT_ONCE_MAX]:
            events.replay(event, now(), by=by)
        self.message_user(request, "They are on their way again.")
