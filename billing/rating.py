"""What tokens cost. Pure: integers in, integers out; no clock, no settings, no rounding.

A price is in micro-units of a currency per million tokens, so that tokens × price is a whole number of
pico-units: nothing is ever rounded here, and any split of the same usage costs the same.
"""

from dataclasses import dataclass
from datetime import datetime

PICO_PER_MICRO = 1_000_000


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
