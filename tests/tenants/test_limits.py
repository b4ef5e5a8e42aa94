import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from tenants import keys, principals, revisions
from tenants.limits import LIMITS_OF_ONE_OWNER_MAX, MAXIMUM_MAX, Limit, LimitKind
from tenants.models import ApiKey, AuditEntry, Organization, Team
from tenants.principals import LimitEntry, Principal
from tests.tenants.conftest import Mint

pytestmark = pytest.mark.usefixtures("empty_database")


@pytest.fixture
def key(mint: Mint) -> ApiKey:
    return mint()[0]


def set_limit(owner: Organization | Team | ApiKey, kind: str = "requests", **fields: Any) -> Limit:
    """Set a limit past everything that Python checks."""
    match owner:
        case ApiKey():
            owners = {"organization": owner.organization, "team": owner.team, "key": owner}
        case Team():
            owners = {"organization": owner.organization, "team": owner}
        case Organization():
            owners = {"organization": owner}
    return Limit.objects.create(**{"kind": kind, "maximum": 60, **owners, **fields})


def refused(change: Callable[[], object]) -> str:
    """Return what the database says to a change that it must refuse."""
    with pytest.raises(IntegrityError) as refusal, transaction.atomic():
        change()
    return str(refusal.value)


def limits_over(key: ApiKey) -> tuple[LimitEntry, ...]:
    digest = bytes(key.digest)
    found = principals.load([digest])[digest].outcome
    assert isinstance(found, Principal)
    return found.limits


# ------------------------------------------------------------------- what the database holds


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"maximum": 0}, "limit_maximum_is_in_range"),
        ({"maximum": -1}, "limit_maximum_is_in_range"),
        ({"maximum": MAXIMUM_MAX + 1}, "limit_maximum_is_in_range"),
        ({"kind": "dollars"}, "limit_kind_is_known"),
        ({"team": None}, "limit_of_a_key_names_its_team"),
    ],
)
def test_the_database_refuses(key: ApiKey, fields: dict[str, Any], constraint: str) -> None:
    assert constraint in refused(lambda: set_limit(key, **fields))


def test_an_owner_is_of_the_limits_organization(key: ApiKey, other_team: Team) -> None:
    foreign = "limit_team_is_of_its_organization"
    assert foreign in refused(lambda: set_limit(other_team, organization=key.organization))
    sibling = key.organization.teams.create(slug="sales", name="Sales")
    assert "limit_key_is_of_its_team" in refused(lambda: set_limit(key, team=sibling))


def test_an_owner_has_a_limit_once_and_its_shadow_beside_it(key: ApiKey, team: Team) -> None:
    for owner in (team.organization, team, key):
        set_limit(owner)
        set_limit(owner, is_shadow=True)
        set_limit(owner, model_name="vision")
        set_limit(owner, "tokens")

        assert "limit_once_per_owner" in refused(lambda owner=owner: set_limit(owner))  # type: ignore[misc]


def test_limits_go_with_their_owner(key: ApiKey) -> None:
    set_limit(key)
    set_limit(key.team)

    key.delete()
    key.team.delete()

    assert not Limit.objects.exists()


def test_every_change_moves_the_principals(key: ApiKey) -> None:
    seen = [principals.current_revision()]

    for statement in (
        f"INSERT INTO tenants_limit (organization_id, model_name, kind, maximum, is_shadow)"
        f" VALUES ({key.organization_id}, '', 'requests', 1, false)",
        "UPDATE tenants_limit SET maximum = 2",
        "DELETE FROM tenants_limit",
        "TRUNCATE tenants_limit",
    ):
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute(statement)
        seen += revisions.read([revisions.PRINCIPALS]).values()

    assert seen == sorted(set(seen))


# ------------------------------------------------------------------- what a principal carries


def test_a_principal_carries_the_limits_over_its_key_and_no_others(
    key: ApiKey, mint: Mint, other_team: Team
) -> None:
    sibling = key.organization.teams.create(slug="sales", name="Sales")
    for other in (mint()[0], sibling, other_team, other_team.organization):
        set_limit(other)
    organization = set_limit(key.organization, "tokens", maximum=1000, is_shadow=True)
    team = set_limit(key.team, model_name="vision")
    own = set_limit(key, "concurrent", maximum=3)

    assert limits_over(key) == (
        LimitEntry(
            organization.pk, "organization", key.organization_id, "", LimitKind.TOKENS, 1000, True
        ),
        LimitEntry(team.pk, "team", key.team_id, "vision", LimitKind.REQUESTS, 60, False),
        LimitEntry(own.pk, "key", key.pk, "", LimitKind.CONCURRENT, 3, False),
    )


def test_limits_are_read_with_the_keys_in_one_query(
    mint: Mint, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    minted = [mint() for _ in range(5)]
    for key, _ in minted:
        set_limit(key)
        set_limit(key, "tokens")
    digests = [keys.digest(raw, settings.KEY_PEPPER) for _, raw in minted]

    with django_assert_num_queries(1):
        found = principals.load(digests)

    outcomes = [found[digest].outcome for digest in digests]
    assert all(isinstance(each, Principal) and len(each.limits) == 2 for each in outcomes)


def test_a_key_without_limits_carries_none(key: ApiKey) -> None:
    assert limits_over(key) == ()


# ------------------------------------------------------------------- who sets them


def run(*words: str) -> str:
    """Run `manage.py limit`; return what it told the person."""
    told = StringIO()
    call_command("limit", *words, stdout=StringIO(), stderr=told, no_color=True)
    return told.getvalue()


def listed(*words: str) -> list[dict[str, Any]]:
    out = StringIO()
    call_command("limit", "list", "--json", *words, stdout=out, stderr=StringIO())
    rows: list[dict[str, Any]] = json.loads(out.getvalue())
    return rows


def test_limits_are_set_for_each_owner(key: ApiKey) -> None:
    run("set", "--organization", "acme", "--requests", "600", "--tokens", "100000")
    run(
        "set", "--organization", "acme", "--team", "research", "--images", "60", "--model", "vision"
    )
    told = run("set", "--organization=acme", f"--key=tsr_{key.public_id}_…", "--concurrent=4")

    assert told == f"Set: 4 requests at once for key laptop ({key.hint}).\n"
    assert {
        (row["team"], row["key"], row["model"], row["kind"], row["maximum"])
        for row in listed("--organization", "acme")
    } == {
        (None, None, None, "requests", 600),
        (None, None, None, "tokens", 100_000),
        ("research", None, "vision", "images", 60),
        ("research", key.public_id, None, "concurrent", 4),
    }
    assert {each.kind for each in limits_over(key)} == set(LimitKind)


def test_setting_it_again_changes_it_and_the_record_says_from_what(team: Team) -> None:
    run("set", "--organization", "acme", "--requests", "600")
    before = Limit.objects.get().pk

    assert run("set", "--organization", "acme", "--requests", "60").startswith("Changed: 60 req")
    assert run("set", "--organization", "acme", "--requests", "60").startswith("Unchanged")
    run("set", "--organization", "acme", "--requests", "10", "--shadow")

    assert Limit.objects.get(is_shadow=False).pk == before
    assert list(AuditEntry.objects.order_by("id").values_list("action", "detail")) == [
        ("limit.create", {}),
        ("limit.change", {"maximum": [600, 60]}),
        ("limit.create", {}),
    ]


def test_limits_are_removed_all_that_are_named_or_none(team: Team) -> None:
    one, other = set_limit(team), set_limit(team, "tokens")

    with pytest.raises(CommandError, match="no limit 0"):
        run("remove", str(one.pk), "0")
    assert Limit.objects.count() == 2

    run("remove", str(one.pk), str(other.pk))
    assert not Limit.objects.exists()
    assert AuditEntry.objects.filter(action="limit.delete").count() == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("set --organization nope --requests 1", "Known: acme"),
        ("set --organization acme", "Say what to limit: --requests, --tokens, --images"),
        ("set --organization acme --requests 0", "greater than or equal to 1"),
        ("set --organization acme --tokens 2000000000", "less than or equal to"),
        ("set --organization acme --team nope --requests 1", "Known: research"),
        ("set --organization acme --key nope --requests 1", "has no key 'nope'"),
        ("set --organization initech --key {id} --requests 1", "initech has no key"),
        ("set --organization acme --team research --key {id} --requests 1", "not allowed with"),
        ("remove 0", "There is no limit 0"),
    ],
)
def test_a_mistake_is_one_clear_line_and_sets_nothing(
    key: ApiKey, other_team: Team, words: str, message: str
) -> None:
    with pytest.raises(CommandError, match=message) as error:
        run(*words.format(id=key.public_id).split())

    assert "\n" not in str(error.value)
    assert not Limit.objects.exists()


def test_an_owner_has_a_bounded_number_of_limits(key: ApiKey) -> None:
    for number in range(LIMITS_OF_ONE_OWNER_MAX):
        set_limit(key, model_name=f"model-{number}")

    with pytest.raises(ValidationError, match=f"at most {LIMITS_OF_ONE_OWNER_MAX}"):
        Limit(
            organization=key.organization, team=key.team, key=key, kind="requests", maximum=1
        ).full_clean()


def test_an_administrator_sets_changes_and_removes_a_limit(
    admin_client: Client, key: ApiKey, other_team: Team
) -> None:
    url = "/admin/tenants/limit/"
    form = {"organization": key.organization_id, "key": key.pk, "kind": "tokens", "maximum": 100}

    admin_client.post(f"{url}add/", form)
    limit = Limit.objects.get()
    admin_client.post(f"{url}{limit.pk}/change/", {"maximum": 200, "team": other_team.pk})
    limit.refresh_from_db()
    admin_client.post(f"{url}{limit.pk}/delete/", {"post": "yes"})

    assert (limit.level, limit.team, limit.maximum) == ("key", key.team, 200)
    assert not Limit.objects.exists()
    entries = AuditEntry.objects.filter(action__startswith="limit.").order_by("id")
    assert [entry.action for entry in entries] == ["limit.create", "limit.change", "limit.delete"]
    assert {entry.actor for entry in entries} == {User.objects.get().username}


def test_an_administrator_cannot_give_one_organizations_limit_to_anothers_team(
    admin_client: Client, team: Team, other_team: Team
) -> None:
    form = {"organization": team.organization_id, "team": other_team.pk}

    page = admin_client.post("/admin/tenants/limit/add/", {**form, "kind": "tokens", "maximum": 1})

    assert "belongs to another organization" in page.content.decode()
    assert not Limit.objects.exists()
