"""Rollups: what was used and billed in each quarter of an hour, by team, key, model and price.

Recomputed, never incremented: a run finds the quarters that were booked in since the last run, and makes their rows
what the ledger says. So it may run twice, at once, or be killed anywhere: the next one gives the same rows. It needs
little memory, however much was booked: one organization and ten of its days at a time.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Sum

from billing.models import Rollup
from billing.periods import Period
from billing.rating import Kind, Quantity

logger = logging.getLogger(__name__)

# Local midnight, where periods are cut, is a full quarter of an hour in every zone of today.
BUCKET = timedelta(minutes=15)
# A record is dated before its commit; no statement that books outlives the database's silence limit by this much.
OVERLAP_S = 300
BUCKETS_AT_ONCE_MAX = 960  # ten days of an organization in one transaction

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

OF_BUCKETS = LEDGER.format(
    source="""unnest(%(buckets)s::timestamptz[]) wanted (bucket)
        JOIN billing_usagerecord u ON u.organization_id = %(organization)s
            AND u.billed_at >= wanted.bucket AND u.billed_at < wanted.bucket + interval '15 minutes'""",
    condition="u.billed_at >= %(first)s AND u.billed_at < %(until)s",
)
# NOT IN, of columns that are never null: PostgreSQL hashes it, where it would loop over NOT EXISTS.
REPLACE = f"""
    WITH fresh AS MATERIALIZED ({OF_BUCKETS}),
    gone AS (
        DELETE FROM billing_rollup r
        WHERE r.organization_id = %(organization)s AND r.bucket = ANY(%(buckets)s::timestamptz[])
          AND ({KEYS}) NOT IN (SELECT {KEYS} FROM fresh)
        RETURNING 1),
    written AS (
        INSERT INTO billing_rollup AS r ({KEYS}, {SUMS}) SELECT {KEYS}, {SUMS} FROM fresh
        ON CONFLICT ({KEYS}) DO UPDATE
        SET ({SUMS}) = ROW ({", ".join(f"EXCLUDED.{name}" for name in SUMS.split(", "))})
        WHERE ({", ".join(f"r.{name}" for name in SUMS.split(", "))})
              IS DISTINCT FROM ({", ".join(f"EXCLUDED.{name}" for name in SUMS.split(", "))})
        RETURNING 1)
    SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM written)
"""

# Since when the ledger is to be read: NULL for all of it.
SINCE = f"""
    SELECT clock_timestamp(), (SELECT recorded_until FROM billing_rollupmark) - interval '{OVERLAP_S} seconds'
"""
TOUCHED_ORGANIZATIONS = """
    SELECT organization_id FROM billing_usagerecord
    WHERE %(since)s::timestamptz IS NULL OR recorded_at >= %(since)s
    UNION SELECT organization_id FROM billing_rollup WHERE %(since)s::timestamptz IS NULL
    ORDER BY 1
"""
TOUCHED_BUCKETS = f"""
    SELECT {BIN} FROM billing_usagerecord u
    WHERE organization_id = %(organization)s AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s)
    UNION SELECT bucket FROM billing_rollup
    WHERE %(since)s::timestamptz IS NULL AND organization_id = %(organization)s
    ORDER BY 1
"""
MARK = """
    INSERT INTO billing_rollupmark AS mark (id, recorded_until) VALUES (1, %s)
    ON CONFLICT (id) DO UPDATE SET recorded_until = greatest(mark.recorded_until, EXCLUDED.recorded_until)
"""
# Those who recompute one organization do so one after the other, each with a snapshot of its own.
LOCK = "SELECT pg_advisory_xact_lock(hashtext('billing_rollup'), %s)"


def recompute(*, everything: bool = False) -> int:
    """Make the rollups what the ledger says, where it was written to since the last run; or everywhere.

    Returns how many rows changed. Safe at any time, any number of times at once.
    """
    until, since = _one(SINCE)
    since = None if everything else since
    changed = 0
    for organization_id in _column(TOUCHED_ORGANIZATIONS, {"since": since}):
        wanted = {"since": since, "organization": organization_id}
        buckets = _column(TOUCHED_BUCKETS, wanted)
        for start in range(0, len(buckets), BUCKETS_AT_ONCE_MAX):
            changed += replace(organization_id, buckets[start : start + BUCKETS_AT_ONCE_MAX])
    with connection.cursor() as cursor:
        cursor.execute(MARK, [until])
    return changed


@transaction.atomic
def replace(organization_id: int, buckets: Sequence[datetime]) -> int:
    """Make an organization's rows of these quarters what the ledger says. Returns how many changed."""
    with connection.cursor() as cursor:
        cursor.execute(LOCK, [organization_id % 2**31])
        cursor.execute(
            REPLACE,
            {
                "organization": organization_id,
                "buckets": list(buckets),
                "first": min(buckets),
                "until": max(buckets) + BUCKET,
            },
        )
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


def _one(statement: str) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        row: tuple[Any, ...] | None = cursor.fetchone()
    assert row is not None
    return row


def _column(statement: str, values: dict[str, Any]) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return [row[0] for row in cursor.fetchall()]
