import json
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import CommandError
from django.utils.timezone import now

from billing import prices
from gateway import catalog
from gateway.catalog import RouteEntry
from gateway.management.commands.demo_seed import IMAGE_MODELS, TEXT_MODEL
from gateway.models import Backend, Model
from tenants import keys
from tenants.models import ApiKey, Organization, Team
from tests.console import run

pytestmark = pytest.mark.usefixtures("empty_database")

SEEDS_MODEL = "llama3.2-ffm-11b-v-32k-chat"
URL = "http://127.0.0.1:8100"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    monkeypatch.setenv("TESSERA_ADMIN_PASSWORD", "correct horse")
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # a cheap one


def seed(*words: str, url: str = URL) -> Any:
    """Seed, and return the whole of stdout as JSON."""
    return json.loads(run("demo_seed", "--backend-url", url, *words)[0])


def route_of(name: str) -> RouteEntry:
    return catalog.route_for(catalog.load().models[name])


def counts() -> list[int]:
    kinds = (Organization, Team, ApiKey, User, Backend, Model)
    return [kind._default_manager.count() for kind in kinds]


def demo_key() -> ApiKey:
    return ApiKey.objects.get(organization__slug="demo", revoked_at=None)


def test_the_first_seed_answers_with_a_key_that_works() -> None:
    answer = seed()

    raw = keys.parse(answer["api_key"])
    assert raw is not None
    assert ApiKey.objects.get(public_id=raw.public_id) == demo_key()
    assert {name: answer[name] for name in ("organization", "team", "admin_user")} == {
        "organization": "demo",
        "team": "vision",
        "admin_user": "admin",
    }
    organization = Organization.objects.get(slug="demo")
    assert (organization.currency, organization.timezone) == ("TWD", "Asia/Taipei")


def test_a_second_seed_changes_nothing_and_mints_no_second_key() -> None:
    seed()
    before = counts()

    answer = seed()

    assert answer["api_key"] is None
    assert answer["key_status"] == "active"
    assert counts() == before


def test_every_demo_model_is_served_and_priced_in_both_currencies() -> None:
    seed()

    snapshot = catalog.load()
    for demo in (TEXT_MODEL, *IMAGE_MODELS):
        entry = snapshot.models[demo.name]
        assert catalog.route_for(entry).backend.base_url == f"{URL}/v1"
        for currency in ("TWD", "USD"):
            assert snapshot.rates_for(entry, 0, currency, now()).out_micro > 0


def test_the_documents_model_is_read_by_the_image_reader() -> None:
    seed()

    model = catalog.load().models[SEEDS_MODEL]
    assert route_of(SEEDS_MODEL).backend_model == "image-reader"
    assert model.counter.name == "llama-3.2-vision"
    assert (model.context_tokens, model.tokens_out_default, model.tokens_out_max) == (
        32768,
        2048,
        8192,
    )


def test_the_text_model_has_the_context_of_one_slot_and_no_images() -> None:
    server = (settings.BASE_DIR / "demo" / "llama_server.py").read_text()
    seed()

    model = catalog.load().models["smollm2-135m-instruct"]
    assert f"\nCONTEXT_TOKENS = {model.context_tokens}\n" in server
    assert (model.images_max, model.counter.name) == (0, "generic")


def test_where_the_text_model_does_not_run_it_is_not_created() -> None:
    seed("--no-text-model")
    assert not Model.objects.filter(name=TEXT_MODEL.name).exists()

    seed("--text-model")
    assert Model.objects.filter(name=TEXT_MODEL.name).exists()


def test_the_backends_address_follows_its_port() -> None:
    seed()

    seed(url="http://127.0.0.1:9999/")

    assert route_of("image-reader").backend.base_url == "http://127.0.0.1:9999/v1"


def test_a_model_repointed_by_the_user_stays_where_they_pointed_it() -> None:
    seed()
    run(
        "backend",
        "add",
        "afs",
        "--url",
        "https://afs.example.com/api/models",
        "--model",
        SEEDS_MODEL,
    )

    seed(url="http://127.0.0.1:9999")

    assert route_of(SEEDS_MODEL).backend.name == "afs"
    assert route_of("image-reader").backend.name == "demo"


def test_a_price_set_by_the_user_stays() -> None:
    seed()
    run(
        "price",
        "set",
        SEEDS_MODEL,
        "--currency=TWD",
        "--text-in=1",
        "--image-in=1",
        "--out=7",
        "--yes",
    )

    seed()

    price = prices.in_force(SEEDS_MODEL, "TWD", now())
    assert price is not None
    assert price.out_micro == 7_000_000


def test_a_key_revoked_by_the_user_stays_revoked_until_another_is_asked_for() -> None:
    seed()
    run("key", "revoke", demo_key().public_id)

    answer = seed()

    assert (answer["api_key"], answer["key_status"]) == (None, "revoked")
    assert not ApiKey.objects.filter(organization__slug="demo", revoked_at=None).exists()


def test_a_new_key_takes_the_place_of_the_old_one() -> None:
    old = seed()["api_key"]

    answer = seed("--new-key")

    assert answer["api_key"] != old
    raw = keys.parse(answer["api_key"])
    assert raw is not None
    assert demo_key().public_id == raw.public_id


def test_the_admin_logs_in_with_the_password_of_the_environment(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed()
    assert client.login(username="admin", password="correct horse")

    monkeypatch.setenv("TESSERA_ADMIN_PASSWORD", "battery staple")
    seed()
    assert client.login(username="admin", password="battery staple")
    assert client.get("/admin/").status_code == 200


def test_a_session_of_the_admin_survives_a_seed(client: Any) -> None:
    seed()
    client.login(username="admin", password="correct horse")

    seed()

    assert client.get("/admin/").status_code == 200


def test_without_a_password_nothing_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESSERA_ADMIN_PASSWORD")

    with pytest.raises(CommandError, match="TESSERA_ADMIN_PASSWORD is not set"):
        seed()

    assert not Organization.objects.filter(slug="demo").exists()
