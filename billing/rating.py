"""What tokens cost. Pure: integers in, integers out; no clock, no settings.

A price is in micro-units of a currency per million tokens, so that tokens × price is a whole number of
pico-units, and any split of the same usage costs the same. Nothing is rounded but the lines of a period (`rate`), once.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

from billing.money import round_half_even, to_minor
from billing.tiers import Piece, Tier, TierMode, apportion, pieces, rising, shares

PICO_PER_MICRO = 1_000_000


class Kind(StrEnum):
    """What a price has an amount for."""

    TEXT_IN = "text_in"
    IMAGE_IN = "image_in"
    CACHED_IN = "cached_in"
    OUT = "out"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Rates:
    """One price version: micro-units of `currency` per million tokens of each kind, and per request."""

    price_id: int
    currency: str
    text_in_micro: int
    image_in_micro: int
    cached_in_micro: int
    out_micro: int
    request_micro: int
    effective_from: datetime


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one request by kind. The kinds are disjoint: cached ones are in no other."""

    text_in: int
    image_in: int
    cached_in: int
    out: int

    def __post_init__(self) -> None:
        assert min(self.text_in, self.image_in, self.cached_in, self.out) >= 0

    @property
    def total(self) -> int:
        return self.text_in + self.image_in + self.cached_in + self.out


def amount_pico(rates: Rates, tokens: Tokens, *, share: str = "delivered") -> int:
    """Return what the tokens cost, in pico-units of the price's currency.

    `share` is how much of them is billed: "delivered" (all), "prompt" (no output), "nothing".

    >>> from datetime import UTC, datetime
    >>> rates = Rates(1, "TWD", 10_000_000, 12_000_000, 5_000_000, 30_000_000, 0, datetime.now(UTC))
    >>> amount_pico(rates, Tokens(text_in=20, image_in=6404, cached_in=0, out=52))
    78608000000
    """
    if share == "nothing":
        return 0
    return (
        tokens.text_in * rates.text_in_micro
        + tokens.image_in * rates.image_in_micro
        + tokens.cached_in * rates.cached_in_micro
        + (tokens.out * rates.out_micro if share == "delivered" else 0)
        + rates.request_micro * PICO_PER_MICRO
    )


def split_cached(*, text_in: int, image_in: int, cached: int, out: int) -> Tokens:
    """Take the cached tokens out of the text first, then out of the images, so that no token counts twice."""
    cached = max(0, min(cached, text_in + image_in))
    from_text = min(cached, text_in)
    return Tokens(
        text_in=text_in - from_text,
        image_in=image_in - (cached - from_text),
        cached_in=cached,
        out=out,
    )


def worst_case_pico(rates: Rates, *, text_in: int, image_in: int, out_max: int) -> int:
    """Return the most that the request can cost, wherever its cached tokens fall."""
    return (
        text_in * max(rates.text_in_micro, rates.cached_in_micro)
        + image_in * max(rates.image_in_micro, rates.cached_in_micro)
        + out_max * rates.out_micro
        + rates.request_micro * PICO_PER_MICRO
    )


BP = 10_000  # basis points of a whole


@dataclass(frozen=True, slots=True)
class Version:
    """A price version with its tiers: for each kind at least one, which begins at 0."""

    price_id: int
    model_name: str
    currency: str
    effective_from: datetime
    mode: TierMode
    tiers: Mapping[Kind, Sequence[Tier]]

    def __post_init__(self) -> None:
        assert all(rising(self.tiers[kind]) for kind in Kind)


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a team used of one kind in the period, at one price version. Units are tokens, or requests.

    Negative where adjustments took back more. `late_units` of them belong to a period that was closed before;
    `images` is how many images the tokens of kind image_in are.
    """

    team_id: int
    price_id: int
    kind: Kind
    units: int
    late_units: int = 0
    images: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """So many units at one rate: their product is the amount. The tier is the organization's, the quantity a team's."""

    price_id: int
    from_units: int
    to_units: int | None
    quantity: int
    micro: int
    amount_pico: int


@dataclass(frozen=True, slots=True)
class Line:
    """What a team used of one model and kind in the period, step by step, rounded once."""

    team_id: int
    model_name: str
    kind: Kind
    quantity: int
    late_quantity: int
    images: int
    steps: tuple[Step, ...]
    amount_pico: int
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Credit:
    """The free allowance within a line: the units that were free, at the rates they have there. Amounts below zero."""

    team_id: int
    model_name: str
    kind: Kind
    quantity: int
    steps: tuple[Step, ...]
    amount_pico: int
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Rated:
    """A period's usage in money. All minor amounts add up: lines + credits = subtotal, + discount + tax = total.

    What reduces is below zero: credits, and the discount (a markup is above).
    """

    currency: str
    lines: tuple[Line, ...]
    credits: tuple[Credit, ...]
    subtotal_minor: int
    discount_bp: int
    discount_minor: int
    tax_bp: int
    tax_minor: int
    total_minor: int


# A model's and kind's quantities by price version, the oldest first.
_Parts: TypeAlias = Sequence[tuple[Version, Sequence[Quantity]]]


@dataclass(frozen=True, slots=True)
class _Cell:
    """One piece of the organization's quantity, and what each team has of it."""

    price_id: int
    piece: Piece
    by_team: Mapping[int, int]


def rate(
    usage: Iterable[Quantity],
    versions: Collection[Version],
    *,
    currency: str,
    allowances: Mapping[tuple[str, Kind], int] | None = None,
    discount_bp: int = 0,
    tax_bp: int = 0,
) -> Rated:
    """Return what an organization's usage of one period costs, line by line, and why.

    Tiers count the units of all teams together, of one model and kind, price versions in the order in which they took
    effect. `allowances` are free units by model and kind, the first ones of the period. Discount is on the lines less
    the allowances, tax on what is left; pass `tax_bp=0` for who is exempt. The order of `usage` and how it is split
    into quantities change nothing. ValueError: a price that is not among the versions, or of another currency.
    """
    series = _series(usage, {version.price_id: version for version in versions}, currency)
    lines: list[Line] = []
    credits: list[Credit] = []
    for (model_name, kind), parts in series.items():
        cells = _cells(kind, parts)
        found = _lines(model_name, kind, parts, cells, currency)
        lines += found
        free = (allowances or {}).get((model_name, kind), 0)
        credits += _credits(model_name, kind, free, cells, currency) if found else []
    subtotal = sum(line.amount_minor for line in lines) + sum(
        credit.amount_minor for credit in credits
    )
    discount = -round_half_even(subtotal * discount_bp, BP)
    tax = round_half_even((subtotal + discount) * tax_bp, BP)
    return Rated(
        currency=currency,
        lines=tuple(sorted(lines, key=_place)),
        credits=tuple(sorted(credits, key=_place)),
        subtotal_minor=subtotal,
        discount_bp=discount_bp,
        discount_minor=discount,
        tax_bp=tax_bp,
        tax_minor=tax,
        total_minor=subtotal + discount + tax,
    )


def _series(
    usage: Iterable[Quantity], versions: Mapping[int, Version], currency: str
) -> dict[tuple[str, Kind], _Parts]:
    found: dict[tuple[str, Kind], dict[int, list[Quantity]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for quantity in usage:
        version = versions.get(quantity.price_id)
        if version is None:
            raise ValueError(f"The price version {quantity.price_id} is not known.")
        if version.currency != currency:
            raise ValueError(f"The price of {version.model_name} is not in {currency}.")
        found[version.model_name, quantity.kind][quantity.price_id].append(quantity)
    return {
        key: sorted(
            ((versions[price_id], part) for price_id, part in parts.items()),
            key=lambda pair: (pair[0].effective_from, pair[0].price_id),
        )
        for key, parts in found.items()
    }


def _cells(kind: Kind, parts: _Parts) -> list[_Cell]:
    """Lay the versions' quantities along their tiers, one behind the other, and share them among the teams."""
    by_version = [(version, _by_team(quantities)) for version, quantities in parts]
    total = sum(sum(by_team.values()) for _, by_team in by_version)
    found: list[_Cell] = []
    position = 0
    for version, by_team in by_version:
        units = sum(by_team.values())
        laid = pieces(
            version.tiers[kind], version.mode, position=position, units=units, total=total
        )
        position += units
        shared = shares([piece.quantity for piece in laid], by_team)
        found += (_Cell(version.price_id, *pair) for pair in zip(laid, shared, strict=True))
    return found


def _by_team(quantities: Iterable[Quantity]) -> dict[int, int]:
    units: dict[int, int] = defaultdict(int)
    for quantity in quantities:
        units[quantity.team_id] += quantity.units
    return units


def _lines(
    model_name: str, kind: Kind, parts: _Parts, cells: Sequence[_Cell], currency: str
) -> list[Line]:
    """Return a line for each team. Requests that cost nothing have none: they are no quantity that is sold."""
    if kind is Kind.REQUEST and not any(cell.piece.micro for cell in cells):
        return []
    quantities = [quantity for _, part in parts for quantity in part]
    found = []
    for team_id in sorted({quantity.team_id for quantity in quantities}):
        own = [quantity for quantity in quantities if quantity.team_id == team_id]
        steps = _steps(kind, ((cell, cell.by_team.get(team_id, 0)) for cell in cells))
        if not steps:
            continue
        amount = sum(step.amount_pico for step in steps)
        found.append(
            Line(
                team_id=team_id,
                model_name=model_name,
                kind=kind,
                quantity=sum(quantity.units for quantity in own),
                late_quantity=sum(quantity.late_units for quantity in own),
                images=sum(quantity.images for quantity in own),
                steps=steps,
                amount_pico=amount,
                amount_minor=to_minor(amount, currency),
            )
        )
    return found


def _credits(
    model_name: str, kind: Kind, free: int, cells: Sequence[_Cell], currency: str
) -> list[Credit]:
    """Give back the first `free` units, line by line, so that no line and its credit are less than nothing."""
    left = min(free, sum(cell.piece.quantity for cell in cells))
    by_team: dict[int, list[tuple[_Cell, int]]] = defaultdict(list)
    for cell in cells:
        taken = min(left, cell.piece.quantity)
        if taken <= 0:
            continue
        left -= taken
        users = {team_id: units for team_id, units in cell.by_team.items() if units > 0}
        for team_id, units in apportion(taken, users).items():
            if units:
                by_team[team_id].append((cell, units))
    found = []
    for team_id, parts in by_team.items():
        steps = _steps(kind, parts)
        amount = -sum(step.amount_pico for step in steps)
        quantity = sum(step.quantity for step in steps)
        minor = to_minor(amount, currency)
        found.append(Credit(team_id, model_name, kind, quantity, steps, amount, minor))
    return found


def _steps(kind: Kind, parts: Iterable[tuple[_Cell, int]]) -> tuple[Step, ...]:
    factor = PICO_PER_MICRO if kind is Kind.REQUEST else 1
    return tuple(
        Step(
            price_id=cell.price_id,
            from_units=cell.piece.from_units,
            to_units=cell.piece.to_units,
            quantity=units,
            micro=cell.piece.micro,
            amount_pico=units * cell.piece.micro * factor,
        )
        for cell, units in parts
        if units
    )


def _place(row: Line | Credit) -> tuple[int, str, int]:
    return row.team_id, row.model_name, list(Kind).index(row.kind)
