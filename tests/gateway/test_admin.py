import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from billing.models import Price, PriceList
from gateway import console
from gateway.models import Backend, Model, Route
from tenants.models import AuditEntry
from tests import factories

BACKENDS = "/admin/gateway/backend/"
MODELS = "/admin/gateway/model/"
PRICES = "/admin/billing/price/"

pytestmark = pytest.mark.usefixtures("empty_database")


@pytest.fixture(autouse=True)
def cheap_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def vlm(db: None) -> Model:
    return factories.model(factories.backend("http://127.0.0.1:1/v1", name="local"), name="vlm")


def backend_form(**fields: Any) -> dict[str, Any]:
    return {
        "name": "afs",
        "kind": "openai",
        "base_url": "https://afs.example.com/api/models",
        "connect_timeout_s": 3,
        "first_byte_timeout_s": 120,
        "chunk_timeout_s": 60,
        "total_timeout_s": 600,
        "is_active": "on",
        "credential": "",
    } | fields


def model_form(model: Model, *routes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    form = {
        "name": model.name,
        "counter": model.counter,
        "context_tokens": model.context_tokens,
        "tokens_out_default": model.tokens_out_default,
        "tokens_out_max": model.tokens_out_max,
        "images_max": model.images_max,
        "is_active": "on",
        "routes-TOTAL_FORMS": len(routes),
        "routes-INITIAL_FORMS": sum("id" in route for route in routes),
    }
    for number, route in enumerate(routes):
        form |= {f"routes-{number}-{name}": value for name, value in route.items()}
    return form | fields


def route_form(route: Route, **fields: Any) -> dict[str, Any]:
    return {
        "id": route.pk,
        "model": route.model_id,
        "backend": route.backend_id,
        "priority": route.priority,
        "is_active": "on",
    } | fields


def price_form(**fields: Any) -> dict[str, Any]:
    return {
        "price_list": PriceList.standard("TWD").pk,
        "model_name": "vlm",
        "text_in_micro": "12.5",
        "image_in_micro": "15",
        "cached_in_micro": "6",
        "out_micro": "40",
        "request_micro": "0",
        "tier_mode": "flat",
        "tiers": "",
        "effective_from_0": "",
        "effective_from_1": "",
    } | fields


def add_price(client: Client, **fields: Any) -> None:
    """Add the price as a person does, who confirms what the form shows of it."""
    form = price_form(**fields)
    page = client.post(f"{PRICES}add/", form).content.decode()
    client.post(f"{PRICES}add/", form | {"confirmed": confirmation(page)})


def confirmation(page: str) -> str:
    found = re.search(r'name="confirmed"[^>]* value="([0-9a-f]{64})"', page)
    assert found, "nothing asks for a confirmation"
    return found[1]


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("id").values_list("action", flat=True))


def test_a_backend_is_added_with_a_credential_that_is_never_shown(admin_client: Client) -> None:
    url = "https://afs.example.com/api/models/"
    admin_client.post(f"{BACKENDS}add/", backend_form(base_url=url, credential="5ecret"))

    backend = Backend.objects.get(name="afs")
    assert console.credential_of(backend) == "5ecret"
    assert backend.base_url == url.rstrip("/")
    page = admin_client.get(f"{BACKENDS}{backend.pk}/change/").content.decode()
    assert "5ecret" not in page + str(AuditEntry.objects.values_list("detail", "subject"))
    assert actions() == ["backend.create"]


def test_an_empty_credential_keeps_the_stored_one(admin_client: Client, vlm: Model) -> None:
    backend = Backend.objects.get(name="local")
    url = f"{BACKENDS}{backend.pk}/change/"

    admin_client.post(url, backend_form(total_timeout_s=900))
    backend.refresh_from_db()
    assert (backend.total_timeout_s, console.credential_of(backend)) == (900, "backend-credential")

    admin_client.post(url, backend_form(total_timeout_s=900, credential="another"))
    backend.refresh_from_db()
    assert console.credential_of(backend) == "another"
    assert AuditEntry.objects.latest("id").detail == {"fields": ["credential_encrypted"]}


@pytest.mark.parametrize("url", ["https://u:p@host/v1", "https://host/v1/chat/completions"])
def test_an_address_is_checked_as_at_the_console(admin_client: Client, url: str) -> None:
    page = admin_client.post(f"{BACKENDS}add/", backend_form(base_url=url)).content.decode()

    assert "holds no credential" in page or "up to and without" in page
    assert not Backend.objects.exists()


def test_a_backend_with_routes_is_not_deleted(admin_client: Client, vlm: Model) -> None:
    backend = Backend.objects.get(name="local")

    admin_client.post(f"{BACKENDS}{backend.pk}/delete/", {"post": "yes"})

    assert Backend.objects.filter(pk=backend.pk).exists()


def test_every_change_of_a_route_is_recorded(admin_client: Client, vlm: Model) -> None:
    route = vlm.routes.get()
    spare = factories.backend("http://127.0.0.1:1/v1", name="spare")
    url = f"{MODELS}{vlm.pk}/change/"

    added = {"model": vlm.pk, "backend": spare.pk, "priority": 20, "is_active": "on"}
    admin_client.post(url, model_form(vlm, route_form(route), added))
    admin_client.post(url, model_form(vlm, route_form(route, priority=5)))
    admin_client.post(url, model_form(vlm, route_form(route, priority=5, DELETE="on")))

    assert actions() == ["route.create", "route.change", "route.delete"]
    assert AuditEntry.objects.get(action="route.change").detail == {"fields": ["priority"]}
    assert [route.backend.name for route in vlm.routes.all()] == ["spare"]


def test_a_change_of_a_model_is_recorded_by_its_fields(admin_client: Client, vlm: Model) -> None:
    form = model_form(vlm, route_form(vlm.routes.get()), images_max=3)

    admin_client.post(f"{MODELS}{vlm.pk}/change/", form)

    vlm.refresh_from_db()
    assert vlm.images_max == 3
    assert actions() == ["model.change"]


def test_a_model_keeps_its_name_which_its_prices_go_by(admin_client: Client, vlm: Model) -> None:
    form = model_form(vlm, route_form(vlm.routes.get()), name="renamed", images_max=3)

    admin_client.post(f"{MODELS}{vlm.pk}/change/", form)

    vlm.refresh_from_db()
    assert (vlm.name, vlm.images_max) == ("vlm", 3)


def test_a_model_is_deleted_with_its_routes_and_all_are_recorded(
    admin_client: Client, vlm: Model
) -> None:
    admin_client.post(f"{MODELS}{vlm.pk}/delete/", {"post": "yes"})

    assert not Model.objects.filter(pk=vlm.pk).exists()
    assert actions() == ["route.delete", "model.delete"]


def test_a_price_is_told_by_what_an_image_costs_before_it_is_saved(admin_client: Client) -> None:
    page = admin_client.post(f"{PRICES}add/", price_form()).content.decode()

    assert "a 1120×1120 image costs TWD 0.096060" in page
    assert '<li class="warning">Look again: It is the model&#x27;s first price' in page
    assert 'value="12.5"' in page
    assert "Please correct the error" not in page
    assert not Price.objects.exists()
    assert actions() == []


def test_a_price_that_is_confirmed_is_saved(admin_client: Client) -> None:
    add_price(admin_client)

    price = Price.objects.get()
    assert (price.text_in_micro, price.out_micro) == (12_500_000, 40_000_000)
    assert abs(price.effective_from - now()) < timedelta(minutes=1)
    assert actions() == ["price.create"]


@pytest.mark.parametrize("fields", [{"out_micro": "40000"}, {"tiers": "out:9:1"}, {}])
def test_a_confirmation_is_of_the_figures_that_were_shown_only(
    admin_client: Client, fields: dict[str, str]
) -> None:
    form = price_form(tier_mode="volume", tiers="out:9:2")
    shown = confirmation(admin_client.post(f"{PRICES}add/", form).content.decode())
    if not fields:  # what it is compared with has changed
        factories.price("vlm", out_micro=1)

    again = admin_client.post(f"{PRICES}add/", form | fields | {"confirmed": shown})

    assert confirmation(again.content.decode()) != shown
    assert not Price.objects.filter(tier_mode="volume").exists()


def test_a_form_that_is_not_filled_in_yet_asks_for_no_confirmation(admin_client: Client) -> None:
    empty = admin_client.get(f"{PRICES}add/").content.decode()
    wrong = admin_client.post(f"{PRICES}add/", price_form(out_micro="")).content.decode()

    assert 'name="confirmed"' not in empty + wrong


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"out_micro": "0.0000400"}, "more than 6 decimals"),
        ({"out_micro": "-1"}, "not a plain number"),
        ({"out_micro": "1000001"}, "more than 1000000 per million"),
        ({"out_micro": ""}, "This field is required"),
        ({"effective_from_0": "2020-01-01", "effective_from_1": "00:00"}, "That moment has passed"),
    ],
)
def test_a_wrong_price_is_an_error_on_the_form(
    admin_client: Client, fields: dict[str, str], message: str
) -> None:
    page = admin_client.post(f"{PRICES}add/", price_form(**fields)).content.decode()

    assert message in page
    assert not Price.objects.exists()


def test_a_price_is_added_with_its_tiers(admin_client: Client) -> None:
    fields = {"tier_mode": "volume", "tiers": "out:1_000_000:30\nout:9_000_000:20"}
    page = admin_client.post(f"{PRICES}add/", price_form(**fields)).content.decode()

    add_price(admin_client, **fields)

    price = Price.objects.get()
    assert (price.tier_mode, price.tier_count, price.tiers.count()) == ("volume", 2, 2)
    assert "from 1000000 out tokens a month on 1000 tokens cost TWD 0.030000" in page
    shown = admin_client.get(f"{PRICES}{price.pk}/change/").content.decode()
    assert "out:1000000:30.00; out:9000000:20.00" in shown


@pytest.mark.parametrize(
    "fields",
    [
        {"tier_mode": "volume"},
        {"tiers": "out:1000:1"},
        {"tiers": "outs:1000:1"},
        {"tier_mode": "volume", "tiers": "out:0:1"},
        {"tier_mode": "volume", "tiers": "out:9:1 out:9:2"},
    ],
)
def test_wrong_tiers_are_an_error_on_the_form(admin_client: Client, fields: dict[str, str]) -> None:
    page = admin_client.post(f"{PRICES}add/", price_form(**fields)).content.decode()

    assert "errorlist" in page
    assert 'name="confirmed"' not in page
    assert not Price.objects.exists()


def test_a_price_is_shown_in_currency_units_and_cannot_be_changed(
    admin_client: Client, db: None
) -> None:
    price = factories.price("vlm", out_micro=40_125_000)
    url = f"{PRICES}{price.pk}"

    for page in (PRICES, f"{url}/change/"):
        text = admin_client.get(page).content.decode()
        assert "40.125" in text
        assert "40125000" not in text
    assert admin_client.post(f"{url}/change/", price_form()).status_code == 403
    assert admin_client.post(f"{url}/delete/", {"post": "yes"}).status_code == 403


@pytest.mark.parametrize("page", ["gateway/backend", "gateway/model", "billing/price"])
def test_every_listing_opens_at_the_same_price_however_long(
    admin_client: Client, db: None, page: str, django_assert_max_num_queries: Any
) -> None:
    for _ in range(10):
        factories.model(factories.backend("http://127.0.0.1:1/v1"))

    with django_assert_max_num_queries(8):
        assert admin_client.get(f"/admin/{page}/").status_code == 200
