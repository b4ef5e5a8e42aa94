"""Every instant is in exactly one period of a zone: at every cut, over every change of the clock, in every zone."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing.periods import Period, midnight, month_of, parse_month, period_after, period_of

ZONES = [ZoneInfo(name) for name in sorted(available_timezones())]
INSTANTS = st.datetimes(datetime(1950, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
MICROSECOND = timedelta(microseconds=1)
TAIPEI = ZoneInfo("Asia/Taipei")
MOSCOW_SHIFTS = datetime(2014, 10, 25, 22, tzinfo=UTC)
APIA = ZoneInfo("Pacific/Apia")
# The months of 2026 in which the clocks change, in hours.
CHANGED_CLOCKS = {
    ("America/Los_Angeles", 3): 31 * 24 - 1,
    ("America/Los_Angeles", 11): 30 * 24 + 1,
    ("Australia/Lord_Howe", 4): 30 * 24 + 0.5,
    ("Australia/Lord_Howe", 10): 31 * 24 - 0.5,
    ("Asia/Kathmandu", 3): 31 * 24,
}
zones = st.sampled_from(ZONES)


def utc(*numbers: int) -> datetime:
    return datetime(*numbers, tzinfo=UTC)  # type: ignore[arg-type,misc]


@settings(max_examples=1500, deadline=None)
@given(zone=zones, instant=INSTANTS)
@example(zone=ZoneInfo("America/St_Johns"), instant=utc(2009, 11, 1, 2, 45))
@example(zone=ZoneInfo("Pacific/Apia"), instant=utc(2011, 12, 30, 10))
@example(zone=ZoneInfo("Europe/Moscow"), instant=MOSCOW_SHIFTS)
@example(zone=ZoneInfo("America/Los_Angeles"), instant=utc(2026, 3, 8, 10))
@example(zone=ZoneInfo("America/Los_Angeles"), instant=utc(2026, 11, 1, 9))
@example(zone=ZoneInfo("Australia/Lord_Howe"), instant=utc(2026, 4, 4, 15))
@example(zone=ZoneInfo("Asia/Kathmandu"), instant=utc(2026, 2, 28, 18, 15))
def test_every_instant_is_in_exactly_one_period(zone: ZoneInfo, instant: datetime) -> None:
    period = period_of(instant, zone)

    assert instant in period
    assert period_of(period.start, zone) == period
    assert period_of(period.end - MICROSECOND, zone) == period
    assert period_of(period.end, zone).start == period.end
    assert period_of(period.start - MICROSECOND, zone).end == period.start


@settings(max_examples=1500, deadline=None)
@given(zone=zones, year=st.integers(1950, 2200), month=st.integers(1, 12))
def test_a_period_is_cut_at_the_first_instant_of_a_local_month(
    zone: ZoneInfo, year: int, month: int
) -> None:
    start = month_of(year, month, zone).start

    local = start.astimezone(zone)
    assert (local.year, local.month, local.day) == (year, month, 1)
    before = (start - MICROSECOND).astimezone(zone)
    assert (before.year, before.month) == ((year, month - 1) if month > 1 else (year - 1, 12))


@pytest.mark.parametrize("year", [1985, 2011, 2026, 2027])
def test_every_month_of_every_zone_begins_where_the_one_before_ends(year: int) -> None:
    """Kathmandu moved to 5:45 in 1986, Apia skipped a day in 2011."""
    for zone in ZONES:
        months = [month_of(year + n // 12, n % 12 + 1, zone) for n in range(24)]
        for before, after in pairwise(months):
            cut = before.end
            assert after.start == cut
            assert period_of(cut - MICROSECOND, zone) == before
            assert period_of(cut, zone) == period_of(cut + MICROSECOND, zone) == after


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("America/Los_Angeles", date(2026, 3, 8), 23),
        ("America/Los_Angeles", date(2026, 11, 1), 25),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("Australia/Lord_Howe", date(2026, 10, 4), 23.5),
        ("Pacific/Apia", date(2011, 12, 30), 0),  # there was none
        ("Asia/Kathmandu", date(2026, 3, 1), 24),
    ],
)
def test_a_day_has_the_hours_that_its_clocks_have(zone: str, day: date, hours: float) -> None:
    start, end = (midnight(day + timedelta(days=n), ZoneInfo(zone)) for n in (0, 1))

    assert end - start == timedelta(hours=hours)


def test_a_month_has_the_hours_of_its_days() -> None:
    lengths = {
        (zone, month): month_of(2026, month, ZoneInfo(zone)) for zone, month in CHANGED_CLOCKS
    }
    hours = {key: (each.end - each.start) / timedelta(hours=1) for key, each in lengths.items()}

    assert hours == CHANGED_CLOCKS
    assert (month_of(2011, 12, APIA).end - month_of(2011, 12, APIA).start) == timedelta(days=30)


@settings(max_examples=600, deadline=None)
@given(zone=zones, day=st.dates(date(1950, 1, 1), date(2200, 1, 1)))
def test_midnight_is_the_first_instant_of_a_date(zone: ZoneInfo, day: date) -> None:
    instant = midnight(day, zone)

    assert instant.astimezone(zone).date() >= day  # later only where the calendar skipped the date
    assert (instant - MICROSECOND).astimezone(zone).date() < day


@pytest.mark.parametrize(
    ("zone", "day", "expected"),
    [
        ("Asia/Taipei", date(2026, 3, 1), utc(2026, 2, 28, 16)),
        ("Asia/Kathmandu", date(2026, 3, 1), utc(2026, 2, 28, 18, 15)),
        ("America/Los_Angeles", date(2026, 3, 8), utc(2026, 3, 8, 8)),  # 23 hours follow
        ("America/Los_Angeles", date(2026, 3, 9), utc(2026, 3, 9, 7)),
        ("America/Los_Angeles", date(2026, 11, 2), utc(2026, 11, 2, 8)),  # after 25 hours
        ("Australia/Lord_Howe", date(2026, 10, 5), utc(2026, 10, 4, 13)),  # summer is 30 minutes
        ("Pacific/Apia", date(2011, 12, 30), utc(2011, 12, 30, 10)),  # was skipped
        ("Pacific/Apia", date(2011, 12, 31), utc(2011, 12, 30, 10)),
        ("America/Sao_Paulo", date(2018, 11, 4), utc(2018, 11, 4, 3)),  # began at 1:00
        ("America/Toronto", date(1919, 3, 31), utc(1919, 3, 31, 4, 30)),  # began at 0:30
        ("America/Havana", date(2026, 11, 1), utc(2026, 11, 1, 4)),  # the first of two midnights
        ("America/St_Johns", date(2009, 11, 1), utc(2009, 11, 1, 2, 30)),
    ],
)
def test_midnights_that_are_hard_to_find(zone: str, day: date, expected: datetime) -> None:
    assert midnight(day, ZoneInfo(zone)) == expected


def test_a_leap_day_is_in_its_february() -> None:
    february = period_of(utc(2028, 2, 29, 3), TAIPEI)

    assert february.end - february.start == timedelta(days=29)
    assert month_of(2026, 2, TAIPEI).end - month_of(2026, 2, TAIPEI).start == timedelta(days=28)


def test_the_hour_that_a_month_repeats_counts_in_the_next_one_once() -> None:
    """St. John's put its clocks back at 0:01 on the first of November 2009: for an hour it was October again."""
    zone = ZoneInfo("America/St_Johns")

    october = month_of(2009, 10, zone)
    assert utc(2009, 11, 1, 2, 29) in october
    assert utc(2009, 11, 1, 3, 0) not in october
    assert period_of(utc(2009, 11, 1, 3, 0), zone) == month_of(2009, 11, zone)


@settings(max_examples=800, deadline=None)
@given(old=zones, new=zones, instant=INSTANTS)
def test_a_change_of_the_zone_makes_no_gap_and_no_overlap(
    old: ZoneInfo, new: ZoneInfo, instant: datetime
) -> None:
    closed = period_of(instant, old)

    following = period_after(closed.end, new)

    assert following.start == closed.end
    assert following.end == period_of(following.end, new).start
    assert timedelta(days=26) < following.end - following.start < timedelta(days=33)
    assert following.label(new) == f"{closed.end + timedelta(days=10):%Y-%m}"


def test_in_the_same_zone_the_period_after_is_the_next_month() -> None:
    assert period_after(month_of(2026, 1, TAIPEI).end, TAIPEI) == month_of(2026, 2, TAIPEI)


def test_a_month_is_read_as_it_is_shown() -> None:
    period = parse_month("2026-03", TAIPEI)

    assert period == Period(utc(2026, 2, 28, 16), utc(2026, 3, 31, 16))
    assert period.label(TAIPEI) == "2026-03"
    for text in ("2026-13", "March", "2026-03-01", ""):
        with pytest.raises(ValueError, match="no month such as"):
            parse_month(text, TAIPEI)
