import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from tenants import keys
from tenants.models import ApiKey, AuditEntry, Organization, Team
from tests.tenants.conftest import Mint

KEYS = "/admin/tenants/apikey/"


def test_a_new_key_is_shown_once(admin_client: Client, team: Team) -> None:
    form = {"team": team.pk, "name": "laptop", "allowed_models": "a,b"}
    page = admin_client.post(f"{KEYS}add/", form, follow=True).content.decode()

    raw = keys.parse(re.findall(r"tsr_\w+", page)[0])
    assert raw is not None
    key = ApiKey.objects.get(public_id=raw.public_id)
    assert key.organization == team.organization
    assert key.allowed_models == ["a", "b"]
    assert key.created_by == User.objects.get(username="admin")
    assert raw.secret not in admin_client.get(KEYS).content.decode()
    assert raw.secret not in admin_client.get(f"{KEYS}{key.pk}/change/").content.decode()


def test_a_key_can_be_renamed_but_not_given_another_secret_or_team(
    admin_client: Client, mint: Mint, other_team: Team
) -> None:
    key, _ = mint()
    form = {"name": "renamed", "digest": "x" * 32, "public_id": "AbCd1234", "team": other_team.pk}

    admin_client.post(f"{KEYS}{key.pk}/change/", form)

    changed = ApiKey.objects.get(pk=key.pk)
    assert changed.name == "renamed"
    for field in ("digest", "public_id", "team_id", "organization_id"):
        assert getattr(changed, field) == getattr(key, field)
    assert AuditEntry.objects.latest("id").detail == {"fields": ["name"]}


def test_an_expiry_before_the_creation_is_an_error_on_the_form(
    admin_client: Client, mint: Mint
) -> None:
    key, _ = mint()
    form = {"name": "laptop", "expires_at_0": "2020-01-01", "expires_at_1": "00:00"}

    answer = admin_client.post(f"{KEYS}{key.pk}/change/", form)

    assert "cannot expire before" in answer.content.decode()


def test_keys_are_revoked_by_action_and_never_deleted(admin_client: Client, mint: Mint) -> None:
    key, _ = mint()

    admin_client.post(KEYS, {"action": "revoke", "_selected_action": [key.pk]})
    deletion = admin_client.post(f"{KEYS}{key.pk}/delete/", {"post": "yes"})

    assert ApiKey.objects.get(pk=key.pk).revoked_at is not None
    assert AuditEntry.objects.latest("id").actor == "admin"
    assert deletion.status_code == 403


@pytest.mark.parametrize("model", ["organization", "team"])
def test_suspending_is_an_action_that_is_recorded(
    admin_client: Client, team: Team, model: str
) -> None:
    subject = team if model == "team" else team.organization

    for action, is_active in (("suspend", False), ("resume", True)):
        admin_client.post(
            f"/admin/tenants/{model}/", {"action": action, "_selected_action": [subject.pk]}
        )
        subject.refresh_from_db()
        assert subject.is_active is is_active
        assert AuditEntry.objects.latest("id").action == f"{model}.{action}"


def test_what_is_added_or_removed_is_recorded(admin_client: Client, team: Team) -> None:
    bob = User.objects.create_user("bob")
    form = {"organization": team.organization.pk, "user": bob.pk, "role": "viewer"}

    admin_client.post("/admin/tenants/membership/add/", form)
    membership = bob.memberships.get()
    admin_client.post(f"/admin/tenants/membership/{membership.pk}/delete/", {"post": "yes"})
    admin_client.post(
        "/admin/tenants/team/",
        {"action": "delete_selected", "_selected_action": [team.pk], "post": "yes"},
    )

    actions = team.organization.audit_entries.order_by("id").values_list("action", flat=True)
    assert list(actions) == ["membership.create", "membership.delete", "team.delete"]
    assert not team.organization.teams.exists()


def test_an_organization_is_never_deleted_here(admin_client: Client, team: Team) -> None:
    url = f"/admin/tenants/organization/{team.organization.pk}/delete/"

    assert admin_client.post(url, {"post": "yes"}).status_code == 403
    assert Organization.objects.filter(pk=team.organization.pk).exists()


def test_the_record_can_only_be_read(admin_client: Client, mint: Mint) -> None:
    key, _ = mint()
    entry = key.organization.audit_entries.get()
    url = f"/admin/tenants/auditentry/{entry.pk}"

    assert admin_client.get(f"{url}/change/").status_code == 200
    assert admin_client.post(f"{url}/change/", {"actor": "nobody"}).status_code == 403
    assert admin_client.post(f"{url}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.get("/admin/tenants/auditentry/add/").status_code == 403


@pytest.mark.parametrize("page", ["organization", "team", "membership", "apikey", "auditentry"])
def test_every_listing_opens_at_the_same_price_however_long(
    admin_client: Client, mint: Mint, page: str, django_assert_max_num_queries: object
) -> None:
    for _ in range(10):
        mint()

    with django_assert_max_num_queries(8):  # type: ignore[operator]
        answer = admin_client.get(f"/admin/tenants/{page}/")

    assert answer.status_code == 200
