"""GET /metrics: what monitoring is told of the books, and whom it tells."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from billing import reconciliation
from billing.invoicing import lifecycle
from billing.models import GatewayProcess, Price, UsageRecord
from billing.notifications.events import Delivery, Event, EventType
from gateway.request_ids import new_request_id
from tests import factories
from tests.booked import UNIT_PICO, budget, hold, settle, spend, window
from tests.factories import Tenant
from tests.invoiced import close, issue, use

pytestmark = pytest.mark.usefixtures("empty_database")
TOKEN = "a-token-for-monitoring"
Figures = dict[tuple[str, str], float]


@pytest.fixture(autouse=True)
def _token(settings: Any) -> None:
    settings.METRICS_TOKEN = TOKEN


@pytest.fixture
def tenant() -> Tenant:
    return factories.tenant()


@pytest.fixture
def price() -> Price:
    return factories.price(factories.unique("model"))


def scrape() -> Figures:
    """Return each figure by its name, without our prefix, and the value of its label."""
    response = Client().get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 200
    families = list(text_string_to_metric_families(response.content.decode()))
    assert all(family.type == "gauge" and family.documentation for family in families)
    return {
        (sample.name.removeprefix("tessera_"), "".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_without_a_token_of_its_own_there_is_no_such_page(settings: Any) -> None:
    settings.METRICS_TOKEN = ""

    assert Client().get("/metrics", headers={"authorization": "Bearer "}).status_code == 404


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer another", f"Basic {TOKEN}", TOKEN, "Bearer é"]
)
def test_whoever_lacks_the_token_is_told_nothing(given: str) -> None:
    response = Client().get("/metrics", headers={"authorization": given})

    assert (response.status_code, response.content) == (401, b"")
    assert Client().post("/metrics").status_code == 405


def test_open_holds_and_the_money_in_them(tenant: Tenant, price: Price) -> None:
    hold(tenant, price, amount_pico=3 * UNIT_PICO)
    hold(tenant, price, expires_at=datetime.now(UTC) - timedelta(minutes=1))

    figures = scrape()

    assert figures["open_holds", ""] == 2
    assert figures["held_pico", "TWD"] == 4 * UNIT_PICO
    assert figures["overdue_holds", ""] == 1
    assert 0 <= figures["oldest_hold_seconds", ""] < 60


def test_drift_of_the_last_reconciliation(tenant: Tenant, price: Price) -> None:
    assert ("drift_pico", "") not in scrape()
    stands = budget(tenant, limit_micro=10**12)
    spend(tenant, price, 2)
    by_hand("UPDATE billing_budgetwindow SET spent_pico = 0 WHERE id = %s", window(stands).pk)

    reconciliation.run()

    figures = scrape()
    assert (figures["drift_pico", ""], figures["drift_tokens", ""]) == (2 * UNIT_PICO, 0)
    assert figures["refused_rows", ""] == 0
    assert 0 <= figures["reconciliation_age_seconds", ""] < 60


def test_processes_that_live_and_those_that_fell_silent() -> None:
    GatewayProcess.objects.all().delete()  # a door's, in the same database
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    for beat_at in (datetime.now(UTC), long_ago, long_ago):
        GatewayProcess.objects.create(id=new_request_id(), host="h", beat_at=beat_at)

    figures = scrape()

    assert (figures["processes", "alive"], figures["processes", "silent"]) == (1, 2)


def test_events_that_wait_and_those_given_up(tenant: Tenant) -> None:
    event = Event.objects.create(
        organization=tenant.organization,
        type=EventType.KEY_CREATED,
        subject="a key",
        data={},
        happened_at=datetime.now(UTC),
    )
    for medium, next_attempt_at in (("email", datetime.now(UTC)), ("webhook", None)):
        Delivery.objects.create(event=event, medium=medium, next_attempt_at=next_attempt_at)

    figures = scrape()

    assert (figures["event_deliveries", "due"], figures["event_deliveries", "failed"]) == (1, 1)
    Delivery.objects.create(event=event, medium="webhook", replay=1, delivered_at=datetime.now(UTC))
    assert scrape()["event_deliveries", "failed"] == 0  # it was sent again


def test_recent_requests_by_their_status(tenant: Tenant, price: Price) -> None:
    for status in ("ok", "ok", "timeout"):
        settle(hold(tenant, price), status=status)
    settle(hold(tenant, price, request_id="01900000-0000-7000-8000-000000000000"))  # in 2024

    figures = scrape()

    assert (figures["recent_requests", "ok"], figures["recent_requests", "timeout"]) == (2, 1)
    assert ("recent_requests", "expired") not in figures


def test_a_draft_that_is_held_back_and_how_long_its_period_is_closed(
    tenant: Tenant, price: Price
) -> None:
    assert (scrape()["drafts_held_back", ""], scrape()["oldest_unissued_seconds", ""]) == (0, 0)
    closed_at = datetime.now(UTC) - timedelta(hours=2)
    use(tenant, price)
    drafted = close(tenant, closed_at)
    by_hand("SET LOCAL session_replication_role = replica")
    UsageRecord.objects.update(amount_pico=1)
    by_hand("SET LOCAL session_replication_role = origin")
    assert scrape()["drafts_held_back", ""] == 0

    lifecycle.advance(tenant.organization.pk, datetime.now(UTC))

    figures = scrape()
    drafted.refresh_from_db()
    assert drafted.held_back
    assert figures["drafts_held_back", ""] == 1
    assert 7200 <= figures["oldest_unissued_seconds", ""] < 7300


def test_what_is_issued_is_waited_for_no_more(tenant: Tenant, price: Price) -> None:
    use(tenant, price)
    issue(tenant)

    figures = scrape()

    assert figures["drafts_held_back", ""] == figures["oldest_unissued_seconds", ""] == 0


def by_hand(statement: str, *parameters: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
