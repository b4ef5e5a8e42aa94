"""Snapshots of invoices, with sensible defaults."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from billing.invoicing.snapshots import (
    VERSION,
    Allowance,
    Customer,
    Discount,
    Document,
    Issuer,
    Line,
    Snapshot,
    Span,
    Tax,
    Team,
    Tier,
    Totals,
)
from billing.money import minor_digits, to_minor
from billing.rating import Kind

TAIPEI_NOVEMBER = Span(
    datetime(2026, 10, 31, 16, tzinfo=UTC), datetime(2026, 11, 30, 16, tzinfo=UTC)
)
ISSUED_AT = datetime(2026, 12, 1, 16, 5, tzinfo=UTC)


def line(kind: Kind, quantity: int, micro: int, currency: str = "TWD", **fields: Any) -> Line:
    unit, factor = ("requests", 10**6) if kind is Kind.REQUEST else ("tokens", 1)
    amount = quantity * micro * factor
    defaults = {
        "model": "vision-11b",
        "unit": unit,
        "images": quantity // 6404 if kind is Kind.IMAGE_IN else None,
        "late_quantity": 0,
        "tiers": [Tier(1, 0, None, quantity, micro, amount)],
        "amount_pico": amount,
        "amount_minor": to_minor(amount, currency),
    }
    return Line(kind=kind, quantity=quantity, **(defaults | fields))


def team(slug: str, name: str, lines: list[Line], allowances: list[Allowance] = []) -> Team:  # noqa: B006
    rows: list[Line | Allowance] = [*lines, *allowances]
    subtotal = sum(row.amount_minor for row in rows)
    return Team(1, slug, name, lines, allowances, subtotal)


def teams(currency: str = "TWD", model: str = "vision-11b") -> list[Team]:
    """Two teams: one with tiers, late usage and an allowance, one plain."""
    images = line(Kind.IMAGE_IN, 85_640_000, 12_000_000, currency, model=model)
    split = msgspec.structs.replace(
        images,
        late_quantity=64_040,
        tiers=[
            Tier(1, 0, 50_000_000, 50_000_000, 12_000_000, 600 * 10**12),
            Tier(1, 50_000_000, None, 35_640_000, 12_000_000, 35_640_000 * 12_000_000),
        ],
    )
    tier = Tier(1, 0, None, 1_000_000, 10_000_000, 10**13)
    amount = to_minor(-(10**13), currency)
    free = Allowance(model, Kind.TEXT_IN, 1_000_000, [tier], -(10**13), amount)
    research = [
        line(Kind.TEXT_IN, 12_345_678, 10_000_000, currency, model=model),
        split,
        line(Kind.CACHED_IN, 2_000_000, 5_000_000, currency, model=model),
        line(Kind.OUT, 4_100_205, 30_000_000, currency, model=model),
    ]
    claims = [
        line(Kind.TEXT_IN, 320_400, 10_000_000, currency, model=model),
        line(Kind.OUT, 40_205, 30_000_000, currency, model=model),
        line(Kind.REQUEST, 1_020, 50_000, currency, model="image-reader"),
    ]
    return [team("research", "Research 研究組", research, [free]), team("claims", "Claims", claims)]


def snapshot(currency: str = "TWD", **fields: Any) -> Snapshot:
    """Return an issued invoice with a discount of 10 % and 5 % tax, or with what `fields` say."""
    of_teams = fields.pop("teams", None) or teams(currency)
    subtotal = sum(each.subtotal_minor for each in of_teams)
    discount, tax = -round(subtotal / 10), round(subtotal * 0.9 * 0.05)
    total = subtotal + discount + tax
    defaults: dict[str, Any] = {
        "version": VERSION,
        "kind": Document.INVOICE,
        "number": "TSR-2026-000123",
        "issuer": Issuer(
            "Tessera 股份有限公司", "12345678", "台北市信義區市府路1號\n110", "Asia/Taipei"
        ),
        "customer": Customer(
            "acme", "Acme", "艾克美保險股份有限公司", "87654321", "新北市板橋區中山路一段161號"
        ),
        "currency": currency,
        "minor_digits": minor_digits(currency),
        "language": "en",
        "timezone": "Asia/Taipei",
        "period": TAIPEI_NOVEMBER,
        "issued_at": ISSUED_AT,
        "due_at": datetime(2026, 12, 31, 16, tzinfo=UTC),
        "corrects": None,
        "reason": "",
        "teams": of_teams,
        "discount": Discount(1000, discount),
        "credits": [],
        "tax": Tax(500, False, tax),
        "totals": Totals(subtotal, discount, tax, total, 0, total),
        "previous_sha256": "ab" * 32,
    }
    return Snapshot(**(defaults | fields))
