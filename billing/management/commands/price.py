"""manage.py price set | list | allow | allowances | new-list | lists"""

import argparse
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, TypeVar

from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils.timezone import now

from billing import prices, worked_example
from billing.models import Allowance, Price, PriceList, PriceTier
from billing.price_lists import TOKEN_KINDS
from billing.rating import Kind
from billing.tiers import TierMode
from billing.worked_example import KINDS
from tenants import console

T = TypeVar("T")


class Command(console.NounCommand):
    help = (
        "Prices, in currency units per million tokens, in price lists; tiers and free monthly allowances. A price is "
        "never edited: a new version takes over from a moment on."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)
        self._add_set(verbs.add_parser("set", help="add a version of a model's price"))

        listing = verbs.add_parser("list", help="list the prices in force and those to come")
        listing.add_argument("model", nargs="?", metavar="MODEL", help="of this model only")
        listing.add_argument("--list", metavar="SLUG", help="of this price list only")
        listing.add_argument("--all", action="store_true", help="those that are past, too")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

        allowing = verbs.add_parser(
            "allow", help="set the free tokens of a month, from a moment on"
        )
        allowing.add_argument("model", metavar="MODEL", help="the model's public name")
        _add_list(allowing)
        allowing.add_argument("--kind", required=True, choices=TOKEN_KINDS)
        allowing.add_argument(
            *("--tokens", "-n"),
            required=True,
            type=_argument(prices.parse_tokens),
            metavar="1_000_000",
            help="a month, for all teams of an organization together; 0 ends it",
        )
        _add_start(allowing)
        allowing.set_defaults(act=self.allow)

        allowances = verbs.add_parser("allowances", help="list the free tokens")
        allowances.add_argument("model", nargs="?", metavar="MODEL", help="of this model only")
        allowances.add_argument("--json", action="store_true")
        allowances.set_defaults(act=self.allowances)

        adding = verbs.add_parser(
            "new-list", help="add a price list, for `account set --price-list`"
        )
        adding.add_argument("slug", metavar="SLUG", help="small letters, digits and hyphens")
        adding.add_argument("--currency", required=True, type=str.upper, metavar="TWD")
        adding.add_argument("--name", help="(default: its slug)")
        adding.set_defaults(act=self.new_list)

        lists = verbs.add_parser("lists", help="list the price lists")
        lists.add_argument("--json", action="store_true")
        lists.set_defaults(act=self.lists)

    def _add_set(self, setting: CommandParser) -> None:
        setting.add_argument("model", metavar="MODEL", help="the model's public name")
        _add_list(setting)
        micro = _argument(prices.parse_amount)
        for option, meaning in (
            ("--text-in", "per million tokens of text that the model reads"),
            ("--image-in", "per million tokens of images"),
            ("--out", "per million tokens that the model writes"),
        ):
            setting.add_argument(option, required=True, type=micro, metavar="12.5", help=meaning)
        setting.add_argument(
            "--cached-in",
            type=micro,
            metavar="6",
            help="per million tokens that the backend had in its cache (default: as --text-in)",
        )
        setting.add_argument(
            "--per-request", type=micro, default=0, metavar="0", help="on top (default: none)"
        )
        setting.add_argument(
            "--tiers",
            choices=[mode.value for mode in TierMode if mode is not TierMode.FLAT],
            help="graduated: each tier's tokens at its own price; volume: all tokens of the month "
            "at the price of the tier that is reached (default: no tiers)",
        )
        setting.add_argument(
            "--tier",
            action="append",
            default=[],
            type=_argument(prices.parse_tier),
            metavar="KIND:FROM:AMOUNT",
            help="from so many tokens a month on, such as image_in:10_000_000:12.5; may be repeated",
        )
        _add_start(setting)
        setting.add_argument(
            "--yes",
            action="store_true",
            help="save it even if something about it looks like a slip",
        )
        setting.set_defaults(act=self.set)

    def set(self, **options: Any) -> None:
        is_doubtful = self._try(options)
        if options["dry_run"]:
            self.tell("Nothing was saved.")
            return
        if is_doubtful and not options["yes"]:
            self._confirm()
        with transaction.atomic():
            price = _price(options, now())
            prices.add(price, options["tier"], by=console.actor())
        self.tell(
            f"Saved: {price} UTC, in the list {price.price_list}, until a later version takes over."
        )

    def _try(self, options: dict[str, Any]) -> bool:
        """Show what the price means, and say whether there are doubts; refuse what cannot be saved. Keeps nothing."""
        with transaction.atomic():
            price = _price(options, now())
            is_doubtful = self._show_meaning(price, options["tier"])
            prices.add(price, options["tier"], by=console.actor())
            transaction.set_rollback(True)
        return is_doubtful

    def _confirm(self) -> None:
        """Ask the person at the terminal; CommandError if there is none, or the answer is no."""
        if not sys.stdin.isatty():
            raise CommandError("Nothing was saved: look again, and say --yes if it is meant so.")
        self.stderr.write("Save it all the same? [y/N]", style_func=str, ending=" ")
        self.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("Nothing was saved.")

    def list(self, **options: Any) -> None:
        versions = Price.objects.select_related("price_list").prefetch_related("tiers")
        versions = versions.order_by(
            "model_name", "currency", "-price_list__is_default", "price_list", "effective_from"
        )
        if options["model"]:
            versions = versions.filter(model_name=options["model"])
        if options["list"]:
            versions = versions.filter(price_list=_find_list(options["list"]))
        rows = _rows(self.first(versions), now())
        if not options["all"]:
            rows = [row for row in rows if row["status"] != "past"]
        if options["model"] and not rows:
            self.tell(f"{options['model']} has no price: requests for it are refused.")
        self.show(
            rows,
            as_json=options["json"],
            columns=["model", "list", "currency", "status", "from", *KINDS, "mode", "tiers"],
        )

    def allow(self, **options: Any) -> None:
        kind, tokens = Kind(options["kind"]), options["tokens"]
        with transaction.atomic():
            price_list = _price_list(options)
            allowance = Allowance(
                price_list=price_list,
                model_name=options["model"],
                kind=kind.value,
                tokens_per_month=tokens,
                effective_from=_start(options, price_list, now()),
            )
            self.tell(f"{worked_example.allowance(kind, tokens)}, each month.")
            if not Price.objects.filter(model_name=options["model"]).exists():
                self.tell("Look again: no model of that name has a price.")
            console.create(allowance)
            transaction.set_rollback(options["dry_run"])
        self.tell("Nothing was saved." if options["dry_run"] else f"Saved: {allowance}.")

    def allowances(self, **options: Any) -> None:
        found = Allowance.objects.select_related("price_list").order_by(
            "price_list__slug", "model_name", "kind", "effective_from"
        )
        if options["model"]:
            found = found.filter(model_name=options["model"])
        self.show(
            [_allowance_row(allowance) for allowance in self.first(found)],
            as_json=options["json"],
            columns=["list", "model", "kind", "tokens", "from"],
        )

    def new_list(self, **options: Any) -> None:
        slug = options["slug"]
        row = PriceList(slug=slug, name=options["name"] or slug, currency=options["currency"])
        console.create(row)
        self.tell(f"Created the price list {row}. What it lacks is looked up in the default list.")

    def lists(self, **options: Any) -> None:
        found = PriceList.objects.prefetch_related("accounts__organization")
        self.show(
            [_list_row(row) for row in self.first(found)],
            as_json=options["json"],
            columns=["slug", "currency", "default", "name", "organizations"],
        )

    def _show_meaning(self, price: Price, tiers: Sequence[PriceTier]) -> bool:
        """Tell what the price comes to, and what looks like a slip; return whether anything does."""
        amounts = ", ".join(f"{kind} {text}" for kind, text in prices.amounts(price).items())
        self.tell(f"{price.model_name}, {price.currency} per million tokens: {amounts}")
        self.tell("At this price")
        for line in prices.meaning(price, tiers):
            self.tell(f"  {line}")
        doubts = prices.doubts(price, tiers)
        for doubt in doubts:
            self.tell(f"Look again: {doubt}")
        return bool(doubts)


def _add_list(parser: CommandParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--currency", type=str.upper, metavar="TWD", help="in the default list of this currency"
    )
    where.add_argument("--list", metavar="SLUG", help="in this price list")


def _add_start(parser: CommandParser) -> None:
    parser.add_argument(
        "--from",
        dest="effective_from",
        type=_moment,
        metavar="WHEN",
        help="ISO 8601, in UTC unless it says otherwise: 2027-01-31T18:00+08:00 (default: now); not before now in a "
        "list that anybody pays by",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what it would mean, and save nothing"
    )


def _price_list(options: dict[str, Any]) -> PriceList:
    if options["list"]:
        return _find_list(options["list"])
    return PriceList.standard(options["currency"])


def _find_list(slug: str) -> PriceList:
    try:
        return PriceList.named(slug)
    except LookupError as error:
        raise CommandError(str(error)) from error


def _start(options: dict[str, Any], price_list: PriceList, at: datetime) -> datetime:
    try:
        return prices.begin(price_list, options["effective_from"], at)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _price(options: dict[str, Any], at: datetime) -> Price:
    price_list = _price_list(options)
    cached_in = options["cached_in"]
    return Price(
        price_list=price_list,
        model_name=options["model"],
        currency=price_list.currency,
        text_in_micro=options["text_in"],
        image_in_micro=options["image_in"],
        cached_in_micro=options["text_in"] if cached_in is None else cached_in,
        out_micro=options["out"],
        request_micro=options["per_request"],
        tier_mode=options["tiers"] or TierMode.FLAT.value,
        effective_from=_start(options, price_list, at),
    )


def _rows(versions: Iterable[Price], at: datetime) -> list[console.Row]:
    """Return the versions with what has become of each. They come oldest first, model by model."""
    rows = []
    for _, group in groupby(versions, key=lambda price: (price.model_name, price.price_list_id)):
        series = list(group)
        in_force = bisect_right(series, at, key=lambda price: price.effective_from) - 1
        for index, price in enumerate(series):
            status = "past" if index < in_force else "to come"
            rows.append(_row(price, "in force" if index == in_force else status))
    return rows


def _row(price: Price, status: str) -> console.Row:
    return {
        "model": price.model_name,
        "list": price.price_list.slug,
        "currency": price.currency,
        "status": status,
        "from": _isoformat(price.effective_from),
        **prices.amounts(price),
        "mode": price.tier_mode,
        "tiers": prices.tiers(price) or None,
    }


def _allowance_row(allowance: Allowance) -> console.Row:
    return {
        "list": allowance.price_list.slug,
        "model": allowance.model_name,
        "kind": allowance.kind,
        "tokens": allowance.tokens_per_month,
        "from": _isoformat(allowance.effective_from),
    }


def _list_row(row: PriceList) -> console.Row:
    return {
        "slug": row.slug,
        "name": row.name,
        "currency": row.currency,
        "default": row.is_default,
        "organizations": [account.organization.slug for account in row.accounts.all()]
        if not row.is_default
        else None,
    }


def _isoformat(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return the parser for a command line: its complaints become the command's own."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no date or time such as 2027-01-31T18:00+08:00."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
