"""`manage.py invoice` and `manage.py rerate`, as a person uses them."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management.base import CommandError
from django.db import connection
from django.utils.timezone import now

from billing.accounts import Account
from billing.invoicing import credit_notes, csv_lines, exports
from billing.invoicing.invoices import Invoice
from billing.models import Price, Rollup, UsageRecord
from billing.price_lists import PriceList
from tests import factories
from tests.console import run, run_json
from tests.factories import Tenant
from tests.invoiced import issue, use

pytestmark = pytest.mark.django_db


def slug(tenant: Tenant) -> str:
    return tenant.organization.slug


@pytest.fixture
def issued(acme: Tenant, vlm: Price) -> Invoice:
    use(acme, vlm, text=100_000_000, out=0)
    return issue(acme)


def test_what_ended_is_drafted_and_issued(acme: Tenant, vlm: Price, settings: Any) -> None:
    settings.CLOSE_MARGIN_S = 0
    use(acme, vlm, at=now() - timedelta(days=70))
    drafted, _ = run("invoice", "draft", slug(acme))
    run("invoice", "issue", slug(acme))  # closes
    issued, _ = run("invoice", "issue", slug(acme))

    assert "draft" in drafted
    assert "TSR-" in issued
    assert run_json("invoice", "list", "--organization", slug(acme))[0]["status"] == "issued"


def test_an_invoice_is_shown_as_it_was_issued(issued: Invoice) -> None:
    shown, _ = run("invoice", "show", str(issued.number))

    assert "total  TWD 1050" in shown
    assert run_json("invoice", "show", str(issued.number))["number"] == issued.number


def test_a_preview_reads_the_ledger_and_writes_nothing(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=100_000_000, out=0)
    shown, said = run("invoice", "preview", slug(acme))
    of_april, _ = run("invoice", "preview", slug(acme), "--period", "2026-04")

    assert "total  TWD 1050" in shown
    assert "from 2026-03-01 00:00 to 2026-04-01 00:00 (Asia/Taipei)" in said
    assert "total  TWD 0" in of_april
    assert not Invoice.objects.filter(organization=acme.organization).exists()


def test_verify_says_that_all_is_right_or_what_is_not(issued: Invoice, tmp_path: Path) -> None:
    forged = tmp_path / "forged.pdf"
    run("invoice", "export", str(issued.number), "--output", str(forged))
    said, _ = run("invoice", "verify", str(issued.number), "--pdf", str(forged))
    forged.write_bytes(forged.read_bytes() + b"\n")

    assert said.startswith("✓")
    assert run("invoice", "verify", "--all")[0].startswith("✓")
    with pytest.raises(CommandError, match="Not as it was issued"):
        run("invoice", "verify", str(issued.number), "--pdf", str(forged))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "Name invoices"),
        (["TSR-2026-000001", "--all"], "Name invoices"),
        (["--all", "--pdf", "mine.pdf"], "of one invoice"),
        (["TSR-2026-000001", "--pdf", "nowhere/mine.pdf"], "No such file"),
    ],
)
def test_a_verification_of_nothing_is_no_success(db: None, words: list[str], why: str) -> None:
    with pytest.raises(CommandError, match=why):
        run("invoice", "verify", *words)


def test_a_credit_note_is_verified_by_its_invoice(issued: Invoice) -> None:
    note = credit_notes.credit(issued.pk, reason="", by=None, at=now())

    said, _ = run("invoice", "verify", str(note.number))
    assert said == f"✓ {note}: {issued}, lines, totals, hash, chain and PDF are right.\n"


def test_payments_are_entered_and_reversed(issued: Invoice) -> None:
    number = str(issued.number)
    paid, said = run("invoice", "pay", number, "--amount", "1050", "--reference", "T-9")
    assert "paid" in said

    _, said = run("invoice", "reverse", paid.strip())
    assert "overdue" in said
    with pytest.raises(CommandError, match="already"):
        run("invoice", "pay", number, "--amount", "1", "--reference", "T-9")


@pytest.mark.parametrize("amount", ["1.5", "1e3", "", "x", "٣", "0", "1,000"])
def test_an_amount_that_is_none_in_the_currency_is_refused(issued: Invoice, amount: str) -> None:
    with pytest.raises(CommandError):
        run("invoice", "pay", str(issued.number), f"--amount={amount}")


def test_a_line_is_credited(issued: Invoice) -> None:
    said, _ = run("invoice", "credit", str(issued.number), "--line", "1", "--reason", "a mistake")

    assert "credit_note" in said
    assert "TWD -1050" in said


def test_a_void_invoice_is_drafted_anew(issued: Invoice) -> None:
    anew, said = run("invoice", "void", str(issued.number), "--reason", "wrong name", "--reissue")

    assert "void" in said
    assert "draft" in anew


def test_credit_is_granted(acme: Tenant) -> None:
    _, said = run("invoice", "grant", slug(acme), "--amount", "500", "--expires", "2099-12-31")

    assert "TWD 500 of credit" in said


@pytest.mark.parametrize("format", ["pdf", "csv", "json", "usage-csv"])
def test_an_invoice_is_downloaded(issued: Invoice, format: str, tmp_path: Path) -> None:
    output = tmp_path / "invoice"
    run("invoice", "export", str(issued.number), "--format", format, "--output", str(output))
    starts = {"pdf": b"%PDF", "json": b"{", "csv": csv_lines.BOM.encode()}

    assert output.read_bytes().startswith(starts.get(format, csv_lines.BOM.encode()))


def test_the_usage_behind_a_line_is_what_the_line_counts(issued: Invoice, tmp_path: Path) -> None:
    output = tmp_path / "usage.csv"
    words = ("--format", "usage-csv", "--line", "1", "--output", str(output))
    run("invoice", "export", str(issued.number), *words)
    (record,) = UsageRecord.objects.filter(organization=issued.organization)

    _, row = output.read_text().splitlines()
    assert str(record.request_id) in row
    assert ",100000000," in row


def test_the_usage_behind_an_invoice_is_streamed_and_no_formula(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "RECORDS_AT_ONCE", 2)
    monkeypatch.setattr(exports, "PIECE_BYTES", 1)
    price = factories.price("=1+1")
    for _ in range(5):
        use(acme, price)
    rows = iter(exports.chunks(issue(acme), "usage-csv"))
    first = [next(rows).decode() for _ in range(2)]

    assert ",'=1+1," in first[1]
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '_django_curs%'")
        assert cursor.fetchone() == (1,), "all was read at once"
    assert len(list(rows)) == 4


def test_an_unknown_number_is_told(db: None) -> None:
    with pytest.raises(CommandError, match="no invoice"):
        run("invoice", "show", "TSR-1999-000001")


def test_a_period_under_other_prices_writes_nothing(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm, text=100_000_000, out=0)
    dear = PriceList.objects.create(slug="dear", name="Dear", currency="TWD")
    factories.price("vlm", text_in_micro=20_000_000, price_list=dear)
    before = Account.of(acme.organization).price_list

    words = ("rerate", slug(acme), "--price-list", "dear", "--period", "2026-03")
    rows = {row["kind"]: (row["now"], row["then"]) for row in run_json(*words)}
    assert rows["text_in"] == ("1000", "2000")
    assert rows["total"] == ("1050", "2100")
    assert Account.of(acme.organization).price_list == before
    assert not Rollup.objects.filter(organization=acme.organization).exists()


def test_a_list_of_another_currency_is_refused(acme: Tenant, vlm: Price) -> None:
    PriceList.objects.create(slug="dollars", name="Dollars", currency="USD")

    with pytest.raises(CommandError, match="USD"):
        run("rerate", slug(acme), "--price-list", "dollars", "--period", "2026-03")


def test_a_listing_knows_what_is_overdue(issued: Invoice) -> None:
    Invoice.objects.filter(pk=issued.pk).update(reminders=0)
    rows = run_json("invoice", "list", "--status", "overdue")

    assert json.dumps(rows).count(str(issued.number)) == 1
