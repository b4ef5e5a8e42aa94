"""manage.py alert channel | list"""

import argparse
from datetime import UTC
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils.timezone import now

from billing.notifications.alerts import Alert
from billing.notifications.channels import Channel
from billing.notifications.events import Delivery
from tenants import console
from tenants.models import AuditEntry, Organization

NONE = "none"


class Command(console.NounCommand):
    help = (
        "Alerts: where an organization is told that a share of a budget is spent, and what it was "
        "told. At which shares, `budget set --alert` says."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        channel = verbs.add_parser("channel", help="say where an organization is told")
        channel.add_argument("--organization", required=True, metavar="SLUG")
        channel.add_argument(
            "--webhook",
            dest="webhook_url",
            default=argparse.SUPPRESS,
            metavar="URL",
            help=f"https://…, or {NONE}; its secret is printed once, on stdout",
        )
        channel.add_argument(
            "--email",
            dest="emails",
            default=argparse.SUPPRESS,
            metavar="A@B,C@D",
            help=f"who gets the mail, or {NONE}",
        )
        channel.add_argument(
            "--new-secret", action="store_true", help="replace the webhook's secret at once"
        )
        channel.set_defaults(act=self.channel)

        listing = verbs.add_parser("list", help="list what was told, the latest first")
        listing.add_argument("--organization", metavar="SLUG", help="of this organization only")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

    def channel(self, **options: Any) -> None:
        organization = console.find_organization(options["organization"])
        channel, fields = _changed(organization, options)
        secret = None
        if channel.lacks_secret or options["new_secret"]:
            secret = _new_secret(channel)
            fields.append("webhook_secret_encrypted")
        if fields:
            _save(channel, fields)
        told = ", ".join(channel.media) or "nowhere"
        self.tell(f"{organization} is told of alerts by: {told}.")
        if secret:
            self.tell("The webhook's messages are signed with this; it is not shown again:")
            self.stdout.write(secret)

    def list(self, **options: Any) -> None:
        alerts = (
            Alert.objects.select_related(
                "organization", "budget__team__organization", "budget__key", "budget__organization"
            )
            .select_related("event")
            .prefetch_related("event__deliveries")
        )
        if options["organization"]:
            alerts = alerts.filter(organization=console.find_organization(options["organization"]))
        self.show(
            [_row(alert) for alert in self.first(alerts)],
            as_json=options["json"],
            columns=["raised_at", "organization", "budget", "of", "what", "deliveries"],
        )


def _changed(organization: Organization, options: dict[str, Any]) -> tuple[Channel, list[str]]:
    """Return the organization's channel with what was given, not saved yet, and the fields that differ."""
    channel = Channel.objects.filter(organization=organization).first()
    channel = channel or Channel(organization=organization)
    given: dict[str, Any] = {}
    if "webhook_url" in options:
        given["webhook_url"] = _unless_none(options["webhook_url"])
    if "emails" in options:
        given["emails"] = [each for each in _unless_none(options["emails"]).split(",") if each]
    fields = [name for name, value in given.items() if getattr(channel, name) != value]
    for name in fields:
        setattr(channel, name, given[name])
    channel.full_clean()
    return channel, fields


def _new_secret(channel: Channel) -> str:
    try:
        return channel.renew_secret()
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error


def _save(channel: Channel, fields: list[str]) -> None:
    """Save it, and record which fields: not what is in them, as a webhook's address may be a secret."""
    with transaction.atomic():
        if channel.pk is None:
            channel.save(force_insert=True)
        else:
            channel.save(update_fields=fields)
        detail = {"fields": fields}
        AuditEntry.record("channel.change", channel, by=console.actor(), at=now(), detail=detail)


def _unless_none(text: str) -> str:
    return "" if text == NONE else text.strip()


def _row(alert: Alert) -> console.Row:
    share = f"{alert.threshold_percent} %"
    return {
        "raised_at": alert.raised_at.astimezone(UTC).isoformat(timespec="seconds"),
        "organization": alert.organization.slug,
        "budget": alert.budget_id,
        "of": f"{alert.budget.level} {alert.budget.owner}",
        "what": share if alert.threshold_percent is not None else alert.kind,
        "deliveries": [_state(delivery) for delivery in alert.event.deliveries.all()]
        or ["nobody to tell"],
    }


def _state(delivery: Delivery) -> str:
    if delivery.delivered_at:
        return f"{delivery.medium} delivered"
    state = "waits" if delivery.next_attempt_at else "given up"
    error = f" ({delivery.last_error})" if delivery.last_error else ""
    return f"{delivery.medium} {state}, {delivery.attempts} attempts{error}"
