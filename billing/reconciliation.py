"""Reconciliation: what was left behind is booked, and what the budgets say is compared with the ledger.

In this order, as each step feeds the next: the spools of dead processes are booked, holds of dead processes are
settled, then each budget window's figures are compared with the usage records and holds that they sum up, and the
rollups are recomputed. Every run leaves a row in billing_reconciliation.

Idempotent: any number of runs at once, on any host, does the work once. It drains the spools of its own disk only.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DataError, IntegrityError, ProgrammingError, connection, transaction
from django.utils.timezone import now

from billing import ledger, rollups, spool
from billing.budgets import BudgetWindow
from billing.models import Reconciliation
from billing.spool import Record
from tenants.models import Actor, AuditEntry

logger = logging.getLogger(__name__)

ROWS_AT_ONCE_MAX = 256
REAPS_MAX = 100  # a thousand holds each
DRIFTS_SHOWN_MAX = 100
LOCK_TIMEOUT_S = 5
REFUSED = (DataError, IntegrityError, ProgrammingError)

# What a window should say, from the rows that it sums up: `spent` from the ledger, `held` from the holds. One
# statement is one snapshot, so that bookings under way do not show as drift.
EXPECTED = """
    SELECT w.id, w.budget_id,
           w.spent_pico, w.opened_pico + coalesce(booked.pico, 0),
           w.spent_tokens, w.opened_tokens + coalesce(booked.tokens, 0),
           w.held_pico, coalesce(held.pico, 0), w.held_tokens, coalesce(held.tokens, 0)
    FROM billing_budgetwindow w
    LEFT JOIN (
        SELECT u.id, sum(amount_pico) AS pico,
               sum(tokens_in_text + tokens_in_image + tokens_in_cached + tokens_out) AS tokens
        FROM billing_usagerecord, unnest(window_ids) u (id)
        WHERE recorded_at >= (
            SELECT min(starts_at) FROM billing_budgetwindow WHERE id = ANY(%(ids)s::bigint[]))
        GROUP BY u.id) booked ON booked.id = w.id
    LEFT JOIN (
        SELECT u.id, sum(u.pico) AS pico, sum(u.tokens) AS tokens
        FROM billing_hold, unnest(window_ids, window_pico, window_tokens) u (id, pico, tokens)
        GROUP BY u.id) held ON held.id = w.id
    WHERE w.id = ANY(%(ids)s::bigint[])
      AND (w.spent_pico, w.spent_tokens, w.held_pico, w.held_tokens) IS DISTINCT FROM
          (w.opened_pico + coalesce(booked.pico, 0), w.opened_tokens + coalesce(booked.tokens, 0),
           coalesce(held.pico, 0), coalesce(held.tokens, 0))
    ORDER BY w.id
"""
# A window that closed days ago changes no more; check_books looks at all of them.
WATCHED = """
    SELECT coalesce(array_agg(id), '{}') FROM billing_budgetwindow
    WHERE ends_at IS NULL OR ends_at > now() - interval '2 days' OR held_tokens <> 0 OR held_pico <> 0
"""
SETTLE = "SELECT request_id FROM billing_settle_batch(%s::json)"


@dataclass(frozen=True, slots=True)
class Drift:
    """A window whose figures are not what its rows add up to: each pair is (as it stands, as it should be)."""

    window_id: int
    budget_id: int
    spent_pico: tuple[int, int]
    spent_tokens: tuple[int, int]
    held_pico: tuple[int, int]
    held_tokens: tuple[int, int]

    @property
    def pico(self) -> int:
        return _gap(self.spent_pico) + _gap(self.held_pico)

    @property
    def tokens(self) -> int:
        return _gap(self.spent_tokens) + _gap(self.held_tokens)


@dataclass(slots=True)
class Report:
    """What a run found and did."""

    drained: int = 0
    refused: int = 0
    reaped: int = 0
    rollups: int = 0
    drifts: list[Drift] = field(default_factory=list)
    fixed: int = 0

    @property
    def drift_pico(self) -> int:
        return sum(drift.pico for drift in self.drifts)

    @property
    def drift_tokens(self) -> int:
        return sum(drift.tokens for drift in self.drifts)


def run(*, fix: bool = False, by: Actor = None) -> Report:
    """Drain, reap, compare, recompute, and write down what was found.

    With `fix` also correct the windows that drifted, and recompute all rollups there are, not only what is new.
    """
    report = Report()
    report.drained, report.refused = drain()
    report.reaped = _reap_all()
    report.drifts = drifts()
    report.rollups = rollups.recompute(everything=fix)
    if fix and report.drifts:
        report.fixed = correct([drift.window_id for drift in report.drifts], by=by)
    _write_down(report)
    return report


def drain(directory: Path | None = None) -> tuple[int, int]:
    """Book the spools of dead processes on this disk. Returns how many rows were booked, how many refused.

    A file is removed after its rows are committed; one that is drained twice books nothing twice.
    """
    booked = refused = 0
    for path in spool.files(directory or settings.SPOOL_DIR):
        with spool.orphan(path) as descriptor:
            if descriptor is None:
                continue
            rows, bad = _drain_file(path, descriptor)
            booked += rows
            refused += bad
    if booked:
        logger.warning("%d rows from the spools of dead processes are booked", booked)
    return booked, refused


def drifts(window_ids: Sequence[int] | None = None) -> list[Drift]:
    """Compare the windows (those that may still change) with the ledger and the holds."""
    with connection.cursor() as cursor:
        if window_ids is None:
            cursor.execute(WATCHED)
            window_ids = cursor.fetchone()[0]
        cursor.execute(EXPECTED, {"ids": list(window_ids)})
        return [_drift(row) for row in cursor.fetchall()]


@transaction.atomic
def correct(window_ids: Sequence[int], *, by: Actor = None) -> int:
    """Set the windows to what their rows add up to, and record who did it. Returns how many had to change.

    Bookings wait for the lock: those that committed before are in the sums, those that wait add to them.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
    windows = BudgetWindow.objects.filter(pk__in=window_ids).order_by("pk").select_for_update()
    budgets = {window.pk: window for window in windows}
    found = drifts(list(budgets))
    for drift in found:
        BudgetWindow.objects.filter(pk=drift.window_id).update(
            spent_pico=drift.spent_pico[1],
            spent_tokens=drift.spent_tokens[1],
            held_pico=drift.held_pico[1],
            held_tokens=drift.held_tokens[1],
        )
        AuditEntry.record(
            "budget.reconcile",
            budgets[drift.window_id].budget,
            by=by,
            at=now(),
            detail=asdict(drift),
        )
    return len(found)


def _drain_file(path: Path, descriptor: int) -> tuple[int, int]:
    """Book what is in the file, then remove it. Raises OperationalError: then it stays as it is."""
    booked = damaged = 0
    refused: list[Record] = []
    for reading in spool.records(descriptor):
        for start in range(0, len(reading.records), ROWS_AT_ONCE_MAX):
            batch = reading.records[start : start + ROWS_AT_ONCE_MAX]
            bad = _book(batch)
            booked += len(batch) - len(bad)
            refused += bad
        damaged += reading.damaged
    if path.suffix == spool.REFUSED_SUFFIX:
        if refused:
            logger.error("%d rows in %s are still refused", len(refused), path)
            return booked, len(
                refused
            )  # those that are booked now are booked once, however often they are read
    elif refused:
        spool.keep_refused(path, refused)
    spool.discard(path, damaged=bool(damaged))
    return booked, len(refused)


def _book(records: Sequence[Record]) -> list[Record]:
    """Book the records; return those that PostgreSQL refuses, found by halving."""
    rows = b"[" + b",".join(record.body for record in records) + b"]"
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(SETTLE, [rows.decode()])
    except REFUSED as error:
        if len(records) == 1:
            logger.error("PostgreSQL refuses the row of %s: %s", records[0].request_id, error)
            return list(records)
        middle = len(records) // 2
        return _book(records[:middle]) + _book(records[middle:])
    return []


def _reap_all() -> int:
    reaped = 0
    for _ in range(REAPS_MAX):
        count = ledger.reap()
        reaped += count
        if count < ledger.REAP_ROWS_MAX:
            break
    return reaped


def _write_down(report: Report) -> None:
    if report.drift_pico or report.drift_tokens:
        logger.warning(
            "%d budget windows drifted, by %d pico-units and %d tokens in all; %d were corrected",
            len(report.drifts),
            report.drift_pico,
            report.drift_tokens,
            report.fixed,
        )
    Reconciliation.objects.create(
        drift_pico=report.drift_pico,
        drift_tokens=report.drift_tokens,
        drained=report.drained,
        reaped=report.reaped,
        details={
            "refused": report.refused,
            "fixed": report.fixed,
            "rollups": report.rollups,
            "drifts": [asdict(drift) for drift in report.drifts[:DRIFTS_SHOWN_MAX]],
        },
    )


def _drift(row: Sequence[Any]) -> Drift:
    window_id, budget_id, *figures = map(int, row)
    pairs = list(zip(figures[::2], figures[1::2], strict=True))
    return Drift(window_id, budget_id, *pairs)


def _gap(pair: tuple[int, int]) -> int:
    return abs(pair[0] - pair[1])
