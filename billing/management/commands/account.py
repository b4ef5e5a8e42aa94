"""manage.py account show | set"""

import argparse
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils.timezone import now

from billing.accounts import EPOCH, Account, InvoiceLanguage
from billing.models import PriceList
from billing.rating import BP
from tenants import console

PERCENT_BP = 100
NONE = "none"


class Command(console.NounCommand):
    help = "How an organization is billed: its price list, discount and tax, and what stands on its invoices."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)
        showing = verbs.add_parser("show", help="show what an organization is billed by")
        showing.add_argument("organization", metavar="ORG", help="its slug")
        showing.add_argument("--json", action="store_true")
        showing.set_defaults(act=self.show_account)

        setting = verbs.add_parser("set", help="change what is given, and nothing else")
        setting.add_argument("organization", metavar="ORG", help="its slug")
        setting.add_argument(
            "--price-list",
            metavar="SLUG",
            help=f"`price lists` shows them; {NONE}: the default one",
        )
        setting.add_argument(
            "--discount",
            type=_basis_points,
            metavar="2.5",
            help="in percent, on usage after allowances; below zero, --discount=-5: a markup",
        )
        setting.add_argument("--tax", type=_basis_points, metavar="5", help="in percent")
        setting.add_argument("--tax-exempt", action=argparse.BooleanOptionalAction, default=None)
        setting.add_argument("--legal-name", metavar="NAME")
        setting.add_argument("--tax-id", metavar="ID")
        setting.add_argument(
            "--address", metavar="TEXT", help="as on the invoice; \\n begins a new line"
        )
        setting.add_argument("--language", choices=InvoiceLanguage.values)
        setting.add_argument("--payment-terms", type=int, metavar="DAYS")
        setting.set_defaults(act=self.set)

    def show_account(self, *, organization: str, json: bool, **_: Any) -> None:
        row = _row(_account(organization))
        if json:
            self.show([row], as_json=True, columns=[])
            return
        width = max(map(len, row))
        for name, value in row.items():
            self.stdout.write(f"{name.ljust(width)}  {'-' if value in (None, '') else value}")

    def set(self, **options: Any) -> None:
        given = _values(options)
        if not given:
            raise CommandError("Say what to change, such as --tax-id 12345678.")
        with transaction.atomic():
            account = _account(options["organization"])
            changed = account.change(by=console.actor(), at=now(), **given)
        names = ", ".join(name.removesuffix("_bp").replace("_", " ") for name in changed)
        said = f"Changed: {names}." if names else "It is so already."
        self.tell(f"{account.organization}: {said}")


def _account(slug: str) -> Account:
    return Account.of(console.find_organization(slug))


def _values(options: dict[str, Any]) -> dict[str, Any]:
    values = {
        "discount_bp": options["discount"],
        "tax_bp": options["tax"],
        "tax_exempt": options["tax_exempt"],
        "legal_name": options["legal_name"],
        "tax_id": options["tax_id"],
        "address": options["address"] and options["address"].replace("\\n", "\n"),
        "invoice_language": options["language"],
        "payment_terms_days": options["payment_terms"],
    }
    given = {name: value for name, value in values.items() if value is not None}
    if options["price_list"] is not None:
        given["price_list"] = _find_list(options["price_list"])
    return given


def _find_list(slug: str) -> PriceList | None:
    if slug == NONE:
        return None
    try:
        return PriceList.named(slug)
    except LookupError as error:
        raise CommandError(str(error)) from error


def _row(account: Account) -> console.Row:
    return {
        "organization": account.organization.slug,
        "currency": account.organization.currency,
        "timezone": account.organization.timezone,
        "price_list": account.price_list.slug if account.price_list else None,
        "discount_percent": _percent(account.discount_bp),
        "tax_percent": _percent(account.tax_bp),
        "tax_exempt": account.tax_exempt,
        "legal_name": account.legal_name,
        "tax_id": account.tax_id,
        "address": account.address,
        "language": account.invoice_language,
        "payment_terms_days": account.payment_terms_days,
        "closed_until": _isoformat(account.closed_until),
    }


def _isoformat(moment: datetime) -> str | None:
    return None if moment == EPOCH else moment.isoformat(timespec="seconds")


def _percent(basis_points: int) -> str:
    """Return basis points as people write them: 250 is 2.5."""
    return format((Decimal(basis_points) / PERCENT_BP).normalize(), "f")


def _basis_points(text: str) -> int:
    try:
        points = Decimal(text) * PERCENT_BP
    except InvalidOperation as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage such as 2.5.") from error
    if not points.is_finite() or points != points.to_integral_value() or abs(points) > BP:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a percentage from -100 to 100 with two decimals at most."
        )
    return int(points)
