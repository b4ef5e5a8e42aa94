"""What an issued invoice says, frozen: the one thing that its PDF, CSV and JSON are drawn from. Pure.

A snapshot holds everything that a person reads on the invoice, so that no later change of a name, a price or a tax
can reach it. Its canonical JSON is what is hashed, and the hash of the issuer's previous invoice is part of it: who
changes one invoice must change all that follow.
"""

import hashlib
import itertools
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec
from msgspec import Struct

from billing.rating import Kind

VERSION = 1
GENESIS_SHA256 = "0" * 64  # what the issuer's first invoice names as its previous one


class Document(StrEnum):
    INVOICE = "invoice"
    CREDIT_NOTE = "credit_note"


class Issuer(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    tax_id: str
    address: str
    timezone: str  # of its numbers' years, and of the day on which it issued


class Customer(Struct, frozen=True, forbid_unknown_fields=True):
    slug: str
    name: str
    legal_name: str
    tax_id: str
    address: str


class Span(Struct, frozen=True, forbid_unknown_fields=True):
    """A period `[start, end)`."""

    start: datetime
    end: datetime


class Tier(Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}):
    """A part of a line at one price: how much of it lay between two positions of the organization's period.

    `micro` is in micro-units of the currency, per million tokens or per request. `end` is None without an end.
    """

    price: int
    start: int
    end: int | None
    quantity: int
    micro: int
    amount_pico: int


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """What one team used of one kind of one model: exact in pico-units, and rounded once in minor units."""

    model: str
    kind: Kind
    quantity: int
    unit: Literal["tokens", "requests"]
    images: int | None
    late_quantity: int
    tiers: list[Tier]
    amount_pico: int
    amount_minor: int


class Allowance(Struct, frozen=True, forbid_unknown_fields=True):
    """What was free of one line's usage, at the rates it has there. Its amounts are negative."""

    model: str
    kind: Kind
    quantity: int
    tiers: list[Tier]
    amount_pico: int
    amount_minor: int


class Team(Struct, frozen=True, forbid_unknown_fields=True):
    """What a team used. Its id is there to find its usage records by, whatever it is called since."""

    id: int
    slug: str
    name: str
    lines: list[Line]
    allowances: list[Allowance]
    subtotal_minor: int


class Discount(Struct, frozen=True, forbid_unknown_fields=True):
    """A discount (a negative amount) or, with negative basis points, a markup."""

    bp: int
    amount_minor: int


class Credit(Struct, frozen=True, forbid_unknown_fields=True):
    """What was paid beforehand, or granted, and drawn down here. Its amount is negative."""

    grant: int
    source: Literal["granted", "purchased"]
    amount_minor: int
    expires_at: datetime | None


class Tax(Struct, frozen=True, forbid_unknown_fields=True):
    bp: int
    exempt: bool
    amount_minor: int


class Totals(Struct, frozen=True, forbid_unknown_fields=True):
    """`subtotal` is the sum of all lines and allowances; `total` has discount and tax; `due` has credits drawn."""

    subtotal_minor: int
    discount_minor: int
    tax_minor: int
    total_minor: int
    credits_minor: int
    due_minor: int


class PriceList(Struct, frozen=True, forbid_unknown_fields=True):
    """The list that an invoice is rated under anew. Which versions of it, its tiers say."""

    id: int
    slug: str
    name: str


class Snapshot(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An invoice or a credit note. A draft has no number, and no previous invoice yet."""

    version: int
    kind: Document
    number: str | None
    issuer: Issuer
    customer: Customer
    currency: str
    minor_digits: int
    language: Literal["en", "zh-hant"]
    timezone: str
    period: Span
    issued_at: datetime | None
    due_at: datetime | None
    corrects: str | None
    reason: str
    teams: list[Team]
    discount: Discount | None
    credits: list[Credit]
    tax: Tax
    totals: Totals
    previous_sha256: str | None
    replaces: str = ""  # the number of the void invoice that it was issued for anew
    price_list: PriceList | None = None  # None: the prices that its usage was booked at
    usage_sha256: str = ""  # of the seals, where there are any


def canonical(snapshot: Snapshot | dict[str, Any]) -> bytes:
    """Return the one JSON text of the snapshot, or of its stored JSON: keys sorted, no spaces, UTF-8. What is hashed.

    JSON's key order is lost in PostgreSQL's jsonb, and so must not matter.
    """
    return msgspec.json.encode(snapshot, order="sorted")


def sha256(snapshot: Snapshot) -> str:
    """Return the snapshot's content hash, in hexadecimal."""
    return hashlib.sha256(canonical(snapshot)).hexdigest()


def to_json(snapshot: Snapshot) -> Any:
    """Return what goes into a jsonb column."""
    return msgspec.to_builtins(snapshot)


def from_json(stored: Any) -> Snapshot:
    """Return the snapshot of a jsonb column; msgspec.ValidationError if that is not one."""
    return msgspec.convert(stored, Snapshot)


def price_ids(snapshot: Snapshot) -> frozenset[int]:
    """Return the price versions that anything on it was rated at."""
    return frozenset(tier.price for _, item in items_of(snapshot) for tier in item.tiers)


def items_of(snapshot: Snapshot) -> list[tuple[Team, Line | Allowance]]:
    """Return all lines and allowances with their teams, in the order in which they are numbered from 1."""
    return [
        (team, item)
        for team in snapshot.teams
        for item in itertools.chain[Line | Allowance](team.lines, team.allowances)
    ]
