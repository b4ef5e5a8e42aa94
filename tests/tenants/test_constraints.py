"""What must hold, tried in SQL, past everything that Python checks."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.db.models import ProtectedError

from tenants.models import ApiKey, Organization, Team
from tests.tenants.conftest import Mint

Refused = Callable[[str], str]


@pytest.fixture
def refused(mint: Mint, other_team: Team) -> Refused:
    """Run a statement that must be refused; return what the database says. The cast is there."""
    mint()
    mint(team=other_team)
    user = User.objects.create_user("bob")
    other_team.organization.memberships.create(user=user)

    def run(statement: str) -> str:
        with pytest.raises(IntegrityError) as refusal, transaction.atomic():
            execute(statement, "SET CONSTRAINTS ALL IMMEDIATE")
        return str(refusal.value)

    return run


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.mark.parametrize(
    ("table", "change", "constraint"),
    [
        ("organization", "name = ''", "organization_has_a_name"),
        ("organization", "slug = 'Ac me'", "organization_slug_is_plain"),
        ("organization", "slug = E'acme\\n'", "organization_slug_is_plain"),
        ("organization", "slug = 'acme'", "tenants_organization_slug"),
        ("organization", "currency = 'NT$'", "organization_currency_is_iso_4217"),
        ("organization", "currency = 'EUR'", "keeps its currency, TWD"),
        ("organization", "timezone = ''", "organization_has_a_timezone"),
        ("organization", "allowed_models = '{\"\"}'", "organization_allowed_models_are_names"),
        (
            "organization",
            "allowed_models = array_fill('a'::text, '{257}')",
            "organization_allowed_models_are_names",
        ),
        ("team", "name = ''", "team_has_a_name"),
        ("team", "slug = '-'", "team_slug_is_plain"),
        ("membership", "role = 'king'", "membership_role_is_known"),
        ("apikey", "name = ''", "key_has_a_name"),
        ("apikey", "public_id = 'short'", "key_public_id_is_base62"),
        ("apikey", "public_id = 'AbCd123_'", "key_public_id_is_base62"),
        ("apikey", "public_id = 'AbCd1234'", "tenants_apikey_public_id"),
        ("apikey", "digest = substr(digest, 2)", "key_digest_is_whole"),
        ("apikey", "digest = (SELECT min(digest) FROM tenants_apikey)", "tenants_apikey_digest"),
        ("apikey", "last4 = '…'", "key_last4_is_base62"),
        ("apikey", "pepper_version = 0", "key_pepper_version_is_set"),
        ("apikey", "expires_at = created_at", "key_expires_after_its_creation"),
        ("apikey", "allowed_models = '{a,\"\"}'", "key_allowed_models_are_names"),
        (
            "apikey",
            "team_id = (SELECT max(id) FROM tenants_team)",
            "key_team_is_of_its_organization",
        ),
        (
            "apikey",
            "organization_id = (SELECT max(id) FROM tenants_organization)",
            "key_team_is_of_its_organization",
        ),
        (
            "team",
            "slug = id::text, organization_id = (SELECT max(id) FROM tenants_organization)",
            "key_team_is_of_its_organization",
        ),
    ],
)
def test_the_database_refuses(refused: Refused, table: str, change: str, constraint: str) -> None:
    assert constraint in refused(f"UPDATE tenants_{table} SET {change}")


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("team", "organization_id, name, slug, is_active, created_at"),
        ("membership", "organization_id, user_id, role, created_at"),
    ],
)
def test_the_database_refuses_a_second_one(refused: Refused, table: str, columns: str) -> None:
    again = f"INSERT INTO tenants_{table} ({columns}) SELECT {columns} FROM tenants_{table}"

    assert "once_per" in refused(again)


@pytest.mark.parametrize("table", ["organization", "team"])
def test_the_database_keeps_what_has_keys(refused: Refused, table: str) -> None:
    assert "foreign key" in refused(f"DELETE FROM tenants_{table}")


def test_an_organization_or_team_with_keys_cannot_be_deleted(mint: Mint) -> None:
    key, _ = mint()

    with pytest.raises(ProtectedError):
        key.team.delete()
    with pytest.raises(ProtectedError):
        key.organization.delete()


def test_one_without_can_be(team: Team) -> None:
    team.delete()
    team.organization.delete()

    assert not Organization.objects.filter(slug="acme").exists()


def test_a_key_outlives_the_account_of_who_made_it(team: Team) -> None:
    alice = User.objects.create_user("alice")
    key, _ = ApiKey.mint(team, "laptop", by=alice, at=team.created_at)
    assert key.created_by == alice

    alice.delete()

    key.refresh_from_db()
    assert key.created_by is None
