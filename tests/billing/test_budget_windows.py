"""A window opens with what was booked before its budget stood, counted once, and no request waits for that sum."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction

from billing import books as invariants
from billing.budgets import Budget, BudgetWindow
from billing.holds import Bookkeeper
from billing.models import Price
from tests import factories
from tests.booked import UNIT_PICO, budget, hold, settle, spend, window
from tests.bookings import hold_row, in_thread, usage
from tests.door import database_url
from tests.factories import Tenant

pytestmark = pytest.mark.usefixtures("committed")
LIMIT_MICRO = 1000 * 10**6


@pytest.fixture
def price() -> Price:
    return factories.price(factories.unique("model"))


def spent(budget: Budget) -> float:
    return int(window(budget).spent_pico) / UNIT_PICO


def held(budget: Budget) -> float:
    return int(window(budget).held_pico) / UNIT_PICO


def broken(tenant: Tenant) -> list[str]:
    """Return what is wrong with the windows; the amounts here are round, not rated."""
    found = [violation.invariant for violation in invariants.check(tenant.organization.pk)]
    return [name for name in found if "window" in name]


@pytest.mark.parametrize("level", ["organization", "team", "key"])
def test_what_was_booked_before_is_spent_at_once(alice: Tenant, price: Price, level: str) -> None:
    spend(alice, price, 3)

    stands = budget(alice, level=level, limit_micro=LIMIT_MICRO)

    assert spent(stands) == 3


def test_what_another_owner_booked_is_not(alice: Tenant, charlie: Tenant, price: Price) -> None:
    spend(charlie, price, 3)

    assert spent(budget(alice, limit_micro=LIMIT_MICRO)) == 0


def test_a_request_that_runs_is_held_and_counts_when_it_settles(
    alice: Tenant, price: Price
) -> None:
    running = hold(alice, price, amount_pico=5 * UNIT_PICO)

    stands = budget(alice, limit_micro=LIMIT_MICRO, hold_micro_max=2 * 10**6)
    assert (spent(stands), held(stands)) == (0, 2)
    settle(running, amount_pico=4 * UNIT_PICO)

    assert (spent(stands), held(stands)) == (4, 0)
    assert broken(alice) == []


def test_one_that_passes_the_new_budget_is_explained(alice: Tenant, price: Price) -> None:
    running = hold(alice, price, amount_pico=5 * UNIT_PICO)
    budget(alice, limit_micro=10**6)
    assert broken(alice) == []

    settle(running, amount_pico=5 * UNIT_PICO)

    assert broken(alice) == []
    (overrun,) = invariants.overruns(alice.organization.pk)
    assert overrun.reasons == ("requests ran when the budget was set",)


@pytest.mark.parametrize("period", ["day", "month"])
def test_the_next_window_starts_from_nothing_and_reads_no_ledger(
    alice: Tenant, price: Price, period: str
) -> None:
    spend(alice, price, 3)
    stands = budget(alice, limit_micro=LIMIT_MICRO, period=period)

    with transaction.atomic():
        before = scans_of_the_ledger()
        open_windows(alice, datetime.now(UTC) + timedelta(days=32))
        assert scans_of_the_ledger() == before

    first, second = BudgetWindow.objects.filter(budget=stands).order_by("starts_at")
    assert (int(first.spent_pico), int(second.spent_pico)) == (3 * UNIT_PICO, 0)
    assert first.ends_at is not None
    assert second.starts_at >= first.ends_at


def test_windows_that_overlap_count_what_was_booked_in_both(alice: Tenant, price: Price) -> None:
    """The organization moves west, so that its new day begins before the old one has ended."""
    stands = budget(alice, limit_micro=LIMIT_MICRO, period="day")
    spend(alice, price, 3)
    old = window(stands)
    BudgetWindow.objects.filter(pk=old.pk).update(
        starts_at=old.starts_at - timedelta(days=1), ends_at=datetime.now(UTC)
    )

    open_windows(alice, datetime.now(UTC) + timedelta(seconds=1))

    newest = BudgetWindow.objects.filter(budget=stands).latest("starts_at")
    assert (newest.pk != old.pk, int(newest.spent_pico)) == (True, 3 * UNIT_PICO)


def test_what_is_used_while_a_budget_is_switched_off_does_not_count(
    alice: Tenant, price: Price
) -> None:
    stands = budget(alice, limit_micro=LIMIT_MICRO)
    spend(alice, price, 1)
    Budget.objects.filter(pk=stands.pk).update(is_active=False)
    spend(alice, price, 10)
    Budget.objects.filter(pk=stands.pk).update(is_active=True)
    spend(alice, price, 100)

    assert spent(stands) == 101
    assert broken(alice) == []


def test_a_budget_is_set_when_it_is_switched_on_for_the_first_time(
    alice: Tenant, price: Price
) -> None:
    stands = budget(alice, limit_micro=LIMIT_MICRO, is_active=False)
    spend(alice, price, 10)

    Budget.objects.filter(pk=stands.pk).update(is_active=True)

    assert spent(stands) == 10


def test_a_record_without_a_hold_finds_its_window_open(alice: Tenant, price: Price) -> None:
    stands = budget(alice, limit_micro=LIMIT_MICRO)
    BudgetWindow.objects.filter(budget=stands).delete()
    settle(hold_row(alice, price, process_id=hold(alice, price).request_id, amount_pico=UNIT_PICO))

    assert spent(stands) == 1


@pytest.fixture
async def bookkeeper() -> AsyncIterator[Bookkeeper]:
    books = Bookkeeper(
        database_url(), rows_max=8, queue_max=5000, reserve_timeout_s=20, settle_timeout_s=20
    )
    await books.start()
    yield books
    await books.stop()


async def test_bookings_wait_while_a_budget_is_set_and_are_counted_in_it(
    alice: Tenant, price: Price, bookkeeper: Bookkeeper
) -> None:
    """Between the sum and the commit nothing is reserved or settled; afterwards all of it counts."""
    early, late = (hold_row(alice, price, process_id=bookkeeper.process_id) for _ in range(2))
    await bookkeeper.reserve(early)
    is_summed, may_commit = threading.Event(), threading.Event()
    setting = asyncio.create_task(in_thread(set_slowly, alice, is_summed, may_commit))
    await asyncio.to_thread(is_summed.wait, 10)
    booking = asyncio.gather(
        bookkeeper.settle(usage(early, amount_pico=early.amount_pico)), bookkeeper.reserve(late)
    )
    await asyncio.wait({booking}, timeout=0.3)
    assert not booking.done()

    may_commit.set()
    stands = await setting
    await booking

    row = await in_thread(window, stands)
    assert (int(row.spent_pico), int(row.held_pico)) == (early.amount_pico, late.amount_pico)


def set_slowly(tenant: Tenant, summed: threading.Event, may_commit: threading.Event) -> Budget:
    with transaction.atomic():
        stands = budget(tenant, limit_micro=LIMIT_MICRO)
        summed.set()
        assert may_commit.wait(10)
    return stands


async def test_budgets_set_under_load_count_everything_once(
    alice: Tenant, price: Price, bookkeeper: Bookkeeper
) -> None:
    """What is booked before, while and after they are set: each has spent the whole ledger in the end."""
    is_over = asyncio.Event()

    async def ask() -> None:
        while not is_over.is_set():
            held = hold_row(alice, price, process_id=bookkeeper.process_id)
            await bookkeeper.reserve(held)
            await asyncio.sleep(0.001)
            await bookkeeper.settle(usage(held, amount_pico=held.amount_pico))

    asking = [asyncio.create_task(ask()) for _ in range(16)]
    for level in ("organization", "team", "key") * 4:
        await asyncio.sleep(0.02)
        await in_thread(budget, alice, level=level, limit_micro=10**12)
    is_over.set()
    await asyncio.gather(*asking)

    def sums() -> set[tuple[int, int]]:
        windows = BudgetWindow.objects.filter(budget__organization=alice.organization)
        return {(int(row.spent_pico), int(row.held_pico)) for row in windows}

    assert await in_thread(sums) == {(await in_thread(booked, alice), 0)}
    assert await in_thread(broken, alice) == []


def booked(tenant: Tenant) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(amount_pico) FROM billing_usagerecord WHERE organization_id = %s",
            [tenant.organization.pk],
        )
        return int(cursor.fetchone()[0])


def open_windows(tenant: Tenant, at: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT billing_open_windows(%s, %s, %s, %s)",
            [[tenant.organization.pk], [tenant.team.pk], [tenant.key.pk], at],
        )


def scans_of_the_ledger() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq_scan + idx_scan FROM pg_stat_xact_user_tables"
            " WHERE relname = 'billing_usagerecord'"
        )
        return int(cursor.fetchone()[0])
