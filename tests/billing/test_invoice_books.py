"""check_books sees the invoices too: each of their promises is broken by hand, with the triggers off, and named."""

from datetime import UTC, datetime

import pytest
from django.db import connection

from billing import books
from billing.invoicing import credit_notes, invariants, lifecycle, payments
from billing.invoicing.invoices import CreditGrant, Invoice
from billing.models import Price
from tests import factories
from tests.factories import Tenant
from tests.invoiced import ISSUED, NOON, draft, issue, use

pytestmark = pytest.mark.django_db

APRIL = datetime(2026, 4, 5, tzinfo=UTC)
NEXT_YEAR = datetime(2027, 1, 20, tzinfo=UTC)
BREAKS = {
    "UPDATE billing_invoice SET serial = serial + 7 WHERE id = {second}": {
        "invoice_numbers_have_no_gap",
        "invoices_are_chained",
        "invoice_numbers_are_the_last",
    },
    "UPDATE billing_invoice SET year = 1999 WHERE id = {note}": {
        "invoice_numbers_have_no_gap",
        "invoices_are_chained",
    },
    "UPDATE billing_invoice SET serial = 2 WHERE id = {last}": {
        "invoice_numbers_have_no_gap",
        "invoice_numbers_are_the_last",
    },
    "UPDATE billing_invoice SET content_sha256 = repeat('a', 64) WHERE id = {first}": {
        "invoices_are_chained"
    },
    "UPDATE billing_invoice SET content_sha256 = repeat('a', 64) WHERE id = {last}": {
        "invoice_numbers_are_the_last"
    },
    "UPDATE billing_invoice SET previous_sha256 = repeat('b', 64) WHERE id = {first}": {
        "invoices_are_chained",
        "invoice_is_as_it_was_frozen",
    },
    "UPDATE billing_invoicenumbers SET last_number = last_number + 1 WHERE year = 2027": {
        "invoice_numbers_are_the_last"
    },
    "UPDATE billing_invoicenumbers SET last_sha256 = repeat('c', 64) WHERE year = 2026": {
        "invoice_numbers_are_the_last"
    },
    "UPDATE billing_invoice SET tax_minor = 1, total_minor = total_minor + 1, due_minor = due_minor + 1 "
    "WHERE id = {second}": {"invoice_is_as_it_was_frozen"},
    "UPDATE billing_invoice SET period_end = period_end - interval '1 day' WHERE id = {first}": {
        "invoice_is_as_it_was_frozen"
    },
    "UPDATE billing_invoiceline SET amount_minor = amount_minor + 1 WHERE invoice_id = {first} AND position = 1": {
        "invoice_lines_add_up"
    },
    "DELETE FROM billing_invoiceline WHERE invoice_id = {open} AND position = 1": {
        "invoice_lines_add_up"
    },
    "UPDATE billing_account SET closed_until = '2026-03-02' WHERE organization_id = {organization}": {
        "what_is_invoiced_is_closed"
    },
    "UPDATE billing_creditdraw SET amount_minor = amount_minor - 1": {
        "credit_drawn_is_on_its_invoice"
    },
    "UPDATE billing_creditgrant SET amount_minor = 1": {"credit_is_not_overdrawn"},
    "DELETE FROM billing_payment WHERE invoice_id = {last}": {"paid_is_what_nothing_is_open_of"},
    "UPDATE billing_invoice SET status = 'issued' WHERE id = {first}": {
        "paid_is_what_nothing_is_open_of"
    },
    "INSERT INTO billing_payment (invoice_id, amount_minor, received_at, method, reference, created_at) "
    "VALUES ({third}, -1, now(), '', '', now())": {"paid_is_what_nothing_is_open_of"},
}


@pytest.fixture
def invoices(empty_database: None, acme: Tenant, vlm: Price) -> dict[str, int]:
    """Two years of invoices: paid, credited, void and issued anew, one that credit was drawn for, and a draft."""
    use(acme, vlm, text=100_000_000)
    first = issue(acme)
    note = credit_notes.credit(first.pk, reason="", by=None, at=ISSUED)
    other = factories.tenant("other")
    use(other, vlm)
    second = issue(other)
    lifecycle.void(second.pk, reason="", by=None, at=ISSUED)
    lifecycle.issue(lifecycle.reissue(second.pk, by=None, at=ISSUED).pk, ISSUED)
    third = factories.tenant("third")
    CreditGrant.objects.create(
        organization=third.organization,
        source="granted",
        currency="TWD",
        amount_minor=3,
        created_at=NOON,
    )
    use(third, vlm)
    owed = issue(third)
    use(other, vlm, at=APRIL)
    last = issue(other, NEXT_YEAR)
    payments.pay(last.pk, last.due_minor, received_at=NEXT_YEAR, by=None, at=NEXT_YEAR)
    use(acme, vlm, at=APRIL)
    rows = {"first": first, "note": note, "second": second, "third": owed, "last": last}
    opened = draft(acme, datetime(2026, 5, 1, tzinfo=UTC))
    return {name: row.pk for name, row in rows.items()} | {
        "open": opened.pk,
        "organization": acme.organization.pk,
    }


def broken() -> set[str]:
    return {violation.invariant for violation in books.check()} & invariants.INVARIANTS.keys()


def test_invoices_that_are_right_break_nothing(invoices: dict[str, int]) -> None:
    assert books.check() == []
    assert Invoice.objects.filter(number__isnull=False).count() == 6


@pytest.mark.parametrize("statement", BREAKS)
def test_what_is_broken_is_named(invoices: dict[str, int], statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(statement.format(**invoices))
        assert cursor.rowcount == 1
        cursor.execute("SET LOCAL session_replication_role = origin")

    assert broken() == BREAKS[statement]


def test_every_promise_is_broken_by_a_test() -> None:
    assert set().union(*BREAKS.values()) == invariants.INVARIANTS.keys()


def test_another_organization_is_not_looked_at(invoices: dict[str, int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(f"DELETE FROM billing_invoiceline WHERE invoice_id = {invoices['first']}")
        cursor.execute("SET LOCAL session_replication_role = origin")

    assert books.check(factories.tenant("third").organization.pk) == []
    assert len(books.check(invoices["organization"])) == 1
