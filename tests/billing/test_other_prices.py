"""A period under other prices than it was booked at: to look at (`rerate`), and billed anew (`reissue`)."""

import csv
from datetime import timedelta
from decimal import Decimal

import pytest
from django.apps import apps
from django.core.management import CommandError
from django.test import Client

from billing.accounts import Account
from billing.invoicing import content, csv_lines, documents, exports, lifecycle, metered, rerating
from billing.invoicing.invoices import Invoice
from billing.invoicing.metered import Under
from billing.invoicing.snapshots import items_of
from billing.invoicing.verification import verify
from billing.models import Allowance, Price, PriceList
from tenants.models import AuditEntry
from tests import factories
from tests.console import run, run_json
from tests.factories import Tenant
from tests.invoiced import ISSUED, MARCH, NOON, issue, use

pytestmark = pytest.mark.django_db

TWENTIETH = MARCH.start + timedelta(days=19)


@pytest.fixture
def right(vlm: Price) -> PriceList:
    """The prices that should have been: text at 2 per million, from the twentieth on at 3. Nobody pays by it."""
    row = PriceList.objects.create(slug=factories.unique("right"), name="Right", currency="TWD")
    for since, text in ((factories.LONG_AGO, 2_000_000), (TWENTIETH, 3_000_000)):
        factories.price("vlm", price_list=row, text_in_micro=text, effective_from=since)
    return row


@pytest.fixture
def void(acme: Tenant, vlm: Price) -> Invoice:
    """An invoice at 10 per million, with usage on both sides of the twentieth."""
    use(acme, vlm, text=100_000_000, out=0)
    use(acme, vlm, text=50_000_000, out=1_000_000, at=TWENTIETH)
    issued = issue(acme)
    return lifecycle.void(issued.pk, reason="per thousand", by=None, at=ISSUED)


def reissue(void: Invoice, price_list: PriceList) -> Invoice:
    draft = lifecycle.reissue(void.pk, by="alice", at=ISSUED, price_list=price_list)
    anew = lifecycle.issue(draft.pk, ISSUED)
    assert anew is not None
    return anew


def row_counts() -> dict[str, int]:
    return {model.__name__: model._default_manager.count() for model in apps.get_models()}


def test_each_record_is_rated_at_the_version_of_its_time(
    acme: Tenant, vlm: Price, right: PriceList
) -> None:
    use(acme, vlm, text=100_000_000, out=0, at=TWENTIETH - timedelta(microseconds=1))
    use(acme, vlm, text=50_000_000, out=0, at=TWENTIETH)

    rows = rerating.compare(Account.known(acme.organization), MARCH, right)

    assert [(row.now_minor, row.then_minor) for row in rows if row.kind == "text_in"] == [
        (1500, 200 + 150)
    ]


def test_what_it_comes_to_is_exact_and_what_the_list_lacks_is_at_the_default_ones(
    acme: Tenant, vlm: Price
) -> None:
    young = PriceList.objects.create(slug=factories.unique("young"), name="Young", currency="TWD")
    factories.price("vlm", price_list=young, text_in_micro=7_000_003, effective_from=TWENTIETH)
    use(acme, vlm, text=123_457, out=0, at=TWENTIETH - timedelta(microseconds=1))
    use(acme, vlm, text=654_321, out=0, at=TWENTIETH)

    usage = metered.quantities_under(acme.organization.pk, MARCH, Under(young.pk, "TWD"))
    rated = content.rated(Account.known(acme.organization), MARCH, usage, price_list=young)

    (line,) = rated.lines
    assert line.amount_pico == 123_457 * 10_000_000 + 654_321 * 7_000_003
    assert [step.price_id for step in line.steps] == [vlm.pk, young.prices.get().pk]


def test_the_list_that_is_in_force_gives_what_the_preview_says(
    acme: Tenant, vlm: Price, right: PriceList
) -> None:
    account = Account.of(acme.organization)
    account.change(by=None, at=NOON, price_list=right, discount_bp=333)
    old, new = right.prices.order_by("effective_from")
    use(acme, old, text=123_456_789)
    use(acme, new, text=987_654_321, at=TWENTIETH)
    use(acme, factories.price("other"), text=555_555_555, at=TWENTIETH)

    sums = {row.kind: row.then_minor for row in rerating.compare(account, MARCH, right)[-4:]}

    totals = exports.preview(account, MARCH).totals
    assert sums == {name: getattr(totals, f"{name}_minor") for name in sums}
    assert sums["subtotal"] == 3210 + 3 + 5556 + 2
    assert sums["total"] == 8771 - 292 + 424


def test_under_the_prices_that_count_nothing_changes(acme: Tenant, vlm: Price) -> None:
    factories.price("vlm", text_in_micro=11_000_001, effective_from=TWENTIETH)
    later = Price.objects.get(model_name="vlm", effective_from=TWENTIETH)
    use(acme, vlm, text=123_456_789)
    use(acme, later, text=987_654_321, at=TWENTIETH)

    rows = rerating.compare(Account.known(acme.organization), MARCH, vlm.price_list)

    assert rows
    assert all(row.now_minor == row.then_minor for row in rows)


def test_an_invoice_is_billed_anew_under_the_right_prices(void: Invoice, right: PriceList) -> None:
    anew = reissue(void, right)

    assert (void.subtotal_minor, anew.subtotal_minor) == (1530, 200 + 150 + 30)
    assert anew.frozen.replaces == void.number
    assert anew.frozen.price_list is not None
    assert anew.frozen.price_list.slug == right.slug
    assert AuditEntry.objects.get(action="invoice.reissue").detail == {"price_list": right.slug}
    assert documents.pdf(anew).startswith(b"%PDF")


def test_it_is_verified_at_the_versions_it_names_whatever_the_list_has_by_then(
    void: Invoice, right: PriceList
) -> None:
    anew = reissue(void, right)
    factories.price(
        "vlm", price_list=right, text_in_micro=1, effective_from=NOON - timedelta(days=1)
    )

    assert [str(finding) for finding in verify(anew)] == []
    assert [str(finding) for finding in verify(void)] == []


def test_the_usage_behind_its_lines_adds_up_at_these_prices(
    void: Invoice, right: PriceList
) -> None:
    anew = reissue(void, right)

    for number, (_, line) in enumerate(items_of(anew.frozen), 1):
        text = "".join(exports.usage(anew, number)).removeprefix(csv_lines.BOM)
        amounts = [Decimal(row["amount_exact"]) for row in csv.DictReader(text.splitlines())]
        assert sum(amounts, Decimal()).scaleb(12) == line.amount_pico


def test_free_units_are_those_of_the_month_not_of_today(void: Invoice, right: PriceList) -> None:
    for since, tokens in ((MARCH.start, 20_000_000), (MARCH.end, 70_000_000)):
        Allowance.objects.create(
            price_list=right,
            model_name="vlm",
            kind="text_in",
            tokens_per_month=tokens,
            effective_from=since,
        )

    anew = reissue(void, right)

    assert anew.subtotal_minor == 380 - 40
    assert [str(finding) for finding in verify(anew)] == []


def test_a_draft_of_it_stays_under_the_list_when_it_is_refreshed(
    void: Invoice, right: PriceList
) -> None:
    draft = lifecycle.reissue(void.pk, by="alice", at=ISSUED, price_list=right)
    lifecycle.refresh(draft.pk, ISSUED)

    draft.refresh_from_db()
    assert draft.subtotal_minor == 380


def test_a_list_that_lacks_a_price_voids_nothing(acme: Tenant, vlm: Price) -> None:
    dollars = PriceList.objects.create(slug=factories.unique("usd"), name="USD", currency="USD")
    use(acme, vlm)
    issued = issue(acme)
    words = ("invoice", "void", str(issued.number), "--reason=slip", "--reissue")

    with pytest.raises(CommandError, match="USD, not TWD"):
        run(*words, f"--price-list={dollars.slug}")

    issued.refresh_from_db()
    assert issued.status == "issued"


def test_a_void_invoice_is_issued_anew_at_the_console(void: Invoice, right: PriceList) -> None:
    with pytest.raises(CommandError, match="--reissue it under"):
        run("invoice", "void", str(void.number), "--reason=x", f"--price-list={right.slug}")

    told, _ = run("invoice", "reissue", str(void.number), f"--price-list={right.slug}")

    assert "TWD 399" in told  # 380, and 5 % of tax
    shown, _ = run("invoice", "show", told.split()[0])
    assert f"replaces {void.number}\nat the prices of {right.slug}\n" in shown


def test_the_admin_says_what_it_replaces_and_under_which_list(
    void: Invoice, right: PriceList, admin_client: Client
) -> None:
    anew = reissue(void, right)
    page = admin_client.get(f"/admin/billing/invoice/{anew.pk}/change/").content.decode()

    assert str(void.number) in page
    assert right.slug in page


def test_a_list_that_nobody_pays_by_may_reach_back(acme: Tenant, right: PriceList) -> None:
    words = ["price", "set", "vlm", f"--list={right.slug}", "--text-in=2", "--image-in=2"]
    words += ["--out=2", "--yes"]
    run(*words, "--from=2026-03-05")

    assert right.prices.count() == 3
    run("account", "set", acme.organization.slug, f"--price-list={right.slug}")
    with pytest.raises(CommandError, match="has passed"):
        run(*words, "--from=2026-03-06")


def test_to_look_writes_nothing(empty_database: None) -> None:
    bare = factories.tenant(factories.unique("bare"))
    own = PriceList.objects.create(slug="own", name="Own", currency="TWD")  # and no default one
    use(bare, factories.price("vlm", price_list=own))
    Account.objects.filter(organization=bare.organization).delete()
    slug, before = bare.organization.slug, row_counts()

    run_json("invoice", "preview", slug, "--period=2026-03")
    run_json("invoice", "preview", slug)
    run_json("rerate", slug, f"--price-list={own.slug}", "--period=2026-03")

    assert row_counts() == before
