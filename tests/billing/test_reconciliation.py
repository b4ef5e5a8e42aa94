"""What was left behind is booked once, and budgets that drifted from the ledger are found and put right."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from django.db import connection
from django.db.utils import IntegrityError
from django.utils import timezone

from billing import books, processes, reconciliation, spool
from billing.budgets import Budget, BudgetWindow
from billing.holds import RESERVE, HoldRow, UsageRow, VoidRow
from billing.models import GatewayProcess, Hold, Price, Reconciliation, UsageRecord
from tenants.models import AuditEntry
from tests import factories
from tests.bookings import hold_row, usage
from tests.console import run, run_json
from tests.factories import Tenant

pytestmark = pytest.mark.django_db

WORST = (20 * 10 + 80 * 30) * 1_000_000
COST = (20 * 10 + 30 * 30) * 1_000_000


@pytest.fixture
def acme() -> Tenant:
    return factories.tenant("acme")


@pytest.fixture
def price(acme: Tenant) -> Price:
    return factories.price(factories.unique("model"))


@pytest.fixture
def window(acme: Tenant, price: Price) -> BudgetWindow:
    budget = Budget.objects.create(organization=acme.organization, limit_micro=50_000)
    held(acme, price)
    return BudgetWindow.objects.get(budget=budget)


@pytest.fixture(autouse=True)
def directory(settings: Any, tmp_path: Path) -> Path:
    settings.SPOOL_DIR = tmp_path
    return tmp_path


def held(acme: Tenant, price: Price, **fields: Any) -> HoldRow:
    row = hold_row(acme, price, process_id=UUID(int=1), **{"amount_pico": WORST, **fields})
    with connection.cursor() as cursor:
        cursor.execute(RESERVE, [msgspec.json.encode([row]).decode()])
    return row


def leave_spool(directory: Path, *rows: UsageRow | VoidRow) -> Path:
    """Write the file of a process that is dead."""
    path = directory / f"{uuid4()}.spool"
    path.write_bytes(b"".join(spool._line(msgspec.json.encode(row)) for row in rows))
    return path


def test_the_spool_of_a_dead_process_is_booked_once_however_often_it_is_read(
    acme: Tenant, price: Price, directory: Path
) -> None:
    row, given_back = held(acme, price), held(acme, price)
    path = leave_spool(
        directory, usage(row, amount_pico=COST), VoidRow(request_id=given_back.request_id)
    )
    data = path.read_bytes()

    for _ in range(3):
        path.write_bytes(data)
        assert reconciliation.drain() == (2, 0)
        assert list(directory.iterdir()) == []

    assert UsageRecord.objects.get(key=acme.key).amount_pico == COST
    assert not Hold.objects.filter(key=acme.key).exists()
    assert books.check(acme.organization.pk) == []


def test_a_row_that_is_refused_is_kept_and_tried_again(
    acme: Tenant, price: Price, directory: Path
) -> None:
    good, bad = held(acme, price), held(acme, price)
    leave_spool(
        directory, usage(good, amount_pico=COST), usage(bad, amount_pico=COST, status="unheard-of")
    )

    assert reconciliation.drain() == (1, 1)
    (kept,) = directory.iterdir()
    assert kept.suffix == ".refused"
    assert reconciliation.drain() == (0, 1)

    kept.unlink()
    leave_spool(directory, usage(bad, amount_pico=COST)).rename(kept)
    assert reconciliation.drain() == (1, 0)
    assert list(directory.iterdir()) == []


def test_a_damaged_file_is_booked_as_far_as_it_can_be_read_and_kept(
    acme: Tenant, price: Price, directory: Path
) -> None:
    rows = [held(acme, price) for _ in range(2)]
    path = leave_spool(directory, *(usage(row, amount_pico=COST) for row in rows))
    path.write_bytes(path.read_bytes().replace(str(rows[0].request_id).encode(), b"0" * 36, 1))

    assert reconciliation.drain() == (1, 0)
    assert [each.suffix for each in directory.iterdir()] == [".damaged"]


def test_without_drift_nothing_is_said(window: BudgetWindow) -> None:
    assert window.pk not in {drift.window_id for drift in reconciliation.drifts()}


def test_drift_is_found_reported_and_with_fix_put_right(
    acme: Tenant, price: Price, window: BudgetWindow
) -> None:
    BudgetWindow.objects.filter(pk=window.pk).update(held_pico=WORST + 5, spent_tokens=3)

    found = run_json("reconcile")
    (drift,) = (each for each in found["drifts"] if each["window_id"] == window.pk)
    assert (drift["held_pico"], drift["spent_tokens"]) == ([WORST + 5, WORST], [3, 0])
    assert found["fixed"] == 0
    assert Reconciliation.objects.latest("id").drift_pico >= 5

    out, _ = run("reconcile", "--fix")
    assert "corrected" in out
    window.refresh_from_db()
    assert (int(window.held_pico), window.spent_tokens) == (WORST, 0)
    entry = AuditEntry.objects.get(action="budget.reconcile", organization=acme.organization)
    assert entry.actor.startswith("console:")
    assert entry.detail["held_pico"] == [WORST + 5, WORST]
    assert reconciliation.drifts([window.pk]) == []


def test_the_runs_are_append_only() -> None:
    reconciliation.run()

    with pytest.raises(IntegrityError, match="append-only"):
        Reconciliation.objects.update(drift_pico=0)


def test_holds_of_the_dead_are_settled_on_the_way(acme: Tenant, price: Price) -> None:
    row = held(acme, price, expires_at=timezone.now() - timedelta(seconds=1))

    assert reconciliation.run().reaped >= 1
    assert UsageRecord.objects.get(pk=row.request_id).status == "expired"


def test_a_process_says_that_it_lives_until_it_leaves() -> None:
    process_id = uuid4()
    processes.beat(process_id, "host")
    first = GatewayProcess.objects.get(pk=process_id)
    processes.beat(process_id, "host")
    second = GatewayProcess.objects.get(pk=process_id)

    assert second.started_at == first.started_at
    assert second.beat_at > first.beat_at
    processes.leave(process_id)
    assert not GatewayProcess.objects.filter(pk=process_id).exists()


def test_the_long_dead_are_forgotten() -> None:
    process_id = uuid4()
    processes.beat(process_id, "host")
    GatewayProcess.objects.filter(pk=process_id).update(beat_at=timezone.now() - timedelta(days=2))

    assert processes.forget() >= 1
    assert not GatewayProcess.objects.filter(pk=process_id).exists()
