"""What an invoice says, written down: the rows of its lines, and for good once it is numbered."""

from billing import errands
from billing.invoicing import numbering, snapshots
from billing.invoicing.invoices import Invoice, InvoiceLine, InvoiceStatus, totals
from billing.invoicing.snapshots import Line, Snapshot


def freeze(invoice: Invoice, snapshot: Snapshot, number: numbering.Number) -> None:
    """Make the invoice what the snapshot says, for good. Its lines are written: of an invoice, before its number."""
    invoice.status = InvoiceStatus.ISSUED
    invoice.number, invoice.year, invoice.serial = number.text, number.year, number.serial
    invoice.issued_at, invoice.due_at = snapshot.issued_at, snapshot.due_at
    invoice.snapshot = snapshots.to_json(snapshot)
    invoice.content_sha256 = snapshots.sha256(snapshot)
    invoice.previous_sha256 = number.previous_sha256
    invoice.held_back = ""
    for name, value in totals(snapshot).items():
        setattr(invoice, name, value)
    invoice.save()
    number.chain(invoice.content_sha256)
    errands.after_commit("draw_document", invoice.pk)


def write_lines(invoice: Invoice, snapshot: Snapshot) -> None:
    """Make the draft's lines those of the snapshot."""
    invoice.lines.all().delete()
    InvoiceLine.objects.bulk_create(
        InvoiceLine(
            invoice=invoice,
            position=position,
            team_slug=team.slug,
            model_name=item.model,
            kind=item.kind,
            is_allowance=not isinstance(item, Line),
            quantity=item.quantity,
            late_quantity=item.late_quantity if isinstance(item, Line) else 0,
            amount_pico=item.amount_pico,
            amount_minor=item.amount_minor,
        )
        for position, (team, item) in enumerate(snapshots.items_of(snapshot), 1)
    )
