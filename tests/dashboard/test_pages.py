"""What every page keeps to: no script, nothing from elsewhere, no cache; and errors as decent pages."""

import re

import pytest
from django.test import Client

from billing.models import Price
from tests import booked
from tests.dashboard.conftest import Person

PAGES = ("", "budgets/", "usage/", "invoices/")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_needs_no_script_and_nothing_from_elsewhere(
    alice: Person, vlm: Price, page: str
) -> None:
    booked.budget(alice.tenant, limit_micro=1)
    booked.budget(alice.tenant, limit_tokens=10**6)
    answer = alice.client.get(alice.url(page))
    text = answer.content.decode()

    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", text)
    assert not re.search(r"""(?:src|href|action)=["'](?:https?:|//)""", text)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize("page", PAGES)
def test_every_field_has_its_label_and_every_table_its_caption(alice: Person, page: str) -> None:
    text = alice.read(page)

    for field in re.findall(r'<(?:select|input(?! type="hidden"))[^>]* id="([^"]+)"', text):
        assert f'<label for="{field}">' in text
    assert text.count("<table") == text.count("<caption>")


def test_what_is_not_there_gets_a_decent_page(alice: Person) -> None:
    answer = alice.client.get("/o/nobody/")

    assert answer.status_code == 404
    assert "This page is not there" in answer.content.decode()
    assert "dashboard.css" in answer.content.decode()


def test_what_went_wrong_gets_a_decent_page(alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("dashboard.gauges.of_organization", broken)
    alice.client.raise_request_exception = False
    answer = alice.client.get(alice.url("budgets/"))

    assert answer.status_code == 500
    assert "Something went wrong here" in answer.content.decode()
    assert "a fault" not in answer.content.decode()


def test_names_are_shown_as_text(alice: Person, vlm: Price) -> None:
    booked.spend(alice.tenant, vlm, 1)
    alice.tenant.key.name = "<b>bold</b>"
    alice.tenant.key.save(update_fields=["name"])

    assert "<b>bold" not in alice.read("usage/")
    assert "&lt;b&gt;bold" in alice.read("usage/")


def test_the_administration_stays_where_it_was(db: None) -> None:
    assert Client().get("/admin/").headers["location"] == "/admin/login/?next=/admin/"
