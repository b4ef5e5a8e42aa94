"""The life of an invoice: draft, refresh, close, issue, pay, void, credit. Nothing issued is ever edited."""

import random
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext

from billing import books, rollups
from billing.accounts import Account
from billing.invoicing import credit, credit_notes, lifecycle, payments, snapshots
from billing.invoicing.invoices import CreditGrant, Invoice, InvoiceLine, Issuer, Payment
from billing.models import Price, UsageRecord
from billing.money import to_minor
from billing.notifications.events import Event
from tenants.models import Organization, Team
from tests import factories
from tests.factories import Tenant
from tests.invoiced import ENDED, ISSUED, MARCH, NOON, OVER, close, draft, issue, use

pytestmark = pytest.mark.django_db


def types(tenant: Tenant) -> list[str]:
    found = Event.objects.filter(organization=tenant.organization).order_by("pk")
    return list(found.values_list("type", flat=True))


def account(tenant: Tenant, **fields: Any) -> None:
    Account.of(tenant.organization)
    Account.objects.filter(organization=tenant.organization).update(**fields)


def test_what_is_found_of_the_time_before_the_first_invoice_is_on_it(
    acme: Tenant, vlm: Price
) -> None:
    use(acme, vlm)
    draft(acme)
    use(acme, vlm, at=MARCH.start - timedelta(days=20), out=7)

    issued = issue(acme)

    out = issued.lines.get(kind="out")
    assert (out.quantity, out.late_quantity) == (50_007, 7)


def test_nothing_is_drafted_before_the_period_ends(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)

    assert lifecycle.draft(acme.organization.pk, ENDED - timedelta(microseconds=1)) is None


def test_a_draft_has_the_period_its_lines_and_its_totals(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    drafted = draft(acme)

    assert (drafted.period_start, drafted.period_end) == (MARCH.start, MARCH.end)
    assert drafted.number is None
    assert [line.amount_minor for line in drafted.lines.all()] == [2, 2]  # 2.00 and 1.50
    assert (drafted.subtotal_minor, drafted.tax_minor, drafted.total_minor) == (4, 0, 4)
    assert types(acme) == ["invoice.drafted"]


def test_a_draft_is_refreshed_during_the_grace_time(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    first = draft(acme)
    use(acme, vlm)
    again = draft(acme, OVER)

    assert again.pk == first.pk
    assert again.subtotal_minor == 7  # 4 + 3
    assert types(acme) == ["invoice.drafted"]


def test_a_period_is_closed_after_its_grace_time_only(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    drafted = draft(acme)

    assert not lifecycle.close(drafted.pk, OVER - timedelta(seconds=1))
    assert lifecycle.close(drafted.pk, OVER)
    assert Account.of(acme.organization).closed_until == ENDED


def test_an_invoice_is_not_issued_before_the_margin_has_passed(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    drafted = draft(acme, OVER)
    with pytest.raises(lifecycle.NotDue):
        lifecycle.issue(drafted.pk, OVER)
    lifecycle.close(drafted.pk, OVER)
    with pytest.raises(lifecycle.NotDue):
        lifecycle.issue(drafted.pk, ISSUED - timedelta(seconds=1))


def test_an_issued_invoice_is_numbered_frozen_and_told_of(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    frozen = issued.frozen

    assert issued.status == "issued"
    assert issued.number == frozen.number
    assert issued.due_at == ISSUED + timedelta(days=30)
    assert issued.content_sha256 == snapshots.sha256(frozen)
    assert types(acme) == ["invoice.drafted", "invoice.issued"]


def test_issuing_twice_is_issuing_once(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    first = issue(acme)
    again = lifecycle.issue(first.pk, ISSUED + timedelta(hours=1))

    assert again is not None
    assert (again.number, again.content_sha256) == (first.number, first.content_sha256)
    assert types(acme).count("invoice.issued") == 1


def test_numbers_follow_each_other_and_so_do_hashes(acme: Tenant, vlm: Price) -> None:
    other = factories.tenant("other")
    use(acme, vlm)
    use(other, vlm)
    first, second = issue(acme), issue(other)

    assert second.serial == (first.serial or 0) + 1
    assert second.previous_sha256 == first.content_sha256
    assert second.number == f"TSR-2026-{second.serial:06d}"


def test_a_period_without_usage_is_closed_and_has_no_invoice(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=0, out=0)
    drafted = close(acme)

    assert lifecycle.issue(drafted.pk, ISSUED) is None
    assert not Invoice.objects.filter(organization=acme.organization).exists()
    assert Account.of(acme.organization).closed_until == ENDED
    assert types(acme) == []


def test_a_draft_is_told_of_once_there_is_something_on_it(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=0, out=0)
    draft(acme)
    assert types(acme) == []

    use(acme, vlm)
    for _ in range(2):
        draft(acme)

    (told,) = Event.objects.filter(organization=acme.organization)
    assert (told.type, told.data["total_minor"]) == ("invoice.drafted", 4)


def test_late_usage_is_billed_in_the_next_period_and_flagged(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    march = issue(acme)
    use(acme, vlm, at=NOON, text=1000_000, out=0)
    april = issue(acme, datetime(2026, 5, 2, tzinfo=UTC))

    (line,) = april.frozen.teams[0].lines
    assert line.late_quantity == line.quantity == 1_000_000
    assert april.period_start == march.period_end
    assert Invoice.objects.get(pk=march.pk).content_sha256 == march.content_sha256


def test_nothing_is_issued_while_the_books_are_wrong(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    drafted = close(acme)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        UsageRecord.objects.filter(organization=acme.organization).update(amount_pico=1)
        cursor.execute("SET LOCAL session_replication_role = origin")

    with pytest.raises(lifecycle.BooksAreWrong):
        lifecycle.issue(drafted.pk, ISSUED)
    drafted.refresh_from_db()
    assert drafted.status == "draft"
    assert "amount_is_rated" in drafted.held_back


def statements_behind_the_number(tenant: Tenant, models: int) -> list[str]:
    """Issue an invoice of so many models, and return what was asked of PostgreSQL after its number was locked."""
    for _ in range(models):
        use(tenant, factories.price(factories.unique("model")))
    drafted = close(tenant)
    with CaptureQueriesContext(connection) as queries:
        lifecycle.issue(drafted.pk, ISSUED)
    asked = [query["sql"] for query in queries.captured_queries]
    (locked,) = [number for number, sql in enumerate(asked) if "FOR NO KEY UPDATE" in sql]
    return asked[locked + 1 :]


def test_nothing_slow_stands_behind_a_number(acme: Tenant) -> None:
    few = statements_behind_the_number(acme, 1)
    many = statements_behind_the_number(factories.tenant("many"), 40)

    assert abs(len(many) - len(few)) <= 1  # a first invoice makes the row of its year
    assert len(many) < 20
    assert not any(
        table in sql for sql in many for table in ("invoiceline", "usagerecord", "rollup")
    )


def test_tax_and_discount_are_those_of_the_account(acme: Tenant, vlm: Price) -> None:
    account(acme, discount_bp=1000, tax_bp=500)
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)

    assert (issued.subtotal_minor, issued.discount_minor) == (1000, -100)
    assert (issued.tax_minor, issued.total_minor) == (45, 945)


def test_who_is_exempt_pays_no_tax(acme: Tenant, vlm: Price) -> None:
    account(acme, tax_exempt=True)
    use(acme, vlm, text=100_000_000, out=0)

    assert issue(acme).frozen.tax == snapshots.Tax(500, True, 0)


# What is issued stays.

MUTATIONS = [
    "UPDATE billing_invoice SET total_minor = total_minor + 1, due_minor = due_minor + 1",
    "UPDATE billing_invoice SET snapshot = '{}'",
    "UPDATE billing_invoice SET number = 'TSR-1999-000001'",
    "UPDATE billing_invoice SET content_sha256 = repeat('0', 64)",
    "UPDATE billing_invoice SET status = 'draft', number = NULL, issued_at = NULL",
    "UPDATE billing_invoice SET period_end = period_end + interval '1 day'",
    "DELETE FROM billing_invoice",
    "TRUNCATE billing_invoice CASCADE",
    "UPDATE billing_invoiceline SET amount_minor = 0",
    "DELETE FROM billing_invoiceline",
    "TRUNCATE billing_invoiceline",
    "UPDATE billing_invoicenumbers SET last_number = 0",
    "DELETE FROM billing_invoicenumbers",
    "UPDATE billing_event SET data = '{}'",
]


@pytest.mark.parametrize("statement", MUTATIONS)
def test_no_statement_changes_what_is_issued(acme: Tenant, vlm: Price, statement: str) -> None:
    use(acme, vlm)
    issue(acme)

    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_no_line_is_added_to_what_is_issued(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    line = issue(acme).lines.get(position=1)
    line.pk, line.position = None, 99

    with pytest.raises(DatabaseError), transaction.atomic():
        line.save(force_insert=True)


def test_no_later_change_of_a_name_price_or_tax_reaches_an_invoice(
    acme: Tenant, vlm: Price
) -> None:
    use(acme, vlm)
    issued = issue(acme)
    Organization.objects.filter(pk=acme.organization.pk).update(name="Renamed")
    Team.objects.filter(pk=acme.team.pk).update(name="Renamed")
    Issuer.objects.update(name="Renamed")
    account(acme, tax_bp=2000, legal_name="Renamed")
    factories.price("vlm", text_in_micro=99, effective_from=NOON - timedelta(days=1))
    use(acme, vlm)
    acme.key.revoke(by=None, at=ISSUED)

    later = Invoice.objects.get(pk=issued.pk)
    assert snapshots.sha256(later.frozen) == issued.content_sha256
    assert "Renamed" not in str(later.snapshot)


# Payments


def test_an_invoice_is_paid_when_nothing_is_open(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)
    for amount in (1000, 50):
        payments.pay(issued.pk, amount, received_at=ISSUED, by="alice", at=ISSUED)

    issued.refresh_from_db()
    assert (issued.status, issued.open_minor) == ("paid", 0)
    assert types(acme).count("invoice.paid") == 1


def test_a_reversed_payment_opens_the_invoice_again(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)
    paid = payments.pay(issued.pk, 1050, received_at=ISSUED, by="alice", at=ISSUED)
    payments.reverse(paid.pk, by="alice", at=ISSUED)

    issued.refresh_from_db()
    assert (issued.status, issued.open_minor) == ("issued", 1050)
    with pytest.raises(ValueError, match="already"):
        payments.reverse(paid.pk, by="alice", at=ISSUED)


def test_a_payment_that_is_sent_twice_counts_once(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)
    payments.pay(issued.pk, 50, received_at=ISSUED, by=None, at=ISSUED, reference="T-1")

    with pytest.raises(ValueError, match="already"):
        payments.pay(issued.pk, 50, received_at=ISSUED, by=None, at=ISSUED, reference="T-1")
    assert Payment.objects.filter(invoice=issued).count() == 1


def test_no_more_goes_back_than_came_in(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=100_000_000, out=0)

    with pytest.raises(ValueError, match="No more"):
        payments.pay(issue(acme).pk, -1, received_at=ISSUED, by=None, at=ISSUED)


def test_a_payment_is_not_reversed_before_what_went_back_of_it(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)
    paid = payments.pay(issued.pk, 100, received_at=ISSUED, by=None, at=ISSUED)
    payments.pay(issued.pk, -100, received_at=ISSUED, by=None, at=ISSUED)

    with pytest.raises(ValueError, match="No more"):
        payments.reverse(paid.pk, by=None, at=ISSUED)
    lifecycle.void(issued.pk, reason="", by=None, at=ISSUED)
    with pytest.raises(ValueError, match="void"):
        payments.reverse(paid.pk, by=None, at=ISSUED)


def test_an_invoice_is_overdue_the_moment_after_it_is_due(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    assert issued.due_at is not None

    assert issued.standing(issued.due_at) == "issued"
    assert issued.standing(issued.due_at + timedelta(microseconds=1)) == "overdue"


# Void and reissue


def test_a_void_invoice_keeps_its_number_and_is_issued_anew(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    lifecycle.void(issued.pk, reason="wrong address", by="alice", at=ISSUED)
    account(acme, address="Taipei")
    anew = lifecycle.issue(lifecycle.reissue(issued.pk, by="alice", at=ISSUED).pk, ISSUED)

    assert anew is not None
    assert anew.replaces_id == issued.pk
    assert anew.serial == (issued.serial or 0) + 1
    assert (anew.subtotal_minor, anew.frozen.customer.address) == (4, "Taipei")
    assert types(acme).count("invoice.void") == 1


def test_what_was_paid_on_is_not_void(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    payments.pay(issued.pk, 1, received_at=ISSUED, by=None, at=ISSUED)

    with pytest.raises(ValueError, match="payments"):
        lifecycle.void(issued.pk, reason="", by=None, at=ISSUED)


def test_a_period_is_on_one_invoice_at_a_time(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    lifecycle.void(issued.pk, reason="", by=None, at=ISSUED)
    lifecycle.reissue(issued.pk, by=None, at=ISSUED)

    with pytest.raises(ValueError, match="Its period"):
        lifecycle.reissue(issued.pk, by=None, at=ISSUED)


# Credit notes


def test_a_credit_note_takes_a_whole_invoice_back(acme: Tenant, vlm: Price) -> None:
    account(acme, discount_bp=1000)
    use(acme, vlm, text=100_000_000)
    issued = issue(acme)
    note = credit_notes.credit(issued.pk, reason="A gift", by="alice", at=ISSUED)

    assert (note.kind, note.frozen.corrects) == ("credit_note", issued.number)
    assert note.total_minor == -issued.total_minor
    assert note.serial == (issued.serial or 0) + 1
    issued.refresh_from_db()
    assert (issued.status, issued.open_minor) == ("paid", 0)


def test_credit_notes_by_line_add_up_to_the_invoice(acme: Tenant, vlm: Price) -> None:
    account(acme, discount_bp=333, tax_bp=777)
    use(acme, vlm, text=12_345_678, out=7_654_321)
    issued = issue(acme)
    notes = [
        credit_notes.credit(issued.pk, [line], reason="", by=None, at=ISSUED) for line in (1, 2)
    ]

    for name in ("subtotal_minor", "discount_minor", "tax_minor", "total_minor"):
        assert sum(getattr(note, name) for note in notes) == -getattr(issued, name)
    with pytest.raises(ValueError, match="already"):
        credit_notes.credit(issued.pk, reason="", by=None, at=ISSUED)


@pytest.mark.parametrize("seed", range(4))
def test_lines_credited_one_by_one_never_come_to_more_than_the_invoice(
    acme: Tenant, seed: int
) -> None:
    """Each tax of its own would be 1, 1, 1, 1 and 0, where the invoice has 2."""
    for number, dollars in enumerate((11, 11, 11, 11, 1)):
        use(acme, factories.price(f"model-{number}"), text=dollars * 100_000, out=0)
    issued = issue(acme)
    assert (issued.subtotal_minor, issued.tax_minor) == (45, 2)
    positions = random.Random(seed).sample(range(1, 6), 5)

    notes = [
        credit_notes.credit(issued.pk, [position], reason="", by=None, at=ISSUED)
        for position in positions
    ]

    sums = list(accumulate(note.total_minor for note in notes))
    assert sums[-1] == -47
    assert min(sums) == -47
    assert max(note.total_minor for note in notes) <= 0


def test_a_line_is_credited_once(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    credit_notes.credit(issued.pk, [1], reason="", by=None, at=ISSUED)

    with pytest.raises(ValueError, match="no line 1"):
        credit_notes.credit(issued.pk, [1], reason="", by=None, at=ISSUED)


# Credit


def grant(tenant: Tenant, amount: int, **fields: Any) -> CreditGrant:
    defaults = {"source": "purchased", "currency": "TWD", "created_at": NOON}
    return CreditGrant.objects.create(
        organization=tenant.organization, amount_minor=amount, **(defaults | fields)
    )


def test_granted_credit_is_drawn_before_purchased_and_what_expires_first_before_others(
    acme: Tenant, vlm: Price
) -> None:
    bought = grant(acme, 5000)
    late = grant(acme, 300, source="granted", expires_at=ISSUED + timedelta(days=9))
    soon = grant(acme, 200, source="granted", expires_at=ISSUED + timedelta(days=1))
    grant(acme, 9000, source="granted", expires_at=ISSUED)  # expired
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)

    drawn = [(each.grant, each.amount_minor) for each in issued.frozen.credits]
    assert drawn == [(soon.pk, -200), (late.pk, -300), (bought.pk, -550)]
    assert (issued.due_minor, issued.status) == (0, "paid")
    assert credit.remaining(bought) == 4450


def test_credit_pays_a_part(acme: Tenant, vlm: Price) -> None:
    grant(acme, 100)
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)

    assert (issued.total_minor, issued.credits_minor, issued.due_minor) == (1050, -100, 950)
    assert credit.balance(acme.organization, ISSUED) == 0


def test_a_void_invoice_gives_its_credit_back(acme: Tenant, vlm: Price) -> None:
    grant(acme, 5000)
    use(acme, vlm, text=100_000_000, out=0)
    lifecycle.void(issue(acme).pk, reason="", by=None, at=ISSUED)

    assert credit.balance(acme.organization, ISSUED) == 5000


def test_a_credit_note_gives_drawn_credit_back_first_and_payments_after(
    acme: Tenant, vlm: Price
) -> None:
    granted, bought = grant(acme, 250, source="granted"), grant(acme, 400)
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)
    payments.pay(issued.pk, 400, received_at=ISSUED, by=None, at=ISSUED)

    credit_notes.credit(issued.pk, reason="", by=None, at=ISSUED)

    issued.refresh_from_db()
    assert (credit.remaining(granted), credit.remaining(bought)) == (250, 400)
    assert (issued.status, issued.open_minor) == ("paid", -400)
    payments.pay(issued.pk, -400, received_at=ISSUED, by=None, at=ISSUED)
    with pytest.raises(ValueError, match="No more"):
        payments.pay(issued.pk, -1, received_at=ISSUED, by=None, at=ISSUED)
    assert issued.open_minor == 0
    assert books.check(acme.organization.pk) == []


def test_of_drawn_credit_no_more_goes_back_than_is_too_much(acme: Tenant, vlm: Price) -> None:
    granted, bought = grant(acme, 250, source="granted"), grant(acme, 5000)
    use(acme, vlm, text=50_000_000, out=0)
    use(acme, factories.price("other"), text=50_000_000, out=0)
    issued = issue(acme)

    credit_notes.credit(issued.pk, [1], reason="", by=None, at=ISSUED)

    assert credit.remaining(granted) == 0, "what was bought goes back first"
    assert credit.remaining(bought) == 5000 - 800 + 525
    assert issued.open_minor == 0
    assert books.check(acme.organization.pk) == []


def test_credit_of_another_currency_or_organization_is_not_drawn(acme: Tenant, vlm: Price) -> None:
    grant(acme, 5000, currency="USD")
    grant(factories.tenant("other"), 5000)
    use(acme, vlm, text=100_000_000, out=0)

    assert issue(acme).credits_minor == 0


def test_the_lines_are_the_snapshot(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    exact = {
        line.kind: int(line.amount_pico) for line in InvoiceLine.objects.filter(invoice=issued)
    }

    assert exact == {"text_in": 200_000 * 10_000_000, "out": 50_000 * 30_000_000}
    assert [to_minor(pico, "TWD") for pico in exact.values()] == [2, 2]
    assert rollups.quantities(acme.organization.pk, MARCH)
