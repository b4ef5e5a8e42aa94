"""Downloads of an invoice: PDF, CSV, JSON, and the usage behind a line, in pieces that fit in memory."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse

from billing.accounts import Account
from billing.invoicing import content, csv_lines, documents, line_usage, metered
from billing.invoicing.csv_lines import Plain
from billing.invoicing.invoices import Invoice, Issuer
from billing.invoicing.snapshots import Snapshot, items_of, price_ids
from billing.models import Price, UsageRecord
from billing.money import format_pico
from billing.periods import Period, midnight
from billing.rating import Kind

RECORDS_AT_ONCE = line_usage.RECORDS_AT_ONCE
PIECE_BYTES = 64 * 1024
CSV = "text/csv; charset=utf-8"
CONTENT_TYPES = {"pdf": "application/pdf", "csv": CSV, "json": "application/json", "usage-csv": CSV}
"""By format: the downloads that there are."""
USAGE_COLUMNS = (
    *("request_id", "kind", "received_at", "billed_at", "is_late", "team", "key", "model"),
    *("price", "tokens_in_text", "tokens_in_image", "images", "tokens_in_cached", "tokens_out"),
    *("policy", "amount_exact"),
)
LINE_COLUMNS = (*USAGE_COLUMNS[:-1], "quantity", "amount_exact")


def response(invoice: Invoice, format: str, line: int | None = None) -> StreamingHttpResponse:
    """Return the download as an answer that is sent as it is read; ValueError if there is none of that format or line.

    Its pieces come asynchronously: in a server of that kind what is read otherwise would first be read as a whole.
    """
    if format not in CONTENT_TYPES or invoice.snapshot is None:
        raise ValueError(f"{invoice} has no {format}.")
    return StreamingHttpResponse(
        _pieces(chunks(invoice, format, line)),
        content_type=CONTENT_TYPES[format],
        headers={
            "Content-Disposition": f'attachment; filename="{filename(invoice, format, line)}"'
        },
    )


def filename(invoice: Invoice, format: str, line: int | None = None) -> str:
    """Return what a download is called, in characters that every system takes."""
    name = invoice.number or f"draft-{invoice.pk}"
    if line is not None:
        name = f"{name}-line-{line}"
    return f"{name}-usage.csv" if format == "usage-csv" else f"{name}.{format}"


def chunks(invoice: Invoice, format: str, line: int | None = None) -> Iterable[bytes]:
    """Return the download piece by piece. `usage-csv` is the usage behind the line, or behind all. ValueError."""
    if format == "pdf":
        return [documents.pdf(invoice)]
    if format == "json":
        return [invoice.canonical]
    if format == "usage-csv":
        return _joined(usage(invoice, line))
    return _joined(csv_lines.lines(invoice.frozen))


def usage(invoice: Invoice, line: int | None = None) -> Iterator[str]:
    """Return the CSV of the usage records behind a line of the invoice, or behind all; ValueError if it has none.

    Of a line: what each record has of its kind (`quantity`), and what that costs before tiers and free units, so that
    both columns add up to the line's. A line that is free has the usage of the one that it is free of.
    """
    records = UsageRecord.objects.filter(
        organization_id=invoice.organization_id,
        billed_at__gte=invoice.period_start,
        billed_at__lt=invoice.period_end,
    )
    ordered = records.select_related("team", "key", "price").order_by("billed_at", "request_id")
    if line is None:
        found = ordered.iterator(chunk_size=RECORDS_AT_ONCE)
        return csv_lines.stream(USAGE_COLUMNS, map(_usage_row, found))
    items = items_of(invoice.frozen)
    if not 1 <= line <= len(items):
        raise ValueError(f"{invoice} has no line {line}.")
    team, item = items[line - 1]
    found = ordered.filter(team_id=team.id, model_name=item.model).iterator(RECORDS_AT_ONCE)
    return csv_lines.stream(LINE_COLUMNS, _parts(_as_rated(found, invoice.frozen), item.kind))


def preview(account: Account, period: Period) -> Snapshot:
    """Return the invoice that the period's usage comes to so far, read from the ledger. Writes nothing."""
    invoice = Invoice(
        issuer=Issuer.objects.first() or Issuer(name="Tessera"),
        organization=account.organization,
        period_start=period.start,
        period_end=period.end,
    )
    usage = metered.quantities(account.organization_id, period)
    rated = content.rated(account, period, usage)
    return content.compose(invoice, account, rated)


def day(text: str, zone: tzinfo, days: int = 0) -> datetime:
    """Return the first instant of a local date, or of one so many days later; ValueError for what is none."""
    date = datetime.strptime(text, "%Y-%m-%d").date()
    return midnight(date + timedelta(days=days), zone)


def _as_rated(records: Iterable[UsageRecord], snapshot: Snapshot) -> Iterable[UsageRecord]:
    """Return the records at the price versions of the invoice: those booked, unless it is rated under a list."""
    if snapshot.price_list is None:
        return records
    own = snapshot.price_list.id
    versions = Price.objects.filter(pk__in=price_ids(snapshot)).order_by("effective_from")
    own_last = sorted(versions, key=lambda price: price.price_list_id == own)
    return (record for record in records if _put_at(record, own_last))


def _put_at(record: UsageRecord, versions: Sequence[Price]) -> bool:
    """Put the record at the last of the versions that was in force when it was received; False if none was."""
    in_force = [
        price
        for price in versions
        if price.model_name == record.model_name and price.effective_from <= record.received_at
    ]
    if in_force:
        record.price = in_force[-1]
    return bool(in_force)


def _parts(records: Iterable[UsageRecord], kind: Kind) -> Iterator[Sequence[Any]]:
    """Yield the records that have something of the kind, with how much, and what that costs."""
    for record, estimate in line_usage.with_estimates(records):
        if quantity := line_usage.quantity(kind, record, estimate):
            amount = Plain(format_pico(line_usage.amount_pico(kind, quantity, record)))
            yield *_usage_row(record)[:-1], quantity, amount


def _joined(texts: Iterable[str]) -> Iterator[bytes]:
    """Yield the texts in pieces that are worth a system call."""
    piece = bytearray()
    for text in texts:
        piece += text.encode()
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


async def _pieces(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    rest = iter(chunks)
    while (piece := await sync_to_async(lambda: next(rest, None))()) is not None:
        yield piece


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
