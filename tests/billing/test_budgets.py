"""Budgets hold at every instant: `spent + held <= limit`, whoever comes and however many."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection

from billing.budgets import Budget, BudgetWindow
from billing.holds import Bookkeeper, BudgetExceeded, HoldRow
from billing.models import Hold, Price, UsageRecord
from tests import factories
from tests.bookings import ESTIMATE, hold, in_thread, usage
from tests.door import database_url
from tests.factories import Tenant


@pytest.fixture
def price(committed: None) -> Price:
    return factories.price(factories.unique("model"))


@pytest.fixture
async def books(committed: None) -> AsyncIterator[Bookkeeper]:
    books = Bookkeeper(
        database_url(), rows_max=64, queue_max=5000, reserve_timeout_s=10, settle_timeout_s=10
    )
    await books.start()
    yield books
    await books.stop()


def window(budget: Budget) -> BudgetWindow:
    return BudgetWindow.objects.get(budget=budget)


def sums(budget: Budget) -> tuple[int, int, int, int]:
    row = window(budget)
    return (int(row.spent_pico), int(row.held_pico), row.spent_tokens, row.held_tokens)


async def admitted(books: Bookkeeper, rows: list[HoldRow]) -> int:
    outcomes = await asyncio.gather(*(books.reserve(row) for row in rows), return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, BudgetExceeded) for outcome in outcomes), (
        outcomes
    )
    return sum(outcome is None for outcome in outcomes)


def budget(tenant: Tenant, *, level: str = "organization", **fields: Any) -> Budget:
    owners: dict[str, dict[str, Any]] = {
        "organization": {},
        "team": {"team": tenant.team},
        "key": {"team": tenant.team, "key": tenant.key},
    }
    return Budget.objects.create(organization=tenant.organization, **owners[level], **fields)


@pytest.mark.parametrize("level", ["organization", "team", "key"])
@pytest.mark.parametrize(
    ("limit_micro", "count"),
    [(0, 0), (999, 0), (1000, 1), (37_000, 37), (37_999, 37), (400_000, 60)],
)
async def test_as_many_are_admitted_as_fit(
    books: Bookkeeper, alice: Tenant, price: Price, level: str, limit_micro: int, count: int
) -> None:
    stands = await in_thread(budget, alice, level=level, limit_micro=limit_micro)

    rows = [hold(alice, price, books) for _ in range(60)]

    assert await admitted(books, rows) == count
    assert (await in_thread(sums, stands))[1] == count * ESTIMATE


async def test_the_narrowest_room_of_all_levels_decides(
    books: Bookkeeper, alice: Tenant, price: Price
) -> None:
    outer = await in_thread(budget, alice, limit_micro=50_000)
    await in_thread(budget, alice, level="team", limit_tokens=1000)
    inner = await in_thread(budget, alice, level="key", limit_micro=20_000, period="day")

    assert await admitted(books, [hold(alice, price, books) for _ in range(40)]) == 10
    assert await in_thread(sums, outer) == (0, 10 * ESTIMATE, 0, 1000)
    assert await in_thread(sums, inner) == (0, 10 * ESTIMATE, 0, 1000)


async def test_a_refusal_says_which_budget_and_what_is_left(
    books: Bookkeeper, alice: Tenant, price: Price
) -> None:
    stands = await in_thread(budget, alice, level="team", limit_micro=1500, name="pilot")
    await books.reserve(hold(alice, price, books))

    with pytest.raises(BudgetExceeded) as caught:
        await books.reserve(hold(alice, price, books))

    refusal = caught.value.refusal
    assert (refusal.budget_id, refusal.level, refusal.unit, refusal.name) == (
        stands.pk,
        "team",
        "money",
        "pilot",
    )
    assert (refusal.limit, refusal.held, refusal.spent, refusal.needed) == (
        1_500_000_000,
        ESTIMATE,
        0,
        ESTIMATE,
    )
    assert refusal.resets_at is not None


async def test_settling_moves_money_from_held_to_spent(
    books: Bookkeeper, alice: Tenant, price: Price
) -> None:
    stands = await in_thread(budget, alice, limit_micro=10_000)
    held = hold(alice, price, books)
    await books.reserve(held)

    await books.settle(usage(held, amount_pico=300_000_000))

    assert await in_thread(sums, stands) == (300_000_000, 0, 50, 0)


async def test_a_void_gives_all_of_it_back(books: Bookkeeper, alice: Tenant, price: Price) -> None:
    stands = await in_thread(budget, alice, limit_micro=10_000)
    held = hold(alice, price, books)
    await books.reserve(held)

    await books.void(held.request_id)

    assert await in_thread(sums, stands) == (0, 0, 0, 0)


async def test_what_is_sent_twice_counts_once(
    books: Bookkeeper, alice: Tenant, price: Price
) -> None:
    stands = await in_thread(budget, alice, limit_micro=10_000)
    held = hold(alice, price, books)

    for _ in range(3):
        await books.reserve(held)
    for _ in range(3):
        await books.settle(usage(held, amount_pico=300_000_000))

    assert await in_thread(sums, stands) == (300_000_000, 0, 50, 0)
    assert await in_thread(UsageRecord.objects.filter(key=alice.key).count) == 1


async def test_a_cap_keeps_one_hold_from_taking_all(
    books: Bookkeeper, alice: Tenant, price: Price
) -> None:
    stands = await in_thread(budget, alice, limit_micro=1000, hold_micro_max=100)
    rows = [hold(alice, price, books) for _ in range(15)]

    assert await admitted(books, rows) == 10
    await books.settle(usage(rows[0], amount_pico=ESTIMATE))

    spent, held, *_ = await in_thread(sums, stands)
    assert (spent, held) == (ESTIMATE, 900_000_000)


async def test_what_was_booked_before_a_budget_stood_counts_in_its_window(
    books: Bookkeeper, alice: Tenant, price: Price
) -> None:
    held = hold(alice, price, books)
    await books.reserve(held)
    await books.settle(usage(held, amount_pico=700_000_000))
    stands = await in_thread(budget, alice, limit_micro=1600)

    with pytest.raises(BudgetExceeded):
        await books.reserve(hold(alice, price, books))

    assert (await in_thread(sums, stands))[0] == 700_000_000


async def test_a_budget_of_another_key_is_not_touched(
    books: Bookkeeper, alice: Tenant, bob: Tenant, charlie: Tenant, price: Price
) -> None:
    await in_thread(budget, bob, level="key", limit_micro=0)
    await in_thread(budget, charlie, limit_micro=0)

    assert await admitted(books, [hold(alice, price, books) for _ in range(3)]) == 3


def reap(seconds: float) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_reap(make_interval(secs => %s), 1000)", [seconds])
        return int(cursor.fetchone()[0])


async def test_holds_of_a_dead_process_are_settled_for_the_prompt_and_corrected_by_the_truth(
    books: Bookkeeper, alice: Tenant, price: Price
) -> None:
    stands = await in_thread(budget, alice, limit_micro=10_000)
    held = hold(alice, price, books, expires_at=datetime.now(UTC))
    await books.reserve(held)

    await asyncio.gather(*(in_thread(reap, 3600) for _ in range(3)))
    assert await in_thread(sums, stands) == (200_000_000, 0, 20, 0)

    for _ in range(2):
        await books.settle(usage(held, amount_pico=650_000_000))

    assert await in_thread(sums, stands) == (650_000_000, 0, 50, 0)
    rows: list[UsageRecord] = await in_thread(
        list, UsageRecord.objects.filter(key=alice.key).order_by("kind")
    )
    assert [(row.kind, row.status, row.amount_pico) for row in rows] == [
        ("adjustment", "ok", 450_000_000),
        ("usage", "expired", 200_000_000),
    ]
    assert not await in_thread(Hold.objects.filter(key=alice.key).exists)
