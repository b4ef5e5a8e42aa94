"""`manage.py invoice draft|issue|list|show|preview|verify|pay|reverse|void|reissue|credit|grant|export`."""

import argparse
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from zoneinfo import ZoneInfo

from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils.timezone import now

from billing import rollups
from billing.accounts import Account
from billing.invoicing import (
    credit,
    credit_notes,
    documents,
    drafts,
    exports,
    lifecycle,
    payments,
    snapshots,
    verification,
)
from billing.invoicing.invoices import CreditGrant, GrantSource, Invoice
from billing.invoicing.snapshots import Line, Snapshot, items_of
from billing.money import format_minor, parse_minor
from billing.periods import Period, parse_month
from billing.price_lists import PriceList
from tenants import console
from tenants.console import Row
from tenants.models import Organization

LIST = ["number", "organization", "kind", "period", "status", "total", "open", "due"]
FORMATS = ("pdf", "csv", "json", "usage-csv")

P = ParamSpec("P")
T = TypeVar("T")


class Command(console.NounCommand):
    help = "Draft, issue, show, verify and download invoices; enter payments and credit."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)
        self._to_make(verbs)
        self._to_read(verbs)
        self._to_add(verbs)

    def _to_make(self, verbs: "argparse._SubParsersAction[CommandParser]") -> None:
        draft = verbs.add_parser("draft", help="draft what has ended, or refresh its drafts")
        draft.add_argument("organization", nargs="?", metavar="ORGANIZATION")
        draft.set_defaults(act=self.draft)
        issue = verbs.add_parser("issue", help="close and issue what is due")
        issue.add_argument("organization", nargs="?", metavar="ORGANIZATION")
        issue.set_defaults(act=self.issue)

    def _to_read(self, verbs: "argparse._SubParsersAction[CommandParser]") -> None:
        listing = verbs.add_parser("list", help="list invoices, the latest period first")
        listing.add_argument("--organization", metavar="SLUG")
        listing.add_argument("--status", choices=["draft", "issued", "overdue", "paid", "void"])
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.show_all)
        show = verbs.add_parser("show", help="print an invoice")
        show.add_argument("number", help="its number, or the id of a draft")
        show.add_argument("--json", action="store_true")
        show.set_defaults(act=self.show_one)
        preview = verbs.add_parser("preview", help="print what a period comes to; writes nothing")
        preview.add_argument("organization", metavar="ORGANIZATION")
        preview.add_argument("--period", metavar="YYYY-MM", help="by default the open one")
        preview.add_argument("--json", action="store_true")
        preview.set_defaults(act=self.preview)
        verify = verbs.add_parser("verify", help="recompute an invoice from the ledger")
        verify.add_argument("number", nargs="*", metavar="NUMBER")
        verify.add_argument("--all", action="store_true", help="every invoice, in their order")
        verify.add_argument("--pdf", type=Path, help="a file that somebody has, to compare; of one")
        verify.set_defaults(act=self.verify)
        export = verbs.add_parser("export", help="write an invoice to a file or to stdout")
        export.add_argument("number")
        export.add_argument("--format", choices=FORMATS, default="pdf")
        export.add_argument("--line", type=int, help="with usage-csv: of this line only")
        export.add_argument("--output", type=Path)
        export.set_defaults(act=self.export)

    def _to_add(self, verbs: "argparse._SubParsersAction[CommandParser]") -> None:
        pay = verbs.add_parser("pay", help="enter a payment; below zero, a refund")
        pay.add_argument("number")
        pay.add_argument("--amount", required=True, help="in units of the currency, such as 12.50")
        pay.add_argument("--method", default="")
        pay.add_argument("--reference", default="")
        pay.add_argument("--received", metavar="YYYY-MM-DD", help="in the customer's time zone")
        pay.set_defaults(act=self.pay)
        reverse = verbs.add_parser("reverse", help="take back a payment that was a mistake")
        reverse.add_argument("payment", type=int)
        reverse.set_defaults(act=self.reverse)
        void = verbs.add_parser("void", help="void an invoice that nothing was paid on")
        void.add_argument("number")
        void.add_argument("--reason", required=True)
        void.add_argument("--reissue", action="store_true", help="and draft its period anew")
        _add_price_list(void)
        void.set_defaults(act=self.void)
        reissue = verbs.add_parser("reissue", help="draft the period of a void invoice anew")
        reissue.add_argument("number")
        _add_price_list(reissue)
        reissue.set_defaults(act=self.reissue)
        note = verbs.add_parser("credit", help="issue a credit note for it, or for lines of it")
        note.add_argument("number")
        note.add_argument("--line", type=int, action="append", help="as `show` numbers them")
        note.add_argument("--reason", required=True)
        note.set_defaults(act=self.credit)
        grant = verbs.add_parser(
            "grant", help="give an organization credit, or enter what it bought"
        )
        grant.add_argument("organization", metavar="ORGANIZATION")
        grant.add_argument("--amount", required=True)
        grant.add_argument("--source", choices=GrantSource.values, default="purchased")
        grant.add_argument("--expires", metavar="YYYY-MM-DD", help="at the end of that day")
        grant.add_argument("--note", default="")
        grant.set_defaults(act=self.grant)

    def draft(self, *, organization: str | None, **_: Any) -> None:
        rollups.recompute()
        for each in _organizations(organization):
            invoice = lifecycle.draft(each.pk, now())
            if invoice is not None:
                self.stdout.write(f"{invoice.pk}  {self._line(invoice)}")

    def issue(self, *, organization: str | None, **_: Any) -> None:
        for each in _organizations(organization):
            for invoice in lifecycle.advance(each.pk, now()):
                documents.document(invoice)
                self.stdout.write(self._line(invoice))
        for waiting in Invoice.objects.filter(status="draft").select_related("organization"):
            closes = waiting.held_back or "its grace time or the closing margin is not over"
            self.tell(f"{waiting}: {closes}")

    def show_all(
        self, *, organization: str | None, status: str | None, json: bool, **_: Any
    ) -> None:
        found = Invoice.objects.select_related("organization")
        if organization:
            found = found.filter(organization=console.find_organization(organization))
        at = now()
        if status == "overdue":
            found = found.filter(status="issued", due_at__lt=at)
        elif status:
            found = found.filter(status=status)
        rows = [_row(invoice, at) for invoice in self.first(found)]
        self.show(rows, as_json=json, columns=LIST)

    def show_one(self, *, number: str, json: bool, **_: Any) -> None:
        invoice = _find(number)
        if json:
            self.stdout.write(invoice.canonical.decode())
            return
        self.stdout.write(self._line(invoice))
        snapshot = invoice.frozen
        if snapshot.replaces:
            self.stdout.write(f"replaces {snapshot.replaces}")
        if snapshot.price_list:
            self.stdout.write(f"at the prices of {snapshot.price_list.slug}")
        self._print(snapshot)
        for payment in invoice.payments.all():
            amount = format_minor(payment.amount_minor, invoice.currency)
            back = f" (reverses {payment.reverses_id})" if payment.reverses_id else ""
            self.stdout.write(f"payment {payment.pk}: {amount} {payment.reference}{back}")

    def preview(self, *, organization: str, period: str | None, json: bool, **_: Any) -> None:
        account = Account.known(console.find_organization(organization))
        chosen = _period(account, period)
        snapshot = _or_refuse(exports.preview, account, chosen)
        if json:
            self.stdout.write(snapshots.canonical(snapshot).decode())
            return
        zone = ZoneInfo(account.organization.timezone)
        start, end = (
            f"{each.astimezone(zone):%Y-%m-%d %H:%M}" for each in (chosen.start, chosen.end)
        )
        self.tell(f"{organization} from {start} to {end} ({zone}), as it is booked so far:")
        self._print(snapshot)

    def verify(self, *, number: list[str], all: bool, pdf: Path | None, **_: Any) -> None:
        if bool(number) == all:
            raise CommandError("Name invoices, or --all of them.")
        if pdf and len(number) != 1:
            raise CommandError("A PDF is of one invoice: name that.")
        given = _or_refuse(pdf.read_bytes) if pdf else None
        issued = Invoice.objects.filter(number__isnull=False).order_by("issuer", "year", "serial")
        wrong = []
        for invoice in issued.iterator() if all else map(_issued, number):
            findings = verification.verify(invoice, pdf=given)
            for finding in findings:
                self.stdout.write(f"✗ {invoice}: {finding}")
            if findings:
                wrong.append(str(invoice))
            else:
                source = "ledger" if invoice.corrects is None else str(invoice.corrects)
                self.stdout.write(
                    f"✓ {invoice}: {source}, lines, totals, hash, chain and PDF are right."
                )
        if wrong:
            raise CommandError(f"Not as it was issued: {', '.join(wrong)}.")

    def pay(
        self,
        *,
        number: str,
        amount: str,
        method: str,
        reference: str,
        received: str | None,
        **_: Any,
    ) -> None:
        invoice = _issued(number)
        received_at = _day(received, invoice.organization) if received else now()
        payment = _or_refuse(
            payments.pay,
            invoice.pk,
            _or_refuse(parse_minor, amount, invoice.currency),
            received_at=received_at,
            by=console.actor(),
            at=now(),
            method=method,
            reference=reference,
        )
        self.stdout.write(str(payment.pk))
        self.tell(self._line(_issued(number)))

    def reverse(self, *, payment: int, **_: Any) -> None:
        made = _or_refuse(payments.reverse, payment, by=console.actor(), at=now())
        self.tell(self._line(_issued(made.invoice.number)))

    def void(
        self, *, number: str, reason: str, reissue: bool, price_list: str | None, **_: Any
    ) -> None:
        """Void it, and draft it anew if asked to: both, or nothing."""
        if price_list and not reissue:
            raise CommandError("--price-list is what to --reissue it under.")
        with transaction.atomic():
            invoice = _or_refuse(
                lifecycle.void, _issued(number).pk, reason=reason, by=console.actor(), at=now()
            )
            anew = _reissued(invoice, price_list) if reissue else None
        self.tell(self._line(invoice))
        if anew is not None:
            self.stdout.write(f"{anew.pk}  {self._line(anew)}")

    def reissue(self, *, number: str, price_list: str | None, **_: Any) -> None:
        anew = _reissued(_issued(number), price_list)
        self.stdout.write(f"{anew.pk}  {self._line(anew)}")

    def credit(self, *, number: str, line: list[int] | None, reason: str, **_: Any) -> None:
        note = _or_refuse(
            credit_notes.credit,
            *(_issued(number).pk, line),
            reason=reason,
            by=console.actor(),
            at=now(),
        )
        documents.document(note)
        self.stdout.write(self._line(note))

    def grant(
        self,
        *,
        organization: str,
        amount: str,
        source: str,
        expires: str | None,
        note: str,
        **_: Any,
    ) -> None:
        owner = console.find_organization(organization)
        minor = _or_refuse(parse_minor, amount, owner.currency)
        expires_at = _day(expires, owner, days=1) if expires else None
        row = CreditGrant(
            organization=owner,
            currency=owner.currency,
            amount_minor=minor,
            source=source,
            expires_at=expires_at,
            note=note,
        )
        console.create(row)
        left = format_minor(credit.balance(owner, now()), owner.currency)
        self.stdout.write(str(row.pk))
        self.tell(f"{owner} has {owner.currency} {left} of credit now.")

    def export(
        self, *, number: str, format: str, line: int | None, output: Path | None, **_: Any
    ) -> None:
        chunks = _or_refuse(exports.chunks, _find(number), format, line)
        if output is None:
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
            return
        with _or_refuse(output.open, "wb") as file:
            file.writelines(chunks)
        self.tell(f"{output}")

    def _line(self, invoice: Invoice) -> str:
        row = _row(invoice, now())
        return "  ".join(str(row[name] or "-") for name in LIST)

    def _print(self, snapshot: Snapshot) -> None:
        """Print lines and sums as they stand on the page."""
        rows: list[Row] = [
            {
                "line": position,
                "team": team.slug,
                "model": item.model,
                "kind": item.kind.value if isinstance(item, Line) else f"free {item.kind.value}",
                "quantity": item.quantity if isinstance(item, Line) else -item.quantity,
                "amount": format_minor(item.amount_minor, snapshot.currency),
            }
            for position, (team, item) in enumerate(items_of(snapshot), 1)
        ]
        self.show(rows, as_json=False, columns=list(rows[0]) if rows else [])
        sums = snapshot.totals
        for name in sums.__struct_fields__:
            amount = format_minor(getattr(sums, name), snapshot.currency)
            label = name.removesuffix("_minor")
            self.stdout.write(f"{label:>10}  {snapshot.currency} {amount}")


def _add_price_list(parser: CommandParser) -> None:
    parser.add_argument(
        "--price-list",
        metavar="SLUG",
        help="rate its usage under this list (default: the prices that it was booked at)",
    )


def _reissued(invoice: Invoice, slug: str | None) -> Invoice:
    price_list = _or_refuse(PriceList.named, slug) if slug else None
    return _or_refuse(
        lifecycle.reissue, invoice.pk, by=console.actor(), at=now(), price_list=price_list
    )


def _row(invoice: Invoice, at: datetime) -> Row:
    zone = ZoneInfo(invoice.organization.timezone)
    return {
        "id": invoice.pk,
        "number": invoice.number or f"draft {invoice.pk}",
        "organization": invoice.organization.slug,
        "kind": invoice.kind,
        "period": Period(invoice.period_start, invoice.period_end).label(zone),
        "status": invoice.standing(at),
        "total": f"{invoice.currency} {format_minor(invoice.total_minor, invoice.currency)}",
        "open": format_minor(invoice.open_minor, invoice.currency),
        "due": f"{invoice.due_at.astimezone(zone):%Y-%m-%d}" if invoice.due_at else None,
        "held_back": invoice.held_back,
    }


def _organizations(slug: str | None) -> list[Organization]:
    if slug:
        return [console.find_organization(slug)]
    return list(Organization.objects.order_by("slug"))


def _find(number: str) -> Invoice:
    found = Invoice.objects.select_related("organization", "issuer")
    invoice = found.filter(pk=int(number)).first() if number.isdigit() else None
    invoice = invoice or found.filter(number=number).first()
    if invoice is None:
        raise CommandError(f"There is no invoice {number!r}; `invoice list` shows them.")
    return invoice


def _issued(number: str | None) -> Invoice:
    invoice = _find(number or "")
    if invoice.number is None:
        raise CommandError(f"{invoice} is not issued yet.")
    return invoice


def _period(account: Account, text: str | None) -> Period:
    zone = ZoneInfo(account.organization.timezone)
    if text:
        return _or_refuse(parse_month, text, zone)
    period = drafts.current_period(account)
    if period is None:
        raise CommandError(f"{account.organization} has used nothing yet.")
    return period


def _day(text: str, organization: Organization, *, days: int = 0) -> datetime:
    return _or_refuse(exports.day, text, ZoneInfo(organization.timezone), days)


def _or_refuse(call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Call it; what it refuses is told to the person."""
    try:
        return call(*args, **named)
    except (ValueError, LookupError, OSError) as error:
        raise CommandError(str(error)) from error
