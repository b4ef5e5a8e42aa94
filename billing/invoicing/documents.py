"""The PDFs of issued invoices: drawn once, kept with their hash. A download is what was drawn then."""

import hashlib
import zlib
from importlib.metadata import version

from django.db import transaction
from django.utils.timezone import now

from billing.invoicing.invoices import Invoice, InvoiceDocument
from billing.invoicing.snapshots import Snapshot
from tenants.models import AuditEntry

DRAWN_AT_ONCE_MAX = 200
DRAWN = "invoice.draw"  # in the audit trail
_DRAWS = ("fpdf2", "fonttools", "pylopdf-fonts-zh-tw")


def document(invoice: Invoice) -> InvoiceDocument:
    """Return the PDF of an issued invoice; drawn now, and kept, if it is the first to ask. Many may ask at once."""
    assert invoice.number is not None, "a draft has no document that stays"
    found = InvoiceDocument.objects.filter(invoice=invoice).first()
    if found is not None:
        return found
    content = draw(invoice.frozen)
    drawing = {"sha256": sha256(content), "drawn_by": drawn_by()}
    with transaction.atomic():
        row, is_new = InvoiceDocument.objects.get_or_create(
            invoice=invoice, defaults={"content": content, **drawing}
        )
        if is_new:
            AuditEntry.record(DRAWN, invoice, by=None, at=now(), detail=drawing)
    return row


def drawing(invoice: Invoice) -> dict[str, str] | None:
    """Return hash and drawer of the invoice's PDF as the audit trail has them, which outlive a later drawing."""
    entries = AuditEntry.objects.filter(
        action=DRAWN, subject_type=invoice._meta.label_lower, subject_id=str(invoice.pk)
    )
    return entries.values_list("detail", flat=True).first()


def undrawn() -> list[int]:
    """Return the ids of issued invoices that have no PDF yet."""
    missing = Invoice.objects.filter(number__isnull=False, document=None).order_by("pk")
    return list(missing.values_list("pk", flat=True)[:DRAWN_AT_ONCE_MAX])


def pdf(invoice: Invoice) -> bytes:
    """Return the PDF: the kept one of an issued invoice, a new one of a draft."""
    if invoice.number is None:
        return draw(invoice.frozen)
    return bytes(document(invoice).content)


def draw(snapshot: Snapshot) -> bytes:
    """Return the PDF of a snapshot, drawn now; of the same snapshot the same bytes."""
    from billing.invoicing.pdf import draw as drawn  # its library is loaded by who draws

    return drawn(snapshot)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def drawn_by() -> str:
    """Name what draws: with another version of it the same snapshot may become other bytes."""
    from billing.invoicing.pdf import DRAWING

    libraries = " ".join(f"{name} {version(name)}" for name in _DRAWS)
    return f"drawing {DRAWING} {libraries} zlib {zlib.ZLIB_RUNTIME_VERSION}"
