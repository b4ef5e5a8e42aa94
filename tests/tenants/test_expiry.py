from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tenants import expiry

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
TAIPEI = ZoneInfo("Asia/Taipei")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12h", NOON + timedelta(hours=12)),
        ("30d", NOON + timedelta(days=30)),
        ("2w", NOON + timedelta(days=14)),
        (" 1d ", NOON + timedelta(days=1)),
        ("2026-05-02", datetime(2026, 5, 1, 16, tzinfo=UTC)),
        ("2026-05-02T09:30", datetime(2026, 5, 2, 1, 30, tzinfo=UTC)),
        ("2026-05-02T09:30Z", datetime(2026, 5, 2, 9, 30, tzinfo=UTC)),
        ("2026-05-02T09:30-05:00", datetime(2026, 5, 2, 14, 30, tzinfo=UTC)),
    ],
)
def test_a_span_or_a_date_is_a_moment(text: str, expected: datetime) -> None:
    assert expiry.parse(text, at=NOON, zone=TAIPEI) == expected


@pytest.mark.parametrize("text", ["", "soon", "30", "30m", "-1d", "1.5d", "２d", "2026-13-01"])
def test_what_cannot_be_read_says_what_could(text: str) -> None:
    with pytest.raises(ValueError, match="30d, 12h, 2w"):
        expiry.parse(text, at=NOON, zone=TAIPEI)


@pytest.mark.parametrize("text", ["0d", "2026-05-01", "2026-05-01T12:00Z", "1999-12-31"])
def test_a_moment_that_has_come_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="passed already"):
        expiry.parse(text, at=NOON, zone=TAIPEI)
