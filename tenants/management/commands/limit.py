"""manage.py limit set | list | remove"""

from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils.timezone import now

from tenants import console
from tenants.limits import Limit, LimitKind
from tenants.models import ApiKey, AuditEntry, Organization, Team


class Command(console.NounCommand):
    help = (
        "Limits: requests, tokens and images per minute, and requests at once, for an "
        "organization, a team or a key. They count within a second, for new requests."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        setting = verbs.add_parser("set", help="set the limits that are given, and no others")
        setting.add_argument("--organization", required=True, metavar="SLUG")
        owner = setting.add_mutually_exclusive_group()
        owner.add_argument("--team", metavar="SLUG", help="for this team of it")
        owner.add_argument("--key", metavar="PUBLIC_ID", help="for this key of it")
        setting.add_argument(
            "--model", default="", metavar="NAME", help="count this model only (default: all)"
        )
        for kind in LimitKind:
            setting.add_argument(f"--{kind.value}", type=int, metavar="N", help=str(kind.label))
        setting.add_argument(
            "--shadow", action="store_true", help="report what they would refuse, refuse nothing"
        )
        setting.set_defaults(act=self.set)

        listing = verbs.add_parser("list", help="list the limits")
        listing.add_argument("--organization", metavar="SLUG", help="of this organization only")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

        removing = verbs.add_parser("remove", help="remove limits")
        removing.add_argument("ids", nargs="+", type=int, metavar="ID", help="see `limit list`")
        removing.set_defaults(act=self.remove)

    def set(self, **options: Any) -> None:
        given = {kind: options[kind] for kind in LimitKind if options[kind] is not None}
        if not given:
            flags = ", ".join(f"--{kind}" for kind in LimitKind)
            raise CommandError(f"Say what to limit: {flags}.")
        organization = console.find_organization(options["organization"])
        team, key = _find_owner(organization, options)
        with transaction.atomic():
            for kind, maximum in given.items():
                limit = Limit(
                    organization=organization,
                    team=team,
                    key=key,
                    model_name=options["model"],
                    kind=kind,
                    is_shadow=options["shadow"],
                    maximum=maximum,
                )
                self.tell(_put(limit))

    def list(self, **options: Any) -> None:
        limits = Limit.objects.select_related("organization", "team__organization", "key")
        if options["organization"]:
            limits = limits.filter(organization=console.find_organization(options["organization"]))
        self.show(
            [_row(limit) for limit in self.first(limits)],
            as_json=options["json"],
            columns=["id", "organization", "team", "key", "model", "kind", "maximum", "shadow"],
        )

    def remove(self, **options: Any) -> None:
        with transaction.atomic():
            found = Limit.objects.in_bulk(options["ids"])
            for number in options["ids"]:
                if number not in found:
                    raise CommandError(f"There is no limit {number}; `limit list` shows them.")
                AuditEntry.record("limit.delete", found[number], by=console.actor(), at=now())
                said = str(found[number])
                found.pop(number).delete()
                self.tell(f"Removed: {said}.")


def _find_owner(
    organization: Organization, options: dict[str, Any]
) -> tuple[Team | None, ApiKey | None]:
    if options["key"]:
        public_id = console.public_id(options["key"])
        key = organization.keys.select_related("team").filter(public_id=public_id).first()
        if key is None:
            raise CommandError(f"{organization} has no key {public_id!r}; see `key list`.")
        return key.team, key
    return (console.find_team(organization, options["team"]) if options["team"] else None), None


def _put(limit: Limit) -> str:
    """Save the limit, in the place of the one that its owner has of the same kind. Say what was done."""
    before = (
        Limit.objects.select_for_update(of=["self"])
        .filter(
            organization=limit.organization,
            team=limit.team,
            key=limit.key,
            model_name=limit.model_name,
            kind=limit.kind,
            is_shadow=limit.is_shadow,
        )
        .first()
    )
    if before is None:
        console.create(limit)
        return f"Set: {limit}."
    if before.maximum == limit.maximum:
        return f"Unchanged: {before}."
    detail = {"maximum": [before.maximum, limit.maximum]}
    before.maximum = limit.maximum
    before.full_clean()
    before.save(update_fields=["maximum"])
    AuditEntry.record("limit.change", before, by=console.actor(), at=now(), detail=detail)
    return f"Changed: {before}."


def _row(limit: Limit) -> console.Row:
    return {
        "id": limit.pk,
        "organization": limit.organization.slug,
        "team": limit.team.slug if limit.team else None,
        "key": limit.key.public_id if limit.key else None,
        "model": limit.model_name or None,
        "kind": limit.kind,
        "maximum": limit.maximum,
        "shadow": limit.is_shadow,
    }
