"""The ledger: what was booked, read and tended from the control plane."""

import json
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction

from billing.holds import SETTLE
from billing.models import Hold
from tenants.models import Actor, AuditEntry

REAP_ROWS_MAX = 1000
# When the oldest transaction began that may still commit a booking, NULL if none runs. Sessions of other roles are seen
# only by a role that may read all statistics: let everything that books sign in as the same role.
OLDEST_RUNNING = """
    (SELECT min(xact_start) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
       AND (backend_xid IS NOT NULL OR state = 'active'))
"""
PARTITION_MONTHS_AHEAD = 3


def reap() -> int:
    """Settle the holds of dead processes as `estimated`, by the policy of their organizations. Returns how many.

    A process is dead when it has not been heard of for REAP_AFTER_S. Safe to run many times at once: each hold
    is claimed by its deletion. A process that was only silent settles later with the truth, as an adjustment.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT billing_reap(make_interval(secs => %s), %s)",
            [settings.REAP_AFTER_S, REAP_ROWS_MAX],
        )
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def release(request_id: UUID, *, by: Actor, at: datetime) -> Hold | None:
    """Give an open hold back before its time, and record who did it. None if it is not open any more.

    It ends as a void does, through the function that books. Its request is not stopped: if it still runs, what
    it used is billed when it ends, and may pass a budget.
    """
    with transaction.atomic():
        # Locked first: a void that came after the reaper would take back what that one has billed.
        hold = Hold.objects.select_for_update().filter(pk=request_id).first()
        if hold is None:
            return None
        detail = {
            "amount_pico": hold.amount_pico,
            "tokens": hold.tokens_held,
            "model": hold.model_name,
        }
        AuditEntry.record("hold.release", hold, by=by, at=at, detail=detail)
        void = [{"request_id": str(request_id), "status": "void"}]
        with connection.cursor() as cursor:
            cursor.execute(SETTLE, [json.dumps(void)])
    return hold


def has_all_before(instant: datetime) -> bool:
    """Say whether every transaction has ended that began before that instant, by the database's clock.

    What any of them booked is then seen by all. One that only read, and waits for its client, does not count.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_stat_clear_snapshot()"
        )  # a transaction goes on seeing what it saw first
        cursor.execute(f"SELECT coalesce({OLDEST_RUNNING} > %s, true)", [instant])
        row = cursor.fetchone()
    assert row is not None
    return bool(row[0])


def create_partitions(months_ahead: int = PARTITION_MONTHS_AHEAD) -> int:
    """Make the ledger's partitions for this month and the months ahead. Returns how many were missing.

    Bookings go on meanwhile. A month without one is not lost: its rows go to the default partition, and stay there.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_create_partitions(%s)", [months_ahead])
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])
