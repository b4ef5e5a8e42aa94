"""When a budget's window deserves an alert. Pure."""

from collections.abc import Iterable
from fractions import Fraction

PERCENT_MAX = 1000
REARM_POINTS = 5  # how far below a threshold it must fall before that one is armed again


def spent_percent(spent: int, limit: int | None) -> Fraction:
    """Return how many percent of the limit are spent, exactly; 0 where there is no limit.

    >>> spent_percent(1, 3)
    Fraction(100, 3)
    """
    if limit is None or spent <= 0:
        return Fraction(0)
    return Fraction(100 * spent, limit) if limit else Fraction(PERCENT_MAX)


def standing(thresholds: Iterable[int], alerted: int, percent: Fraction) -> int:
    """Return the threshold that the window stands at, 0 for none: an alert is due if it is above `alerted`.

    It is the highest that is reached, so that a leap over two is one alert. One that was alerted stands until
    the spending falls REARM_POINTS below it, so that wavering around it is one alert, too.

    >>> standing([50, 80], 0, Fraction(85)), standing([50, 80], 80, Fraction(76))
    (80, 80)
    """
    stands = [
        threshold
        for threshold in thresholds
        if threshold <= percent or (threshold <= alerted and percent > threshold - REARM_POINTS)
    ]
    return max(stands, default=0)
