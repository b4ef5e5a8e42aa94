"""Who may use what, and since when: keys, models and prices change under a running door."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from billing.models import UsageRecord
from gateway.models import Model
from tenants import principals
from tenants.models import ApiKey
from tests import factories
from tests.door import Door, eventually
from tests.factories import Tenant
from tests.fake_backend import UPSTREAM_NAME, answer
from tests.gateway.refusals import Refusal, refusal

PROMISED_S = 1.0


@pytest.fixture
def other_model(door: Door, alice: Tenant) -> Model:
    return add_model(door, alice)


def add_model(
    door: Door, tenant: Tenant, *, priced: bool = True, price_from: datetime | None = None
) -> Model:
    """Add a model with all that belongs to it at once, and wait until the door knows it."""
    backend = door.model.routes.get().backend
    with transaction.atomic():
        model = factories.model(backend, backend_model=UPSTREAM_NAME, priced=priced)
        if price_from is not None:
            factories.price(model.name, effective_from=price_from)
    door.wait_for_model(tenant, model.name)
    return model


def post(door: Door, tenant: Tenant, model: Model | None = None) -> httpx.Response:
    return door.chat(tenant, model=(model or door.model).name)


def names(door: Door, tenant: Tenant) -> set[str]:
    return {model["id"] for model in door.get(tenant, "/v1/models").json()["data"]}


def tenant_with(organization_of: Tenant, **key: Any) -> Tenant:
    """Return a tenant of the same team with a key of its own."""
    at = key.pop("at", timezone.now())
    row, raw = ApiKey.mint(organization_of.team, "another", by=None, at=at, **key)
    return Tenant(organization_of.organization, organization_of.team, row, raw.secret)


def test_a_key_sees_and_uses_only_the_models_it_may(
    door: Door, alice: Tenant, other_model: Model
) -> None:
    door.backend.script(answer())
    bob = tenant_with(alice, allowed_models=[other_model.name])

    assert names(door, bob) == {other_model.name}
    assert post(door, bob, other_model).status_code == 200
    refused = Refusal(403, "model_not_allowed", "model", "permission_error")
    assert refusal(post(door, bob)) == refused
    assert refusal(door.get(bob, f"/v1/models/{door.model.name}")) == refused
    assert len(door.backend.asked) == 1


def test_a_key_may_not_use_more_than_its_organization(
    door: Door, committed: None, other_model: Model
) -> None:
    dora = factories.tenant("dora", allowed_models=[door.model.name])
    greedy = tenant_with(dora, allowed_models=[door.model.name, other_model.name])

    assert names(door, dora) == names(door, greedy) == {door.model.name}
    assert post(door, greedy, other_model).status_code == 403


def test_a_model_without_a_price_is_refused_and_costs_nothing(door: Door, alice: Tenant) -> None:
    model = add_model(door, alice, priced=False)

    response = post(door, alice, model)

    assert refusal(response) == Refusal(503, "model_not_priced", "model", "server_error")
    assert "no price in TWD" in response.json()["error"]["message"]
    assert door.backend.asked == []
    assert not UsageRecord.objects.filter(organization=alice.organization).exists()


def test_a_price_in_another_currency_is_no_price(door: Door, committed: None) -> None:
    erin = factories.tenant("erin", currency="USD")

    response = post(door, erin)

    assert refusal(response) == Refusal(503, "model_not_priced", "model", "server_error")
    assert "no price in USD" in response.json()["error"]["message"]


def test_a_revoked_key_is_refused_within_a_second(door: Door, alice: Tenant) -> None:
    door.backend.script(answer())
    assert post(door, alice).status_code == 200  # the cache is warm

    alice.key.revoke(by="a test", at=timezone.now())
    eventually(lambda: post(door, alice).status_code == 401, within_s=PROMISED_S)

    refused = post(door, alice)
    assert refusal(refused) == Refusal(401, "invalid_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"


def test_the_default_poll_keeps_the_promise_of_a_second() -> None:
    """Revoked just after a poll, a key is served until the next one, and never beyond what a blind cache trusts."""
    assert settings.SNAPSHOT_POLL_MS / 1000 <= PROMISED_S / 2
    assert principals.Limits().unconfirmed_s_max <= 5


def test_an_expired_key_is_refused(door: Door, alice: Tenant) -> None:
    at = timezone.now() - timedelta(hours=2)
    late = tenant_with(alice, at=at, expires_at=at + timedelta(hours=1))

    assert refusal(post(door, late)) == Refusal(401, "expired_api_key")


def test_a_key_that_expires_while_it_is_used_is_refused(door: Door, alice: Tenant) -> None:
    door.backend.script(answer())
    brief = tenant_with(alice, expires_at=timezone.now() + timedelta(seconds=1))

    assert post(door, brief).status_code == 200
    eventually(lambda: post(door, brief).status_code == 401)


@pytest.mark.parametrize("what", ["organization", "team"])
def test_who_is_suspended_is_refused_until_resumed(door: Door, alice: Tenant, what: str) -> None:
    door.backend.script(answer())
    assert post(door, alice).status_code == 200

    getattr(alice, what).suspend(by="a test", at=timezone.now())
    eventually(lambda: post(door, alice).status_code == 403, within_s=PROMISED_S)
    assert refusal(post(door, alice)) == Refusal(403, f"{what}_suspended", None, "permission_error")

    getattr(alice, what).resume(by="a test", at=timezone.now())
    eventually(lambda: post(door, alice).status_code == 200, within_s=PROMISED_S)


def test_a_model_that_is_switched_off_is_gone_within_a_second(
    door: Door, alice: Tenant, other_model: Model
) -> None:
    other_model.is_active = False
    other_model.save(update_fields=["is_active"])

    eventually(lambda: other_model.name not in names(door, alice), within_s=PROMISED_S)

    assert refusal(post(door, alice, other_model)) == Refusal(404, "model_not_found", "model")


def test_a_model_without_a_route_is_unavailable(
    door: Door, alice: Tenant, other_model: Model
) -> None:
    other_model.routes.update(is_active=False)

    eventually(lambda: post(door, alice, other_model).status_code == 503, within_s=PROMISED_S)

    response = post(door, alice, other_model)
    assert refusal(response).code == "no_backend_available"
    assert int(response.headers["retry-after"]) > 0


def test_a_new_price_counts_within_a_second_and_for_new_requests_only(
    door: Door, alice: Tenant, other_model: Model
) -> None:
    door.backend.script(answer())
    before = door.record(post(door, alice, other_model).headers["x-request-id"])
    dearer = factories.price(other_model.name, out_micro=99_000_000, effective_from=timezone.now())

    def price_of_a_request() -> int:
        request_id = post(door, alice, other_model).headers["x-request-id"]
        return door.record(request_id).price_id

    eventually(lambda: price_of_a_request() == dearer.pk, within_s=PROMISED_S)
    before.refresh_from_db()
    assert before.price_id != dearer.pk


def test_a_price_of_tomorrow_is_not_used_today(
    door: Door, alice: Tenant, other_model: Model
) -> None:
    door.backend.script(answer())
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    later = factories.price(other_model.name, out_micro=1, effective_from=tomorrow)
    add_model(door, alice)  # once the door knows it, it knows the price as well

    record = door.record(post(door, alice, other_model).headers["x-request-id"])

    assert record.price_id != later.pk
    assert record.price.effective_from == factories.LONG_AGO


def test_a_price_of_the_future_alone_is_no_price(door: Door, alice: Tenant) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    model = add_model(door, alice, priced=False, price_from=tomorrow)

    assert refusal(post(door, alice, model)).code == "model_not_priced"
