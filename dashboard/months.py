"""The months of an organization that have figures, and the one that was asked for."""

from datetime import datetime, timedelta, tzinfo

from billing.periods import Period, parse_month, period_of

MONTHS_MAX = 60


def until(at: datetime, first: datetime, zone: tzinfo) -> list[Period]:
    """Return the months of the zone from that of `at` back to that of `first`, at most MONTHS_MAX."""
    found = [period_of(at, zone)]
    while found[-1].start > first and len(found) < MONTHS_MAX:
        found.append(period_of(found[-1].start - timedelta(seconds=1), zone))
    return found


def chosen(text: str, at: datetime, zone: tzinfo) -> Period:
    """Return the month that was asked for, or that of now; ValueError for what is no month."""
    return parse_month(text, zone) if text else period_of(at, zone)
