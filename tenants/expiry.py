"""When a key expires, as a person types it: `30d`, `12h`, `2w`, or a date or time in ISO 8601."""

import re
from datetime import datetime, timedelta, tzinfo

UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
SPAN = re.compile(r"([0-9]{1,5})([hdw])")


def parse(text: str, *, at: datetime, zone: tzinfo) -> datetime:
    """Return the moment, counted from `at` or read in `zone` if it names none; ValueError if past.

    A date is its first moment: a key that expires on the 1st is refused from midnight on.
    """
    moment = _moment(text.strip(), at, zone)
    if moment <= at:
        raise ValueError(f"{text!r} has passed already.")
    return moment


def _moment(text: str, at: datetime, zone: tzinfo) -> datetime:
    span = SPAN.fullmatch(text)
    if span is not None:
        return at + int(span[1]) * UNITS[span[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is neither a span (30d, 12h, 2w) nor a date or time (2027-01-31T18:00)."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)
