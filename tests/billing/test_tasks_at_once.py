"""Every Celery task, eight times at once: the same rows as one after the other, and nothing more when it runs again."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from django.core.mail import EmailMessage
from django.db import connection
from django.db.models import Model

from billing import spool, tasks
from billing.budgets import BudgetWindow
from billing.idempotency import IdempotentRequest
from billing.invoicing.invoices import Invoice, InvoiceDocument, InvoiceLine
from billing.models import Hold, Rollup, UsageRecord
from billing.notifications.alerts import Alert
from billing.notifications.events import Delivery, Event
from gateway.celery import app
from tests import booked, bookings, factories
from tests.billing.test_alerts import eight_at_once
from tests.billing.test_deliveries import channel
from tests.factories import Tenant
from tests.invoiced import issue, use

NOW = datetime.now(UTC)
WORST, COST = (20 * 10 + 80 * 30) * 10**6, (20 * 10 + 7 * 30) * 10**6
app.finalize()
TASKS = sorted(name for name in app.tasks if name.startswith(f"{tasks.__name__}."))

# What is compared of each table: whose rows, and which columns. Ids and the time of writing are none of it.
ROWS: dict[type[Model], tuple[str, str]] = {
    Hold: ("organization", "amount_pico tokens_held"),
    UsageRecord: ("organization", "kind status amount_pico tokens_in_text tokens_out policy"),
    BudgetWindow: ("budget__organization", "spent_pico spent_tokens held_pico alerted_percent"),
    Rollup: ("organization", "bucket requests tokens_in_text billed_out amount_pico"),
    IdempotentRequest: ("key__organization", "idempotency_key"),
    Alert: ("organization", "kind threshold_percent spent_pico"),
    Event: ("organization", "type"),
    Delivery: ("event__organization", "event__type medium attempts last_error"),
    Invoice: ("organization", "status total_minor reminders period_start period_end"),
    InvoiceLine: ("invoice__organization", "position kind quantity amount_pico amount_minor"),
    InvoiceDocument: ("invoice__organization", "invoice__status"),
}
# The tasks that are given an id: which one.
IDS: dict[str, Callable[[Tenant], int]] = {
    "advance_invoices": lambda tenant: tenant.organization.pk,
    "draw_document": lambda tenant: issued(tenant).pk,
    "remind": lambda tenant: issued(tenant).pk,
    "deliver_event": lambda tenant: (
        Delivery.objects.get(
            event__organization=tenant.organization, event__type="invoice.issued"
        ).pk
    ),
}
# Which tables each must have written to, so that none is right for doing nothing.
WRITES: dict[str, set[type[Model]]] = {
    "advance_invoices": {Invoice, InvoiceLine, Event},
    "create_partitions": set(),  # has a test of its own
    "deliver_event": {Delivery},
    "draw_document": {InvoiceDocument},
    "purge_idempotent_requests": {IdempotentRequest},
    "raise_alerts": {Alert, Event, Delivery, BudgetWindow},
    "reap_holds": {Hold, UsageRecord, BudgetWindow},
    "reconcile": {Hold, UsageRecord, Rollup, BudgetWindow},
    "recompute_rollups": {Rollup},
    "remind": {Invoice, Event, Delivery},
    "sweep_invoices": set(),  # enqueues others
}


@pytest.fixture
def spool_directory(committed: None, settings: Any, tmp_path: Path) -> Path:
    settings.SPOOL_DIR, settings.CLOSE_MARGIN_S = tmp_path, 0
    return tmp_path


def prepare(directory: Path) -> Tenant:
    """An organization with something to do for each task."""
    tenant = factories.tenant("atonce")
    price = factories.price(factories.unique("vlm"))
    channel(tenant, emails=["ops@example.com"])
    use(tenant, price, at=NOW - timedelta(days=95))
    issue(tenant, NOW - timedelta(days=32))  # due two days ago
    booked.budget(tenant, limit_micro=20_000_000)
    for days in (40, 40, 41):
        use(tenant, price, at=NOW - timedelta(days=days), text=300_000)
    for _ in range(2):
        # Only just: the books are wrong, and nothing is issued, if one is left for long after its time.
        booked.hold(
            tenant, price, expires_at=datetime.now(UTC) - timedelta(seconds=1), amount_pico=WORST
        )
        IdempotentRequest.objects.create(
            key=tenant.key,
            idempotency_key=f"key {IdempotentRequest.objects.filter(key=tenant.key).count()}",
            body_sha256="",
            request_id=uuid4(),
            created_at=NOW - timedelta(days=2),
        )
    leave_spool(directory, booked.hold(tenant, price, amount_pico=WORST, process_id=UUID(int=7)))
    return tenant


def leave_spool(directory: Path, held: Any) -> None:
    """Leave what a dead process could not book."""
    row = bookings.usage(held, amount_pico=COST, tokens_out=7)
    (directory / f"{uuid4()}.spool").write_bytes(spool._line(msgspec.json.encode(row)))


def issued(tenant: Tenant) -> Invoice:
    return Invoice.objects.get(organization=tenant.organization, number__isnull=False)


def ids_for(task: str, tenant: Tenant) -> list[int]:
    return [IDS[task](tenant)] if task in IDS else []


def rows(tenant: Tenant) -> dict[type[Model], list[Any]]:
    found = {}
    for model, (owner, columns) in ROWS.items():
        own = model._default_manager.filter(**{owner: tenant.organization})
        found[model] = sorted(map(repr, own.values_list(*columns.split())))
    return found


@pytest.mark.parametrize("name", TASKS)
def test_a_task_at_once_is_the_task_one_after_the_other(
    spool_directory: Path, mailoutbox: list[EmailMessage], name: str
) -> None:
    task, short = app.tasks[name], name.rpartition(".")[2]
    at_once = prepare(spool_directory)
    before, ids = rows(at_once), ids_for(short, at_once)

    eight_at_once(lambda: task(*ids))
    task(*ids)  # a second step may be due by now
    whole = rows(at_once)

    assert len(mailoutbox) == (short == "deliver_event")
    written = {model for model in ROWS if whole[model] != before[model]}
    assert WRITES[short] <= written
    task(*ids)
    assert rows(at_once) == whole
    in_turn = prepare(spool_directory)
    for _ in range(2):
        task(*ids_for(short, in_turn))
    assert rows(in_turn) == whole


def partitions() -> list[tuple[Any, ...]]:
    """Return the ledger's months with their bounds, their triggers and their indexes."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT c.relname, pg_get_expr(c.relpartbound, c.oid),
                   (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
                   (SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid)
            FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
            WHERE h.inhparent = 'billing_usagerecord'::regclass ORDER BY 1"""
        )
        return list(cursor.fetchall())


def test_partitions_that_are_missing_are_made_once_by_eight_at_once(committed: None) -> None:
    tasks.create_partitions()
    whole = partitions()
    missing = [name for name, *_ in whole if not name.endswith("default")][-2:]
    with connection.cursor() as cursor:
        for name in missing:
            cursor.execute(f'DROP TABLE "{name}"')

    made = eight_at_once(tasks.create_partitions)

    assert sum(made) == len(missing)
    assert partitions() == whole
