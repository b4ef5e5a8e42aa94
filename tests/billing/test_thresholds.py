from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.notifications.thresholds import REARM_POINTS, spent_percent, standing

DEFAULT = [50, 80, 100]


@pytest.mark.parametrize(
    ("spent", "limit", "percent"),
    [
        (0, 10, 0),
        (5, 10, 50),
        (799, 1000, Fraction("79.9")),
        (12, 10, 120),
        (7, None, 0),
        (0, 0, 0),
        (1, 0, 1000),
        (-1, 10, 0),
    ],
)
def test_a_share_is_exact(spent: int, limit: int | None, percent: Fraction) -> None:
    assert spent_percent(spent, limit) == percent


@pytest.mark.parametrize(
    ("alerted", "percent", "stands"),
    [
        (0, "49.99", 0),
        (0, "50", 50),
        (0, "120", 100),
        (50, "79.99", 50),
        (80, "75.01", 80),
        (80, "75", 50),
        (80, "10", 0),
        (100, "85", 80),
    ],
)
def test_it_stands_at_the_highest_reached_until_well_below(
    alerted: int, percent: str, stands: int
) -> None:
    assert standing(DEFAULT, alerted, Fraction(percent)) == stands


def test_thresholds_that_are_gone_hold_nothing() -> None:
    assert standing([], 80, Fraction(90)) == 0
    assert standing([90], 80, Fraction(85)) == 0


@given(
    st.lists(st.integers(1, 200), max_size=5),
    st.fractions(0, 250),
    st.floats(0, REARM_POINTS, exclude_max=True).map(Fraction),
)
def test_wavering_by_less_than_the_margin_never_alerts_twice(
    thresholds: list[int], percent: Fraction, dip: Fraction
) -> None:
    first = standing(thresholds, 0, percent)
    after_dip = standing(thresholds, first, percent - dip)

    assert standing(thresholds, after_dip, percent) == first
    assert standing(thresholds, first, percent) == first
    assert after_dip == first or percent - dip <= first - REARM_POINTS
