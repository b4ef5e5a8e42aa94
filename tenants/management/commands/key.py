"""manage.py key create | list | revoke"""

import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.core.management.base import CommandError, CommandParser
from django.utils.timezone import now

from tenants import console, expiry
from tenants.models import ApiKey, Organization


class Command(console.NounCommand):
    help = "Keys: create one for a team (shown once, on stdout), list them, revoke one for good."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        create = verbs.add_parser("create", help="create a key and print it, this once")
        create.add_argument("--organization", required=True, metavar="SLUG")
        create.add_argument("--team", required=True, metavar="SLUG")
        create.add_argument("--name", required=True, help="what it is for")
        create.add_argument(
            "--model",
            action="extend",
            nargs="+",
            default=[],
            metavar="NAME",
            help="what it may call (default: all that its organization may)",
        )
        create.add_argument(
            "--expires",
            metavar="WHEN",
            help="30d, 12h, 2w, or ISO 8601 in the organization's time zone (default: never)",
        )
        create.add_argument("--json", action="store_true")
        create.set_defaults(act=self.create)

        listing = verbs.add_parser(
            "list", help="list the keys, newest first, without their secrets"
        )
        listing.add_argument("--organization", metavar="SLUG", help="of this organization only")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

        revoke = verbs.add_parser("revoke", help="refuse a key for good")
        revoke.add_argument("key", metavar="PUBLIC_ID", help="the 8 characters after tsr_")
        revoke.set_defaults(act=self.revoke)

    def create(self, **options: Any) -> None:
        at = now()
        organization = console.find_organization(options["organization"])
        team = console.find_team(organization, options["team"])
        key, raw = ApiKey.mint(
            team,
            options["name"],
            by=console.actor(),
            at=at,
            allowed_models=options["model"],
            expires_at=_expiry(options["expires"], at, organization),
        )
        for suspended in (organization, team):
            if not suspended.is_active:
                self.tell(f"{suspended} is suspended: the key is refused until it is resumed.")
        self.tell(f"Created {key} for {team}. This is the only time that it is shown:")
        if options["json"]:
            self.stdout.write(
                json.dumps({"api_key": raw.secret, **_row(key, at)}, indent=2, ensure_ascii=False)
            )
        else:
            self.stdout.write(raw.secret)

    def list(self, **options: Any) -> None:
        at = now()
        found = ApiKey.objects.select_related("organization", "team")
        if options["organization"]:
            found = found.filter(organization=console.find_organization(options["organization"]))
        self.show(
            [_row(key, at) for key in self.first(found)],
            as_json=options["json"],
            columns=["public_id", "organization", "team", "status", "expires_at", "models", "name"],
        )

    def revoke(self, **options: Any) -> None:
        key = _find(options["key"])
        if key.revoke(by=console.actor(), at=now()):
            self.tell(f"Revoked {key}.")
        else:
            self.tell(f"{key} was revoked already, at {key.revoked_at:%Y-%m-%d %H:%M:%S} UTC.")


def _expiry(text: str | None, at: datetime, organization: Organization) -> datetime | None:
    if text is None:
        return None
    try:
        return expiry.parse(text, at=at, zone=ZoneInfo(organization.timezone))
    except (ValueError, OverflowError) as error:
        raise CommandError(f"--expires: {error}") from error


def _find(text: str) -> ApiKey:
    """Find the key by its public id, or by as much of the key as the person has at hand."""
    public_id = console.public_id(text)
    found = ApiKey.objects.filter(public_id=public_id).first()
    if found is None:
        raise CommandError(f"There is no key {public_id!r}; `key list` shows the public ids.")
    return found


def _row(key: ApiKey, at: datetime) -> console.Row:
    return {
        "public_id": key.public_id,
        "last4": key.last4,
        "name": key.name,
        "organization": key.organization.slug,
        "team": key.team.slug,
        "status": str(key.status(at)),
        "models": key.allowed_models,
        "created_at": key.created_at.isoformat(timespec="seconds"),
        "expires_at": _isoformat(key.expires_at),
        "revoked_at": _isoformat(key.revoked_at),
    }


def _isoformat(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
