"""`manage.py rerate ORGANIZATION --price-list X --period 2026-11`: a period under other prices. Writes nothing."""

from typing import Any
from zoneinfo import ZoneInfo

from django.core.management.base import CommandError, CommandParser

from billing.accounts import Account
from billing.invoicing import rerating
from billing.money import format_minor
from billing.periods import parse_month
from billing.price_lists import PriceList
from tenants import console
from tenants.console import Row


class Command(console.NounCommand):
    help = "Show what a period would cost under another price list. Writes nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("organization", metavar="ORGANIZATION")
        parser.add_argument("--price-list", required=True, metavar="SLUG")
        parser.add_argument("--period", required=True, metavar="YYYY-MM")
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(act=self.rerate)

    def rerate(
        self, *, organization: str, price_list: str, period: str, json: bool, **_: Any
    ) -> None:
        account = Account.known(console.find_organization(organization))
        try:
            chosen = PriceList.named(price_list)
            month = parse_month(period, ZoneInfo(account.organization.timezone))
            compared = rerating.compare(account, month, chosen)
        except (ValueError, LookupError) as error:
            raise CommandError(str(error)) from error
        rows = [self._row(row, account) for row in compared]
        self.show(rows, as_json=json, columns=["team", "model", "kind", "quantity", "now", "then"])

    def _row(self, row: rerating.Compared, account: Account) -> Row:
        currency = account.organization.currency
        return {
            "team": row.team,
            "model": row.model_name,
            "kind": row.kind,
            "quantity": row.quantity,
            "now": format_minor(row.now_minor, currency),
            "then": format_minor(row.then_minor, currency),
        }
