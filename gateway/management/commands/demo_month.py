"""manage.py demo_month enter | close: a month of three organizations, and their invoices. For `make demo-month`."""

import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.utils.timezone import now

from billing import rollups
from billing.invoicing import credit_notes, documents, lifecycle, payments, sweeping, verification
from billing.invoicing.invoices import Invoice
from billing.money import format_minor
from billing.periods import period_of
from gateway import demo_customers, demo_usage
from gateway.demo_customers import ACTOR, CUSTOMERS, Customer
from tenants.console import NounCommand
from tenants.models import Organization

SEED = 20
LATE = 3  # requests of the month before that are booked after it was closed
GRACE = timedelta(seconds=settings.INVOICE_GRACE_S)
MARGIN = timedelta(seconds=settings.CLOSE_MARGIN_S)


class Command(NounCommand):
    help = (
        "Make up a month of three organizations, close it, and invoice it. For demonstrations only."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)
        enter = verbs.add_parser("enter", help="the organizations; prints their keys as JSON")
        enter.set_defaults(act=self.enter)
        close = verbs.add_parser("close", help="their month, its invoices, and their PDFs")
        close.add_argument("--output", type=Path, required=True)
        close.set_defaults(act=self.close)

    def enter(self, **_: Any) -> None:
        if Organization.objects.filter(slug=CUSTOMERS[0].slug).exists():
            raise CommandError("They are entered already.")
        demo_customers.enter_issuer()
        keys = {customer.slug: demo_customers.enter(customer) for customer in CUSTOMERS}
        self.stdout.write(json.dumps(keys))

    def close(self, *, output: Path, **_: Any) -> None:
        chance = random.Random(SEED)
        for customer in CUSTOMERS:
            self._live_through(customer, chance)
        call_command("check_books", stdout=self.stdout)
        output.mkdir(parents=True, exist_ok=True)
        for invoice in Invoice.objects.order_by("serial"):
            self._hand_out(invoice, output)

    def _live_through(self, customer: Customer, chance: random.Random) -> None:
        """Book the month before and this one, with late usage in between; invoice both; refund a line of the second."""
        organization = Organization.objects.get(slug=customer.slug)
        zone = ZoneInfo(organization.timezone)
        month = period_of(now(), zone)
        before = period_of(month.start - timedelta(days=1), zone)
        habits = demo_customers.habits(customer)
        for number in range(20):
            demo_usage.book(habits[0], before.start + timedelta(days=1 + number), chance)
        self._invoice(organization, before.end)
        for _ in range(LATE):
            demo_usage.book(habits[0], before.end - timedelta(minutes=5), chance)
        booked = sum(demo_usage.load(habit, month, chance) for habit in habits)
        (invoice,) = self._invoice(organization, month.end)
        self.tell(f"{customer.name}: {booked} requests, {LATE} late ones, {invoice}")
        self._afterwards(invoice, month.end + GRACE + timedelta(days=3))

    def _invoice(self, organization: Organization, ended: datetime) -> list[Invoice]:
        """Let the time pass that invoicing takes: the period's end, its grace time, the margin."""
        rollups.recompute()
        issued = []
        for at in (ended, ended + GRACE, ended + GRACE + MARGIN):
            assert organization.pk in sweeping.due_organizations(at), f"a step is due at {at}"
            issued += lifecycle.advance(organization.pk, at)
        return issued

    def _afterwards(self, invoice: Invoice, at: datetime) -> None:
        """Pay the invoice; where that is in euros, refund a line of it."""
        if invoice.open_minor > 0:
            amount = invoice.open_minor
            payments.pay(invoice.pk, amount, received_at=at, by=ACTOR, at=at, reference="transfer")
        if invoice.currency == "EUR":
            note = credit_notes.credit(
                invoice.pk, [2], reason="Scans were sent twice", by=ACTOR, at=at
            )
            if back := note.total_minor:
                payments.pay(invoice.pk, back, received_at=at, by=ACTOR, at=at, reference="refund")

    def _hand_out(self, invoice: Invoice, output: Path) -> None:
        findings = verification.verify(invoice)
        path = output / f"{invoice.number}.pdf"
        path.write_bytes(documents.pdf(invoice))
        total = f"{invoice.currency} {format_minor(invoice.total_minor, invoice.currency)}"
        right = "✓" if not findings else f"✗ {'; '.join(map(str, findings))}"
        status = invoice.standing(invoice.issued_at or now())
        line = f"{invoice.number}  {invoice.organization.slug:18} {invoice.kind:12} {status:7} {total:>14}"
        self.stdout.write(f"{line}  {right}  {path}")
        if findings:
            raise CommandError(f"{invoice} is not right.")
