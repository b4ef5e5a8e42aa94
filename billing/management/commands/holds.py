"""manage.py holds | holds release"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils.timezone import now

from billing import ledger
from billing.models import GatewayProcess, Hold, UsageRecord
from billing.money import format_pico
from tenants import console

LIMIT_DEFAULT = 100


class Command(console.NounCommand):
    help = (
        "The holds that are open, oldest first: what running requests have set aside, until when, "
        "and whether their gateway process still lives."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", metavar="SLUG", help="of this organization only")
        self.add_limit(parser, LIMIT_DEFAULT)
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(act=self.list)

        verbs = parser.add_subparsers(metavar="VERB")
        releasing = verbs.add_parser("release", help="give a hold back before it expires")
        releasing.add_argument("request_id", type=UUID, metavar="REQUEST_ID")
        releasing.set_defaults(act=self.release)

    def list(self, **options: Any) -> None:
        at = now()
        holds = Hold.objects.select_related("organization", "team", "key", "price")
        if options["organization"]:
            holds = holds.filter(organization=console.find_organization(options["organization"]))
        found = list(holds.order_by("held_at", "request_id")[: options["limit"]])
        processes = _processes(found)
        self.show(
            [_row(hold, processes, at, as_json=options["json"]) for hold in found],
            as_json=options["json"],
            columns=[
                *("age", "request_id", "organization", "team", "key", "model"),
                *("amount", "tokens", "expires_at", "process"),
            ],
        )

    def release(self, **options: Any) -> None:
        hold = ledger.release(options["request_id"], by=console.actor(), at=now())
        if hold is None:
            raise CommandError(_what_became_of(options["request_id"]))
        amount = f"{hold.price.currency} {format_pico(hold.amount_pico)}"
        self.tell(f"Released {amount} and {hold.tokens_held} tokens of {hold.organization}.")
        self.tell("If its request still runs, what it used is billed all the same when it ends.")


def _processes(holds: Collection[Hold]) -> dict[UUID, GatewayProcess]:
    return GatewayProcess.objects.in_bulk({hold.process_id for hold in holds if hold.process_id})


def _row(
    hold: Hold, processes: dict[UUID, GatewayProcess], at: datetime, *, as_json: bool
) -> console.Row:
    amount = format_pico(hold.amount_pico)
    process = processes.get(hold.process_id) if hold.process_id else None
    return {
        "age": int((at - hold.held_at).total_seconds()) if as_json else _age(at - hold.held_at),
        "request_id": str(hold.request_id),
        "organization": hold.organization.slug,
        "team": hold.team.slug,
        "key": hold.key.public_id,
        "model": hold.model_name,
        "amount": amount if as_json else f"{hold.price.currency} {amount}",
        "currency": hold.price.currency,
        "tokens": hold.tokens_held,
        "held_at": hold.held_at.astimezone(UTC).isoformat(timespec="seconds"),
        "expires_at": hold.expires_at.astimezone(UTC).isoformat(timespec="seconds"),
        "process": _state(process, at),
    }


def _state(process: GatewayProcess | None, at: datetime) -> str:
    """Say whether the process was heard of lately: its holds are reaped if it was not."""
    if process is None:
        return "silent: never heard of"
    silence = at - process.beat_at
    if silence < timedelta(seconds=settings.REAP_AFTER_S):
        return f"alive on {process.host}"
    return f"silent for {_age(silence)}, on {process.host}"


def _age(age: timedelta) -> str:
    minutes, seconds = divmod(max(0, int(age.total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _what_became_of(request_id: UUID) -> str:
    record = UsageRecord.objects.filter(pk=request_id).select_related("price").first()
    if record is None:
        return f"There is no open hold {request_id}; `holds` lists them."
    amount = f"{record.price.currency} {format_pico(record.amount_pico)}"
    return f"That request is no longer held: it is booked as {record.status} with {amount}."
