"""manage.py price set | list"""

import argparse
from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils.timezone import now

from billing import prices
from billing.models import Price, PriceList
from billing.worked_example import KINDS
from tenants import console


class Command(console.NounCommand):
    help = (
        "Prices, in currency units per million tokens. A price is never edited: a new version "
        "takes over from a moment on."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        setting = verbs.add_parser("set", help="add a version of a model's price")
        setting.add_argument("model", metavar="MODEL", help="the model's public name")
        setting.add_argument("--currency", required=True, type=str.upper, metavar="TWD")
        for option, meaning in (
            ("--text-in", "per million tokens of text that the model reads"),
            ("--image-in", "per million tokens of images"),
            ("--out", "per million tokens that the model writes"),
        ):
            setting.add_argument(option, required=True, type=_micro, metavar="12.5", help=meaning)
        setting.add_argument(
            "--cached-in",
            type=_micro,
            metavar="6",
            help="per million tokens that the backend had in its cache (default: as --text-in)",
        )
        setting.add_argument(
            "--per-request", type=_micro, default=0, metavar="0", help="on top (default: none)"
        )
        setting.add_argument(
            "--from",
            dest="effective_from",
            type=_moment,
            metavar="WHEN",
            help="ISO 8601, in UTC unless it says otherwise: 2027-01-31T18:00+08:00 (default: now)",
        )
        setting.add_argument(
            "--dry-run", action="store_true", help="show what it would cost, and save nothing"
        )
        setting.set_defaults(act=self.set)

        listing = verbs.add_parser("list", help="list the prices in force and those to come")
        listing.add_argument("model", nargs="?", metavar="MODEL", help="of this model only")
        listing.add_argument("--all", action="store_true", help="those that are past, too")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

    def set(self, **options: Any) -> None:
        with transaction.atomic():
            price = _price(options, now())
            price.full_clean()
            self._show_meaning(price)
            if options["dry_run"]:
                transaction.set_rollback(True)
                self.tell("Nothing was saved.")
                return
            console.create(price)
        self.tell(f"Saved: {price} UTC, until a later version takes over.")

    def list(self, **options: Any) -> None:
        versions = Price.objects.order_by("model_name", "currency", "effective_from")
        if options["model"]:
            versions = versions.filter(model_name=options["model"])
        rows = _rows(self.first(versions), now())
        if not options["all"]:
            rows = [row for row in rows if row["status"] != "past"]
        if options["model"] and not rows:
            self.tell(f"{options['model']} has no price: requests for it are refused.")
        self.show(
            rows,
            as_json=options["json"],
            columns=["model", "currency", "status", "from", *KINDS],
        )

    def _show_meaning(self, price: Price) -> None:
        amounts = ", ".join(f"{kind} {text}" for kind, text in prices.amounts(price).items())
        self.tell(f"{price.model_name}, {price.currency} per million tokens: {amounts}")
        self.tell("At this price")
        for line in prices.meaning(price):
            self.tell(f"  {line}")
        for doubt in prices.doubts(price):
            self.tell(f"Look again: {doubt}")


def _price(options: dict[str, Any], at: datetime) -> Price:
    starts = options["effective_from"] or at
    if starts < at:
        raise CommandError("--from has passed: a price cannot reach back to what is booked.")
    cached_in = options["cached_in"]
    return Price(
        price_list=PriceList.standard(options["currency"]),
        model_name=options["model"],
        currency=options["currency"],
        text_in_micro=options["text_in"],
        image_in_micro=options["image_in"],
        cached_in_micro=options["text_in"] if cached_in is None else cached_in,
        out_micro=options["out"],
        request_micro=options["per_request"],
        effective_from=starts,
    )


def _rows(versions: Iterable[Price], at: datetime) -> list[console.Row]:
    """Return the versions with what has become of each. They come oldest first, model by model."""
    rows = []
    for _, group in groupby(versions, key=lambda price: (price.model_name, price.currency)):
        series = list(group)
        in_force = bisect_right(series, at, key=lambda price: price.effective_from) - 1
        for index, price in enumerate(series):
            status = "past" if index < in_force else "to come"
            rows.append(_row(price, "in force" if index == in_force else status))
    return rows


def _row(price: Price, status: str) -> console.Row:
    return {
        "model": price.model_name,
        "currency": price.currency,
        "status": status,
        "from": price.effective_from.astimezone(UTC).isoformat(timespec="seconds"),
        **prices.amounts(price),
    }


def _micro(text: str) -> int:
    try:
        return prices.parse_amount(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no date or time such as 2027-01-31T18:00+08:00."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
