"""Periods: months `[start, end)`, cut at local midnight of an organization's time zone. Pure: no clock, no Django.

A cut is the first instant of a local date. Where a clock is put back over midnight, that is the first of two midnights;
where it is put forward over it, the moment of the change. So every instant is in exactly one month of a zone.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

# A period that follows a change of the zone takes up what is left of a month of the other zone, which is
# less than this: no two zones are further apart than 26 hours, nor does any calendar skip more than a day.
SLIVER_MAX = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class Period:
    """From `start` on and before `end`, both in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        assert self.start < self.end

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end

    def label(self, zone: tzinfo) -> str:
        """Return the month that most of it is in, such as 2026-03."""
        middle = self.start + (self.end - self.start) / 2
        return f"{middle.astimezone(zone):%Y-%m}"


def period_of(instant: datetime, zone: tzinfo) -> Period:
    """Return the month of the zone that the instant lies in."""
    local = instant.astimezone(zone)
    year, month = local.year, local.month
    # Where a clock goes back over midnight, the last local hour of a month is read again in the next one.
    while instant >= _start(*_shift(year, month, 1), zone):
        year, month = _shift(year, month, 1)
    while instant < _start(year, month, zone):
        year, month = _shift(year, month, -1)
    return month_of(year, month, zone)


def month_of(year: int, month: int, zone: tzinfo) -> Period:
    """Return that month of the zone."""
    return Period(_start(year, month, zone), _start(*_shift(year, month, 1), zone))


def parse_month(text: str, zone: tzinfo) -> Period:
    """Return the month that a person means by 2026-03; ValueError for anything else."""
    try:
        first = datetime.strptime(text, "%Y-%m")
    except ValueError as error:
        raise ValueError(f"{text!r} is no month such as 2026-03.") from error
    return month_of(first.year, first.month, zone)


def period_after(end: datetime, zone: tzinfo) -> Period:
    """Return the period that follows one which ended at that instant, whichever zone that one was cut in.

    It begins exactly there, and ends with a month of the zone: without gap or overlap, also if the zone was changed in
    between. A remainder of a day or two goes with the month after it.
    """
    following = period_of(end + SLIVER_MAX, zone)
    return Period(end.astimezone(UTC), following.end)


def midnight(day: date, zone: tzinfo) -> datetime:
    """Return the first instant of the local date, in UTC."""
    wall = datetime(day.year, day.month, day.day, tzinfo=zone)
    instant = wall.astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return instant
    return _change_before(instant, wall.replace(fold=1).astimezone(UTC), zone)


def _change_before(late: datetime, early: datetime, zone: tzinfo) -> datetime:
    """Return when the clock was put forward between the two instants, to the second."""
    seconds = int((late - early).total_seconds())
    offset = late.astimezone(zone).utcoffset()
    low, high = 0, seconds  # the change is after low, and not after high
    while high - low > 1:
        middle = (low + high) // 2
        if (early + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return early + timedelta(seconds=high)


def _start(year: int, month: int, zone: tzinfo) -> datetime:
    return midnight(date(year, month, 1), zone)


def _shift(year: int, month: int, months: int) -> tuple[int, int]:
    years, month = divmod(month - 1 + months, 12)
    return year + years, month + 1
