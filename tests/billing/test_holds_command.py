from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import CommandError
from django.db import connection
from django.utils.timezone import now

from billing.models import GatewayProcess, Hold, Price, UsageRecord
from tenants.models import AuditEntry
from tests import booked, factories
from tests.console import run, run_json
from tests.factories import Tenant

pytestmark = pytest.mark.usefixtures("empty_database")


def test_an_open_hold_is_listed_with_whose_it_is_and_what_it_takes(
    acme: Tenant, vlm: Price
) -> None:
    held = booked.hold(acme, vlm)

    (row,) = run_json("holds", "--organization", acme.organization.slug)

    assert row["request_id"] == str(held.request_id)
    assert (row["organization"], row["team"]) == (acme.organization.slug, "vision")
    assert (row["key"], row["model"]) == (acme.key.public_id, "vlm")
    assert (row["amount"], row["currency"], row["tokens"]) == ("1.00", "TWD", 100)
    assert row["expires_at"] > row["held_at"]


def test_the_oldest_come_first_and_no_more_than_asked_for(acme: Tenant, vlm: Price) -> None:
    first, second, _ = (booked.hold(acme, vlm) for _ in range(3))

    rows = run_json("holds", "--organization", acme.organization.slug, "--limit=2")

    assert [row["request_id"] for row in rows] == [str(first.request_id), str(second.request_id)]


def test_another_organizations_holds_are_not_listed(acme: Tenant, vlm: Price) -> None:
    booked.hold(factories.tenant("charlie"), vlm)

    assert run_json("holds", "--organization", acme.organization.slug) == []


@pytest.mark.parametrize(("silent_s", "said"), [(1, "alive on gw1"), (3600, "silent for 1:00:0")])
def test_it_says_whether_the_process_lives(
    acme: Tenant, vlm: Price, silent_s: int, said: str
) -> None:
    beat_at = now() - timedelta(seconds=silent_s)
    process = GatewayProcess.objects.create(id=uuid4(), host="gw1", beat_at=beat_at)
    booked.hold(acme, vlm, process_id=process.pk)

    out, _ = run("holds", "--organization", acme.organization.slug)

    assert said in out
    assert "TWD 1.00" in out


def test_a_process_that_was_never_heard_of_is_silent(acme: Tenant, vlm: Price) -> None:
    booked.hold(acme, vlm)

    assert "never heard of" in run("holds", "--organization", acme.organization.slug)[0]


def test_a_released_hold_gives_its_money_back_and_is_recorded(acme: Tenant, vlm: Price) -> None:
    budget = booked.budget(acme, limit_micro=10_000_000)
    held = booked.hold(acme, vlm)

    told = run("holds", "release", str(held.request_id))[1]

    assert "Released TWD 1.00 and 100 tokens" in told
    assert "billed all the same" in told
    assert booked.window(budget).held_pico == 0
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.subject_id) == ("hold.release", str(held.request_id))
    assert entry.detail["amount_pico"] == booked.UNIT_PICO


def test_a_request_that_ends_after_its_release_is_billed_once(acme: Tenant, vlm: Price) -> None:
    budget = booked.budget(acme, limit_micro=10_000_000)
    held = booked.hold(acme, vlm)
    run("holds", "release", str(held.request_id))

    booked.settle(held)
    booked.settle(held)

    assert booked.window(budget).spent_pico == booked.UNIT_PICO
    assert UsageRecord.objects.filter(key=acme.key).count() == 1


def test_what_is_booked_already_cannot_be_released(acme: Tenant, vlm: Price) -> None:
    held = booked.hold(acme, vlm)
    booked.settle(held)

    with pytest.raises(CommandError, match=r"booked as ok with TWD 1\.00"):
        run("holds", "release", str(held.request_id))


def test_a_reaped_request_keeps_its_estimate(acme: Tenant, vlm: Price) -> None:
    held = booked.hold(acme, vlm, expires_at=now())
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_reap('1 hour', 1000)")

    with pytest.raises(CommandError, match="booked as expired"):
        run("holds", "release", str(held.request_id))

    assert UsageRecord.objects.filter(key=acme.key).count() == 1
    assert not Hold.objects.filter(key=acme.key).exists()


@pytest.mark.parametrize("words", [["release", str(uuid4())], ["release", "x"], ["--limit=0"]])
def test_a_mistake_is_one_clear_line(words: list[str]) -> None:
    with pytest.raises(CommandError):
        run("holds", *words)
