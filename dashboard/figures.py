"""Figures as people read them, in digits that both languages share. Pure: integers to text.

What is rounded here is shown only; a receipt and an invoice have the exact figures.
"""

from billing.money import PICO_DECIMALS, format_micro, format_minor, format_pico, round_half_even

SHOWN_DECIMALS = 4  # a request of a few tokens costs some ten-thousandths
THOUSANDS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def grouped(number: int) -> str:
    """Return a whole number with its thousands apart.

    >>> grouped(-1234567)
    '-1,234,567'
    """
    return f"{number:,}"


def amount(amount_pico: int, decimals: int = SHOWN_DECIMALS) -> str:
    """Return the amount in currency units, rounded to so many decimals, half to even.

    >>> amount(1_234_567_850_000_000, 2)
    '1,234.57'
    """
    step = 10 ** (PICO_DECIMALS - decimals)
    rounded = round_half_even(amount_pico, step)
    whole, rest = divmod(abs(rounded), 10**decimals)
    sign = "-" if rounded < 0 else ""
    return f"{sign}{whole:,}.{rest:0{decimals}d}" if decimals else f"{sign}{whole:,}"


def decimals(amount_pico: int) -> int:
    """Return how many decimals show the amount exactly, at least two.

    >>> decimals(96_060_000_000), decimals(10**12)
    (5, 2)
    """
    plain = f"{abs(amount_pico) % 10**PICO_DECIMALS:0{PICO_DECIMALS}d}".rstrip("0")
    return max(2, len(plain))


def headline(amount_pico: int) -> str:
    """Return the amount in as few decimals as say something.

    >>> headline(1_234_567_850_000_000), headline(4_560_000_000), headline(0)
    ('1,234.57', '0.0046', '0.00')
    """
    is_small = 0 < abs(amount_pico) < 10**PICO_DECIMALS
    return amount(amount_pico, SHOWN_DECIMALS if is_small else 2)


def exact(amount_pico: int) -> str:
    """Return the exact amount.

    >>> exact(1_234_560_600_000_000)
    '1,234.5606'
    """
    return _apart(format_pico(amount_pico))


def minor(amount_minor: int, currency: str) -> str:
    """Return an amount of an invoice, in the decimals of its currency.

    >>> minor(123456, "USD"), minor(123456, "TWD")
    ('1,234.56', '123,456')
    """
    return _apart(format_minor(amount_minor, currency))


def price(amount_micro: int) -> str:
    """Return a price per million tokens, exactly.

    >>> price(12_500_000)
    '12.50'
    """
    return _apart(format_micro(amount_micro))


def compact(number: int) -> str:
    """Return a round number for an axis.

    >>> compact(2_500_000), compact(500)
    ('2.5M', '500')
    """
    for size, letter in THOUSANDS:
        if number >= size:
            return f"{number // size}{_rest(number % size * 10 // size)}{letter}"
    return str(number)


def percent(part: int, whole: int) -> str:
    """Return the share with two decimals, cut off, never above a hundred or below zero; of nothing: none.

    >>> percent(1, 3), percent(5, 2), percent(-1, 2), percent(1, 0)
    ('33.33%', '100.00%', '0.00%', '0.00%')
    """
    if whole <= 0 or part <= 0:
        return "0.00%"
    units, rest = divmod(min(part, whole) * 10_000 // whole, 100)
    return f"{units}.{rest:02d}%"


def _rest(tenths: int) -> str:
    return f".{tenths}" if tenths else ""


def _apart(plain: str) -> str:
    whole, point, rest = plain.partition(".")
    return f"{int(whole):,}{point}{rest}" if whole != "-0" else plain
