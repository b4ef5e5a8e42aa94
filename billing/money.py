"""Money as people write it, to and from the integers it is kept in. Pure: no float.

Nothing is rounded but by `round_half_even`: once, where a line of an invoice is written in the minor unit.
"""

import re
from decimal import Decimal

MICRO_DECIMALS = 6
PICO_DECIMALS = 12
WHOLE_DIGITS_MAX = 15  # with six decimals still within Decimal's 28 digits, so nothing is rounded

# Decimals shown on an invoice. A yuan, a yen and a won are not divided in practice; all others have two.
MINOR_DIGITS = {"TWD": 0, "JPY": 0, "KRW": 0}
MINOR_DIGITS_DEFAULT = 2

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


def minor_digits(currency: str) -> int:
    """Return how many decimals the currency's minor unit has on an invoice."""
    return MINOR_DIGITS.get(currency, MINOR_DIGITS_DEFAULT)


def to_minor(amount_pico: int, currency: str) -> int:
    """Round to the currency's minor unit, half to even. For a line of an invoice, once.

    >>> to_minor(1_500_000_000_000, "TWD"), to_minor(2_500_000_000_000, "TWD"), to_minor(25_000_000_000, "USD")
    (2, 2, 2)
    """
    return round_half_even(amount_pico, 10 ** (PICO_DECIMALS - minor_digits(currency)))


def round_half_even(numerator: int, denominator: int) -> int:
    """Return the whole number nearest to the fraction; the even one of two that are as near.

    >>> round_half_even(5, 2), round_half_even(7, 2), round_half_even(-5, 2), round_half_even(-9, 4)
    (2, 4, -2, -2)
    """
    whole, rest = divmod(numerator, denominator)
    is_up = 2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1)
    return whole + is_up


def format_minor(amount_minor: int, currency: str) -> str:
    """Return the amount in currency units, with the decimals of its minor unit.

    >>> format_minor(1234, "USD"), format_minor(1234, "TWD")
    ('12.34', '1234')
    """
    digits = minor_digits(currency)
    return _format(amount_minor, digits, digits)


def parse_minor(text: str, currency: str) -> int:
    """Return an amount in units of the currency, such as -12.50, in its minor unit; ValueError for what is none.

    >>> parse_minor("-12.5", "USD"), parse_minor("12", "TWD")
    (-1250, 12)
    """
    digits = minor_digits(currency)
    match = PLAIN.fullmatch(text.strip().removeprefix("-"))
    if match is None or len(match[1] or "") > digits:
        raise ValueError(f"{text!r} is no amount in {currency}, which has {digits} decimals.")
    amount = int(Decimal(match[0]).scaleb(digits))
    return -amount if text.strip().startswith("-") else amount


def _format(amount: int, decimals: int, decimals_min: int) -> str:
    whole, rest = divmod(abs(amount), 10**decimals)
    digits = f"{rest:0{decimals}d}".rstrip("0").ljust(decimals_min, "0") if decimals else ""
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
