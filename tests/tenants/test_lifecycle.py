from datetime import timedelta

import pytest
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import connection

from tenants import keys
from tenants.models import ApiKey, KeyStatus, Organization, Team
from tests.tenants.conftest import NOON, Mint

LATER = NOON + timedelta(hours=1)


def test_the_secret_is_in_no_column(mint: Mint) -> None:
    key, raw = mint()
    secret = raw.secret.split("_")[2]

    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(k)::text FROM tenants_apikey k WHERE id = %s", [key.pk])
        stored = cursor.fetchone()[0]
        cursor.execute("SELECT row_to_json(e)::text FROM tenants_auditentry e")
        stored += "".join(row for (row,) in cursor.fetchall())

    assert stored.count(raw.public_id) == 2
    assert secret not in stored


def test_a_key_is_stored_under_its_digest_and_belongs_to_its_teams_organization(
    mint: Mint, team: Team
) -> None:
    _, raw = mint()

    key = ApiKey.objects.get(digest=keys.digest(raw, settings.KEY_PEPPER))
    assert key.organization == team.organization
    assert (key.public_id, key.last4) == (raw.public_id, raw.secret[-4:])
    assert key.created_at == NOON


def test_a_key_that_was_issued_cannot_be_given_another_secret(mint: Mint) -> None:
    key, _ = mint()

    with pytest.raises(AssertionError):
        key.issue(by="console:test", at=LATER)


def test_a_key_that_would_never_work_is_not_created(mint: Mint, team: Team) -> None:
    with pytest.raises(ValidationError):
        mint(expires_at=NOON)

    assert not team.keys.exists()


def test_revoking_twice_keeps_the_first_moment(mint: Mint) -> None:
    key, _ = mint()
    stale = ApiKey.objects.get(pk=key.pk)

    assert key.revoke(by="console:test", at=NOON)
    assert not stale.revoke(by="console:test", at=LATER)

    assert stale.revoked_at == key.revoked_at == NOON
    assert ApiKey.objects.get(pk=key.pk).revoked_at == NOON


def test_revoking_writes_nothing_else(mint: Mint) -> None:
    key, _ = mint()
    ApiKey.objects.filter(pk=key.pk).update(name="renamed meanwhile")

    key.revoke(by="console:test", at=LATER)

    assert ApiKey.objects.get(pk=key.pk).name == "renamed meanwhile"


def test_a_key_is_usable_until_the_moment_it_expires(mint: Mint) -> None:
    key, _ = mint(expires_at=LATER)

    assert key.is_usable(LATER - timedelta(microseconds=1))
    assert not key.is_usable(LATER)
    assert key.status(LATER) is KeyStatus.EXPIRED


def test_a_key_is_usable_again_when_its_team_and_organization_are(mint: Mint) -> None:
    key, _ = mint()

    for owner in (key.team, key.organization):
        assert owner.suspend(by="console:test", at=NOON)
        assert key.status(NOON) is KeyStatus.SUSPENDED
        assert owner.resume(by="console:test", at=NOON)
        assert key.is_usable(NOON)


def test_suspending_twice_is_once(organization: Organization) -> None:
    stale = Organization.objects.get(pk=organization.pk)

    assert organization.suspend(by="console:test", at=NOON)
    assert not stale.suspend(by="console:test", at=NOON)

    assert not stale.is_active
