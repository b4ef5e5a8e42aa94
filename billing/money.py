"""Money as people write it, to and from the integers it is kept in. Pure: no float, no rounding."""

import re
from decimal import Decimal

MICRO_DECIMALS = 6
PICO_DECIMALS = 12
WHOLE_DIGITS_MAX = 15  # with six decimals still within Decimal's 28 digits, so nothing is rounded

PLAIN = re.compile(rf"[0-9]{{1,{WHOLE_DIGITS_MAX}}}(?:\.([0-9]+))?")


def parse_micro(text: str) -> int:
    """Return the amount in micro-units; ValueError for all but plain numbers of up to six decimals.

    >>> parse_micro("12.5")
    12500000
    """
    match = PLAIN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a plain number such as 12.5.")
    if len(match[1] or "") > MICRO_DECIMALS:
        raise ValueError(f"{text!r} has more than {MICRO_DECIMALS} decimals.")
    return int(Decimal(match[0]).scaleb(MICRO_DECIMALS))


def format_micro(amount_micro: int, *, decimals_min: int = 2) -> str:
    """Return the exact amount in currency units, with `decimals_min` decimals or as many as it has.

    >>> format_micro(12_500_000)
    '12.50'
    """
    return _format(amount_micro, MICRO_DECIMALS, decimals_min)


def format_pico(amount_pico: int, *, decimals_min: int = 2) -> str:
    """Return the exact amount in currency units: `decimals_min` to twelve decimals.

    >>> format_pico(96_060_000_000)
    '0.09606'
    """
    return _format(amount_pico, PICO_DECIMALS, decimals_min)


def _format(amount: int, decimals: int, decimals_min: int) -> str:
    whole, rest = divmod(abs(amount), 10**decimals)
    digits = f"{rest:0{decimals}d}".rstrip("0").ljust(decimals_min, "0")
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
