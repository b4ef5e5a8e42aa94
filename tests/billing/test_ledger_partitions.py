"""The ledger by month: where rows lie, and that nobody changes them there either."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils.timezone import now

from billing import ledger, tasks
from billing.models import Price, UsageRecord
from gateway.request_ids import new_request_id
from tests import booked
from tests.factories import Tenant

pytestmark = pytest.mark.django_db


def query(statement: str, *values: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return [row[0] for row in cursor.fetchall()] if cursor.description else []


def partitions() -> list[str]:
    return query(
        "SELECT inhrelid::regclass::text FROM pg_inherits "
        "WHERE inhparent = 'billing_usagerecord'::regclass ORDER BY 1"
    )


def name_of(month: datetime) -> str:
    return f"billing_usagerecord_y{month:%Y}m{month:%m}"


def book(tenant: Tenant, price: Price) -> UsageRecord:
    held = booked.hold(tenant, price)
    booked.settle(held)
    return UsageRecord.objects.get(pk=held.request_id)


def test_there_are_partitions_for_this_month_and_the_next_three() -> None:
    month = datetime.now(UTC).replace(day=1)
    expected = []
    for _ in range(4):
        expected.append(name_of(month))
        month = (month + timedelta(days=32)).replace(day=1)

    assert set(expected) <= set(partitions())
    assert "billing_usagerecord_default" in partitions()


def test_a_request_lies_in_the_month_of_its_id(acme: Tenant, vlm: Price) -> None:
    record = book(acme, vlm)

    (place,) = query(
        "SELECT tableoid::regclass::text FROM billing_usagerecord WHERE request_id = %s", record.pk
    )
    assert place == name_of(now())


def test_partitions_are_made_ahead_once(settings: Any) -> None:
    before = partitions()

    assert ledger.create_partitions(months_ahead=5) == 2
    assert ledger.create_partitions(months_ahead=5) == 0
    assert tasks.create_partitions() == 0
    assert len(partitions()) == len(before) + 2


def test_a_month_whose_rows_went_elsewhere_stays_there(acme: Tenant, vlm: Price) -> None:
    record = book(acme, vlm)
    (far,) = query("SELECT billing_id_at(now() + interval '7 months')")
    record.pk = far
    record.save(force_insert=True)

    assert ledger.create_partitions(months_ahead=8) == 4
    (place,) = query(
        "SELECT tableoid::regclass::text FROM billing_usagerecord WHERE request_id = %s", far
    )
    assert place == "billing_usagerecord_default"


@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET amount_pico = 0", "DELETE FROM {}", "TRUNCATE {}"]
)
def test_no_partition_can_be_changed_by_its_owner(statement: str) -> None:
    ledger.create_partitions(months_ahead=5)
    for name in ["billing_usagerecord", *partitions()]:
        with pytest.raises(DatabaseError, match="is append-only"), transaction.atomic():
            query(statement.format(name))


def test_a_request_is_booked_once_over_all_partitions(acme: Tenant, vlm: Price) -> None:
    held = booked.hold(acme, vlm)
    booked.settle(held)
    booked.settle(held)

    assert UsageRecord.objects.filter(pk=held.request_id).count() == 1
    with pytest.raises(DatabaseError, match="duplicate key"), transaction.atomic():
        UsageRecord.objects.get(pk=held.request_id).save(force_insert=True)


def test_one_request_is_looked_up_in_one_partition() -> None:
    plan = query(
        "EXPLAIN SELECT * FROM billing_usagerecord WHERE request_id = %s", new_request_id()
    )

    assert sum("billing_usagerecord_" in line for line in plan) == 1, plan
