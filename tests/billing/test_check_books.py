"""check_books finds what is wrong. Each invariant is broken by hand, with the triggers off, and must be named."""

import json
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import UUID

import msgspec
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from billing import books, ledger
from billing.budgets import Budget, BudgetWindow
from billing.holds import RESERVE, SETTLE, HoldRow, UsageRow
from billing.models import Hold, Price, UsageRecord
from billing.periods import Period
from gateway.request_ids import new_request_id
from tenants.models import AuditEntry
from tests import factories
from tests.bookings import hold_row, usage
from tests.console import run
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
def budget(acme: Tenant) -> Budget:
    return Budget.objects.create(
        organization=acme.organization, limit_micro=50_000, limit_tokens=10_000
    )


def call(function: str, *rows: HoldRow | UsageRow) -> None:
    with connection.cursor() as cursor:
        cursor.execute(function, [msgspec.json.encode(rows).decode()])


def held(acme: Tenant, price: Price, **fields: Any) -> HoldRow:
    row = hold_row(acme, price, process_id=UUID(int=1), **{"amount_pico": WORST, **fields})
    call(RESERVE, row)
    return row


def booked(acme: Tenant, price: Price, **fields: Any) -> UsageRow:
    row = usage(held(acme, price), **{"amount_pico": COST, **fields})
    call(SETTLE, row)
    return row


def expired(acme: Tenant, price: Price) -> HoldRow:
    row = held(acme, price, expires_at=timezone.now() - timedelta(seconds=1))
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_reap('1 hour', 1000)")
    return row


def by_hand(sql: str, *parameters: Any) -> None:
    """Do what the triggers forbid."""
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        try:
            cursor.execute(sql, parameters)
            assert cursor.rowcount > 0
        finally:
            cursor.execute("SET session_replication_role = origin")


def broken(acme: Tenant) -> set[str]:
    """Return what is wrong; of all that was ever booked, and of these days, in which all of it was."""
    at = timezone.now().replace(minute=0, second=0, microsecond=0)
    these_days = Period(at - timedelta(days=2), at + timedelta(days=2))
    found = {violation.invariant for violation in books.check(acme.organization.pk)}
    assert {each.invariant for each in books.check(acme.organization.pk, these_days)} == found
    return found


@pytest.fixture(autouse=True)
def whole_books(acme: Tenant, price: Price, budget: Budget) -> None:
    """Something of everything, and all of it right."""
    booked(acme, price)
    booked(acme, price, status="client_closed", policy="prompt", amount_pico=20 * 10_000_000)
    booked(acme, price, status="backend_error", policy="nothing", amount_pico=0)
    held(acme, price)
    call(SETTLE, usage(expired(acme, price), amount_pico=COST))
    expired(acme, price)
    assert books.check(acme.organization.pk) == []


def test_books_that_are_right_are_said_to_be(acme: Tenant) -> None:
    out, _ = run("check_books", "--organization", acme.organization.slug)

    assert out == f"✓ {len(books.INVARIANTS)} promises hold.\n"


def test_the_command_names_what_is_broken_and_fails(acme: Tenant) -> None:
    by_hand("UPDATE billing_usagerecord SET amount_pico = amount_pico + 1 WHERE kind = 'usage'")

    with pytest.raises(CommandError, match="window_spent_is_the_ledger, amount_is_rated"):
        run("check_books", "--organization", acme.organization.slug)


def test_at_most_ten_examples_are_shown_of_all_that_are_counted(acme: Tenant, price: Price) -> None:
    for _ in range(12):
        booked(acme, price, amount_pico=1)

    (violation,) = books.check(acme.organization.pk)
    assert (violation.count, len(violation.examples)) == (12, 10)


def test_what_is_billed_in_another_period_is_not_looked_at(acme: Tenant) -> None:
    by_hand("UPDATE billing_usagerecord SET policy = 'nothing' WHERE kind = 'usage'")
    at = timezone.now().replace(minute=0, second=0, microsecond=0)

    assert "amount_is_rated" in broken(acme)
    assert (
        books.check(acme.organization.pk, Period(at - timedelta(days=9), at - timedelta(days=5)))
        == []
    )


def test_another_organization_is_not_looked_at(acme: Tenant) -> None:
    by_hand("UPDATE billing_usagerecord SET amount_pico = 1 WHERE kind = 'usage'")

    assert books.check(factories.tenant("other").organization.pk) == []


MINE = "organization_id = (SELECT max(id) FROM tenants_organization)"
ONE_USAGE = (
    "request_id = (SELECT min(request_id::text)::uuid FROM billing_usagerecord "
    f"WHERE status = 'ok' AND kind = 'usage' AND {MINE})"
)


@pytest.mark.parametrize(
    ("names", "sql"),
    [
        (
            {"window_spent_is_the_ledger"},
            "UPDATE billing_budgetwindow SET spent_pico = spent_pico - 1",
        ),
        ({"window_spent_is_the_ledger"}, "UPDATE billing_budgetwindow SET spent_tokens = 0"),
        (
            {"window_held_is_the_holds"},
            "UPDATE billing_budgetwindow SET held_pico = held_pico + 1",
        ),
        ({"window_held_is_the_holds"}, "UPDATE billing_hold SET window_tokens = '{7}'"),
        (
            {"amount_is_rated", "window_spent_is_the_ledger"},
            f"UPDATE billing_usagerecord SET amount_pico = amount_pico + 1 WHERE {ONE_USAGE}",
        ),
        (
            {"amount_is_rated"},
            f"UPDATE billing_usagerecord SET policy = 'prompt' WHERE {ONE_USAGE}",
        ),
        (
            {"amount_is_rated"},
            "UPDATE billing_price SET out_micro = out_micro + 1",
        ),
        (
            {"adjustment_follows_an_estimate", "amount_is_rated"},
            "UPDATE billing_usagerecord SET status = 'ok', policy = 'delivered', tokens_in_text = tokens_in_text + 1 "
            "WHERE status = 'expired'",
        ),
        (
            {"adjustment_follows_an_estimate"},
            "UPDATE billing_usagerecord SET adjusts_id = gen_random_uuid() WHERE kind = 'adjustment'",
        ),
        (
            {"adjusted_to_the_truth", "window_spent_is_the_ledger"},
            "UPDATE billing_usagerecord SET amount_pico = amount_pico + 1 WHERE kind = 'adjustment'",
        ),
        (
            {"hold_ends_in_time"},
            "UPDATE billing_hold SET expires_at = now() - interval '3 minutes'",
        ),
        (
            {"hold_is_the_worst_case"},
            "UPDATE billing_hold SET amount_pico = amount_pico - 1",
        ),
        (
            {"hold_is_the_worst_case"},
            "UPDATE billing_hold SET amount_pico = amount_pico + 1",
        ),
        (
            {"usage_refers_to_what_is_there"},
            f"UPDATE billing_usagerecord SET team_id = -1 WHERE {ONE_USAGE}",
        ),
        (
            {"usage_refers_to_what_is_there"},
            f"UPDATE billing_usagerecord SET price_id = -1 WHERE {ONE_USAGE}",
        ),
        (
            {"usage_refers_to_what_is_there"},
            f"UPDATE billing_usagerecord SET model_name = 'other' WHERE {ONE_USAGE}",
        ),
        ({"hold_refers_to_what_is_there"}, "UPDATE billing_hold SET key_id = -1"),
        (
            {"booked_in_its_own_windows", "window_spent_is_the_ledger"},
            f"UPDATE billing_usagerecord SET window_ids = '{{-1}}' WHERE {ONE_USAGE}",
        ),
    ],
)
def test_what_is_broken_is_named(acme: Tenant, names: set[str], sql: str) -> None:
    by_hand(sql)

    found = broken(acme)
    assert names <= found
    # The other promises that a change breaks by its nature: sums and adjustments follow their rows.
    assert found <= names | {
        "window_spent_is_the_ledger",
        "window_held_is_the_holds",
        "adjusted_to_the_truth",
        "adjustment_follows_an_estimate",
        "hold_is_the_worst_case",
        "booked_in_its_own_windows",
    }


def test_a_window_that_holds_less_than_nothing_is_named(acme: Tenant) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SET CONSTRAINTS ALL IMMEDIATE; "
            "ALTER TABLE billing_budgetwindow DROP CONSTRAINT budget_window_holds_nothing_negative"
        )
    by_hand("UPDATE billing_budgetwindow SET held_tokens = -1")

    assert "window_holds_nothing_negative" in broken(acme)


def test_a_request_that_is_held_and_booked_is_named(acme: Tenant, price: Price) -> None:
    row = booked(acme, price)
    by_hand(
        "UPDATE billing_hold SET request_id = %s WHERE organization_id = %s",
        row.request_id,
        acme.organization.pk,
    )

    assert broken(acme) == {"held_or_booked"}


def test_an_estimate_that_is_corrected_twice_is_named(acme: Tenant) -> None:
    adjustment = UsageRecord.objects.get(kind="adjustment", key=acme.key)
    adjustment.pk = new_request_id()
    adjustment.window_ids = []
    UsageRecord.objects.bulk_create([adjustment])

    assert broken(acme) == {"adjusted_once"}


def test_a_window_over_its_limit_is_named(acme: Tenant, budget: Budget) -> None:
    by_hand("UPDATE billing_budget SET limit_micro = 1 WHERE id = %s", budget.pk)

    assert broken(acme) == {"window_is_within_its_limit"}
    (overrun,) = books.overruns(acme.organization.pk)
    assert overrun.over_pico > 0
    assert "the budget was changed" not in overrun.reasons


def test_a_limit_that_was_lowered_explains_a_window_over_it(acme: Tenant, budget: Budget) -> None:
    Budget.objects.filter(pk=budget.pk).update(limit_micro=1)
    AuditEntry.record("budget.change", budget, by="console:alice", at=timezone.now())

    assert broken(acme) == set()
    (overrun,) = books.overruns(acme.organization.pk)
    assert "the budget was changed" in overrun.reasons


def test_a_cap_on_holds_explains_a_window_over_its_limit(acme: Tenant, price: Price) -> None:
    capped = Budget.objects.create(
        organization=acme.organization, team=acme.team, limit_micro=6000, hold_micro_max=1
    )
    rows = [held(acme, price) for _ in range(4)]
    call(SETTLE, *(usage(row, amount_pico=COST) for row in rows))

    assert BudgetWindow.objects.get(budget=capped).spent_pico > 6000 * 10**6
    assert broken(acme) == set()
    assert "overage" in books.overruns(acme.organization.pk)[0].reasons[0]


def test_a_hold_that_was_released_by_hand_explains_a_window_over_its_limit(
    acme: Tenant, price: Price
) -> None:
    opened = sum(UsageRecord.objects.filter(key=acme.key).values_list("amount_pico", flat=True))
    running = sum(Hold.objects.filter(key=acme.key).values_list("amount_pico", flat=True))
    booked_before = (opened + running + WORST) // 10**6 + 1
    Budget.objects.create(
        organization=acme.organization, key=acme.key, team=acme.team, limit_micro=booked_before
    )
    still_runs = held(acme, price)
    assert ledger.release(still_runs.request_id, by="console:alice", at=timezone.now())
    held(acme, price)
    call(SETTLE, usage(still_runs, amount_pico=COST))

    assert broken(acme) == set()
    assert "holds were released by hand" in books.overruns(acme.organization.pk)[0].reasons


def test_the_findings_can_be_read_by_machines(acme: Tenant) -> None:
    by_hand("UPDATE billing_hold SET expires_at = now() - interval '1 day'")
    out = StringIO()

    with pytest.raises(CommandError, match="hold_ends_in_time"):
        call_command("check_books", "--json", organization=acme.organization.slug, stdout=out)

    found = json.loads(out.getvalue())
    assert [each["invariant"] for each in found["violations"]] == ["hold_ends_in_time"]
    assert found["overruns"] == []


def test_what_is_priced_in_another_currency_is_found(acme: Tenant, price: Price) -> None:
    booked(acme, price)
    assert broken(acme) == set()

    foreign = factories.price(price.model_name, "USD")
    booked(acme, foreign)
    held(acme, foreign)

    assert broken(acme) == {"priced_in_its_currency"}
