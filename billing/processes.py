"""The gateway's processes, and whether they live: each says so every few seconds.

A process that has been silent for REAP_AFTER_S is dead to the reaper (`billing_reap`), which settles its holds.
"""

from uuid import UUID

from django.db import connection

BEAT_EVERY_S = 5.0
REMEMBERED_S = 24 * 3600  # a dead process is of interest to people for a day

BEAT = """
    INSERT INTO billing_process (id, host) VALUES (%s, %s)
    ON CONFLICT (id) DO UPDATE SET beat_at = clock_timestamp()
"""


def beat(process_id: UUID, host: str) -> None:
    """Say that the process lives."""
    with connection.cursor() as cursor:
        cursor.execute(BEAT, [process_id, host[:200]])


def leave(process_id: UUID) -> None:
    """Say that the process has ended in good order: a hold that it left behind is nobody's, and reaped soon."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM billing_process WHERE id = %s", [process_id])


def forget() -> int:
    """Remove those that died long ago; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM billing_process WHERE beat_at < clock_timestamp() - make_interval(secs => %s)",
            [REMEMBERED_S],
        )
        return int(cursor.rowcount)
