"""Budgets: spent, held and left, as bars and in words."""

from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing.models import Price
from dashboard.gauges import Gauge
from tests import booked
from tests.dashboard.conftest import Person


def test_a_budget_shows_what_is_spent_held_and_left(alice: Person, vlm: Price) -> None:
    booked.budget(alice.tenant, limit_micro=10_000_000, name="Trial")
    booked.spend(alice.tenant, vlm, 4)
    booked.hold(alice.tenant, vlm)
    page = alice.read("budgets/")

    assert "Trial" in page
    assert "<dd>4.0000 <small>40 %</small></dd>" in page
    assert "<dd>1.0000</dd>" in page
    assert "<dd>5.0000</dd>" in page
    assert '<rect fill="url(#held)" x="40.00%" width="10.00%"' in page


def test_tokens_have_a_bar_of_their_own(alice: Person, vlm: Price) -> None:
    booked.budget(alice.tenant, level="key", limit_micro=10_000_000, limit_tokens=4000)
    booked.spend(alice.tenant, vlm, 1)
    page = alice.read("budgets/")

    assert page.count('class="gauge"') == 2
    assert "<dd>100 <small>2 %</small></dd>" in page


def test_a_limit_that_is_passed_says_by_how_much() -> None:
    gauge = Gauge(is_money=False, limit=100, spent=120, held=5)

    assert (gauge.left, gauge.over, gauge.spent_percent) == (0, 25, 120)
    assert (gauge.spent_width, gauge.held_width, gauge.limit_at) == ("96.00%", "4.00%", "80.00%")


def test_a_limit_of_nothing_is_drawn() -> None:
    gauge = Gauge(is_money=True, limit=0, spent=0, held=0)

    assert (gauge.left, gauge.over, gauge.spent_percent, gauge.spent_width) == (0, 0, 100, "0.00%")


def test_an_inactive_budget_has_no_window(alice: Person) -> None:
    booked.budget(alice.tenant, limit_micro=1, is_active=False)
    page = alice.read("budgets/")

    assert "Inactive" in page
    assert 'class="gauge"' not in page


def test_no_budget_is_told(alice: Person) -> None:
    assert "No budget yet" in alice.read("budgets/")


def test_it_takes_as_many_queries_for_many_as_for_one(alice: Person) -> None:
    booked.budget(alice.tenant, limit_micro=1)
    with CaptureQueriesContext(connection) as few:
        alice.read("budgets/")
    for level in ("organization", "team", "key"):
        booked.budget(alice.tenant, level=level, limit_micro=1)
    with CaptureQueriesContext(connection) as many:
        alice.read("budgets/")

    assert len(few) == len(many) == 9
