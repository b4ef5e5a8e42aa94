"""The invoices of an organization as a page shows them, and their downloads."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing.invoicing.invoices import CreditDraw, Invoice, Payment
from billing.invoicing.snapshots import Allowance, Document, Line, Team, items_of
from tenants.models import Organization

ROWS_MAX = 120  # ten years of months


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


@dataclass(frozen=True, slots=True)
class Item:
    """A line of an invoice, or a free allowance, under its number there."""

    number: int
    team: Team
    row: Line | Allowance

    @property
    def is_free(self) -> bool:
        return isinstance(self.row, Allowance)


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
            invoice.open_after(
                drawn_minor=drawn[invoice.pk],
                credited_minor=credited[invoice.pk],
                paid_minor=paid[invoice.pk],
            ),
        )
        for invoice in invoices
    ]


def find(organization: Organization, pk: int) -> Invoice | None:
    """Return the organization's invoice that can be downloaded; None if there is none of that id."""
    return organization.invoices.filter(pk=pk, snapshot__isnull=False).first()


def items(invoice: Invoice) -> list[Item]:
    """Return its lines and free allowances as they were frozen."""
    numbered = enumerate(items_of(invoice.frozen), 1)
    return [Item(number, team, row) for number, (team, row) in numbered]


def _by(amounts: Iterable[tuple[int | None, int]]) -> Counter[int | None]:
    sums = Counter[int | None]()
    for pk, amount_minor in amounts:
        sums[pk] += amount_minor
    return sums
