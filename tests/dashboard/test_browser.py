"""The dashboard in a real browser, served by the real gateway: headless Chromium, at two widths, in two languages.

With SCREENSHOTS=directory it leaves a picture of every page there.
"""

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import override_settings
from django.utils.timezone import now
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)
from pypdfium2 import PdfDocument

from billing import rollups
from billing.models import Price
from dashboard import overview, shares
from dashboard.attempts import FAILURES_MAX
from tenants.models import ApiKey, Role
from tests import booked, factories
from tests.dashboard.conftest import PASSWORD, Person, person
from tests.door import serving
from tests.factories import Tenant
from tests.invoiced import MARCH, issue, use

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = {"wide": 1280, "narrow": 390}
MODELS = ("vision-11b", "text-small")
DAYS = 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no page was looked at in a browser: there is no Chromium here (apt install chromium)",
    ),
]


def book(tenant: Tenant, price: Price, at: datetime, number: int) -> None:
    """Book a request, each a little different."""
    text, image, out = 180 + 37 * (number % 11), 1601 * (number % 5), 60 + 53 * (number % 7)
    amount = text * price.text_in_micro + image * price.image_in_micro + out * price.out_micro
    held = booked.hold(tenant, price, received_at=at, amount_pico=2 * amount, tokens_in_text=text)
    broken = {"status": "client_closed", "policy": "delivered"} if number % 9 == 4 else {}
    booked.settle(
        held,
        tokens_in_image=image,
        tokens_out=out,
        amount_pico=amount,
        counted_prompt=text + image,
        upstream_prompt=text + image,
        upstream_out=out,
        canvases=["jpeg 1170x2532 1x3"] * (image > 0),
        first_byte_at=at + timedelta(seconds=1),
        finished_at=at + timedelta(seconds=4),
        **broken,
    )


@pytest.fixture(scope="module")
def alice(django_db_setup: None, django_db_blocker: Any) -> Iterator[Person]:
    """Alice's organization with two weeks of usage, budgets and an invoice, committed for the gateway to see."""
    with django_db_blocker.unblock():
        found = person(factories.tenant("alice"))
        found.tenant.organization.name = "北極星實驗室 Polaris"
        found.tenant.organization.save(update_fields=["name"])
        backend = factories.backend("http://127.0.0.1:1/v1")
        models = [factories.model(backend, name=factories.unique(word)) for word in MODELS]
        prices = [Price.objects.get(model_name=model.name) for model in models]
        use(found.tenant, prices[0], MARCH.start)
        issue(found.tenant)
        end = now()
        for number in reversed(range(DAYS * 6)):
            book(found.tenant, prices[number % 3 == 0], end - timedelta(hours=4 * number), number)
        booked.budget(found.tenant, limit_micro=20_000_000, name="Everything")
        booked.budget(found.tenant, level="team", limit_micro=9_000_000, limit_tokens=800_000)
        booked.hold(found.tenant, prices[0])
        rollups.recompute()
        yield found
        connection.close()


@pytest.fixture(scope="module")
def crowd(alice: Person, django_db_blocker: Any) -> Person:
    """Somebody whose organization has more keys than a page lists, with names as long as may be."""
    with django_db_blocker.unblock():
        found = person(factories.tenant("crowd"))
        found.tenant.team.name = "Digitization of the archive's maps, plans and photographs " * 2
        found.tenant.team.save(update_fields=["name"])
        price = factories.price(factories.unique("a-vision-language-model-with-a-long-name"))
        for number in range(overview.ROWS_MAX + 10):
            name = "無障礙文件辨識與影像描述服務" * (number % 3) + f"scanner {number}"
            key, _ = ApiKey.mint(found.tenant.team, name, by=None, at=now())
            book(replace(found.tenant, key=key), price, now(), 7 * number)
        rollups.recompute()
        return found


@pytest.fixture(scope="module")
def newcomer(alice: Person, django_db_blocker: Any) -> Person:
    """The owner of an organization that was made just now."""
    with django_db_blocker.unblock():
        return person(factories.tenant("newcomer"))


@pytest.fixture(scope="module")
def viewer(alice: Person, django_db_blocker: Any) -> Person:
    """Somebody in Alice's organization who may not see its invoices."""
    with django_db_blocker.unblock():
        return person(alice.tenant, role=Role.VIEWER)


@pytest.fixture(scope="module")
def url(
    alice: Person,
    crowd: Person,
    newcomer: Person,
    viewer: Person,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The gateway's address, with the pages' files collected. People first: the browser's loop keeps off the ORM."""
    directory = tmp_path_factory.mktemp("pages")
    with override_settings(STATIC_ROOT=str(directory / "static")):
        call_command("collectstatic", interactive=False, verbosity=0)
    with serving(directory, TESSERA_STATIC_ROOT=str(directory / "static")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser(url: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(browser: Browser, url: str, width: str) -> Iterator[Page]:
    """A fresh browser of that width, without JavaScript, that must meet no fault in what it loads."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": WIDTHS[width], "height": 900},
        locale="en-US",
        java_script_enabled=False,
    )
    context.set_default_timeout(10_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.extend(_complaint(message, page)))
    page.on("requestfinished", lambda request: faults.extend(_elsewhere(request, url)))
    yield page
    context.close()
    assert faults == []


def _complaint(message: ConsoleMessage, page: Page) -> list[str]:
    """Return what the browser complains of, but for the status of the page itself, which tests look at."""
    is_status = message.text.startswith("Failed to load resource")
    return [] if is_status and message.location["url"] == page.url else [message.text]


def _elsewhere(request: Request, url: str) -> list[str]:
    return [] if request.url.startswith(url) else [request.url]


def sign_in(page: Page, person: Person) -> None:
    page.goto("/")
    page.get_by_label("Name").fill(person.user.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def picture(page: Page, name: str) -> None:
    if directory := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


def test_a_person_walks_through_all_pages(page: Page, alice: Person, width: str) -> None:
    page.goto("/")
    picture(page, f"{width}-en-sign-in")
    sign_in(page, alice)
    expect(page).to_have_url(f"{page.url.split('/o/')[0]}{alice.url()}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Overview")
    expect(page.get_by_role("table")).to_have_count(4)
    expect(page.locator("svg[role=img] rect").first).to_be_visible()
    expect(page.locator(".bars")).to_have_count(3)
    picture(page, f"{width}-en-overview")

    page.get_by_role("link", name="Budgets").click()
    expect(page.locator(".gauge")).to_have_count(3)
    picture(page, f"{width}-en-budgets")

    page.locator("nav").get_by_role("link", name="Usage", exact=True).click()
    page.get_by_label("Status").select_option("client_closed")
    page.get_by_role("button", name="Apply the filter").click()
    expect(page.locator("tbody .badge").first).to_have_text("Client left early")
    expect(page.locator("tbody .good")).to_have_count(0)
    page.get_by_role("link", name="Show all").click()
    picture(page, f"{width}-en-usage")
    page.get_by_role("link", name="Older").click()
    page.get_by_role("link", name="Newer").click()
    expect(page.get_by_role("link", name="Newer")).to_have_count(0)
    page.get_by_role("link", name="Older").click()
    page.locator("tbody th a").nth(2).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Receipt")
    picture(page, f"{width}-en-receipt")

    page.get_by_role("link", name="Invoices").click()
    expect(page.get_by_role("link", name="PDF")).to_be_visible()
    picture(page, f"{width}-en-invoices")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def download(page: Page, link: str) -> tuple[str, bytes]:
    """Click the link of the only invoice; return what the browser calls the file, and its content."""
    with page.expect_download() as caught:
        page.get_by_role("cell").get_by_role("link", name=link, exact=True).click()
    return caught.value.suggested_filename, caught.value.path().read_bytes()


def test_an_invoice_is_downloaded_by_a_click(page: Page, alice: Person) -> None:
    sign_in(page, alice)
    page.goto(alice.url("invoices/"))
    number = page.locator("tbody th").inner_text()
    assert re.fullmatch(r"TSR-\d{4}-\d{6}", number)

    name, content = download(page, "PDF")
    with closing(PdfDocument(content)) as document:
        assert (name, number in document[0].get_textpage().get_text_bounded()) == (
            f"{number}.pdf",
            True,
        )
    name, content = download(page, "JSON")
    assert (name, json.loads(content)["number"]) == (f"{number}.json", number)
    name, content = download(page, "CSV")
    assert name == f"{number}.csv"
    assert {row["number"] for row in rows(content)} == {number}
    name, content = download(page, "Usage")
    assert name == f"{number}-usage.csv"
    assert len(rows(content)) == 1


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(content.decode("utf-8-sig").splitlines()))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_who_is_new_and_who_may_not_are_told_so(
    page: Page, alice: Person, newcomer: Person, viewer: Person, width: str, language: str
) -> None:
    """What a page shows where there is nothing to show, and where something is refused."""
    sign_in(page, newcomer)
    if language == "zh":
        page.get_by_role("button", name="繁體中文").click()
    for path in ("", "budgets/", "usage/", "invoices/"):
        page.goto(newcomer.url(path))
        expect(page.locator(".empty")).to_be_visible()
        picture(page, f"{width}-{language}-new-{path.strip('/') or 'overview'}")
    refuse(page, alice.url(), 404)
    picture(page, f"{width}-{language}-404")
    refuse(page, newcomer.url("?month=2026-13"), 404)
    page.context.clear_cookies(name="sessionid")
    if language == "zh":
        page.goto("/sign-in/")
        page.get_by_label("名稱").fill(viewer.user.username)
        page.get_by_label("密碼").fill(PASSWORD)
        page.get_by_role("button", name="登入").click()
        page.wait_for_url("**/o/**")
    else:
        sign_in(page, viewer)
    refuse(page, viewer.url("invoices/"), 403)
    picture(page, f"{width}-{language}-403")


def refuse(page: Page, path: str, status: int) -> None:
    answer = page.goto(path)
    assert answer is not None
    assert answer.status == status
    expect(page.locator(".code")).to_have_text(str(status))


def test_who_guesses_must_wait(page: Page, alice: Person, width: str) -> None:
    page.goto("/sign-in/")
    for _ in range(FAILURES_MAX + 1):
        page.get_by_label("Name").fill(f"nobody-{width}")
        page.get_by_label("Password").fill("a guess")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("Try again in 5 minutes")
    picture(page, f"{width}-en-429")


def test_the_language_switch_keeps_the_page(page: Page, alice: Person, width: str) -> None:
    page.goto("/sign-in/")
    page.get_by_role("button", name="繁體中文").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("登入")
    picture(page, f"{width}-zh-sign-in")
    page.get_by_role("button", name="English").click()
    sign_in(page, alice)
    page.get_by_role("button", name="繁體中文").click()

    expect(page.locator("html")).to_have_attribute("lang", "zh-hant")
    for name, link in (
        ("overview", "總覽"),
        ("budgets", "預算"),
        ("usage", "用量"),
        ("invoices", "帳單"),
    ):
        page.locator("nav").get_by_role("link", name=link, exact=True).click()
        expect(page.locator("nav [aria-current]")).to_have_text(link)
        picture(page, f"{width}-zh-{name}")
    page.locator("nav").get_by_role("link", name="用量", exact=True).click()
    page.locator("tbody th a").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("明細")
    picture(page, f"{width}-zh-receipt")


def test_many_keys_and_long_names_stay_legible(page: Page, crowd: Person, width: str) -> None:
    sign_in(page, crowd)

    by_key = page.locator(".bars").nth(1)
    expect(by_key.locator(".named")).to_have_count(shares.LINES_MAX + 1)
    expect(by_key.locator(".named").last).to_contain_text("Others (50)")
    assert edges(by_key.locator(".lane:nth-child(2) .n")) == 1
    for bar in page.locator(".lane svg").all():
        box = bar.bounding_box()
        assert box is not None
        assert 60 <= box["width"] <= WIDTHS[width]
    picture(page, f"{width}-en-crowd")
    page.get_by_role("button", name="繁體中文").click()
    expect(by_key.locator(".named").last).to_contain_text("其他（50）")
    picture(page, f"{width}-zh-crowd")


def edges(figures: Locator) -> int:
    """Return at how many places the figures end."""
    boxes = [figure.bounding_box() for figure in figures.all()]
    return len({round(box["x"] + box["width"]) for box in boxes if box})


def test_no_page_is_wider_than_the_screen(page: Page, alice: Person, width: str) -> None:
    sign_in(page, alice)

    for path in ("", "budgets/", "usage/", "invoices/"):
        page.goto(alice.url(path))
        box = page.locator("main").bounding_box()
        assert box is not None
        assert box["width"] <= WIDTHS[width]
        head = page.locator("header").bounding_box()
        assert head is not None
        assert head["width"] == WIDTHS[width]


def test_the_keyboard_reaches_the_content_first(page: Page, alice: Person) -> None:
    sign_in(page, alice)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.bring_to_front()
    page.keyboard.press("Tab")

    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()


def test_dark_is_dark(browser: Browser, url: str, alice: Person) -> None:
    context = browser.new_context(
        base_url=url, color_scheme="dark", viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    sign_in(page, alice)
    expect(page.locator("body")).to_have_css("background-color", "rgb(18, 23, 22)")
    picture(page, "wide-dark-overview")
    page.goto(alice.url("budgets/"))
    picture(page, "wide-dark-budgets")
    context.close()
