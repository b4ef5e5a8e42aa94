"""PostgreSQL goes away in every way it can: nothing is lost, nothing is booked twice, and nobody waits long."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from billing.batcher import StoreUnavailable
from billing.budgets import Budget, BudgetWindow
from billing.holds import Bookkeeper, HoldRow
from billing.models import Hold, Price, UsageRecord
from tests import factories
from tests.bookings import eventually, hold, in_thread, usage
from tests.door import database_url
from tests.factories import Tenant
from tests.proxy import Mode, Proxy

REFUSED_S_MAX = 0.3  # P24


@pytest.fixture
def price(committed: None) -> Price:
    return factories.price(factories.unique("model"))


@pytest.fixture
async def proxy(committed: None) -> AsyncIterator[Proxy]:
    async with Proxy(database_url()) as proxy:
        yield proxy


def keeper(proxy: Proxy, directory: Path, **timeouts: float) -> Bookkeeper:
    defaults = {"reserve_timeout_s": 10, "settle_timeout_s": 10}
    return Bookkeeper(
        proxy.dsn,
        rows_max=64,
        queue_max=500,
        spool_directory=directory / "spool",
        **(defaults | timeouts),  # type: ignore[arg-type]
    )


@pytest.fixture
async def books(proxy: Proxy, tmp_path: Path) -> AsyncIterator[Bookkeeper]:
    """Books that are patient with a slow machine in reserving, and go to the spool soon."""
    async with running(keeper(proxy, tmp_path, settle_timeout_s=0.3), proxy) as books:
        yield books


@pytest.fixture
async def hasty(proxy: Proxy, tmp_path: Path) -> AsyncIterator[Bookkeeper]:
    """Books that wait a tenth of a second for a hold."""
    async with running(keeper(proxy, tmp_path, reserve_timeout_s=0.1), proxy) as books:
        yield books


@asynccontextmanager
async def running(books: Bookkeeper, proxy: Proxy) -> AsyncIterator[Bookkeeper]:
    await books.start()
    yield books
    proxy.set(Mode.PASS)
    await books.stop()


async def reserved(books: Bookkeeper, tenant: Tenant, price: Price) -> HoldRow:
    """Return a hold, trying for as long as the database is away."""
    async with asyncio.timeout(10):
        while True:
            row = hold(tenant, price, books)
            try:
                await books.reserve(row)
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            else:
                return row


async def refused_after_s(books: Bookkeeper, tenant: Tenant, price: Price) -> float:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await books.reserve(hold(tenant, price, books))
    return time.monotonic() - began


def sums(budget: Budget) -> tuple[int, int]:
    window = BudgetWindow.objects.get(budget=budget)
    return int(window.spent_pico), int(window.held_pico)


def booked(request_id: UUID) -> list[tuple[str, int]]:
    rows = UsageRecord.objects.filter(pk=request_id) | UsageRecord.objects.filter(
        adjusts_id=request_id
    )
    return list(rows.values_list("status", "amount_pico"))


async def test_an_answer_lost_after_its_commit_books_once(
    books: Bookkeeper, proxy: Proxy, alice: Tenant, price: Price
) -> None:
    budget = await in_thread(
        Budget.objects.create, organization=alice.organization, limit_micro=100_000
    )
    rows = [hold(alice, price, books) for _ in range(20)]

    proxy.commits_to_lose = 1
    await asyncio.gather(*map(books.reserve, rows))
    assert proxy.commits_to_lose == 0
    assert await in_thread(sums, budget) == (0, sum(row.amount_pico for row in rows))

    proxy.commits_to_lose = 1
    await asyncio.gather(*(books.settle(usage(row, amount_pico=7)) for row in rows))
    assert proxy.commits_to_lose == 0
    assert await in_thread(sums, budget) == (20 * 7, 0)
    assert await in_thread(UsageRecord.objects.filter(key=alice.key).count) == 20
    assert books.spooled == 0


@pytest.mark.parametrize("mode", [Mode.BLACKHOLE, Mode.RESET])
async def test_while_the_database_is_away_holds_are_refused_at_once_and_it_comes_back_by_itself(
    hasty: Bookkeeper, proxy: Proxy, alice: Tenant, price: Price, mode: Mode
) -> None:
    await reserved(hasty, alice, price)
    proxy.set(mode)

    assert await refused_after_s(hasty, alice, price) < REFUSED_S_MAX
    assert await refused_after_s(hasty, alice, price) < REFUSED_S_MAX / 3
    assert not hasty.is_up

    proxy.set(Mode.PASS)
    await reserved(hasty, alice, price)


async def test_a_hold_that_was_written_after_all_is_given_back(
    hasty: Bookkeeper, proxy: Proxy, alice: Tenant, price: Price
) -> None:
    proxy.set(Mode.BLACKHOLE)
    row = hold(alice, price, hasty)
    with pytest.raises(StoreUnavailable):
        await hasty.reserve(row)

    proxy.set(Mode.PASS)  # what was swallowed goes through now
    kept = await reserved(hasty, alice, price)

    await eventually(lambda: holds(alice) == {kept.request_id})


def holds(tenant: Tenant) -> set[UUID]:
    return set(Hold.objects.filter(key=tenant.key).values_list("pk", flat=True))


def backend_pids(books: Bookkeeper, kind: str = "reserve") -> set[int]:
    with psycopg.connect(database_url()) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        name = f"tessera {kind} {books.process_id.hex[:12]}"
        return {row[0] for row in connection.execute(query, [name])}


async def test_a_backend_that_is_stopped_counts_as_away(
    proxy: Proxy, tmp_path: Path, alice: Tenant, price: Price
) -> None:
    patience = {"reserve_timeout_s": 0.1, "silence_max_s": 0.5}
    async with running(keeper(proxy, tmp_path, **patience), proxy) as books:
        await reserved(books, alice, price)
        (pid,) = await asyncio.to_thread(backend_pids, books)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await refused_after_s(books, alice, price) < REFUSED_S_MAX
            kept = await reserved(books, alice, price)  # over a new connection
        finally:
            os.kill(pid, signal.SIGCONT)
        assert kept.request_id in await in_thread(holds, alice)
        await eventually(lambda: pid not in backend_pids(books))


async def test_what_is_settled_while_the_database_is_away_is_booked_once_it_is_back(
    books: Bookkeeper, proxy: Proxy, alice: Tenant, price: Price
) -> None:
    budget = await in_thread(
        Budget.objects.create, organization=alice.organization, limit_micro=100_000
    )
    rows = [hold(alice, price, books) for _ in range(10)]
    await asyncio.gather(*map(books.reserve, rows))
    proxy.set(Mode.BLACKHOLE)

    await asyncio.gather(*(books.settle(usage(row, amount_pico=7)) for row in rows[:9]))
    await books.void(rows[9].request_id)
    assert books.spooled == 10

    proxy.set(Mode.PASS)
    await eventually(lambda: books.spooled == 0)
    assert await in_thread(sums, budget) == (9 * 7, 0)
    assert await in_thread(booked, rows[0].request_id) == [("ok", 7)]
    assert await in_thread(booked, rows[9].request_id) == []


async def test_those_who_settle_later_do_not_wait_again(
    books: Bookkeeper, proxy: Proxy, alice: Tenant, price: Price
) -> None:
    rows = [hold(alice, price, books) for _ in range(2)]
    await asyncio.gather(*map(books.reserve, rows))
    proxy.set(Mode.RESET)
    await books.settle(usage(rows[0]))
    await asyncio.sleep(0.3)

    began = time.monotonic()
    await books.settle(usage(rows[1]))

    assert time.monotonic() - began < 0.2


async def test_a_process_that_stops_while_the_database_is_away_leaves_its_rows_in_the_spool(
    proxy: Proxy, tmp_path: Path, alice: Tenant, price: Price
) -> None:
    books = keeper(proxy, tmp_path, reserve_timeout_s=0.5, settle_timeout_s=0.1)
    await books.start()
    row = await reserved(books, alice, price)
    proxy.set(Mode.BLACKHOLE)
    await books.settle(usage(row))

    async with asyncio.timeout(7):
        await books.stop()

    assert str(row.request_id) in (tmp_path / f"spool/{books.process_id}.spool").read_text()


async def test_one_poisoned_row_is_put_aside_and_the_others_are_written(
    books: Bookkeeper, proxy: Proxy, tmp_path: Path, alice: Tenant, price: Price
) -> None:
    rows = [hold(alice, price, books) for _ in range(9)]
    usages = [usage(row) for row in rows]
    usages[4] = usage(rows[4], upstream_id="\0")  # JSON can say it, PostgreSQL's text cannot

    proxy.set(Mode.BLACKHOLE)  # so that they go in one batch
    await asyncio.gather(*map(books.settle, usages))
    proxy.set(Mode.PASS)
    await eventually(lambda: books.spooled == 0)

    assert await in_thread(UsageRecord.objects.filter(key=alice.key).count) == 8
    refused = (tmp_path / "spool" / f"{books.process_id}.refused").read_text()
    assert refused.count(str(rows[4].request_id)) == refused.count("\n") == 1


async def test_a_full_queue_sheds(proxy: Proxy, alice: Tenant, price: Price) -> None:
    books = Bookkeeper(
        proxy.dsn, rows_max=2, queue_max=3, reserve_timeout_s=0.5, settle_timeout_s=0.5
    )
    async with running(books, proxy):
        proxy.set(Mode.BLACKHOLE)
        outcomes = await asyncio.gather(
            *(books.reserve(hold(alice, price, books)) for _ in range(8)), return_exceptions=True
        )

    assert sum("too many rows" in str(outcome) for outcome in outcomes) == 5
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)


async def test_without_a_disk_nothing_is_reserved(
    proxy: Proxy, tmp_path: Path, alice: Tenant, price: Price
) -> None:
    (tmp_path / "spool").write_text("a file where the directory should be")
    async with running(keeper(proxy, tmp_path), proxy) as books:
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            await books.reserve(hold(alice, price, books))

        (tmp_path / "spool").unlink()
        await reserved(books, alice, price)
