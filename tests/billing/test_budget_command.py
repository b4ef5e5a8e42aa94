from typing import Any

import pytest
from django.core.management import CommandError
from django.test import Client

from billing.budgets import Budget
from billing.models import Price
from tenants.models import AuditEntry, Team
from tests import booked, factories
from tests.console import run, run_json
from tests.factories import Tenant

pytestmark = pytest.mark.usefixtures("empty_database")


def set_budget(tenant: Tenant, *words: str) -> Budget:
    out, _ = run("budget", "set", "--organization", tenant.organization.slug, *words)
    return Budget.objects.get(pk=int(out))


def listed(tenant: Tenant) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run_json(
        "budget", "list", "--organization", tenant.organization.slug
    )
    return rows


def last_entry() -> AuditEntry:
    return AuditEntry.objects.latest("id")


def test_a_budget_is_set_to_the_micro_unit_and_recorded(acme: Tenant) -> None:
    budget = set_budget(acme, "--money=1000.000001", "--hold-money-max=2.5", "--alert=90,50,90")

    assert (budget.limit_micro, budget.limit_tokens) == (1_000_000_001, None)
    assert (budget.hold_micro_max, budget.alert_percents) == (2_500_000, [50, 90])
    assert (budget.level, budget.period) == ("organization", "month")
    assert (last_entry().action, last_entry().organization) == ("budget.create", acme.organization)


def test_a_key_is_found_by_what_is_at_hand_and_brings_its_team(acme: Tenant) -> None:
    budget = set_budget(acme, "--tokens=5000", "--key", acme.secret, "--per=day", "--alert=none")

    assert (budget.level, budget.key, budget.team) == ("key", acme.key, acme.team)
    assert (budget.limit_tokens, budget.period, budget.alert_percents) == (5000, "day", [])


def test_what_was_used_before_counts_and_is_said(acme: Tenant, vlm: Price) -> None:
    booked.spend(acme, vlm, 3)

    told = run("budget", "set", "--organization", acme.organization.slug, "--money=10")[1]

    assert "Spent of it already: TWD 3.00, 100 tokens." in told


def test_a_second_budget_of_the_same_owner_says_that_both_hold(acme: Tenant) -> None:
    first = set_budget(acme, "--money=10")

    told = run("budget", "set", "--organization", acme.organization.slug, "--money=99")[1]

    assert f"Budget {first.pk} stands too (TWD 10.00 per month)" in told


def test_the_list_shows_what_is_spent_held_and_left(acme: Tenant, vlm: Price) -> None:
    set_budget(acme, "--money=10", "--tokens=1000", "--per=life")
    booked.spend(acme, vlm, 2)
    booked.hold(acme, vlm)

    row = listed(acme)[0]

    assert row["money"] == {"limit": "10.00", "spent": "2.00", "held": "1.00", "left": "7.00"}
    assert row["tokens"] == {"limit": 1000, "spent": 100, "held": 100, "left": 800}
    assert row["resets_at"] is None


def test_the_table_has_a_line_for_each_unit_and_the_reset_in_local_time(acme: Tenant) -> None:
    set_budget(acme, "--money=10", "--tokens=1000", "--per=day", "--name=pilot")

    out, _ = run("budget", "list", "--organization", acme.organization.slug)
    _, money, tokens = out.splitlines()

    assert "pilot  day  TWD " in money
    assert " 00:00 Asia/Taipei " in money
    assert "day  tokens" in tokens


def test_nobody_else_is_listed(acme: Tenant) -> None:
    charlie = factories.tenant("charlie")
    set_budget(charlie, "--money=10")

    assert listed(acme) == []


def test_a_change_keeps_what_is_not_given_and_records_before_and_after(acme: Tenant) -> None:
    budget = set_budget(acme, "--money=10", "--tokens=1000", "--name=pilot")

    run("budget", "change", str(budget.pk), "--money=20", "--tokens=none")

    budget.refresh_from_db()
    assert (budget.limit_micro, budget.limit_tokens, budget.name) == (20_000_000, None, "pilot")
    assert last_entry().detail == {
        "before": {"limit_micro": 10_000_000, "limit_tokens": 1000},
        "after": {"limit_micro": 20_000_000, "limit_tokens": None},
    }


def test_a_change_to_what_it_is_already_records_nothing(acme: Tenant) -> None:
    budget = set_budget(acme, "--money=10")
    entries = AuditEntry.objects.count()

    assert "is so already" in run("budget", "change", str(budget.pk), "--money=10.00")[1]
    assert AuditEntry.objects.count() == entries


def test_a_removed_budget_is_not_enforced_any_more(acme: Tenant, vlm: Price) -> None:
    budget = set_budget(acme, "--money=0")

    run("budget", "remove", str(budget.pk))

    booked.hold(acme, vlm)
    assert listed(acme) == []
    assert "removed already" in run("budget", "remove", str(budget.pk))[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give a limit in money, in tokens, or both"),
        (["--money=1e3"], "not a plain number"),
        (["--money=0.0000001"], "more than 6 decimals"),
        (["--money=100000000001"], "more than 100000000000"),
        (["--tokens=-5"], "not a whole number"),
        (["--tokens=1", "--hold-tokens-max=0"], "greater than or equal to 1"),
        (["--tokens=1", "--alert=0"], "greater than or equal to 1"),
        (["--tokens=1", "--alert=half"], "not a list of percents"),
        (["--tokens=1", "--team=nobody"], "has no team 'nobody'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_sets_nothing(
    acme: Tenant, words: list[str], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        set_budget(acme, *words)

    assert not Budget.objects.filter(organization=acme.organization).exists()


def test_a_key_of_another_organization_is_not_found(acme: Tenant) -> None:
    charlie = factories.tenant("charlie")

    with pytest.raises(CommandError, match="has no key"):
        set_budget(acme, "--money=1", "--key", charlie.key.public_id)


def test_a_key_of_another_team_is_refused(acme: Tenant) -> None:
    Team.objects.create(organization=acme.organization, name="Research", slug="research")

    with pytest.raises(CommandError, match="belongs to another team"):
        set_budget(acme, "--money=1", "--key", acme.key.public_id, "--team=research")


BUDGETS = "/admin/billing/budget/"


def form(tenant: Tenant, **fields: Any) -> dict[str, Any]:
    return {
        "organization": tenant.organization.pk,
        "period": "month",
        "limit_micro": "1000.5",
        "alert_percents": "50,80",
        "is_active": "on",
        "windows-TOTAL_FORMS": 0,
        "windows-INITIAL_FORMS": 0,
    } | fields


def test_the_admin_takes_money_in_units_and_shows_it_so(acme: Tenant, admin_client: Client) -> None:
    admin_client.post(f"{BUDGETS}add/", form(acme))

    budget = acme.organization.budgets.get()
    assert (budget.limit_micro, budget.limit_tokens) == (1_000_500_000, None)
    assert 'value="1000.50"' in admin_client.get(f"{BUDGETS}{budget.pk}/change/").content.decode()


def test_the_admin_changes_limits_and_neither_owner_nor_period(
    acme: Tenant, admin_client: Client
) -> None:
    budget = set_budget(acme, "--money=1000.5", "--alert=50,80")
    charlie = factories.tenant("charlie")
    sent = form(acme, organization=charlie.organization.pk, period="day", limit_tokens="7")

    admin_client.post(f"{BUDGETS}{budget.pk}/change/", sent)

    budget.refresh_from_db()
    assert (budget.organization, budget.period) == (acme.organization, "month")
    assert budget.limit_tokens == 7
    assert last_entry().detail == {"before": {"limit_tokens": None}, "after": {"limit_tokens": 7}}
    assert last_entry().actor == "admin"


def test_the_admin_shows_windows_and_lets_nobody_edit_or_delete(
    acme: Tenant, admin_client: Client, vlm: Price
) -> None:
    budget = set_budget(acme, "--money=1000")
    booked.spend(acme, vlm, 3)

    assert "TWD 3.00" in admin_client.get(f"{BUDGETS}{budget.pk}/change/").content.decode()
    assert admin_client.post(f"{BUDGETS}{budget.pk}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.get(BUDGETS).status_code == 200


def test_a_wrong_amount_in_the_admin_is_an_error_on_the_form(
    acme: Tenant, admin_client: Client
) -> None:
    page = admin_client.post(f"{BUDGETS}add/", form(acme, limit_micro="1e3")).content.decode()

    assert "is not a plain number" in page
