"""manage.py usage"""

import json
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from django.core.management.base import CommandError, CommandParser
from django.db.models import QuerySet

from billing.models import UsageRecord
from billing.money import format_pico
from tenants import console, keys
from tenants.models import Organization

LIMIT_DEFAULT = 20
COLUMNS = (
    "request_id",
    "team",
    "key",
    "model",
    "backend",
    "text",
    "image",
    "cached",
    "out",
    "prompt",
    "source",
    "status",
    "amount",
    "billed",
    "canvases",
)


class Command(console.NounCommand):
    help = (
        "The latest usage records, newest first: what each request used, by kind of token, and "
        "what it cost. `prompt` is our count, with the backend's beside it where they differ."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", metavar="SLUG", help="of this organization only")
        parser.add_argument("--team", metavar="SLUG", help="of this team of the organization only")
        parser.add_argument("--key", metavar="PUBLIC_ID", help="of this key only")
        parser.add_argument("--model", metavar="NAME", help="for this model only")
        self.add_limit(parser, LIMIT_DEFAULT)
        parser.add_argument(
            "--since",
            metavar="WHEN",
            help="received at this time or later: ISO 8601, in the organization's zone, else UTC",
        )
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(act=self.latest)

    def latest(self, **options: Any) -> None:
        organization = _organization(options)
        zone: tzinfo = ZoneInfo(organization.timezone) if organization else UTC
        records = list(_select(organization, zone, options)[: options["limit"]])
        if options["json"]:
            rows = [_as_json(record) for record in records]
            self.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False))
        elif not records:
            self.tell("No usage is booked that fits this.")
        else:
            received = f"received ({organization.timezone if organization else 'UTC'})"
            self.show(
                [{received: _time(record, zone), **_row(record)} for record in records],
                as_json=False,
                columns=[received, *COLUMNS],
            )


def _organization(options: dict[str, Any]) -> Organization | None:
    if options["organization"]:
        return console.find_organization(options["organization"])
    if options["team"]:
        raise CommandError("--team needs --organization: a team's name is one within its own.")
    return None


def _select(
    organization: Organization | None, zone: tzinfo, options: dict[str, Any]
) -> QuerySet[UsageRecord]:
    records = UsageRecord.objects.select_related("organization", "team", "key", "price")
    if organization:
        records = records.filter(organization=organization)
        if options["team"]:
            records = records.filter(team=console.find_team(organization, options["team"]))
    if options["key"]:
        public_id = options["key"].removeprefix(f"{keys.PREFIX}_").partition("_")[0]
        records = records.filter(key__public_id=public_id)
    if options["model"]:
        records = records.filter(model_name=options["model"])
    if options["since"]:
        records = records.filter(received_at__gte=_moment(options["since"], zone))
    return records.order_by("-request_id")


def _row(record: UsageRecord) -> console.Row:
    return {
        "request_id": record.request_id,
        "team": record.team,
        "key": record.key.public_id,
        "model": record.model_name,
        "backend": record.backend_name,
        "text": record.tokens_in_text,
        "image": record.tokens_in_image,
        "cached": record.tokens_in_cached,
        "out": record.tokens_out,
        "prompt": _prompt(record),
        "source": record.usage_source,
        "status": record.status,
        "amount": f"{record.price.currency} {format_pico(record.amount_pico)}",
        "billed": _month(record),
        "canvases": "; ".join(record.canvases) or None,
    }


def _prompt(record: UsageRecord) -> str:
    ours, theirs = record.counted_prompt, record.upstream_prompt
    return str(ours) if theirs in (None, ours) else f"{ours} (backend: {theirs})"


def _month(record: UsageRecord) -> str:
    """Return the month that it is billed in, as its organization counts months."""
    billed_at = record.billed_at.astimezone(ZoneInfo(record.organization.timezone))
    return f"{billed_at:%Y-%m}{' (late)' if record.is_late else ''}"


def _time(record: UsageRecord, zone: tzinfo) -> str:
    return f"{record.received_at.astimezone(zone):%Y-%m-%d %H:%M:%S}"


def _as_json(record: UsageRecord) -> console.Row:
    return {
        "request_id": str(record.request_id),
        "organization": record.organization.slug,
        "team": record.team.slug,
        "key": record.key.public_id,
        "model": record.model_name,
        "backend": record.backend_name,
        "price_id": record.price_id,
        "tokens_in_text": record.tokens_in_text,
        "tokens_in_image": record.tokens_in_image,
        "tokens_in_cached": record.tokens_in_cached,
        "tokens_out": record.tokens_out,
        "counted_prompt": record.counted_prompt,
        "counted_out": record.counted_out,
        "upstream_prompt": record.upstream_prompt,
        "upstream_out": record.upstream_out,
        "upstream_cached": record.upstream_cached,
        "upstream_id": record.upstream_id,
        "usage_source": record.usage_source,
        "status": record.status,
        "currency": record.price.currency,
        "amount": format_pico(record.amount_pico),
        "amount_pico": record.amount_pico,
        "held_pico": record.held_pico,
        "canvases": record.canvases,
        "streamed": record.streamed,
        "received_at": _isoformat(record.received_at),
        "first_byte_at": _isoformat(record.first_byte_at),
        "finished_at": _isoformat(record.finished_at),
        "recorded_at": _isoformat(record.recorded_at),
        "billed_at": _isoformat(record.billed_at),
        "is_late": record.is_late,
    }


def _isoformat(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds") if moment else None


def _moment(text: str, zone: tzinfo) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"--since: {text!r} is no date or time such as 2027-01-31.") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)
