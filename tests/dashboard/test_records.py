"""Usage records: the latest first, by key from page to page, each with its receipt."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection
from django.db.models import Model
from django.http import QueryDict
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from billing.accounts import Account
from billing.models import Price, Rollup, UsageRecord
from dashboard import reading, records
from tenants.models import ApiKey, Team
from tests import booked, factories
from tests.dashboard.conftest import Person
from tests.door import database_url
from tests.factories import Tenant
from tests.invoiced import MARCH, NOON

RECEIPT = re.compile(r'usage/([0-9a-f-]{36})/"')


def ids(page: str) -> list[str]:
    return RECEIPT.findall(page)


def book(tenant: Tenant, price: Price, **fields: Any) -> str:
    held = booked.hold(tenant, price)
    booked.settle(held, **fields)
    return str(held.request_id)


def only(tenant: Tenant) -> UsageRecord:
    return UsageRecord.objects.get(organization=tenant.organization)


def walk(person: Person, rel: str, path: str) -> Iterator[list[str]]:
    """Follow a link from page to page to the end; give what stands on each page."""
    for _ in range(9):
        page = person.client.get(path).content.decode()
        yield ids(page)
        link = re.search(rf'rel="{rel}" href="([^"]+)"', page)
        if link is None:
            return
        path = person.url("usage/") + link[1].replace("&amp;", "&")
    raise AssertionError("there is no end to it")


@pytest.fixture
def five(alice: Person, vlm: Price, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Five records on pages of two, the latest first; made in one transaction, and so at one instant."""
    monkeypatch.setattr(records, "PAGE_ROWS", 2)
    return [book(alice.tenant, vlm) for _ in range(5)][::-1]  # ids of one millisecond have no order


@pytest.mark.parametrize("month", ["", f"{now():%Y-%m}"])
def test_pages_follow_each_other_without_gap_or_repetition(
    alice: Person, five: list[str], month: str
) -> None:
    pages = list(walk(alice, "next", alice.url(f"usage/?month={month}")))

    assert pages == [five[:2], five[2:4], five[4:]]


@pytest.mark.parametrize("month", ["", f"{now():%Y-%m}"])
def test_the_way_back_is_the_same_and_ends_on_a_full_page(
    alice: Person, five: list[str], month: str
) -> None:
    oldest = UsageRecord.objects.get(pk=five[4])
    at = oldest.billed_at if month else oldest.recorded_at
    query = QueryDict(mutable=True)
    query.update({"month": month, "before": str(records.Cursor(at, oldest.pk))})
    pages = list(walk(alice, "prev", alice.url(f"usage/?{query.urlencode()}")))

    assert pages == [five[2:4], five[:2]]


def test_a_newer_page_that_would_not_be_full_is_the_first(alice: Person, five: list[str]) -> None:
    second = UsageRecord.objects.get(pk=five[1])
    cursor = str(records.Cursor(second.recorded_at, second.pk))

    assert ids(alice.read("usage/", before=cursor)) == five[:2]
    assert 'rel="prev"' not in alice.read("usage/", before=cursor)


def test_the_list_takes_as_many_queries_for_many_as_for_one(alice: Person, vlm: Price) -> None:
    book(alice.tenant, vlm)
    with CaptureQueriesContext(connection) as few:
        alice.read("usage/")
    for _ in range(5):
        book(alice.tenant, vlm)
    with CaptureQueriesContext(connection) as many:
        alice.read("usage/")

    assert len(few) == len(many) == 11


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
    assert ids(alice.read("usage/", month=f"{now():%Y-%m}", model="vlm")) == [first]
    assert ids(alice.read("usage/", month="2026-01")) == []
    assert "No usage record is like that" in alice.read("usage/", model="none")


def test_a_filter_stays_from_page_to_page(
    alice: Person, vlm: Price, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PAGE_ROWS", 1)
    book(alice.tenant, vlm)
    book(alice.tenant, vlm)

    assert re.search(r'rel="next" href="\?model=vlm&amp;after=', alice.read("usage/", model="vlm"))


@pytest.mark.parametrize(
    "query",
    [
        {"status": "great"},
        {"after": "x"},
        {"before": "2026-01-01_x"},
        {"month": "2026-13"},
    ],
)
def test_what_no_page_links_to_is_not_found(alice: Person, query: dict[str, str]) -> None:
    assert alice.status(alice.url("usage/"), **query) == 404


def test_what_came_late_says_where_it_is_billed(alice: Person, vlm: Price) -> None:
    Account.of(alice.tenant.organization).close(MARCH.end)
    late = book(alice.tenant, vlm, received_at=NOON)
    badge = "Late: billed in 2026-04"

    assert badge in alice.read("usage/")
    assert badge in alice.read("usage/", month="2026-04")
    assert ids(alice.read("usage/", month="2026-03")) == []
    assert "<dt>Billed in</dt><dd>2026-04" in alice.read(f"usage/{late}/")


@contextmanager
def locked(model: type[Model]) -> Iterator[None]:
    """Keep others from reading the table, so that a page waits for as long as it may."""
    with psycopg.connect(database_url()) as other:
        other.execute(f'LOCK TABLE "{model._meta.db_table}" IN ACCESS EXCLUSIVE MODE')
        yield


def test_a_search_that_takes_too_long_says_so_and_keeps_its_filter(
    alice: Person, settings: Any
) -> None:
    settings.PAGE_READ_TIMEOUT_MS = 200
    with locked(UsageRecord):
        answer = alice.client.get(alice.url("usage/"), {"model": "rare"})
    page = answer.content.decode()

    assert answer.status_code == 503
    assert "This is too much to search." in page
    assert "<option selected>rare</option>" in page
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_other_pages_that_take_too_long_say_so_too(alice: Person, settings: Any) -> None:
    settings.PAGE_READ_TIMEOUT_MS = 200
    with locked(Rollup):
        answer = alice.client.get(alice.url())

    assert answer.status_code == 503
    assert "This took too long to read." in answer.content.decode()


def test_no_other_fault_of_the_database_is_taken_for_that(db: None) -> None:
    with pytest.raises(DatabaseError, match="division by zero"), reading.bounded():
        connection.cursor().execute("SELECT 1/0")


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
