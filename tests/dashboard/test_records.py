"""Usage records: the latest first, by key from page to page, each with its receipt."""

import re
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from billing.models import Price, UsageRecord
from dashboard import records
from tenants.models import ApiKey, Team
from tests import booked, factories
from tests.dashboard.conftest import Person
from tests.factories import Tenant

RECEIPT = re.compile(r'usage/([0-9a-f-]{36})/"')


def ids(page: str) -> list[str]:
    return RECEIPT.findall(page)


def book(tenant: Tenant, price: Price, **fields: Any) -> str:
    held = booked.hold(tenant, price)
    booked.settle(held, **fields)
    return str(held.request_id)


def only(tenant: Tenant) -> UsageRecord:
    return UsageRecord.objects.get(organization=tenant.organization)


def test_pages_follow_each_other_without_gap_or_repetition(
    alice: Person, vlm: Price, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PAGE_ROWS", 2)
    made = [book(alice.tenant, vlm) for _ in range(5)]  # in one transaction: one instant
    path, found = alice.url("usage/"), []
    for _ in range(3):
        page = alice.client.get(path).content.decode()
        found += ids(page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        path = alice.url("usage/") + older[1].replace("&amp;", "&") if older else ""

    assert found == sorted(made, reverse=True)
    assert path == ""


def test_the_list_takes_as_many_queries_for_many_as_for_one(alice: Person, vlm: Price) -> None:
    book(alice.tenant, vlm)
    with CaptureQueriesContext(connection) as few:
        alice.read("usage/")
    for _ in range(5):
        book(alice.tenant, vlm)
    with CaptureQueriesContext(connection) as many:
        alice.read("usage/")

    assert len(few) == len(many) == 7  # session, person, organization, records; teams, keys, models


@pytest.fixture
def other(alice: Person) -> Tenant:
    """Another team with its key in Alice's organization."""
    organization = alice.tenant.organization
    team = Team.objects.create(organization=organization, name="Other", slug="other")
    key, raw = ApiKey.mint(team, "other", by=None, at=now())
    return Tenant(organization, team, key, raw.secret)


def test_records_are_filtered_by_team_key_model_and_status(
    alice: Person, other: Tenant, vlm: Price
) -> None:
    first = book(alice.tenant, vlm)
    second = book(other, factories.price("small"), status="client_closed")

    for query, wanted in (
        ({"team": alice.tenant.team.slug}, first),
        ({"team": "other"}, second),
        ({"key": other.key.public_id}, second),
        ({"model": "vlm"}, first),
        ({"status": "client_closed"}, second),
        ({"status": "ok", "team": alice.tenant.team.slug}, first),
    ):
        assert ids(alice.read("usage/", **query)) == [wanted]
    assert "No usage record is like that" in alice.read("usage/", model="none")


def test_a_filter_stays_from_page_to_page(
    alice: Person, vlm: Price, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PAGE_ROWS", 1)
    book(alice.tenant, vlm)
    book(alice.tenant, vlm)

    assert re.search(r'rel="next" href="\?model=vlm&amp;after=', alice.read("usage/", model="vlm"))


@pytest.mark.parametrize("query", [{"status": "great"}, {"after": "x"}, {"after": "2026-01-01_x"}])
def test_what_no_page_links_to_is_not_found(alice: Person, query: dict[str, str]) -> None:
    assert alice.status(alice.url("usage/"), **query) == 404


def test_a_receipt_adds_up_by_kind(alice: Person, vlm: Price) -> None:
    amount_pico = 20 * vlm.text_in_micro + 6404 * vlm.image_in_micro + 30 * vlm.out_micro
    book(
        alice.tenant,
        vlm,
        tokens_in_image=6404,
        tokens_out=30,
        amount_pico=amount_pico,
        canvases=["jpeg 840x1400 2x2"],
        counted_prompt=6424,
        upstream_prompt=6420,
    )
    page = alice.read(f"usage/{only(alice.tenant).pk}/")

    assert "jpeg 840x1400 2x2" in page
    assert '<td class="n">6,404</td><td class="n">12.00</td><td class="n">0.076848</td>' in page
    assert '<td class="n">6,424</td><td class="n">6,420</td>' in page
    assert '<td class="n">0.077948</td></tr></tfoot>' in page


def test_a_receipt_says_what_was_not_billed(alice: Person, vlm: Price) -> None:
    book(
        alice.tenant,
        vlm,
        status="client_closed",
        policy="prompt",
        tokens_out=30,
        amount_pico=20 * vlm.text_in_micro,
    )
    page = alice.read(f"usage/{only(alice.tenant).pk}/")

    assert "Client left early" in page
    assert "not billed" in page
    assert "the prompt only" in page


def test_only_operators_see_which_backend_answered(alice: Person, olga: Person, vlm: Price) -> None:
    page = f"usage/{book(alice.tenant, vlm)}/"

    assert "<dt>Backend</dt>" not in alice.read(page)
    assert "<dt>Backend</dt>" in olga.read(page)


def test_models_that_are_not_allowed_are_not_offered(alice: Person) -> None:
    factories.model(factories.backend("http://127.0.0.1:1/v1"), name="secret-model")
    assert "secret-model" in alice.read("usage/")

    alice.tenant.organization.allowed_models = ["vlm"]
    alice.tenant.organization.save(update_fields=["allowed_models"])
    assert "secret-model" not in alice.read("usage/")
