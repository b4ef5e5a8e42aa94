"""What the management commands of this app share: finding, creating, telling, and who acts.

Answers go to stdout, so that they can be piped; everything said to the person goes to stderr.
"""

import argparse
import getpass
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, models, transaction
from django.utils.timezone import now

from tenants import keys
from tenants.models import ApiKey, AuditEntry, Organization, Team

KNOWN_MAX = 20  # how many names an error message lists
LIST_MAX = 1000  # how many rows a listing shows

Row = dict[str, Any]


class NounCommand(BaseCommand):
    """`manage.py NOUN VERB …`: a verb's parser names the method that does it."""

    requires_system_checks = []  # they would double the time of every command

    def verbs(self, parser: CommandParser) -> "argparse._SubParsersAction[CommandParser]":
        return parser.add_subparsers(metavar="VERB", required=True)

    def add_limit(self, parser: CommandParser, default: int) -> None:
        """Let the person say how many rows a listing shows, LIST_MAX at most."""
        parser.add_argument(
            "--limit",
            type=_limit,
            default=default,
            metavar="N",
            help=f"at most {LIST_MAX} (default: %(default)s)",
        )

    def handle(self, *args: Any, act: Callable[..., None], **options: Any) -> None:
        try:
            act(**options)
        except ValidationError as error:
            raise CommandError(_sentence(error)) from error
        except DatabaseError as error:
            reason = str(error).strip().splitlines()[0]
            raise CommandError(
                f"The database said: {reason} (Is it up, and migrated by manage.py migrate?)"
            ) from error

    def tell(self, message: str) -> None:
        self.stderr.write(message, style_func=str)

    def show(self, rows: Sequence[Row], *, as_json: bool, columns: Sequence[str]) -> None:
        """Print the rows: all they hold as JSON, or the columns as a table."""
        if as_json:
            self.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False))
            return
        if not rows:
            self.tell("None.")
            return
        for line in _table(rows, columns):
            self.stdout.write(line)

    def first(self, queryset: models.QuerySet[Any]) -> list[Any]:
        """Return at most LIST_MAX rows, and say so if there are more."""
        found = list(queryset[: LIST_MAX + 1])
        if len(found) > LIST_MAX:
            self.tell(f"Only the first {LIST_MAX} are shown; narrow the question.")
        return found[:LIST_MAX]


def actor() -> str:
    try:
        return f"console:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"console:{os.getuid()}"


def create(subject: models.Model) -> None:
    """Validate and save the new row, and record who did it."""
    subject.full_clean()
    with transaction.atomic():
        subject.save(force_insert=True)
        AuditEntry.record(f"{subject._meta.model_name}.create", subject, by=actor(), at=now())


def find_organization(slug: str) -> Organization:
    found = Organization.objects.filter(slug=slug).first()
    if found is None:
        known = Organization.objects.values_list("slug", flat=True)
        raise CommandError(f"There is no organization {slug!r}. {_known(known)}")
    return found


def find_team(organization: Organization, slug: str) -> Team:
    found = organization.teams.filter(slug=slug).first()
    if found is None:
        known = organization.teams.values_list("slug", flat=True)
        raise CommandError(f"{organization} has no team {slug!r}. {_known(known)}")
    return found


def find_key(organization: Organization, text: str) -> ApiKey:
    """Find the organization's key by its public id, or by as much of the key as the person has at hand."""
    found = organization.keys.select_related("team").filter(public_id=public_id(text)).first()
    if found is None:
        raise CommandError(
            f"{organization} has no key {public_id(text)!r}; `key list` shows the ids."
        )
    return found


def public_id(text: str) -> str:
    """Return a key's public id from as much of the key as the person has at hand."""
    return text.removeprefix(f"{keys.PREFIX}_").partition("_")[0]


def _known(slugs: "models.QuerySet[Any, str]") -> str:
    found = list(slugs[: KNOWN_MAX + 1])
    if not found:
        return "There is none yet: create one first."
    more = " …" if len(found) > KNOWN_MAX else ""
    return f"Known: {', '.join(found[:KNOWN_MAX])}{more}"


def _sentence(error: ValidationError) -> str:
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    return " ".join(
        message if field == "__all__" else f"{field}: {message}"
        for field, messages in error.message_dict.items()
        for message in messages
    )


def _table(rows: Sequence[Row], columns: Sequence[str]) -> Iterable[str]:
    lines = [list(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value) or "*"
    return "-" if value is None else str(value)


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= LIST_MAX:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {LIST_MAX}.")
