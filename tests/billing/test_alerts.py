"""An alert is raised once in a window, whoever runs it, and armed again only when it makes sense."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import TypeVar

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now

from billing.budgets import Budget, BudgetWindow
from billing.models import Price
from billing.notifications import alerts
from billing.notifications.alerts import AlertKind
from tests import booked, factories
from tests.booked import UNIT_PICO
from tests.factories import Tenant

T = TypeVar("T")
TEN = 10_000_000  # ten units


def raised(budget: Budget) -> list[int | None]:
    """Raise what is due now; return the thresholds of which the budget's owner is told."""
    alerts.raise_due(now())
    told = budget.alerts.order_by("id")
    return [alert.threshold_percent for alert in told]


def eight_at_once(call: Callable[[], T]) -> list[T]:
    together = Barrier(8)

    def run(_: int) -> T:
        together.wait()
        try:
            return call()
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(run, range(8)))


def test_each_threshold_is_told_once(acme: Tenant, vlm: Price) -> None:
    budget = booked.budget(acme, limit_micro=TEN)
    told = []
    for units in (4, 1, 0, 3, 1, 1):
        booked.spend(acme, vlm, units)
        told.append(raised(budget))

    assert told == [[], [50], [50], [50, 80], [50, 80], [50, 80, 100]]


def test_a_leap_over_two_thresholds_is_one_alert_with_its_figures(acme: Tenant, vlm: Price) -> None:
    budget = booked.budget(acme, limit_micro=TEN, limit_tokens=1000)
    booked.spend(acme, vlm, 9)

    assert raised(budget) == [80]
    alert = budget.alerts.get()
    assert (alert.organization, alert.kind) == (acme.organization, AlertKind.THRESHOLD)
    assert (int(alert.spent_pico), alert.limit_micro) == (9 * UNIT_PICO, TEN)
    assert (alert.spent_tokens, alert.limit_tokens) == (100, 1000)


def test_tokens_count_as_money_does(acme: Tenant, vlm: Price) -> None:
    budget = booked.budget(acme, limit_micro=10**12, limit_tokens=200)
    booked.spend(acme, vlm, 1)

    assert raised(budget) == [50]


def test_what_is_held_is_not_spent(acme: Tenant, vlm: Price) -> None:
    budget = booked.budget(acme, limit_micro=TEN)
    for _ in range(10):
        booked.hold(acme, vlm)

    assert raised(budget) == []


def test_a_raised_limit_arms_the_threshold_again_only_if_it_is_well_below(
    acme: Tenant, vlm: Price
) -> None:
    budget = booked.budget(acme, limit_micro=TEN)
    booked.spend(acme, vlm, 8)
    told = []
    for limit_micro in (TEN, 10_500_000, TEN, 12_000_000, TEN):  # 80, 76.2, 80, 66.7, 80 %
        Budget.objects.filter(pk=budget.pk).update(limit_micro=limit_micro)
        told.append(raised(budget))

    assert told == [[80], [80], [80], [80], [80, 80]]


def test_another_window_is_told_of_anew(acme: Tenant, vlm: Price) -> None:
    budget = booked.budget(acme, limit_micro=TEN, period="day")
    booked.spend(acme, vlm, 6)
    assert raised(budget) == [50]

    today = booked.window(budget)
    yesterday = {"starts_at": today.starts_at - timedelta(days=1), "ends_at": today.starts_at}
    BudgetWindow.objects.create(
        **{field.attname: getattr(today, field.attname) for field in today._meta.concrete_fields}
        | yesterday
        | {"id": None, "alerted_percent": 0}
    )

    assert raised(budget) == [50, 50]


@pytest.mark.parametrize("fields", [{"is_active": False}, {"alert_percents": []}])
def test_nobody_is_told_of_a_budget_without_thresholds_or_that_was_removed(
    acme: Tenant, vlm: Price, fields: dict[str, object]
) -> None:
    budget = booked.budget(acme, limit_micro=TEN)
    booked.spend(acme, vlm, 9)
    Budget.objects.filter(pk=budget.pk).update(**fields)

    assert raised(budget) == []


def test_eight_that_raise_at_once_raise_one_alert_of_each_kind(alice: Tenant) -> None:
    price = factories.price(factories.unique("vlm"))
    budget = booked.budget(alice, limit_micro=TEN)
    booked.settle(booked.hold(alice, price), amount_pico=9 * UNIT_PICO)

    outcomes = eight_at_once(lambda: alerts.raise_due(now()))

    ours = [alert.kind for each in outcomes for alert in each if alert.budget_id == budget.pk]
    assert sorted(ours) == ["overage", "threshold"]
    assert budget.alerts.count() == 2


def test_an_overage_is_told_once_in_a_window_with_its_first_request(
    acme: Tenant, vlm: Price
) -> None:
    budget = booked.budget(acme, limit_micro=100 * TEN)
    booked.spend(acme, vlm, 1)
    assert raised(budget) == []

    over = [booked.hold(acme, vlm) for _ in range(2)]
    for number, held in enumerate(over, 2):
        booked.settle(held, amount_pico=number * UNIT_PICO)
        raised(budget)

    alert = budget.alerts.get()
    assert (alert.kind, alert.request_id) == (AlertKind.OVERAGE, over[0].request_id)
    assert (alert.overage_pico, alert.threshold_percent) == (UNIT_PICO, None)


def test_every_budget_over_the_key_is_told_of_an_overage_and_no_other(
    acme: Tenant, vlm: Price
) -> None:
    charlie = factories.tenant("charlie")
    levels = [booked.budget(acme, level=level, limit_micro=100 * TEN) for level in ("team", "key")]
    foreign = booked.budget(charlie, limit_micro=100 * TEN)
    booked.spend(charlie, vlm, 1)

    booked.settle(booked.hold(acme, vlm), amount_pico=2 * UNIT_PICO)

    alerts.raise_due(now())
    assert [budget.alerts.count() for budget in (*levels, foreign)] == [1, 1, 0]


def test_an_alert_is_never_changed(acme: Tenant, vlm: Price) -> None:
    budget = booked.budget(acme, limit_micro=TEN)
    booked.spend(acme, vlm, 9)
    raised(budget)

    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        budget.alerts.update(spent_tokens=0)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        budget.alerts.all()._raw_delete("default")
