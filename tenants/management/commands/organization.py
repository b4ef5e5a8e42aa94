"""manage.py organization create | list | suspend | resume"""

from typing import Any

from django.core.management.base import CommandParser
from django.utils.timezone import now

from tenants import console
from tenants.models import Organization


class Command(console.NounCommand):
    help = (
        "Organizations: who pays. Create and list them; suspend one, and all its keys are refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        create = verbs.add_parser("create", help="create an organization")
        create.add_argument("slug", metavar="SLUG", help="small letters, digits and hyphens")
        create.add_argument("--name", required=True)
        create.add_argument("--timezone", default="Asia/Taipei", help="(default: %(default)s)")
        create.add_argument("--currency", default="TWD", help="(default: %(default)s)")
        create.add_argument(
            "--model",
            action="extend",
            nargs="+",
            default=[],
            metavar="NAME",
            help="what its keys may call (default: every model)",
        )
        create.set_defaults(act=self.create)

        listing = verbs.add_parser("list", help="list the organizations")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

        suspend = verbs.add_parser("suspend", help="refuse all its keys until it is resumed")
        suspend.add_argument("slug", metavar="SLUG")
        suspend.set_defaults(act=self.suspend)

        resume = verbs.add_parser("resume", help="let its keys in again")
        resume.add_argument("slug", metavar="SLUG")
        resume.set_defaults(act=self.resume)

    def create(self, **options: Any) -> None:
        organization = Organization(
            slug=options["slug"],
            name=options["name"],
            timezone=options["timezone"],
            currency=options["currency"],
            allowed_models=options["model"],
        )
        console.create(organization)
        self.tell(f"Created the organization {organization}.")

    def list(self, **options: Any) -> None:
        self.show(
            [_row(organization) for organization in self.first(Organization.objects.all())],
            as_json=options["json"],
            columns=["slug", "status", "currency", "timezone", "models", "name"],
        )

    def suspend(self, **options: Any) -> None:
        organization = console.find_organization(options["slug"])
        changed = organization.suspend(by=console.actor(), at=now())
        self.tell(f"{organization} is suspended{'' if changed else ' already'}.")

    def resume(self, **options: Any) -> None:
        organization = console.find_organization(options["slug"])
        changed = organization.resume(by=console.actor(), at=now())
        self.tell(f"{organization} is active{'' if changed else ' already'}.")


def _row(organization: Organization) -> console.Row:
    return {
        "slug": organization.slug,
        "name": organization.name,
        "status": "active" if organization.is_active else "suspended",
        "currency": organization.currency,
        "timezone": organization.timezone,
        "models": organization.allowed_models,
        "created_at": organization.created_at.isoformat(timespec="seconds"),
    }
