"""The ledger: what was booked, read and tended from the control plane."""

from django.db import connection

EXPIRE_ROWS_MAX = 1000


def expire_holds() -> int:
    """Settle holds past their expiry as `estimated`, prompt and images only. Returns how many there were.

    Safe to run many times at once: each hold is claimed by its deletion.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_expire_holds(%s)", [EXPIRE_ROWS_MAX])
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])
