"""Credit notes: an issued invoice, or lines of it, taken back by a document of its own. Nothing issued is edited."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Self, TypeVar

import msgspec
from django.db import transaction

from billing.invoicing import credit as credit_grants
from billing.invoicing import numbering
from billing.invoicing.content import utc
from billing.invoicing.freezing import freeze, write_lines
from billing.invoicing.invoices import Invoice, InvoiceStatus
from billing.invoicing.lifecycle import settle_status
from billing.invoicing.locks import locked
from billing.invoicing.notices import tell
from billing.invoicing.snapshots import Allowance, Document, Line, Snapshot, Team, Totals, items_of
from billing.money import round_half_even
from billing.notifications.events import EventType
from billing.rating import BP
from tenants.models import Actor, AuditEntry

RowT = TypeVar("RowT", Line, Allowance)


@dataclass(frozen=True, slots=True)
class _Item:
    """A line or an allowance of the invoice, under the number that it has there."""

    position: int
    team: Team
    row: Line | Allowance

    @property
    def key(self) -> tuple[str, str, str]:
        return self.team.slug, self.row.model, self.row.kind


def credit(
    invoice_id: int,
    positions: Collection[int] | None = None,
    *,
    reason: str,
    by: Actor,
    at: datetime,
) -> Invoice:
    """Issue a credit note for these lines of an issued invoice, or for all that is left of it; ValueError if nothing.

    A line takes its free allowance with it. Discount and tax follow: they are rounded once for all that is credited
    so far, so that no note takes too much, and all notes together are the invoice. What the invoice had drawn of
    credit and does not need any more goes back there; what was paid may then be paid back.
    """
    with transaction.atomic():
        _, invoice = locked(invoice_id)
        if invoice.kind != Document.INVOICE or invoice.status not in (
            InvoiceStatus.ISSUED,
            InvoiceStatus.PAID,
        ):
            raise ValueError(f"{invoice} is no invoice that is issued: nothing to credit.")
        left = _left(invoice)
        chosen = _chosen(left, positions)
        number = numbering.take(invoice.issuer_id, at)
        is_rest = len(chosen) == len(left)
        content = _content(invoice, chosen, number, reason, at, is_rest=is_rest)
        note = Invoice.objects.create(
            issuer=invoice.issuer,
            organization=invoice.organization,
            kind=Document.CREDIT_NOTE,
            corrects=invoice,
            period_start=invoice.period_start,
            period_end=invoice.period_end,
            currency=invoice.currency,
            language=invoice.language,
            drafted_at=at,
        )
        write_lines(note, content)
        freeze(note, content, number)
        detail = {"invoice": invoice.number, "lines": [item.position for item in chosen]}
        AuditEntry.record("invoice.credit", note, by=by, at=at, detail=detail)
        tell(EventType.INVOICE_ISSUED, note, at)
        if invoice.open_minor < 0:
            # What was paid too much before is no credit.
            credit_grants.give_back(invoice, at, min(-invoice.open_minor, -note.total_minor))
        settle_status(invoice, at)
    return note


def _left(invoice: Invoice) -> list[_Item]:
    """Return the items that no credit note has taken yet."""
    taken = {
        item.key
        for note in invoice.credit_notes.all()
        for item in (_Item(0, team, row) for team, row in items_of(note.frozen))
    }
    items = [_Item(n, *pair) for n, pair in enumerate(items_of(invoice.frozen), 1)]
    return [item for item in items if item.key not in taken]


def _chosen(left: list[_Item], positions: Collection[int] | None) -> list[_Item]:
    if not left:
        raise ValueError("All its lines are credited already.")
    if positions is None:
        return left
    unknown = set(positions) - {item.position for item in left}
    if unknown:
        raise ValueError(f"There is no line {min(unknown)} that is left to credit.")
    keys = {item.key for item in left if item.position in positions}
    return [item for item in left if item.key in keys]


def _content(
    invoice: Invoice,
    chosen: list[_Item],
    number: numbering.Number,
    reason: str,
    at: datetime,
    *,
    is_rest: bool,
) -> Snapshot:
    """Return what the note shows: the invoice's own words, with its chosen lines below zero."""
    original = invoice.frozen
    totals = _totals(invoice, original, chosen, is_rest=is_rest)
    discount, tax = original.discount, original.tax
    if discount is not None:
        discount = msgspec.structs.replace(discount, amount_minor=totals.discount_minor)
    return msgspec.structs.replace(
        original,
        kind=Document.CREDIT_NOTE,
        number=number.text,
        issued_at=utc(at),
        due_at=None,
        corrects=original.number,
        reason=reason,
        teams=[team for each in original.teams if (team := _taken_back(each, chosen)) is not None],
        discount=discount,
        credits=[],
        tax=msgspec.structs.replace(tax, amount_minor=totals.tax_minor),
        totals=totals,
        previous_sha256=number.previous_sha256,
        replaces="",
        usage_sha256="",
    )


def _totals(invoice: Invoice, original: Snapshot, chosen: list[_Item], *, is_rest: bool) -> Totals:
    notes = [note.frozen.totals for note in invoice.credit_notes.all()]
    subtotal = sum(item.row.amount_minor for item in chosen)
    credited = _Credited.of(original, subtotal - sum(each.subtotal_minor for each in notes))
    if is_rest:
        sums = original.totals
        credited = _Credited(sums.subtotal_minor, sums.discount_minor, sums.tax_minor)
    subtotal = -credited.subtotal - sum(each.subtotal_minor for each in notes)
    discount = -credited.discount - sum(each.discount_minor for each in notes)
    tax = -credited.tax - sum(each.tax_minor for each in notes)
    total = subtotal + discount + tax
    if credited.subtotal + credited.discount + credited.tax > original.totals.total_minor:
        raise ValueError("That is more than the invoice: credit lines below zero together with it.")
    if total > 0:
        raise ValueError("These lines are below zero themselves: credit them together with others.")
    return Totals(subtotal, discount, tax, total, credits_minor=0, due_minor=total)


@dataclass(frozen=True, slots=True)
class _Credited:
    """What all notes of an invoice come to, in minor units and as the invoice has it."""

    subtotal: int
    discount: int
    tax: int

    @classmethod
    def of(cls, original: Snapshot, subtotal: int) -> Self:
        """Compute discount and tax of lines that come to `subtotal`, as for the invoice itself."""
        bp = original.discount.bp if original.discount else 0
        discount = -round_half_even(subtotal * bp, BP)
        tax_bp = 0 if original.tax.exempt else original.tax.bp
        return cls(subtotal, discount, round_half_even((subtotal + discount) * tax_bp, BP))


def _taken_back(team: Team, chosen: list[_Item]) -> Team | None:
    rows = [item.row for item in chosen if item.team.slug == team.slug]
    if not rows:
        return None
    lines = [_negative(row) for row in rows if isinstance(row, Line)]
    allowances = [_negative(row) for row in rows if isinstance(row, Allowance)]
    return msgspec.structs.replace(
        team,
        lines=lines,
        allowances=allowances,
        subtotal_minor=-sum(row.amount_minor for row in rows),
    )


def _negative(row: RowT) -> RowT:
    tiers = [
        msgspec.structs.replace(tier, quantity=-tier.quantity, amount_pico=-tier.amount_pico)
        for tier in row.tiers
    ]
    back = msgspec.structs.replace(
        row,
        quantity=-row.quantity,
        tiers=tiers,
        amount_pico=-row.amount_pico,
        amount_minor=-row.amount_minor,
    )
    if isinstance(back, Line):
        images = None if back.images is None else -back.images
        back = msgspec.structs.replace(back, images=images, late_quantity=-back.late_quantity)
    return back
