import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from tenants import keys
from tenants.models import ApiKey, AuditEntry, Organization, Team
from tests.tenants.conftest import Mint

pytestmark = pytest.mark.usefixtures("empty_database")


def run(*words: str) -> tuple[str, str]:
    """Run a command; return what it printed on stdout and on stderr."""
    out, err = StringIO(), StringIO()
    call_command(*words, stdout=out, stderr=err, no_color=True)
    return out.getvalue(), err.getvalue()


def run_json(*words: str) -> Any:
    return json.loads(run(*words, "--json")[0])


def test_from_nothing_to_a_key() -> None:
    run("organization", "create", "acme", "--name", "Acme 公司", "--currency", "USD")
    run("team", "create", "research", "--organization", "acme", "--name", "Research")

    out, err = run("key", "create", "--organization=acme", "--team=research", "--name=laptop")

    raw = keys.parse(out.removesuffix("\n"))
    assert raw is not None
    assert raw.secret not in err
    key = ApiKey.objects.get(public_id=raw.public_id)
    assert str(key.team) == "acme/research"
    assert key.organization.currency == "USD"
    actions = key.organization.audit_entries.order_by("id").values_list("action", flat=True)
    assert list(actions) == ["organization.create", "team.create", "key.create"]


def test_a_key_takes_models_and_an_expiry(team: Team) -> None:
    where = ("--organization=acme", "--team=research", "--name=laptop")

    made = run_json("key", "create", *where, "--model", "a", "b", "--model", "c", "--expires=30d")

    key = ApiKey.objects.get(public_id=made["public_id"])
    assert keys.parse(made["api_key"]) is not None
    assert key.allowed_models == made["models"] == ["a", "b", "c"]
    assert key.expires_at is not None
    assert (key.expires_at - key.created_at).days == 30


def test_a_listing_has_no_secret_and_no_other_organization(mint: Mint, other_team: Team) -> None:
    key, raw = mint()
    foreign, _ = mint(team=other_team)

    rows = run_json("key", "list", "--organization", "acme")
    table, _ = run("key", "list", "--organization", "acme")

    assert [row["public_id"] for row in rows] == [key.public_id]
    assert key.public_id in table
    assert foreign.public_id not in table
    assert raw.secret.split("_")[2] not in table + json.dumps(rows)


@pytest.mark.parametrize("form", ["{id}", "tsr_{id}", "tsr_{id}_…wxyz"])
def test_a_key_is_revoked_by_what_the_person_has_of_it(mint: Mint, form: str) -> None:
    key, _ = mint()

    _, err = run("key", "revoke", form.format(id=key.public_id))
    _, again = run("key", "revoke", form.format(id=key.public_id))

    key.refresh_from_db()
    assert key.revoked_at is not None
    assert err.startswith("Revoked laptop")
    assert "already" in again


def statuses() -> set[str]:
    """Return the status of acme and of its only team."""
    organizations = [row for row in run_json("organization", "list") if row["slug"] == "acme"]
    teams = run_json("team", "list", "--organization", "acme")
    return {row["status"] for row in organizations + teams}


def test_suspended_and_resumed(team: Team) -> None:
    run("organization", "suspend", "acme")
    run("team", "suspend", "research", "--organization", "acme")
    assert statuses() == {"suspended"}

    run("organization", "resume", "acme")
    run("team", "resume", "research", "--organization", "acme")
    assert statuses() == {"active"}


def test_a_key_of_a_suspended_team_comes_with_a_warning(team: Team) -> None:
    run("team", "suspend", "research", "--organization", "acme")

    _, err = run("key", "create", "--organization=acme", "--team=research", "--name=laptop")

    assert "acme/research is suspended" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("organization create acme --name Again", "already exists"),
        ("organization create Acme! --name Acme", "small letters, digits and hyphens"),
        ("organization create new --name New --timezone Mars/Base", "no time zone"),
        ("organization create new --name New --currency NT$", "ISO 4217"),
        ("organization suspend nope", "There is no organization 'nope'. Known: acme"),
        ("team create research --organization acme --name Again", "already exists"),
        ("team create new --organization nope --name New", "Known: acme"),
        ("team suspend nope --organization acme", "no team 'nope'. Known: research"),
        ("key create --organization nope --team a --name b", "Known: acme"),
        ("key create --organization acme --team nope --name b", "Known: research"),
        ("key create --organization acme --team research --name=", "blank"),
        ("key create --organization acme --team research --name b --expires soon", "30d"),
        ("key create --organization acme --team research --name b --expires 2020-01-01", "passed"),
        ("key list --organization nope", "Known: acme"),
        ("key revoke nope", "There is no key 'nope'"),
        ("key", "required: VERB"),
    ],
)
def test_a_mistake_is_one_clear_line(
    team: Team, other_team: Team, words: str, message: str
) -> None:
    audited = AuditEntry.objects.count()

    with pytest.raises(CommandError) as error:
        run(*words.split())

    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert AuditEntry.objects.count() == audited


def test_a_database_that_is_not_migrated_is_one_clear_line() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE tenants_apikey RENAME TO not_there_yet")

    with pytest.raises(CommandError, match=r'"tenants_apikey" does not exist.*migrate'):
        run("key", "list")


def test_an_empty_listing_says_so_beside_the_output(organization: Organization) -> None:
    assert run("team", "list", "--organization", "acme") == ("", "None.\n")
    assert run_json("key", "list", "--organization", "acme") == []
