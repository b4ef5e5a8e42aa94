"""The invoices of an organization as a page shows them, and their downloads."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from asgiref.sync import sync_to_async

from billing import exports
from billing.invoices import CreditDraw, Invoice, Payment
from billing.snapshots import Document
from tenants.models import Organization

ROWS_MAX = 120  # ten years of months

CONTENT_TYPES = {
    "pdf": "application/pdf",
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "usage-csv": "text/csv; charset=utf-8",
}
"""By format, as `billing.exports` calls them."""


@dataclass(frozen=True, slots=True)
class Row:
    invoice: Invoice
    standing: str
    open_minor: int

    @property
    def is_payable(self) -> bool:
        """Whether it asks for money: a draft does not yet, a void one or a credit note never."""
        return self.invoice.kind == Document.INVOICE and self.standing in ("issued", "overdue")

    @property
    def last_day(self) -> datetime:
        """The last instant of its period, as people say until when it goes."""
        return self.invoice.period_end - timedelta(microseconds=1)


def of_organization(organization: Organization, at: datetime) -> list[Row]:
    """Return its invoices, credit notes and drafts, the latest first; four queries."""
    invoices = list(organization.invoices.select_related("corrects")[:ROWS_MAX])
    paid = _by(Payment.objects.filter(invoice__in=invoices).values_list("invoice", "amount_minor"))
    draws = CreditDraw.objects.filter(invoice__in=invoices)
    drawn = _by(draws.values_list("invoice", "amount_minor"))
    notes = Invoice.objects.filter(corrects__in=invoices)
    credited = _by(notes.values_list("corrects", "total_minor"))
    return [
        Row(
            invoice,
            invoice.standing(at),
            invoice.total_minor - drawn[invoice.pk] + credited[invoice.pk] - paid[invoice.pk],
        )
        for invoice in invoices
    ]


def find(organization: Organization, pk: int) -> Invoice | None:
    """Return the organization's invoice that can be downloaded; None if there is none of that id."""
    return organization.invoices.filter(pk=pk, snapshot__isnull=False).first()


def filename(invoice: Invoice, format: str) -> str:
    """Return what a download is called, in characters that every system takes."""
    name = invoice.number or f"draft-{invoice.pk}"
    return f"{name}-usage.csv" if format == "usage-csv" else f"{name}.{format}"


def download(invoice: Invoice, format: str) -> AsyncIterator[bytes]:
    """Return the download piece by piece, so that no length of it fills the memory."""
    return _pieces(exports.chunks(invoice, format))


def _by(amounts: Iterable[tuple[int | None, int]]) -> Counter[int | None]:
    sums = Counter[int | None]()
    for pk, amount_minor in amounts:
        sums[pk] += amount_minor
    return sums


async def _pieces(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    rest = iter(chunks)
    while (piece := await sync_to_async(lambda: next(rest, None))()) is not None:
        yield piece
