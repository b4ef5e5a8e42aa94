"""Rollups: what was used and billed in each quarter of an hour, by team, key, model and price.

Recomputed, never incremented: a run finds the buckets that were booked in since the last run, and makes their rows
what the ledger says. So it may run twice, at once, or be killed anywhere: the next one gives the same rows. It needs
little memory, however much was booked: what was written in some hours, a thousand buckets at a time.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Sum

from billing import ledger
from billing.models import Rollup
from billing.periods import Period
from billing.rating import Kind, Quantity

logger = logging.getLogger(__name__)

# Local midnight, where periods are cut, is a full quarter of an hour in every zone of today.
BUCKET = timedelta(minutes=15)
# A record is dated before its commit, so the mark never passes a transaction that runs. The overlap is for those of
# other database roles, which cannot be seen.
OVERLAP_S = 300
BUCKETS_AT_ONCE_MAX = 1000  # in one transaction
WRITTEN_AT_ONCE_MAX = timedelta(hours=6)  # that are caught up with before it is written down

BILLED = {
    Kind.TEXT_IN: "billed_in_text",
    Kind.IMAGE_IN: "billed_in_image",
    Kind.CACHED_IN: "billed_in_cached",
    Kind.OUT: "billed_out",
    Kind.REQUEST: "billed_requests",
}
KEYS = "organization_id, bucket, team_id, key_id, model_name, price_id, is_late"
SUMS = (
    "requests, images, tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, billed_requests, billed_images, "
    "billed_in_text, billed_in_image, billed_in_cached, billed_out, amount_pico"
)
BIN = "date_bin('15 minutes', u.billed_at, 'epoch')"


def columns(table: str, names: str) -> str:
    """Return the names, which a comma and a space part, as columns of the table."""
    return ", ".join(f"{table}.{name}" for name in names.split(", "))


def _billed(column: str, share: str = "input") -> str:
    """Return SQL for what of a column is billed. Of an adjustment: of the truth, less what was of the estimate."""
    return f"""coalesce(sum(u.{column} + coalesce(o.{column}, 0)) FILTER (WHERE bills_{share}), 0)
        - coalesce(sum(o.{column}) FILTER (WHERE billed_{share}), 0)"""


# The estimate that an adjustment corrects is looked up for adjustments only, by its key.
LEDGER = f"""
    SELECT u.organization_id, {BIN} AS bucket, u.team_id, u.key_id, u.model_name, u.price_id,
           u.billed_at > u.received_at AS is_late,
           count(*) FILTER (WHERE u.kind = 'usage') AS requests,
           coalesce(sum(cardinality(u.canvases)) FILTER (WHERE u.kind = 'usage'), 0) AS images,
           sum(u.tokens_in_text) AS tokens_in_text, sum(u.tokens_in_image) AS tokens_in_image,
           sum(u.tokens_in_cached) AS tokens_in_cached, sum(u.tokens_out) AS tokens_out,
           count(*) FILTER (WHERE bills_input AND NOT is_void)
               - count(*) FILTER (WHERE billed_input) AS billed_requests,
           coalesce(sum(cardinality(u.canvases)) FILTER (WHERE bills_input AND NOT is_void), 0)
               - coalesce(sum(cardinality(u.canvases)) FILTER (WHERE billed_input), 0) AS billed_images,
           {_billed("tokens_in_text")} AS billed_in_text,
           {_billed("tokens_in_image")} AS billed_in_image,
           {_billed("tokens_in_cached")} AS billed_in_cached,
           {_billed("tokens_out", "output")} AS billed_out,
           sum(u.amount_pico) AS amount_pico
    FROM {{source}}
    LEFT JOIN LATERAL (
        SELECT * FROM billing_usagerecord e
        WHERE u.kind = 'adjustment' AND e.request_id = u.adjusts_id OFFSET 0) o ON true
    CROSS JOIN LATERAL (
        SELECT u.policy <> 'nothing' AS bills_input, u.policy NOT IN ('nothing', 'prompt') AS bills_output,
               o.policy <> 'nothing' AS billed_input, o.policy NOT IN ('nothing', 'prompt') AS billed_output,
               coalesce(
                   u.amount_pico + o.amount_pico = 0 AND u.tokens_in_text + o.tokens_in_text = 0
                   AND u.tokens_in_image + o.tokens_in_image = 0 AND u.tokens_in_cached + o.tokens_in_cached = 0
                   AND u.tokens_out + o.tokens_out = 0, false) AS is_void) share
    WHERE {{condition}}
    GROUP BY u.organization_id, {BIN}, u.team_id, u.key_id, u.model_name, u.price_id, u.billed_at > u.received_at
"""

WANTED = "unnest(%(organizations)s::bigint[], %(starts)s::timestamptz[]) wanted (organization_id, bucket)"
# A lateral look-up for each bucket: joined otherwise, every record may be compared with every bucket.
OF_BUCKETS = LEDGER.format(
    source=f"""{WANTED}
        CROSS JOIN LATERAL (
            SELECT * FROM billing_usagerecord r
            WHERE r.organization_id = wanted.organization_id
              AND r.billed_at >= wanted.bucket AND r.billed_at < wanted.bucket + interval '15 minutes' OFFSET 0) u""",
    condition="true",
)
# Compared by a full join, which PostgreSQL hashes or sorts however many rows it expects.
REPLACE = f"""
    WITH changed AS MATERIALIZED (
        SELECT r.id, l.organization_id IS NULL AS is_gone, {KEYS}, {columns("l", SUMS)}
        FROM ({OF_BUCKETS}) l
        FULL JOIN (
            SELECT * FROM {WANTED} JOIN billing_rollup USING (organization_id, bucket)) r USING ({KEYS})
        WHERE ({columns("l", SUMS)}) IS DISTINCT FROM ({columns("r", SUMS)})),
    gone AS (DELETE FROM billing_rollup r USING changed c WHERE c.is_gone AND r.id = c.id),
    written AS (
        INSERT INTO billing_rollup ({KEYS}, {SUMS}) SELECT {KEYS}, {SUMS} FROM changed WHERE NOT is_gone
        ON CONFLICT ({KEYS}) DO UPDATE SET ({SUMS}) = ROW ({columns("EXCLUDED", SUMS)}))
    SELECT count(*) FROM changed
"""

# The instants between which the ledger was written to and the rollups may not know it (all of it if there is no mark),
# and the one up to which all of it can be read by now.
UNKNOWN = f"""
    SELECT coalesce((SELECT recorded_until FROM billing_rollupmark) - interval '{OVERLAP_S} seconds',
                    (SELECT min(recorded_at) FROM billing_usagerecord)),
           clock_timestamp(), least(clock_timestamp(), {ledger.OLDEST_RUNNING})
"""
WRITTEN_BETWEEN = f"""
    SELECT DISTINCT u.organization_id, {BIN} FROM billing_usagerecord u
    WHERE u.recorded_at >= %(since)s AND u.recorded_at < %(until)s
      AND (%(organization)s::bigint IS NULL OR u.organization_id = %(organization)s)
    ORDER BY 1, 2
"""
ALL_THERE_IS = f"""
    SELECT min(recorded_at), greatest(max(recorded_at) + interval '1 microsecond', clock_timestamp()),
           least(clock_timestamp(), {ledger.OLDEST_RUNNING})
    FROM billing_usagerecord
"""
ROLLED_UP = "SELECT DISTINCT organization_id FROM billing_rollup ORDER BY 1"
STALE = f"""
    SELECT organization_id, bucket FROM billing_rollup WHERE organization_id = %(organization)s
    EXCEPT SELECT organization_id, {BIN} FROM billing_usagerecord u WHERE organization_id = %(organization)s
"""
MARK = """
    INSERT INTO billing_rollupmark AS mark (id, recorded_until) VALUES (1, %s)
    ON CONFLICT (id) DO UPDATE SET recorded_until = greatest(mark.recorded_until, EXCLUDED.recorded_until)
"""
# Those who recompute one organization do so one after the other, each with a snapshot of its own; all take several
# in the same order.
LOCK = """
    SELECT pg_advisory_xact_lock(hashtext('billing_rollup'), locked.id)
    FROM (SELECT DISTINCT mod(unnest(%s::bigint[]), 2147483648)::integer AS id ORDER BY 1) locked
"""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A quarter of an hour of an organization."""

    organization_id: int
    start: datetime


def recompute(*, everything: bool = False) -> int:
    """Make the rollups what the ledger says, where it was written to since the last run; or everywhere.

    Returns how many rows changed. Safe at any time, any number of times at once. One that was interrupted goes on where
    it was, not from the beginning.
    """
    since, until, complete_until = _instants(ALL_THERE_IS if everything else UNKNOWN)
    changed = 0
    while since is not None and since < until:
        end = min(since + WRITTEN_AT_ONCE_MAX, until)
        changed += replace_all(written_between(since, end))
        _mark(min(end, complete_until))
        since = end
    if everything:
        changed += sum(replace_all(_stale(organization)) for (organization,) in _rows(ROLLED_UP))
    return changed


def recompute_of(organization_id: int) -> int:
    """Make one organization's rollups what the ledger says, where it was written to since the last run of all."""
    since, until, _ = _instants(UNKNOWN)
    return replace_all(written_between(since, until, organization_id)) if since is not None else 0


def written_between(
    since: datetime, until: datetime, organization_id: int | None = None
) -> list[Bucket]:
    """Return the buckets that were booked in from one instant to before the other: of one organization, or of all."""
    values = {"since": since, "until": until, "organization": organization_id}
    return [Bucket(*row) for row in _rows(WRITTEN_BETWEEN, values)]


def replace_all(buckets: Sequence[Bucket]) -> int:
    """Make the rows of these buckets what the ledger says, some at a time. Returns how many changed."""
    return sum(
        replace(buckets[start : start + BUCKETS_AT_ONCE_MAX])
        for start in range(0, len(buckets), BUCKETS_AT_ONCE_MAX)
    )


@transaction.atomic
def replace(buckets: Sequence[Bucket]) -> int:
    """Make the rows of these buckets what the ledger says, in one transaction. Returns how many changed."""
    organizations = [bucket.organization_id for bucket in buckets]
    starts = [bucket.start for bucket in buckets]
    with connection.cursor() as cursor:
        cursor.execute(LOCK, [organizations])
        cursor.execute(REPLACE, {"organizations": organizations, "starts": starts})
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def quantities(organization_id: int, period: Period) -> list[Quantity]:
    """Return what is billed of a period, by team, price and kind, as rating takes it. Reads rollups only.

    ValueError if the period does not begin and end with a quarter of an hour.
    """
    for instant in (period.start, period.end):
        if instant.timestamp() % BUCKET.total_seconds():
            raise ValueError(f"{instant} is no full quarter of an hour.")
    rows = (
        Rollup.objects.filter(
            organization_id=organization_id, bucket__gte=period.start, bucket__lt=period.end
        )
        .values("team_id", "price_id", "is_late")
        .annotate(
            image_count=Sum("billed_images"), **{kind.value: Sum(BILLED[kind]) for kind in Kind}
        )
        .order_by("team_id", "price_id", "is_late")
    )
    found: list[dict[str, Any]] = [dict(row) for row in rows]
    return [_quantity(row, kind) for row in found for kind in Kind if row[kind.value]]


def _quantity(row: dict[str, Any], kind: Kind) -> Quantity:
    units = int(row[kind.value])
    return Quantity(
        team_id=row["team_id"],
        price_id=row["price_id"],
        kind=kind,
        units=units,
        late_units=units if row["is_late"] else 0,
        images=int(row["image_count"]) if kind is Kind.IMAGE_IN else 0,
    )


def _instants(statement: str) -> tuple[datetime | None, datetime, datetime]:
    ((since, until, complete_until),) = _rows(statement)
    return since, until, complete_until


def _stale(organization_id: int) -> list[Bucket]:
    """Return the buckets of an organization that have rollups, and nothing was booked in."""
    return [Bucket(*row) for row in _rows(STALE, {"organization": organization_id})]


def _mark(until: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(MARK, [until])


def _rows(statement: str, values: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or {})
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
