"""docs/pricing.md says what is so: its worked example is computed, its commands are understood."""

import re
import shlex
from datetime import UTC, datetime

import pytest
from django.core.management import load_command_class

from billing import prices
from billing.models import Allowance, Price, PriceList, PriceTier
from billing.money import format_pico
from billing.price_lists import TOKEN_KINDS
from billing.rating import Credit, Kind, Line, Quantity, Rated, rate
from tests.door import ROOT

PAGE = (ROOT / "docs" / "pricing.md").read_text()
STARTS, ENDS = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
LABS, VISION = 1, 2


def table(heading: str) -> list[list[str]]:
    """Return the cells of the rows under the heading row that begins so."""
    rows = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace(",", "") for cell in row.strip("|").split("|")] for row in rows]


def rated() -> Rated:
    price = Price(
        price_list=PriceList.standard("TWD"),
        model_name="vlm",
        currency="TWD",
        text_in_micro=12_500_000,
        image_in_micro=15_000_000,
        cached_in_micro=12_500_000,
        out_micro=40_000_000,
        tier_mode="graduated",
        effective_from=STARTS,
    )
    tiers = ["image_in:10_000_000:12", "image_in:100_000_000:9"]
    prices.add(price, [prices.parse_tier(tier) for tier in tiers], by=None)
    Allowance.objects.create(
        price_list=price.price_list,
        model_name="vlm",
        kind="image_in",
        tokens_per_month=10**6,
        effective_from=STARTS,
    )
    usage = [
        Quantity(VISION, price.pk, Kind.IMAGE_IN, 18_000_000),
        Quantity(VISION, price.pk, Kind.OUT, 3_000_000),
        Quantity(LABS, price.pk, Kind.IMAGE_IN, 6_000_000),
    ]
    return rate(
        usage,
        prices.versions([price.pk]),
        currency="TWD",
        allowances=prices.allowances(price.currency, price.price_list, STARTS, ENDS),
        discount_bp=1000,
        tax_bp=500,
    )


def test_the_worked_example_is_what_rating_says(db: None) -> None:
    found = rated()

    rows: list[Line | Credit] = [*found.lines, *found.credits]
    shown = [
        [
            "labs" if row.team_id == LABS else "vision",
            f"{row.kind.value} free" if isinstance(row, Credit) else row.kind.value,
            str(step.quantity),
            str(step.from_units),
            str(step.micro // 10**6),
            format_pico(-step.amount_pico if isinstance(row, Credit) else step.amount_pico),
        ]
        for row in rows
        for step in row.steps
    ]
    assert sorted(shown) == sorted(table("team"))
    totals = (found.subtotal_minor, found.discount_minor, found.tax_minor, found.total_minor)
    assert [[str(total) for total in totals]] == table("subtotal")


def test_the_rounded_lines_are_what_the_page_says(db: None) -> None:
    found = rated()

    assert [line.amount_minor for line in found.lines] == [80, 238, 120]
    assert [credit.amount_minor for credit in found.credits] == [-4, -11]
    assert "labs 80 (79.50)\nand -4 (-3.75), vision 238 (238.50), -11 (-11.25) and 120" in PAGE


@pytest.mark.parametrize("line", re.findall(r"^manage\.py ((?:.+\\\n)*.+)$", PAGE, re.M))
def test_its_commands_are_understood(line: str) -> None:
    noun, *words = shlex.split(line.replace("\\\n", " "), comments=True)

    parser = load_command_class("billing", noun).create_parser("manage.py", noun)
    assert parser.parse_args(words).act


def test_tiers_are_of_every_kind_of_token() -> None:
    assert {PriceTier(kind=kind).kind for kind in TOKEN_KINDS} == {*Kind} - {Kind.REQUEST}
