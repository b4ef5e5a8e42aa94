"""Signing in and out: with a wait after failures, to addresses of our own only."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from dashboard.attempts import FAILURES_MAX, WAIT_S
from tests.dashboard.conftest import PASSWORD, Person

WRONG = "do not belong together"


def sign_in(client: Client, username: str, password: str = PASSWORD, **form: str) -> Any:
    return client.post("/sign-in/", {"username": username, "password": password} | form)


def test_who_signs_in_comes_to_the_overview(alice: Person) -> None:
    answer = sign_in(client := Client(), alice.user.username)

    assert answer.headers["location"] == "/"
    assert client.get("/").headers["location"] == alice.url()


def test_after_signing_in_the_page_that_was_asked_for_comes(alice: Person) -> None:
    answer = sign_in(Client(), alice.user.username, next=alice.url("usage/"))

    assert answer.headers["location"] == alice.url("usage/")


@pytest.mark.parametrize("address", ["https://evil.example/", "//evil.example/", "javascript:1"])
def test_nobody_is_led_elsewhere(alice: Person, address: str) -> None:
    assert sign_in(Client(), alice.user.username, next=address).headers["location"] == "/"
    answer = alice.client.post("/language/", {"language": "en", "next": address})
    assert answer.headers["location"] == "/"


def test_a_wrong_password_an_unknown_and_an_inactive_name_are_told_alike(alice: Person) -> None:
    User.objects.create_user("gone", password=PASSWORD, is_active=False)

    for name, password in ((alice.user.username, "wrong"), ("nobody", "wrong"), ("gone", PASSWORD)):
        answer = sign_in(Client(), name, password)
        assert answer.status_code == 200
        assert WRONG in answer.content.decode()


def test_an_unknown_name_costs_as_much_work_as_a_known_one(
    alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(User, "set_password", lambda self, raw: hashed.append(raw))

    sign_in(Client(), "nobody", "wrong")

    assert hashed == ["wrong"]


def test_after_so_many_failures_the_right_password_must_wait_too(alice: Person) -> None:
    for _ in range(FAILURES_MAX):
        assert WRONG in sign_in(Client(), alice.user.username, "wrong").content.decode()

    answer = sign_in(Client(), alice.user.username)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, str(WAIT_S))
    assert "Too many attempts" in answer.content.decode()
    elsewhere = Client(REMOTE_ADDR="192.0.2.7")
    assert sign_in(elsewhere, alice.user.username).status_code == 302


def test_the_administration_is_no_way_around_the_wait(olga: Person) -> None:
    form = {"username": olga.user.username, "password": "wrong", "next": "/admin/"}
    for _ in range(FAILURES_MAX):
        assert "Too many" not in Client().post("/admin/login/", form).content.decode()

    for password in ("wrong", PASSWORD):
        answer = Client().post("/admin/login/", form | {"password": password})
        assert "Too many attempts" in answer.content.decode()
    assert sign_in(Client(), olga.user.username).status_code == 429


def test_signing_in_forgets_the_failures_before(alice: Person) -> None:
    for _ in range(3):
        for _ in range(FAILURES_MAX - 1):
            sign_in(Client(), alice.user.username, "wrong")
        assert sign_in(Client(), alice.user.username).status_code == 302


def test_signing_out_ends_it(alice: Person) -> None:
    assert alice.client.get("/sign-out/").status_code == 405
    assert alice.client.post("/sign-out/").headers["location"] == "/sign-in/"
    assert alice.status(alice.url()) == 302


@pytest.mark.parametrize("path", ["/sign-in/", "/sign-out/", "/language/"])
def test_forms_of_other_sites_are_refused(alice: Person, path: str) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice.user)

    answer = client.post(path, {"language": "en"})
    assert answer.status_code == 403
    assert "This form has expired" in answer.content.decode()
