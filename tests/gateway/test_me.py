"""GET /v1/me tells a key its own account, and nothing of anybody else's."""

from typing import Any

import pytest

from tests import booked, factories
from tests.booked import UNIT_PICO
from tests.door import Door
from tests.factories import Tenant
from tests.fake_backend import answer

IMAGE_TOKENS = 3202
IMAGE_PICO = IMAGE_TOKENS * 12_000_000  # at the price of tests.factories


def me(door: Door, tenant: Tenant) -> dict[str, Any]:
    response = door.get(tenant, "/v1/me")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def send_images(tenant: Tenant, *tokens_and_images: tuple[int, int]) -> str:
    """Book a request for each; return the model they asked."""
    price = factories.price(factories.unique("vlm"))
    for tokens, images in tokens_and_images:
        canvases = ["png 560x1120 560x1120"] * images
        held = booked.hold(tenant, price, tokens_in_image=tokens, canvases=canvases)
        booked.settle(held)
    return price.model_name


def test_it_says_whose_key_it_is(door: Door, alice: Tenant) -> None:
    body = me(door, alice)

    assert body["organization"]["slug"] == alice.organization.slug
    assert (body["team"]["slug"], body["key"]["public_id"]) == ("vision", alice.key.public_id)
    assert (body["currency"], body["budgets"], body["usual_image"]) == ("TWD", [], None)


def test_it_says_what_is_spent_held_and_left_of_each_budget_over_the_key(
    door: Door, alice: Tenant
) -> None:
    price = factories.price(factories.unique("vlm"))
    booked.budget(alice, limit_micro=10_000_000, name="all")
    booked.budget(alice, level="key", limit_tokens=1000, hold_tokens_max=500, period="life")
    booked.spend(alice, price, 2)
    booked.hold(alice, price)

    whole, own = me(door, alice)["budgets"]

    assert (whole["name"], whole["level"], whole["period"]) == ("all", "organization", "month")
    assert whole["money"] == {
        "limit": "10.00",
        "spent": "2.00",
        "held": "1.00",
        "left": "7.00",
        "left_in_usual_images": None,
        "hold_max": None,
    }
    assert whole["tokens"] is None
    assert whole["starts_at"] < whole["resets_at"]
    assert (own["level"], own["money"], own["resets_at"]) == ("key", None, None)
    assert own["tokens"] == {
        "limit": 1000,
        "spent": 100,
        "held": 100,
        "left": 800,
        "left_in_usual_images": None,
        "hold_max": 500,
    }


def test_what_was_spent_through_the_door_is_seen_at_once(door: Door, alice: Tenant) -> None:
    booked.budget(alice, limit_micro=10_000_000)
    door.backend.script(answer())
    record = door.record(door.chat(alice).headers["x-request-id"])

    (budget,) = me(door, alice)["budgets"]

    assert booked.pico(budget["money"]["spent"]) == record.amount_pico
    assert budget["money"]["held"] == "0.00"


def test_its_open_holds_are_counted_and_the_first_to_expire_are_named(
    door: Door, alice: Tenant, bob: Tenant
) -> None:
    price = factories.price(factories.unique("vlm"))
    held = [booked.hold(alice, price) for _ in range(7)]
    booked.hold(bob, price)

    holds = me(door, alice)["holds"]

    assert (holds["count"], holds["amount"], holds["tokens"]) == (7, "7.00", 700)
    assert [each["request_id"] for each in holds["next_to_expire"]] == [
        str(row.request_id) for row in held[:5]
    ]
    assert holds["next_to_expire"][0]["amount"] == "1.00"


def test_what_is_left_is_told_in_images_of_the_usual_size(door: Door, alice: Tenant) -> None:
    booked.budget(alice, limit_micro=100_000_000, limit_tokens=100_000)
    model_name = send_images(alice, (1601, 1), (2 * IMAGE_TOKENS, 2), (IMAGE_TOKENS, 1))

    body = me(door, alice)

    image = body["usual_image"]
    assert (image["tokens"], image["model"], image["requests"]) == (IMAGE_TOKENS, model_name, 3)
    assert booked.pico(image["amount"]) == IMAGE_PICO
    assert "median" in image["reckoned"]
    (budget,) = body["budgets"]
    assert budget["money"]["left_in_usual_images"] == 97 * UNIT_PICO // IMAGE_PICO
    assert budget["tokens"]["left_in_usual_images"] == budget["tokens"]["left"] // IMAGE_TOKENS


def test_a_model_without_a_price_in_the_keys_currency_leaves_the_money_untold(
    door: Door, alice: Tenant
) -> None:
    booked.budget(alice, limit_micro=100_000_000)
    price = factories.price(factories.unique("vlm"), currency="USD")
    held = booked.hold(alice, price, tokens_in_image=1601, canvases=["png 9x9 560x560"])
    booked.settle(held)

    body = me(door, alice)

    assert (body["usual_image"]["tokens"], body["usual_image"]["amount"]) == (1601, None)
    assert body["budgets"][0]["money"]["left_in_usual_images"] is None


def test_charlie_gets_nothing_of_alices(door: Door, alice: Tenant, charlie: Tenant) -> None:
    price = factories.price(factories.unique("vlm"))
    for level in ("organization", "team", "key"):
        booked.budget(alice, level=level, limit_micro=9_000_000)
    booked.hold(alice, price)
    send_images(alice, (1601, 1))

    body = me(door, charlie)

    assert body["organization"]["slug"] == charlie.organization.slug
    assert (body["budgets"], body["usual_image"]) == ([], None)
    assert body["holds"] == {"count": 0, "amount": "0.00", "tokens": 0, "next_to_expire": []}


def test_bob_sees_the_budgets_he_shares_and_not_alices_own(
    door: Door, alice: Tenant, bob: Tenant
) -> None:
    booked.budget(alice, level="key", limit_micro=9_000_000)
    shared = booked.budget(alice, level="team", limit_micro=9_000_000)
    send_images(alice, (1601, 1))

    body = me(door, bob)

    assert [budget["id"] for budget in body["budgets"]] == [shared.pk]
    assert body["budgets"][0]["money"]["spent"] == "1.00"
    assert body["usual_image"] is None


def test_a_removed_budget_is_not_told(door: Door, alice: Tenant) -> None:
    booked.budget(alice, limit_micro=9_000_000, is_active=False)

    assert me(door, alice)["budgets"] == []


@pytest.mark.parametrize("path", ["/v1/me", "/api/models/me"])
def test_both_base_urls_have_it_for_known_callers_only(
    door: Door, alice: Tenant, path: str
) -> None:
    assert door.get(alice, path).json()["object"] == "me"

    stranger = door.client.get(f"{door.url}{path}")
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "missing_api_key")
    refused = door.client.post(f"{door.url}{path}", headers=alice.headers)
    assert refused.status_code == 405


def test_it_is_kept_by_no_cache(door: Door, alice: Tenant) -> None:
    assert door.get(alice, "/v1/me").headers["cache-control"] == "no-store"
