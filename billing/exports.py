"""Downloads of an invoice: PDF, CSV, JSON, and the usage behind a line, in pieces that fit in memory."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from billing import documents, invoice_content, invoice_csv, metered
from billing.accounts import Account
from billing.invoice_csv import Plain
from billing.invoices import Invoice, Issuer
from billing.models import UsageRecord
from billing.money import format_pico
from billing.periods import Period, midnight
from billing.snapshots import Snapshot, items_of

RECORDS_AT_ONCE = 2000
USAGE_COLUMNS = (
    *("request_id", "kind", "received_at", "billed_at", "is_late", "team", "key", "model"),
    *("price", "tokens_in_text", "tokens_in_image", "images", "tokens_in_cached", "tokens_out"),
    *("policy", "amount_exact"),
)


def chunks(invoice: Invoice, format: str, line: int | None = None) -> Iterable[bytes]:
    """Return the download piece by piece. `usage-csv` is the usage behind the line, or behind all. ValueError."""
    if format == "pdf":
        return [documents.pdf(invoice)]
    if format == "json":
        return [invoice.canonical]
    if format == "usage-csv":
        return (text.encode() for text in usage(invoice, line))
    return (text.encode() for text in invoice_csv.lines(invoice.frozen))


def usage(invoice: Invoice, line: int | None = None) -> Iterator[str]:
    """Return the CSV of the usage records behind a line of the invoice, or behind all; ValueError if it has none."""
    records = UsageRecord.objects.filter(
        organization_id=invoice.organization_id,
        billed_at__gte=invoice.period_start,
        billed_at__lt=invoice.period_end,
    )
    if line is not None:
        items = items_of(invoice.frozen)
        if not 1 <= line <= len(items):
            raise ValueError(f"{invoice} has no line {line}.")
        team, item = items[line - 1]
        records = records.filter(team_id=team.id, model_name=item.model)
    ordered = records.select_related("team", "key").order_by("billed_at", "request_id")
    rows = (_usage_row(record) for record in ordered.iterator(chunk_size=RECORDS_AT_ONCE))
    return invoice_csv.stream(USAGE_COLUMNS, rows)


def preview(account: Account, period: Period) -> Snapshot:
    """Return the invoice that the period's usage comes to so far, read from the ledger. Writes nothing."""
    invoice = Invoice(
        issuer=Issuer.objects.first() or Issuer(name="Tessera"),
        organization=account.organization,
        period_start=period.start,
        period_end=period.end,
    )
    usage = metered.quantities(account.organization_id, period)
    rated = invoice_content.rated(account, period, usage)
    return invoice_content.compose(invoice, account, rated)


def day(text: str, zone: tzinfo, days: int = 0) -> datetime:
    """Return the first instant of a local date, or of one so many days later; ValueError for what is none."""
    date = datetime.strptime(text, "%Y-%m-%d").date()
    return midnight(date + timedelta(days=days), zone)


def _usage_row(record: UsageRecord) -> Sequence[Any]:
    return (
        str(record.request_id),
        record.kind,
        *(
            record.received_at.astimezone(UTC).isoformat(),
            record.billed_at.astimezone(UTC).isoformat(),
        ),
        record.is_late,
        *(record.team.slug, record.key.public_id, record.model_name, record.price_id),
        *(record.tokens_in_text, record.tokens_in_image, len(record.canvases)),
        *(record.tokens_in_cached, record.tokens_out),
        record.policy,
        Plain(format_pico(record.amount_pico)),
    )
