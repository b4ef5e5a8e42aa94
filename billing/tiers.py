"""Quantities of a period along the tiers of their prices, and how teams share them. Pure, in whole tokens.

A position is how many tokens of a model and kind the organization has used in the period so far, all teams together.
Price versions follow each other in it; each has tiers of its own. Nothing depends on the order of requests, nor on
how the usage was split into them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


class TierMode(StrEnum):
    """How a price's tiers work: not at all, each for the units within it, or the one that is reached for all."""

    FLAT = "flat"
    GRADUATED = "graduated"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class Tier:
    """From which position on which amount counts: micro-units per million tokens, or per request."""

    from_units: int
    micro: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A quantity within one tier. Negative where more is taken back than was used."""

    from_units: int
    to_units: int | None  # None: the last tier has no end
    micro: int
    quantity: int


def pieces(
    tiers: Sequence[Tier], mode: TierMode, *, position: int, units: int, total: int
) -> list[Piece]:
    """Return the units, which follow on `position`, by tier; they add up to `units`. At least one piece.

    `tiers` begin at 0 and rise. `total` is the quantity of the whole period, which decides the tier in mode volume.
    What lies below zero belongs to the first tier.
    """
    if mode is TierMode.VOLUME:
        return [_piece(tiers, _index(tiers, total), units)]
    low, high = sorted((position, position + units))
    sign = 1 if units >= 0 else -1
    ends = [*(tier.from_units for tier in tiers[1:]), max(high, tiers[-1].from_units)]
    starts = [min(low, 0), *(tier.from_units for tier in tiers[1:])]
    spans = [min(end, high) - max(start, low) for start, end in zip(starts, ends, strict=True)]
    found = [_piece(tiers, n, sign * span) for n, span in enumerate(spans) if span > 0]
    return found or [_piece(tiers, _index(tiers, position), 0)]


def shares(quantities: Sequence[int], units_by_team: Mapping[int, int]) -> list[dict[int, int]]:
    """Return each piece's quantity by team: exact along the pieces, and exact for each team.

    The quantities are of one sign, and add up to what the teams have. Each piece is shared in proportion to what the
    teams have left, by largest remainder; who took back what others used does so in the first piece.
    """
    total = sum(units_by_team.values())
    assert total == sum(quantities)
    sign = 1 if total >= 0 else -1
    against = {team: units for team, units in units_by_team.items() if units * sign < 0}
    left = {team: units * sign for team, units in units_by_team.items() if units * sign > 0}
    found = []
    for n, quantity in enumerate(quantities):
        extra = against if n == 0 else {}
        part = apportion(quantity * sign - sum(extra.values()) * sign, left)
        left = {team: units - part[team] for team, units in left.items()}
        found.append({team: units * sign for team, units in part.items() if units} | extra)
    return found


def apportion(amount: int, weights: Mapping[int, int]) -> dict[int, int]:
    """Divide a whole amount by weight, exactly: floors first, then one more for the largest remainders.

    No share is larger than its weight if the amount is not larger than all of them. Ties go to the smaller key.

    >>> apportion(10, {1: 1, 2: 1, 3: 1})
    {1: 4, 2: 3, 3: 3}
    """
    whole = sum(weights.values())
    if not whole:
        assert not amount
        return dict(weights)
    found = {key: amount * weight // whole for key, weight in weights.items()}
    missing = amount - sum(found.values())
    by_remainder = sorted(weights, key=lambda key: (-(amount * weights[key] % whole), key))
    for key in by_remainder[:missing]:
        found[key] += 1
    return found


def _index(tiers: Sequence[Tier], position: int) -> int:
    """Return the last tier that begins at the position or before."""
    reached = [n for n, tier in enumerate(tiers) if tier.from_units <= position]
    return reached[-1] if reached else 0


def _piece(tiers: Sequence[Tier], n: int, quantity: int) -> Piece:
    to_units = tiers[n + 1].from_units if n + 1 < len(tiers) else None
    return Piece(tiers[n].from_units, to_units, tiers[n].micro, quantity)


def rising(tiers: Sequence[Tier]) -> bool:
    """Say whether the tiers begin at 0 and each begins after the one before."""
    return bool(tiers) and tiers[0].from_units == 0 and all(_rise(tiers))


def _rise(tiers: Sequence[Tier]) -> Iterator[bool]:
    return (before.from_units < after.from_units for before, after in pairwise(tiers))
