"""Numbers of invoices: gapless in an issuer's year, each chained to the one before it.

The number is taken under a lock that ends with the transaction of the issue: one that is rolled back gives its number
back, and nobody can have taken the next one. A sequence of the database would leave gaps.
"""

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from billing.invoicing.invoices import InvoiceNumbers, Issuer, number_of


@dataclass(frozen=True, slots=True)
class Number:
    """A number that is taken, and the hash of the invoice before it."""

    row: InvoiceNumbers
    text: str
    year: int
    serial: int
    previous_sha256: str

    def chain(self, content_sha256: str) -> None:
        """Make this the issuer's last one. In the same transaction."""
        self.row.last_number = self.serial
        self.row.last_sha256 = content_sha256
        self.row.save(update_fields=["last_number", "last_sha256"])


def take(issuer_id: int, at: datetime) -> Number:
    """Take the issuer's next number of the year of that instant. Others wait until this transaction ends.

    The year never goes back: what is issued under a clock that did gets a number of the last year that has one.
    """
    # Drafts that are being made refer to the issuer, and need not wait for this, nor this for them.
    issuer = Issuer.objects.select_for_update(no_key=True).get(pk=issuer_id)
    last = issuer.numbers.order_by("-year").first()
    year = at.astimezone(ZoneInfo(issuer.timezone)).year
    if last is not None and last.year >= year:
        row = last
    else:
        row = InvoiceNumbers(issuer=issuer, year=year)
        if last is not None:
            row.last_sha256 = last.last_sha256
        row.save(force_insert=True)
    serial = row.last_number + 1
    return Number(row, number_of(issuer, row.year, serial), row.year, serial, row.last_sha256)
