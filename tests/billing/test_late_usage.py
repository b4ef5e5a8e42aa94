"""Usage that comes after its period was closed goes to the next open one, and a closed one never changes."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from django.db import connection
from django.db.models import Sum
from django.utils.timezone import now

from billing.accounts import Account
from billing.models import Price, UsageRecord
from tests import booked, factories
from tests.factories import Tenant

RECEIVED = datetime(2026, 1, 31, 15, 59, 59, tzinfo=UTC)
CLOSED = datetime(2026, 1, 31, 16, tzinfo=UTC)  # midnight in Taipei
MARGIN_S = 0.25  # for a statement on this machine; in production CLOSE_MARGIN_S


def record(tenant: Tenant, kind: str = "usage") -> UsageRecord:
    return UsageRecord.objects.get(organization=tenant.organization, kind=kind)


def close(tenant: Tenant) -> None:
    assert Account.of(tenant.organization).close(CLOSED)


def reap() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_reap('1 hour', 1000)")


def test_usage_is_billed_when_it_was_received(acme: Tenant, vlm: Price) -> None:
    booked.settle(booked.hold(acme, vlm, received_at=RECEIVED))

    assert record(acme).billed_at == RECEIVED
    assert not record(acme).is_late


def test_an_account_that_closed_nothing_changes_nothing(acme: Tenant, vlm: Price) -> None:
    Account.of(acme.organization)
    booked.settle(booked.hold(acme, vlm, received_at=RECEIVED))

    assert not record(acme).is_late


def test_what_is_settled_after_the_close_is_late(acme: Tenant, vlm: Price) -> None:
    held = booked.hold(acme, vlm, received_at=RECEIVED)
    close(acme)

    booked.settle(held)

    assert (record(acme).billed_at, record(acme).received_at) == (CLOSED, RECEIVED)
    assert record(acme).is_late


def test_what_is_reaped_after_the_close_is_late(acme: Tenant, vlm: Price) -> None:
    booked.hold(acme, vlm, received_at=RECEIVED, expires_at=now() - timedelta(seconds=1))
    close(acme)

    reap()

    assert record(acme).status == "expired"
    assert record(acme).billed_at == CLOSED


def test_an_estimate_stays_in_its_period_and_the_truth_goes_to_the_next(
    acme: Tenant, vlm: Price
) -> None:
    expiry = now() - timedelta(seconds=1)
    held = booked.hold(acme, vlm, received_at=RECEIVED, expires_at=expiry)
    reap()
    close(acme)

    booked.settle(held)

    assert record(acme).billed_at == RECEIVED
    assert record(acme, "adjustment").billed_at == CLOSED
    assert record(acme, "adjustment").is_late


def test_an_adjustment_before_the_close_is_in_the_period_of_its_estimate(
    acme: Tenant, vlm: Price
) -> None:
    expiry = now() - timedelta(seconds=1)
    held = booked.hold(acme, vlm, received_at=RECEIVED, expires_at=expiry)
    reap()

    booked.settle(held)

    assert record(acme, "adjustment").billed_at == RECEIVED


def test_the_next_period_and_other_organizations_are_not_late(acme: Tenant, vlm: Price) -> None:
    other = factories.tenant("other")
    close(acme)

    booked.settle(booked.hold(acme, vlm, received_at=CLOSED))
    booked.settle(booked.hold(other, vlm, received_at=RECEIVED))

    assert not record(acme).is_late
    assert not record(other).is_late


def test_a_closed_period_never_changes_while_bookings_go_on(alice: Tenant) -> None:
    """Closers and writers at once: what was billed before the close adds up to the same for good."""
    price = factories.price(factories.unique("vlm"))
    until = time.monotonic() + 4
    closed: dict[datetime, int] = {}

    def write() -> None:
        while time.monotonic() < until:
            booked.settle(booked.hold(alice, price))

    def close() -> None:
        account = Account.of(alice.organization)
        while time.monotonic() < until:
            end = now()
            account.close(end)
            time.sleep(MARGIN_S)
            closed[end] = spent_before(alice, end)

    in_threads(write, write, write, close)

    assert len(closed) > 5
    assert closed == {end: spent_before(alice, end) for end in closed}
    records = UsageRecord.objects.filter(organization=alice.organization)
    assert any(record.is_late for record in records)


def spent_before(tenant: Tenant, end: datetime) -> int:
    before = UsageRecord.objects.filter(organization=tenant.organization, billed_at__lt=end)
    return int(before.aggregate(pico=Sum("amount_pico"))["pico"] or 0)


def in_threads(*calls: Callable[[], None]) -> None:
    def closing(call: Callable[[], None]) -> None:
        try:
            call()
        finally:
            connection.close()

    threads = [threading.Thread(target=closing, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
