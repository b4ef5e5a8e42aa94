"""manage.py team create | list | suspend | resume"""

from typing import Any

from django.core.management.base import CommandParser
from django.utils.timezone import now

from tenants import console
from tenants.models import Team


class Command(console.NounCommand):
    help = "Teams: the parts of an organization that have keys. Suspend one to refuse its keys."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        create = verbs.add_parser("create", help="create a team in an organization")
        _add_team(create)
        create.add_argument("--name", required=True)
        create.set_defaults(act=self.create)

        listing = verbs.add_parser("list", help="list the teams")
        listing.add_argument("--organization", metavar="SLUG", help="of this organization only")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

        suspend = verbs.add_parser("suspend", help="refuse all its keys until it is resumed")
        _add_team(suspend)
        suspend.set_defaults(act=self.suspend)

        resume = verbs.add_parser("resume", help="let its keys in again")
        _add_team(resume)
        resume.set_defaults(act=self.resume)

    def create(self, **options: Any) -> None:
        organization = console.find_organization(options["organization"])
        team = Team(organization=organization, slug=options["slug"], name=options["name"])
        console.create(team)
        self.tell(f"Created the team {team}.")

    def list(self, **options: Any) -> None:
        teams = Team.objects.select_related("organization")
        if options["organization"]:
            teams = teams.filter(organization=console.find_organization(options["organization"]))
        self.show(
            [_row(team) for team in self.first(teams)],
            as_json=options["json"],
            columns=["organization", "slug", "status", "name"],
        )

    def suspend(self, **options: Any) -> None:
        team = _find(options)
        changed = team.suspend(by=console.actor(), at=now())
        self.tell(f"{team} is suspended{'' if changed else ' already'}.")

    def resume(self, **options: Any) -> None:
        team = _find(options)
        changed = team.resume(by=console.actor(), at=now())
        self.tell(f"{team} is active{'' if changed else ' already'}.")


def _add_team(parser: CommandParser) -> None:
    parser.add_argument("slug", metavar="SLUG", help="small letters, digits and hyphens")
    parser.add_argument("--organization", required=True, metavar="SLUG")


def _find(options: dict[str, Any]) -> Team:
    organization = console.find_organization(options["organization"])
    return console.find_team(organization, options["slug"])


def _row(team: Team) -> console.Row:
    return {
        "organization": team.organization.slug,
        "slug": team.slug,
        "name": team.name,
        "status": "active" if team.is_active else "suspended",
        "created_at": team.created_at.isoformat(timespec="seconds"),
    }
