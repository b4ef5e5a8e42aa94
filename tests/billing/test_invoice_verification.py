"""What was changed by hand behind an invoice's back is found, by name."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from billing import rollups
from billing.invoicing import credit_notes, documents, exports, seals
from billing.invoicing.invoices import Invoice, InvoiceDocument, InvoiceLine
from billing.invoicing.verification import verify
from billing.models import Price, Rollup, UsageRecord, UsageSeal
from tenants.models import Team
from tests import factories
from tests.factories import Tenant
from tests.invoiced import ISSUED, NOON, OVER, issue, use

pytestmark = pytest.mark.django_db


@pytest.fixture
def issued(acme: Tenant, vlm: Price) -> Invoice:
    use(acme, vlm)
    use(acme, vlm, text=123_456, out=7)
    return issue(acme)


def behind_the_back(statement: str, *values: Any) -> None:
    """Change rows as only who owns the database can: without the triggers."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(statement, values)
        assert cursor.rowcount == 1
        cursor.execute("SET LOCAL session_replication_role = origin")


def found(invoice: Invoice, **given: Any) -> list[str]:
    return [str(finding) for finding in verify(Invoice.objects.get(pk=invoice.pk), **given)]


def test_an_invoice_that_nobody_touched_is_right(issued: Invoice) -> None:
    assert found(issued) == []


def test_a_changed_usage_record_is_named(issued: Invoice) -> None:
    record = UsageRecord.objects.filter(organization=issued.organization).first()
    assert record is not None
    behind_the_back(
        "UPDATE billing_usagerecord SET tokens_out = tokens_out + 1 WHERE request_id = %s",
        record.request_id,
    )

    assert any(str(record.request_id) in line for line in found(issued))
    assert any("ledger (vision, vlm, out)" in line for line in found(issued))


def test_a_row_a_line_and_a_pdf_changed_by_hand_are_each_named_at_the_console(
    issued: Invoice,
) -> None:
    documents.document(issued)
    record = UsageRecord.objects.filter(organization=issued.organization).first()
    assert record is not None
    out = StringIO()
    for table, change in {
        "billing_usagerecord": f"tokens_in_text = 1 WHERE request_id = '{record.pk}'",
        "billing_invoiceline": f"amount_minor = 1 WHERE invoice_id = {issued.pk} AND position = 1",
        "billing_invoicedocument": f"content = 'x' WHERE invoice_id = {issued.pk}",
    }.items():
        behind_the_back(f"UPDATE {table} SET {change}")

    with pytest.raises(CommandError, match=f"Not as it was issued: {issued}"):
        call_command("invoice", "verify", str(issued.number), stdout=out)
    for name in (f"usage record {record.pk}", "line 1 (vision, vlm, text_in)", "PDF: the kept"):
        assert f"✗ {issued}: {name}" in out.getvalue()


def test_a_record_that_was_changed_with_its_amount_is_named_by_its_quarter(
    issued: Invoice,
) -> None:
    record = UsageRecord.objects.filter(organization=issued.organization).first()
    assert record is not None
    behind_the_back(
        """UPDATE billing_usagerecord SET tokens_out = tokens_out + 1, amount_pico = amount_pico + 30000000
           WHERE request_id = %s""",
        record.request_id,
    )

    assert any(f"usage record {record.request_id}" in line for line in found(issued))


def place(record: UsageRecord, team: str = "vision") -> str:
    return f"({team}, vlm, key {record.key.public_id}, 2026-03-10)"


def test_a_deleted_record_is_named_with_its_line_its_place_and_its_tokens(issued: Invoice) -> None:
    record = UsageRecord.objects.get(organization=issued.organization, tokens_out=7)
    behind_the_back("DELETE FROM billing_usagerecord WHERE request_id = %s", record.request_id)

    lines = found(issued)
    assert f"usage record {record.request_id}: is missing {place(record)}" in lines
    assert lines[1].startswith("ledger (vision, vlm, text_in): its records come to 200000 units")
    assert lines[1].endswith("(line 1)")
    assert any(
        f"{place(record)}: since it was sealed: -1 records, -123456 tokens_in_text, -7" in line
        for line in lines
    )


def test_a_record_that_was_moved_to_another_team_is_named(issued: Invoice) -> None:
    record = UsageRecord.objects.get(organization=issued.organization, tokens_out=7)
    behind_the_back(
        "UPDATE billing_usagerecord SET team_id = 999999 WHERE request_id = %s", record.request_id
    )

    lines = found(issued)
    moved = f"was moved from {place(record)} to {place(record, 'team 999999')}"
    assert f"usage record {record.request_id}: {moved}" in lines
    assert sum(line.startswith("usage record") for line in lines) == 1
    assert any(line.startswith("ledger (team 999999, vlm, out)") for line in lines)


def test_a_record_that_was_slipped_in_is_named(acme: Tenant, vlm: Price, issued: Invoice) -> None:
    use(acme, vlm, at=OVER, text=5, out=5)
    record = UsageRecord.objects.get(organization=issued.organization, tokens_out=5)
    behind_the_back(
        "UPDATE billing_usagerecord SET billed_at = %s WHERE request_id = %s", NOON, record.pk
    )

    new = f"usage record {record.pk}: was not there when it was sealed {place(record)}"
    assert new in found(issued)


def test_a_record_is_named_though_the_rollups_were_made_anew(issued: Invoice) -> None:
    record = UsageRecord.objects.get(organization=issued.organization, tokens_out=7)
    behind_the_back(
        "UPDATE billing_usagerecord SET canvases = '{x}' WHERE request_id = %s", record.pk
    )
    rollups.recompute(everything=True)

    assert found(issued) == [
        f"ledger {place(record)}: since it was sealed: the same sums",
        f"usage record {record.pk}: is not what it was when it was sealed {place(record)}",
    ]


def test_changed_seals_are_found_by_their_hash(issued: Invoice) -> None:
    behind_the_back("UPDATE billing_usageseal SET digests = digests || 1::bigint")

    assert any(line.startswith("seals: their hash is") for line in found(issued))


def test_seals_stay(issued: Invoice) -> None:
    (seal,) = UsageSeal.objects.filter(invoice=issued)
    seal.pk, seal.day = None, NOON.date() + timedelta(days=1)
    attempts = (UsageSeal.objects.all().delete, seal.save)
    for attempt in attempts:
        with pytest.raises(DatabaseError, match="change"), transaction.atomic():
            attempt()


def test_an_invoice_of_before_there_were_seals_is_still_right(
    acme: Tenant, vlm: Price, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "seal", lambda invoice: "")
    use(acme, vlm)
    invoice = issue(acme)

    assert b"usage_sha256" not in invoice.canonical
    assert found(invoice) == []


def test_a_team_is_found_whatever_it_is_called_now(issued: Invoice) -> None:
    Team.objects.filter(organization=issued.organization).update(slug="renamed")
    Team.objects.create(organization=issued.organization, name="Vision", slug="vision")

    assert found(issued) == []
    assert len(list(exports.usage(issued, 1))) == 3


def test_rollups_are_not_believed(issued: Invoice) -> None:
    Rollup.objects.filter(organization=issued.organization).delete()

    assert not any(line.startswith("ledger") for line in found(issued))


@pytest.mark.parametrize("change", ["amount_minor = 1", "quantity = 1", "team_slug = 'other'"])
def test_a_changed_line_is_named(issued: Invoice, change: str) -> None:
    line = InvoiceLine.objects.get(invoice=issued, position=2)
    behind_the_back(f"UPDATE billing_invoiceline SET {change} WHERE id = %s", line.pk)

    (finding,) = found(issued)
    assert finding.startswith("line 2 (vision, vlm, out)")


def test_a_missing_line_is_named(issued: Invoice) -> None:
    behind_the_back(
        "DELETE FROM billing_invoiceline WHERE invoice_id = %s AND position = 1", issued.pk
    )

    assert found(issued) == ["line 1 (vision, vlm, text_in): is missing"]


def test_a_changed_snapshot_is_found_by_its_hash(issued: Invoice) -> None:
    behind_the_back(
        """UPDATE billing_invoice SET snapshot = jsonb_set(snapshot, '{customer,name}', '"x"') WHERE id = %s""",
        issued.pk,
    )

    assert any(line.startswith("snapshot: its hash is") for line in found(issued))


def test_a_rewritten_hash_breaks_the_chain(acme: Tenant, vlm: Price, issued: Invoice) -> None:
    other = factories.tenant("other")
    use(other, vlm)
    following = issue(other)
    behind_the_back(
        "UPDATE billing_invoice SET content_sha256 = repeat('a', 64) WHERE id = %s", issued.pk
    )

    assert any("does not follow this invoice" in line for line in found(issued))
    assert any("chain: does not follow" in line for line in found(following))


def test_a_missing_invoice_is_missed_in_the_chain(
    acme: Tenant, vlm: Price, issued: Invoice
) -> None:
    use(acme, vlm)
    note = credit_notes.credit(issued.pk, [1], reason="", by=None, at=ISSUED)
    last = credit_notes.credit(issued.pk, reason="", by=None, at=ISSUED)
    behind_the_back("UPDATE billing_invoice SET year = 1999 WHERE id = %s", note.pk)

    assert any("is missing" in line for line in found(last))


def test_a_changed_total_is_named(issued: Invoice) -> None:
    behind_the_back(
        "UPDATE billing_invoice SET total_minor = total_minor + 1, due_minor = due_minor + 1, "
        "tax_minor = tax_minor + 1 WHERE id = %s",
        issued.pk,
    )

    assert any(line.startswith("invoice: total_minor is") for line in found(issued))


def test_a_changed_pdf_is_found(issued: Invoice) -> None:
    kept = documents.document(issued)
    behind_the_back(
        "UPDATE billing_invoicedocument SET content = content || 'x' WHERE id = %s", kept.pk
    )

    (finding,) = found(issued)
    assert finding.startswith("PDF: the kept file has the hash")


def test_a_pdf_that_was_changed_with_its_hash_is_found(issued: Invoice) -> None:
    kept = documents.document(issued)
    forged = bytes(kept.content).replace(b"%PDF", b"%pdf")
    behind_the_back(
        "UPDATE billing_invoicedocument SET content = %s, sha256 = %s WHERE id = %s",
        *(forged, documents.sha256(forged), kept.pk),
    )

    kept_file, trail = found(issued)
    assert "the audit trail has" in kept_file
    assert trail == "PDF: the kept file is not what the snapshot is drawn to"


def test_a_pdf_of_an_earlier_drawing_that_was_changed_with_its_hash_is_found(
    issued: Invoice,
) -> None:
    kept = documents.document(issued)
    behind_the_back(
        "UPDATE billing_invoicedocument SET content = 'x', sha256 = %s, drawn_by = 'drawing 0' WHERE id = %s",
        *(documents.sha256(b"x"), kept.pk),
    )

    (finding,) = found(issued)
    assert finding.startswith("PDF: is kept as")
    assert kept.sha256 in finding


def test_a_pdf_that_somebody_has_is_compared(issued: Invoice) -> None:
    kept = bytes(documents.document(issued).content)

    assert found(issued, pdf=kept) == []
    assert found(issued, pdf=kept + b"x")[0].startswith("PDF: the given file")


def test_the_pdf_is_drawn_once(issued: Invoice) -> None:
    documents.document(issued)
    documents.document(issued)

    assert InvoiceDocument.objects.filter(invoice=issued).count() == 1


def test_a_credit_note_is_verified_against_its_invoice(issued: Invoice) -> None:
    note = credit_notes.credit(issued.pk, [1], reason="", by=None, at=ISSUED)

    assert found(note) == []
    assert found(issued) == []
