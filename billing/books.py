"""The books' invariants, each a query that finds what breaks it. For `manage.py check_books`, tests and fault runs.

Every query is one statement, and so one snapshot: it may run at any time, under load too. It reads; it mends nothing
(`manage.py reconcile --fix` does, for windows).
"""

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connection

from billing import rollups
from billing.invoicing import invariants
from billing.periods import Period

EXAMPLES_MAX = 10
REAP_SLACK_S = 60  # the reaper comes every ten seconds

# What is looked at: one organization or all, and what is billed in one period or ever. Holds are always of now.
OF = "(%(organization)s::bigint IS NULL OR {table}.organization_id = %(organization)s)"
BILLED = OF + " AND {table}.{instant} >= %(start)s AND {table}.{instant} < %(end)s"
IN_USAGE = BILLED.format(table="u", instant="billed_at")
IN_ADJUSTMENTS = BILLED.format(table="a", instant="billed_at")
IN_ROLLUPS = BILLED.format(table="r", instant="bucket")
IN_HOLDS = OF.format(table="h")
IN_WINDOWS = f"{OF.format(table='b')} AND w.starts_at < %(end)s AND (w.ends_at IS NULL OR w.ends_at > %(start)s)"

TOKENS = "tokens_in_text + tokens_in_image + tokens_in_cached + tokens_out"


def _rated(policy: str, text: str, image: str, cached: str, out: str) -> str:
    """Return SQL for `billing.rating.amount_pico`, in numeric, over a price `p`."""
    return f"""
        CASE {policy} WHEN 'nothing' THEN 0 ELSE
            ({text})::numeric * p.text_in_micro + ({image})::numeric * p.image_in_micro
            + ({cached})::numeric * p.cached_in_micro
            + CASE {policy} WHEN 'prompt' THEN 0 ELSE ({out})::numeric * p.out_micro END
            + p.request_micro::numeric * 1000000 END"""


RATED_USAGE = _rated(
    "u.policy", "u.tokens_in_text", "u.tokens_in_image", "u.tokens_in_cached", "u.tokens_out"
)
RATED_TRUTH = _rated(
    "a.policy",
    *(f"u.{kind} + a.{kind}" for kind in TOKENS.split(" + ")),
)

RATED_ROLLUP = """
    (r.billed_in_text::numeric * p.text_in_micro + r.billed_in_image::numeric * p.image_in_micro
     + r.billed_in_cached::numeric * p.cached_in_micro + r.billed_out::numeric * p.out_micro
     + r.billed_requests::numeric * p.request_micro * 1000000)
"""

WINDOW_SUMS = f"""
    SELECT w.*, b.organization_id, b.limit_micro, b.limit_tokens,
           w.opened_pico + coalesce(booked.pico, 0) AS should_spent_pico,
           w.opened_tokens + coalesce(booked.tokens, 0) AS should_spent_tokens,
           coalesce(held.pico, 0) AS should_held_pico, coalesce(held.tokens, 0) AS should_held_tokens
    FROM billing_budgetwindow w
    JOIN billing_budget b ON b.id = w.budget_id
    LEFT JOIN (
        SELECT s.id, sum(u.amount_pico) AS pico, sum({TOKENS}) AS tokens
        FROM billing_usagerecord u, unnest(u.window_ids) s (id)
        WHERE {OF.format(table="u")} AND u.recorded_at >= (
            SELECT min(w.starts_at) FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
            WHERE {IN_WINDOWS})
        GROUP BY s.id
    ) booked ON booked.id = w.id
    LEFT JOIN (
        SELECT s.id, sum(s.pico) AS pico, sum(s.tokens) AS tokens
        FROM billing_hold h, unnest(h.window_ids, h.window_pico, h.window_tokens) s (id, pico, tokens)
        WHERE {IN_HOLDS} GROUP BY s.id
    ) held ON held.id = w.id
    WHERE {IN_WINDOWS}
"""

# Why a window may stand over its limit, and by how much at most. A change of the budget excuses any amount.
OVERRUNS = f"""
    SELECT w.id, w.budget_id,
           greatest(w.spent_pico + w.held_pico - b.limit_micro::numeric * 1000000, 0) AS over_pico,
           greatest(w.spent_tokens + w.held_tokens - b.limit_tokens, 0) AS over_tokens,
           coalesce(overage.pico, 0) AS overage_pico, coalesce(overage.tokens, 0) AS overage_tokens,
           coalesce(overage.late_pico, 0) AS late_pico, coalesce(overage.late_tokens, 0) AS late_tokens,
           coalesce(overage.released_pico, 0) AS released_pico,
           coalesce(overage.released_tokens, 0) AS released_tokens,
           greatest(w.opened_pico - b.limit_micro::numeric * 1000000, 0) AS opened_pico,
           greatest(w.opened_tokens - b.limit_tokens, 0) AS opened_tokens,
           coalesce(overage.early_pico, 0) + coalesce(early.pico, 0) AS early_pico,
           coalesce(overage.early_tokens, 0) + coalesce(early.tokens, 0) AS early_tokens,
           EXISTS (
               SELECT FROM tenants_auditentry e
               WHERE e.subject_type = 'billing.budget' AND e.subject_id = b.id::text AND e.at >= w.starts_at
                 AND e.action NOT IN ('budget.create', 'budget.reconcile')) AS is_changed
    FROM billing_budgetwindow w
    JOIN billing_budget b ON b.id = w.budget_id
    LEFT JOIN LATERAL (
        SELECT sum(greatest(u.amount_pico - least(u.held_pico, b.hold_micro_max::numeric * 1000000), 0))
                   FILTER (WHERE u.kind = 'usage') AS pico,
               sum(greatest({TOKENS} - b.hold_tokens_max, 0)) FILTER (WHERE u.kind = 'usage') AS tokens,
               sum(greatest(u.amount_pico, 0)) FILTER (WHERE u.kind = 'adjustment') AS late_pico,
               sum(greatest({TOKENS}, 0)) FILTER (WHERE u.kind = 'adjustment') AS late_tokens,
               sum(u.amount_pico) FILTER (WHERE released.at IS NOT NULL) AS released_pico,
               sum({TOKENS}) FILTER (WHERE released.at IS NOT NULL) AS released_tokens,
               sum(u.amount_pico) FILTER (WHERE u.held_at < w.opened_at) AS early_pico,
               sum({TOKENS}) FILTER (WHERE u.held_at < w.opened_at) AS early_tokens
        FROM billing_usagerecord u
        LEFT JOIN tenants_auditentry released ON released.subject_type = 'billing.hold'
            AND released.action = 'hold.release' AND released.subject_id = u.request_id::text
        WHERE u.organization_id = b.organization_id AND u.recorded_at >= w.starts_at AND w.id = ANY(u.window_ids)
    ) overage ON true
    LEFT JOIN LATERAL (
        SELECT sum(s.pico) AS pico, sum(s.tokens) AS tokens
        FROM billing_hold h, unnest(h.window_ids, h.window_pico, h.window_tokens) s (id, pico, tokens)
        WHERE s.id = w.id AND h.held_at < w.opened_at
    ) early ON true
    WHERE {IN_WINDOWS}
      AND (w.spent_pico + w.held_pico > b.limit_micro::numeric * 1000000
           OR w.spent_tokens + w.held_tokens > b.limit_tokens)
"""

OWNED = """
    LEFT JOIN tenants_organization o ON o.id = {row}.organization_id
    LEFT JOIN tenants_team t ON t.id = {row}.team_id AND t.organization_id = {row}.organization_id
    LEFT JOIN tenants_apikey k ON k.id = {row}.key_id AND k.team_id = {row}.team_id
    LEFT JOIN billing_price p ON p.id = {row}.price_id AND p.model_name = {row}.model_name
"""
MISSING = """
    concat_ws(', ', CASE WHEN o.id IS NULL THEN 'organization' END, CASE WHEN t.id IS NULL THEN 'team' END,
              CASE WHEN k.id IS NULL THEN 'key' END, CASE WHEN p.id IS NULL THEN 'price' END)
"""

# Quarters that were booked in since the rollups were last recomputed are not compared: their turn is to come.
ROLLUPS = f"""
    SELECT coalesce(l.organization_id, r.organization_id) AS organization_id, coalesce(l.bucket, r.bucket) AS bucket,
           r.amount_pico AS is_pico, l.amount_pico AS should_pico
    FROM ({rollups.LEDGER.format(source="billing_usagerecord u", condition=IN_USAGE)}) l
    FULL JOIN (SELECT * FROM billing_rollup r WHERE {IN_ROLLUPS}) r USING ({rollups.KEYS})
    WHERE ({rollups.columns("l", rollups.SUMS)}) IS DISTINCT FROM ({rollups.columns("r", rollups.SUMS)})
"""
RECOMPUTED_UNTIL = f"""
    coalesce((SELECT recorded_until FROM billing_rollupmark) - interval '{rollups.OVERLAP_S} seconds', '-infinity')
"""

# Each selects one column, `example`: what is broken, in a line.
INVARIANTS: dict[str, tuple[str, str]] = {
    "window_spent_is_the_ledger": (
        "what a budget window has spent is what was booked in it",
        f"""SELECT format('window %%s of budget %%s: %%s pico-units and %%s tokens, should be %%s and %%s', id,
                budget_id, spent_pico, spent_tokens, should_spent_pico, should_spent_tokens) AS example
            FROM ({WINDOW_SUMS}) w
            WHERE (spent_pico, spent_tokens) IS DISTINCT FROM (should_spent_pico, should_spent_tokens)""",
    ),
    "window_held_is_the_holds": (
        "what a budget window holds is what its holds took from it",
        f"""SELECT format('window %%s of budget %%s: %%s pico-units and %%s tokens, should be %%s and %%s', id,
                budget_id, held_pico, held_tokens, should_held_pico, should_held_tokens) AS example
            FROM ({WINDOW_SUMS}) w
            WHERE (held_pico, held_tokens) IS DISTINCT FROM (should_held_pico, should_held_tokens)""",
    ),
    "window_holds_nothing_negative": (
        "no budget window holds less than nothing",
        f"""SELECT format('window %%s: %%s pico-units, %%s tokens', w.id, held_pico, held_tokens) AS example
            FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
            WHERE (held_pico < 0 OR held_tokens < 0) AND {IN_WINDOWS}""",
    ),
    "window_is_within_its_limit": (
        "spent and held together are within the budget, but for overage, late truths, released holds, "
        "and budgets that came late or were changed",
        f"""SELECT format('window %%s of budget %%s: over by %%s pico-units and %%s tokens', id, budget_id, over_pico,
                over_tokens) AS example
            FROM ({OVERRUNS}) w
            WHERE NOT is_changed
              AND (over_pico > overage_pico + late_pico + released_pico + opened_pico + early_pico
                   OR over_tokens > overage_tokens + late_tokens + released_tokens + opened_tokens
                                    + early_tokens)""",
    ),
    "amount_is_rated": (
        "each usage record costs what its tokens, price and policy make",
        f"""SELECT format('%%s: %%s, should be %%s', request_id, amount_pico, {RATED_USAGE}) AS example
            FROM billing_usagerecord u JOIN billing_price p ON p.id = u.price_id
            WHERE kind = 'usage' AND amount_pico <> {RATED_USAGE} AND {IN_USAGE}""",
    ),
    "priced_in_its_currency": (
        "what is booked or held is priced in its organization's currency",
        f"""SELECT format('%%s: %%s, the organization has %%s', row.request_id, p.currency, o.currency) AS example
            FROM (
                SELECT request_id, organization_id, price_id FROM billing_usagerecord u WHERE {IN_USAGE}
                UNION ALL
                SELECT request_id, organization_id, price_id FROM billing_hold h WHERE {IN_HOLDS}) row
            JOIN billing_price p ON p.id = row.price_id
            JOIN tenants_organization o ON o.id = row.organization_id
            WHERE p.currency <> o.currency""",
    ),
    "adjustment_follows_an_estimate": (
        "an adjustment corrects a record that was estimated, of the same key and price",
        f"""SELECT format('%%s adjusts %%s', a.request_id, a.adjusts_id) AS example
            FROM billing_usagerecord a
            LEFT JOIN billing_usagerecord u ON u.request_id = a.adjusts_id AND u.kind = 'usage'
                AND u.status = 'expired' AND u.key_id = a.key_id AND u.price_id = a.price_id
            WHERE a.kind = 'adjustment' AND u.request_id IS NULL AND {IN_ADJUSTMENTS}""",
    ),
    "adjusted_once": (
        "an estimate is corrected once at most",
        f"""SELECT format('%%s: %%s adjustments', adjusts_id, count(*)) AS example
            FROM billing_usagerecord u WHERE kind = 'adjustment' AND {IN_USAGE}
            GROUP BY adjusts_id HAVING count(*) > 1""",
    ),
    "adjusted_to_the_truth": (
        "an estimate and its adjustment together cost what the truth costs, or nothing if nothing was used",
        f"""SELECT format('%%s: %%s', u.request_id, u.amount_pico + a.amount_pico) AS example
            FROM billing_usagerecord a JOIN billing_usagerecord u ON u.request_id = a.adjusts_id
            JOIN billing_price p ON p.id = u.price_id
            CROSS JOIN LATERAL (SELECT least(u.tokens_in_text + a.tokens_in_text, u.tokens_in_image + a.tokens_in_image,
                u.tokens_in_cached + a.tokens_in_cached, u.tokens_out + a.tokens_out) AS fewest,
                u.tokens_in_text + a.tokens_in_text + u.tokens_in_image + a.tokens_in_image
                + u.tokens_in_cached + a.tokens_in_cached + u.tokens_out + a.tokens_out AS all_of_them) truth
            WHERE a.kind = 'adjustment' AND {IN_ADJUSTMENTS}
              AND (truth.fewest < 0 OR u.amount_pico + a.amount_pico <>
                   CASE WHEN truth.all_of_them = 0 AND u.amount_pico + a.amount_pico = 0 THEN 0
                   ELSE {RATED_TRUTH} END)""",
    ),
    "held_or_booked": (
        "a request is held or booked, never both",
        f"""SELECT h.request_id::text AS example
            FROM billing_hold h JOIN billing_usagerecord u USING (request_id) WHERE {IN_HOLDS}""",
    ),
    "hold_ends_in_time": (
        "no hold outlives its expiry by more than the reaper takes",
        f"""SELECT format('%%s expired at %%s', request_id, expires_at) AS example
            FROM billing_hold h
            WHERE expires_at < clock_timestamp() - make_interval(secs => %(reap_s)s) AND {IN_HOLDS}""",
    ),
    "hold_is_the_worst_case": (
        "a hold sets aside the most that its request can cost",
        f"""SELECT format('%%s: %%s pico-units for %%s tokens', request_id, amount_pico, tokens_held) AS example
            FROM billing_hold h JOIN billing_price p ON p.id = h.price_id
            CROSS JOIN LATERAL (SELECT
                tokens_in_text::numeric * greatest(text_in_micro, cached_in_micro)
                + tokens_in_image::numeric * greatest(image_in_micro, cached_in_micro)
                + tokens_out_max::numeric * out_micro + request_micro::numeric * 1000000 AS least_pico,
                (tokens_held - tokens_in_text - tokens_in_image - tokens_out_max)::numeric AS margin,
                greatest(text_in_micro, image_in_micro, cached_in_micro)::numeric AS highest) worst
            WHERE {IN_HOLDS}
              AND (margin < 0 OR amount_pico < least_pico OR amount_pico > least_pico
                   + CASE WHEN margin > 0 THEN (tokens_held - tokens_out_max) * highest ELSE 0 END)""",
    ),
    "usage_refers_to_what_is_there": (
        "organization, team, key and price of a usage record exist and belong together",
        f"""SELECT format('%%s: %%s', u.request_id, {MISSING}) AS example
            FROM billing_usagerecord u {OWNED.format(row="u")}
            WHERE (o.id IS NULL OR t.id IS NULL OR k.id IS NULL OR p.id IS NULL) AND {IN_USAGE}""",
    ),
    "hold_refers_to_what_is_there": (
        "organization, team, key and price of a hold exist and belong together",
        f"""SELECT format('%%s: %%s', h.request_id, {MISSING}) AS example
            FROM billing_hold h {OWNED.format(row="h")}
            WHERE (o.id IS NULL OR t.id IS NULL OR k.id IS NULL OR p.id IS NULL) AND {IN_HOLDS}""",
    ),
    "booked_in_its_own_windows": (
        "what is booked or held counts in windows of its own organization, team and key only",
        f"""SELECT format('%%s in window %%s', row.request_id, row.window_id) AS example
            FROM (
                SELECT request_id, organization_id, team_id, key_id, recorded_at, s.id AS window_id
                FROM billing_usagerecord u, unnest(window_ids) s (id) WHERE {IN_USAGE}
                UNION ALL
                SELECT request_id, organization_id, team_id, key_id, held_at, s.id
                FROM billing_hold h, unnest(window_ids) s (id) WHERE {IN_HOLDS}) row
            LEFT JOIN billing_budgetwindow w ON w.id = row.window_id AND w.starts_at <= row.recorded_at
            LEFT JOIN billing_budget b ON b.id = w.budget_id
                AND b.organization_id = row.organization_id AND (b.team_id IS NULL OR b.team_id = row.team_id)
                AND (b.key_id IS NULL OR b.key_id = row.key_id)
            WHERE b.id IS NULL""",
    ),
    "rollups_are_the_ledger": (
        "the rollups of each quarter of an hour are what was booked in it",
        f"""SELECT format('organization %%s from %%s: %%s pico-units, should be %%s', organization_id, bucket,
                is_pico, should_pico) AS example
            FROM ({ROLLUPS}) w
            WHERE NOT EXISTS (
                SELECT FROM billing_usagerecord t
                WHERE t.organization_id = w.organization_id AND t.recorded_at >= {RECOMPUTED_UNTIL}
                  AND t.billed_at >= w.bucket AND t.billed_at < w.bucket + interval '15 minutes')""",
    ),
    "rollups_are_rated": (
        "each rollup costs what its billed tokens and requests cost at its price",
        f"""SELECT format('organization %%s from %%s: %%s pico-units', r.organization_id, r.bucket, r.amount_pico)
                AS example
            FROM billing_rollup r JOIN billing_price p ON p.id = r.price_id
            WHERE {IN_ROLLUPS} AND r.amount_pico <> {RATED_ROLLUP}""",
    ),
    "billed_in_an_open_period": (
        "a usage record is billed when it was received, or later if that period was closed",
        f"""SELECT format('%%s: received %%s, billed %%s', request_id, received_at, billed_at) AS example
            FROM billing_usagerecord u LEFT JOIN billing_account a ON a.organization_id = u.organization_id
            WHERE {IN_USAGE} AND (u.billed_at < u.received_at
                  OR (u.billed_at > u.received_at AND u.billed_at > coalesce(a.closed_until, 'epoch')))""",
    ),
} | invariants.INVARIANTS


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that is broken: how often, and the first few cases."""

    invariant: str
    promise: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overrun:
    """A window that stands over its limit, and what explains it; nothing does if `reasons` is empty."""

    window_id: int
    budget_id: int
    over_pico: int
    over_tokens: int
    reasons: tuple[str, ...]


def check(organization_id: int | None = None, period: Period | None = None) -> list[Violation]:
    """Return every invariant that is broken, of one organization or of all.

    Of a period: among the records that are billed in it, and the budget windows that overlap it. It must begin and end
    with a quarter of an hour. Without one everything that was ever booked is read.
    """
    scope = _scope(organization_id, period)
    return [
        violation
        for name, (promise, query) in INVARIANTS.items()
        if (violation := _check(name, promise, query, scope)) is not None
    ]


def overruns(organization_id: int | None = None) -> list[Overrun]:
    """Return the windows that stand over their limits, explained or not."""
    with connection.cursor() as cursor:
        cursor.execute(f"{OVERRUNS} ORDER BY w.id", _scope(organization_id, None))
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        return [_overrun(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]


def _scope(organization_id: int | None, period: Period | None) -> dict[str, Any]:
    return {
        "organization": organization_id,
        "start": period.start if period else "-infinity",
        "end": period.end if period else "infinity",
        "reap_s": settings.REAP_AFTER_S + REAP_SLACK_S,
    }


def _check(name: str, promise: str, query: str, scope: dict[str, Any]) -> Violation | None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) OVER (), example FROM ({query}) broken LIMIT {EXAMPLES_MAX}", scope
        )
        rows = cursor.fetchall()
    if not rows:
        return None
    return Violation(name, promise, int(rows[0][0]), tuple(example for _, example in rows))


def _overrun(row: dict[str, int]) -> Overrun:
    reasons = {
        "overage: requests cost more than could be held": row["overage_pico"]
        or row["overage_tokens"],
        "late truths: estimates were corrected upwards": row["late_pico"] or row["late_tokens"],
        "holds were released by hand": row["released_pico"] or row["released_tokens"],
        "booked before the budget stood": row["opened_pico"] or row["opened_tokens"],
        "requests ran when the budget was set": row["early_pico"] or row["early_tokens"],
        "the budget was changed": row["is_changed"],
    }
    return Overrun(
        window_id=int(row["id"]),
        budget_id=int(row["budget_id"]),
        over_pico=int(row["over_pico"] or 0),
        over_tokens=int(row["over_tokens"] or 0),
        reasons=tuple(reason for reason, amount in reasons.items() if amount),
    )
