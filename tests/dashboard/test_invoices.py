"""Invoices: what is owed, and the downloads."""

import json
from datetime import timedelta

from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing.invoicing import credit_notes, exports, payments
from billing.invoicing.invoices import Invoice
from billing.models import Allowance, Price
from tests import downloads, factories
from tests.dashboard.conftest import Person
from tests.invoiced import ISSUED, NOON, OVER, draft, issue, use


def fetch(person: Person, invoice: Invoice, format: str) -> tuple[str, bytes]:
    """Return what a download is called, and its content."""
    found = downloads.fetch(person.user, person.url(f"invoices/{invoice.pk}/{format}/"))
    assert found.status == 200
    return found.name, found.content


def test_no_invoice_is_told(alice: Person) -> None:
    assert "No invoice yet" in alice.read("invoices/")


def test_an_invoice_is_listed_with_what_is_still_to_be_paid(alice: Person, vlm: Price) -> None:
    use(alice.tenant, vlm)
    invoice = issue(alice.tenant)
    payments.pay(invoice.pk, 1, received_at=ISSUED, by=None, at=ISSUED)
    page = alice.read("invoices/")

    assert str(invoice.number) in page
    assert "2026-03-01 – 2026-03-31" in page
    assert "Overdue" in page
    assert f'<td class="n">{invoice.due_minor - 1} <small>TWD</small></td>' in page


def test_a_draft_asks_for_no_money_yet(alice: Person, vlm: Price) -> None:
    use(alice.tenant, vlm)
    draft(alice.tenant)
    page = alice.read("invoices/")

    assert "Draft" in page
    assert '<td class="n">–</td>' in page


def test_downloads_are_what_was_frozen(alice: Person, vlm: Price) -> None:
    use(alice.tenant, vlm)
    invoice = issue(alice.tenant)

    name, content = fetch(alice, invoice, "json")
    assert (name, json.loads(content)["number"]) == (f"{invoice.number}.json", invoice.number)
    name, content = fetch(alice, invoice, "pdf")
    assert (name, content[:5]) == (f"{invoice.number}.pdf", b"%PDF-")
    name, content = fetch(alice, invoice, "usage-csv")
    assert name == f"{invoice.number}-usage.csv"
    assert len(content.splitlines()) == 2  # the head and one record


def test_each_line_has_the_usage_behind_it(alice: Person, vlm: Price) -> None:
    use(alice.tenant, vlm)
    invoice = issue(alice.tenant)
    page = alice.read(f"invoices/{invoice.pk}/")

    assert f"{invoice.pk}/lines/2/usage-csv/" in page
    name, content = fetch(alice, invoice, "lines/2/usage-csv")
    assert name == f"{invoice.number}-line-2-usage.csv"
    assert content.decode() == "".join(exports.usage(invoice, 2))
    assert alice.status(alice.url(f"invoices/{invoice.pk}/lines/3/usage-csv/")) == 404


def test_free_usage_and_credit_notes_have_none_of_their_own(alice: Person, vlm: Price) -> None:
    Allowance.objects.create(
        price_list=vlm.price_list,
        model_name="vlm",
        kind="out",
        tokens_per_month=1,
        effective_from=factories.LONG_AGO,
    )
    use(alice.tenant, vlm)
    invoice = issue(alice.tenant)
    note = credit_notes.credit(invoice.pk, reason="", by=None, at=ISSUED)

    page = alice.read(f"invoices/{invoice.pk}/")
    assert page.count("usage-csv") == 2
    assert "free allowance" in page
    assert "usage-csv" not in alice.read(f"invoices/{note.pk}/")


def test_a_draft_is_downloaded_under_its_own_name(alice: Person, vlm: Price) -> None:
    use(alice.tenant, vlm)
    invoice = draft(alice.tenant)

    name, content = fetch(alice, invoice, "csv")
    assert name == f"draft-{invoice.pk}.csv"
    assert b"vlm" in content


def test_a_format_that_there_is_not_is_not_found(alice: Person, vlm: Price) -> None:
    use(alice.tenant, vlm)
    invoice = issue(alice.tenant)

    assert alice.status(alice.url(f"invoices/{invoice.pk}/exe/")) == 404


def test_the_list_takes_as_many_queries_for_many_as_for_one(alice: Person, vlm: Price) -> None:
    use(alice.tenant, vlm)
    issue(alice.tenant)
    with CaptureQueriesContext(connection) as few:
        alice.read("invoices/")
    use(alice.tenant, vlm, at=NOON + timedelta(days=31))
    issue(alice.tenant, OVER + timedelta(days=30))
    with CaptureQueriesContext(connection) as many:
        alice.read("invoices/")

    assert (
        len(few) == len(many) == 10
    )  # session, person, organization; invoices, payments, credit notes
