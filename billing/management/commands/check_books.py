"""manage.py check_books"""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from billing import books
from tenants import console


class Command(console.NounCommand):
    help = (
        "Check what must always hold between holds, ledger, budgets and prices, and name every promise that is "
        "broken. Reads only; ends with 1 if anything is wrong."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", metavar="SLUG", help="of this organization only")
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(act=self.check_books)

    def check_books(self, *, organization: str | None, json: bool, **_: Any) -> None:
        organization_id = console.find_organization(organization).pk if organization else None
        violations = books.check(organization_id)
        overruns = books.overruns(organization_id)
        if json:
            self._show_json(violations, overruns)
        else:
            self._say(violations, overruns)
        if violations:
            names = ", ".join(violation.invariant for violation in violations)
            raise CommandError(f"The books are wrong: {names}.")

    def _show_json(self, violations: list[books.Violation], overruns: list[books.Overrun]) -> None:
        found = {
            "violations": [asdict(violation) for violation in violations],
            "overruns": [asdict(overrun) for overrun in overruns],
        }
        self.stdout.write(json.dumps(found, indent=2))

    def _say(self, violations: list[books.Violation], overruns: list[books.Overrun]) -> None:
        for violation in violations:
            self.stdout.write(f"✗ {violation.invariant}: {violation.promise}")
            self.stdout.write(f"  {violation.count} times, such as")
            for example in violation.examples:
                self.stdout.write(f"    {example}")
        for overrun in overruns:
            self.stdout.write(
                f"window {overrun.window_id} of budget {overrun.budget_id} stands over its limit by "
                f"{overrun.over_pico} pico-units and {overrun.over_tokens} tokens: "
                f"{'; '.join(overrun.reasons) or 'nothing explains it'}"
            )
        if not violations:
            self.stdout.write(f"✓ {len(books.INVARIANTS)} promises hold.")
