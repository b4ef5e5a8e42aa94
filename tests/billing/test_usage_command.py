import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError

from billing.models import UsageRecord
from tenants.models import ApiKey, Team
from tests import factories
from tests.console import run, run_json
from tests.factories import Tenant

pytestmark = pytest.mark.usefixtures("empty_database")

EVENING = datetime(2026, 5, 1, 18, 30, tzinfo=UTC)


@pytest.fixture
def acme() -> Tenant:
    return factories.tenant("acme", timezone="Asia/Taipei")


def book(tenant: Tenant, number: int = 1, **fields: Any) -> UsageRecord:
    """Write a record as the data plane would; a higher number is a later request."""
    defaults = {
        "request_id": UUID(int=(7 << 76) + number),
        "organization": tenant.organization,
        "team": tenant.team,
        "key": tenant.key,
        "model_name": "vlm",
        "backend_name": "afs",
        "received_at": EVENING,
        "billed_at": EVENING,
        "finished_at": EVENING + timedelta(seconds=2),
        "tokens_in_text": 20,
        "tokens_in_image": 6404,
        "tokens_in_cached": 0,
        "tokens_out": 52,
        "amount_pico": 96_060_000_001,
        "held_pico": 10**12,
        "status": "ok",
        "usage_source": "upstream",
        "counted_prompt": 6424,
        "upstream_prompt": 6424,
        "canvases": ["jpeg 840x1400 1120x1120"],
        "streamed": False,
    }
    currency = tenant.organization.currency
    price = fields.pop("price", None) or factories.price(factories.unique("vlm"), currency)
    return UsageRecord.objects.create(**(defaults | {"price": price} | fields))


def listed(tenant: Tenant, *words: str) -> list[str]:
    """Return the request ids of the organization's list."""
    rows = run_json("usage", "--organization", tenant.organization.slug, *words)
    return [row["request_id"] for row in rows]


def line_of(tenant: Tenant, *words: str) -> dict[str, str]:
    """Return the table's one line by its columns, which are two blanks apart at least."""
    out, _ = run("usage", "--organization", tenant.organization.slug, *words)
    header, line = (re.split(r" {2,}", text) for text in out.splitlines())
    return dict(zip(header, line, strict=True))


def test_a_record_is_a_line_with_every_kind_of_token_and_the_exact_amount(acme: Tenant) -> None:
    record = book(acme)

    assert line_of(acme) == {
        "received (Asia/Taipei)": "2026-05-02 02:30:00",
        "request_id": str(record.request_id),
        "team": f"{acme.organization.slug}/vision",
        "key": acme.key.public_id,
        "model": "vlm",
        "backend": "afs",
        "text": "20",
        "image": "6404",
        "cached": "0",
        "out": "52",
        "prompt": "6424",
        "source": "upstream",
        "status": "ok",
        "amount": "TWD 0.096060000001",
        "billed": "2026-05",
        "canvases": "jpeg 840x1400 1120x1120",
    }


def test_times_of_many_organizations_are_in_utc(acme: Tenant) -> None:
    book(acme)

    out, _ = run("usage", "--key", acme.key.public_id)

    assert out.startswith("received (UTC)")
    assert "2026-05-01 18:30:00" in out


def test_the_backends_count_stands_beside_ours_only_where_they_differ(acme: Tenant) -> None:
    book(acme, upstream_prompt=6431)

    assert line_of(acme)["prompt"] == "6424 (backend: 6431)"


def test_a_backend_that_reported_nothing_leaves_our_count_alone(acme: Tenant) -> None:
    book(acme, upstream_prompt=None)

    assert line_of(acme)["prompt"] == "6424"


def test_the_latest_come_first_and_no_more_than_asked_for(acme: Tenant) -> None:
    ids = [str(book(acme, number).request_id) for number in (1, 2, 3)]

    assert listed(acme) == ids[::-1]
    assert listed(acme, "--limit", "2") == [ids[2], ids[1]]


def test_another_organization_sees_nothing_of_it(acme: Tenant) -> None:
    book(acme)

    assert listed(factories.tenant("other")) == []


def test_it_narrows_to_a_team_a_key_and_a_model(acme: Tenant) -> None:
    team = Team.objects.create(organization=acme.organization, name="research", slug="research")
    key, _ = ApiKey.mint(team, "laptop", by="console:test", at=EVENING)
    book(acme, 1)
    other = str(book(Tenant(acme.organization, team, key, ""), 2, model_name="other").request_id)

    assert listed(acme, "--team", "research") == [other]
    assert listed(acme, "--key", f"tsr_{key.public_id}") == [other]
    assert listed(acme, "--model", "other") == [other]


def test_since_is_read_in_the_organizations_zone(acme: Tenant) -> None:
    book(acme)

    assert len(listed(acme, "--since", "2026-05-02T02:30")) == 1
    assert listed(acme, "--since", "2026-05-02T02:31") == []
    assert len(listed(acme, "--since", "2026-05-01T18:30+00:00")) == 1


def test_json_has_the_whole_record_with_whole_numbers_of_money(acme: Tenant) -> None:
    book(acme, tokens_in_cached=7, usage_source="counted")

    (row,) = run_json("usage", "--organization", acme.organization.slug)

    assert row["amount_pico"] == 96_060_000_001
    assert row["amount"] == "0.096060000001"
    assert row["currency"] == "TWD"
    assert row["tokens_in_cached"] == 7
    assert row["usage_source"] == "counted"
    assert row["received_at"] == "2026-05-01T18:30:00.000+00:00"
    assert row["canvases"] == ["jpeg 840x1400 1120x1120"]


def test_what_came_late_says_in_which_month_of_its_organization_it_is_billed(acme: Tenant) -> None:
    book(acme, billed_at=datetime(2026, 5, 31, 16, tzinfo=UTC))  # midnight in Taipei

    assert line_of(acme)["billed"] == "2026-06 (late)"
    (row,) = run_json("usage", "--organization", acme.organization.slug)
    assert (row["billed_at"], row["is_late"]) == ("2026-05-31T16:00:00.000+00:00", True)


def test_the_listing_costs_the_same_number_of_queries_however_long(
    acme: Tenant, django_assert_max_num_queries: Any
) -> None:
    for number in range(10):
        book(acme, number)

    with django_assert_max_num_queries(2):
        assert len(listed(acme)) == 10


def test_nothing_booked_is_said_so_beside_the_output(acme: Tenant) -> None:
    out, err = run("usage", "--organization", acme.organization.slug)

    assert out == ""
    assert "No usage is booked" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--limit 0", "1 to 1000"),
        ("--limit 1001", "1 to 1000"),
        ("--organization nope", "There is no organization 'nope'"),
        ("--team vision", "--team needs --organization"),
        ("--since yesterday", "no date or time"),
    ],
)
def test_a_mistake_is_one_clear_line(words: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run("usage", *words.split())
