"""Verification: an invoice recomputed from the ledger's rows to the last unit, and its hash, chain and PDF checked.

It trusts no row that could have been changed behind the back of the triggers: not the lines, not the rollups, not the
totals, and the seals only as far as the snapshot has their hash. What it takes as given are the price versions that the
usage records name, and what the snapshot says of discount, tax and free allowance.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from billing import prices
from billing.invoicing import documents, metered, seals, snapshots
from billing.invoicing.invoices import Invoice, InvoiceLine, totals
from billing.invoicing.seals import Place
from billing.invoicing.snapshots import Document, Line, Snapshot, items_of
from billing.periods import Period
from billing.rating import Kind, Quantity, Rated, rate
from tenants.models import ApiKey

LEDGER_RECORDS_MAX = 20  # that are named


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found wrong: where, and how it is against how it should be."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(invoice: Invoice, *, pdf: bytes | None = None) -> list[Finding]:
    """Return all that does not fit of an issued invoice; of the PDF that somebody has, if given. Empty: it is right."""
    assert invoice.number is not None, "a draft is not verified"
    try:
        snapshot = invoice.frozen
    except msgspec.ValidationError as error:
        return [Finding("snapshot", f"cannot be read: {error}")]
    checks: list[Callable[[Invoice, Snapshot], Iterator[Finding]]] = [
        *(_hash, _chain, _row, _lines, _arithmetic, _kept_pdf),
        *((_credit_note,) if snapshot.kind is Document.CREDIT_NOTE else (_ledger, _seals)),
    ]
    found = [finding for check in checks for finding in check(invoice, snapshot)]
    if pdf is not None:
        found += _given_pdf(invoice, pdf)
    return found


def _hash(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    # Of the text as it is kept, whatever this version of `Snapshot` would make of it.
    is_now = hashlib.sha256(invoice.canonical).hexdigest()
    if is_now != invoice.content_sha256:
        yield Finding("snapshot", f"its hash is {is_now}, not {invoice.content_sha256}")


def _chain(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    """Check what this one names as the invoice before it, and that the one after it names this one."""
    if snapshot.previous_sha256 != invoice.previous_sha256:
        yield Finding("chain", "the snapshot names another previous invoice than the row")
    chain = Invoice.objects.filter(issuer=invoice.issuer, number__isnull=False)
    before = chain.filter(year=invoice.year, serial__lt=invoice.serial).order_by("serial").last()
    before = before or chain.filter(year__lt=invoice.year).order_by("year", "serial").last()
    expected = before.content_sha256 if before else snapshots.GENESIS_SHA256
    if snapshot.previous_sha256 != expected:
        yield Finding("chain", f"does not follow {before or 'the beginning'}")
    gap = (
        invoice.serial != (before.serial or 0) + 1
        if before and before.year == invoice.year
        else invoice.serial != 1
    )
    if gap:
        yield Finding("chain", f"a number before {invoice.number} is missing")
    after = chain.filter(year=invoice.year, serial__gt=invoice.serial).order_by("serial").first()
    if after and after.previous_sha256 != invoice.content_sha256:
        yield Finding("chain", f"{after} does not follow this invoice")


def _row(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    shown = totals(snapshot) | {
        "number": snapshot.number,
        "currency": snapshot.currency,
        "period_start": snapshot.period.start,
        "period_end": snapshot.period.end,
        "issued_at": snapshot.issued_at,
        "due_at": snapshot.due_at,
    }
    for name, value in shown.items():
        if getattr(invoice, name) != value:
            yield Finding(
                "invoice", f"{name} is {getattr(invoice, name)}, the snapshot has {value}"
            )


def _lines(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    """Compare the rows of lines with those of the snapshot."""
    rows = {line.position: line for line in invoice.lines.all()}
    for position, (team, item) in enumerate(items_of(snapshot), 1):
        row = rows.pop(position, None)
        name = f"line {position} ({team.slug}, {item.model}, {item.kind})"
        if row is None:
            yield Finding(name, "is missing")
            continue
        late = item.late_quantity if isinstance(item, Line) else 0
        shown = (team.slug, item.model, item.kind.value, item.quantity, late)
        amounts = (item.amount_pico, item.amount_minor)
        if _told(row) != (*shown, *amounts, not isinstance(item, Line)):
            yield Finding(
                name,
                f"is {row.quantity} for {row.amount_minor}, not {item.quantity} for {item.amount_minor}",
            )
    for position in sorted(rows):
        yield Finding(f"line {position}", "is not on the invoice")


def _told(row: InvoiceLine) -> tuple[object, ...]:
    place = (row.team_slug, row.model_name, row.kind, row.quantity, row.late_quantity)
    return (*place, int(row.amount_pico), row.amount_minor, row.is_allowance)


def _arithmetic(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    """Add the snapshot up: tiers to lines, lines to teams, teams to totals."""
    sums = snapshot.totals
    for team, item in items_of(snapshot):
        sign = 1 if isinstance(item, Line) else -1
        if sign * sum(tier.amount_pico for tier in item.tiers) != item.amount_pico:
            yield Finding(f"{team.slug}, {item.model}, {item.kind}", "its tiers do not add up")
    for team in snapshot.teams:
        rows = [
            *(line.amount_minor for line in team.lines),
            *(a.amount_minor for a in team.allowances),
        ]
        if sum(rows) != team.subtotal_minor:
            yield Finding(f"team {team.slug}", "its lines do not add up to its subtotal")
    if sum(team.subtotal_minor for team in snapshot.teams) != sums.subtotal_minor:
        yield Finding("totals", "the teams do not add up to the subtotal")
    if sums.subtotal_minor + sums.discount_minor + sums.tax_minor != sums.total_minor:
        yield Finding("totals", "subtotal, discount and tax do not add up to the total")
    if sums.total_minor + sum(each.amount_minor for each in snapshot.credits) != sums.due_minor:
        yield Finding("totals", "total and credits do not add up to what is due")


def _ledger(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    """Rate the period's ledger rows again, and compare each line and all totals."""
    period = Period(snapshot.period.start, snapshot.period.end)
    suspects = metered.suspects(
        invoice.organization_id, period, LEDGER_RECORDS_MAX, is_sealed=bool(snapshot.usage_sha256)
    )
    for suspect in suspects:
        yield Finding(f"usage record {suspect.request_id}", suspect.what)
    again = _rated_again(snapshot, _usage(invoice, snapshot, period))
    should = {
        (line.team_id, line.model_name, line.kind): (
            line.quantity,
            line.late_quantity,
            line.amount_pico,
        )
        for line in again.lines
    }
    shown = {
        (team.id, line.model, line.kind): (line.quantity, line.late_quantity, line.amount_pico)
        for team in snapshot.teams
        for line in team.lines
    }
    slugs = {team.id: team.slug for team in snapshot.teams}
    positions = _positions(snapshot)
    for team_id, model, kind in sorted(should.keys() | shown.keys()):
        is_now, was = (side.get((team_id, model, kind)) for side in (should, shown))
        if is_now != was:
            name = slugs.get(team_id, f"team {team_id}")
            where = positions.get((team_id, model, kind), "no line of it")
            yield Finding(
                f"ledger ({name}, {model}, {kind})",
                f"its records come to {_said(is_now)}, the invoice has {_said(was)} ({where})",
            )
    sums = snapshot.totals
    for name in ("subtotal_minor", "discount_minor", "tax_minor", "total_minor"):
        if getattr(again, name) != getattr(sums, name):
            yield Finding(
                "ledger",
                f"{name} comes to {getattr(again, name)}, the invoice has {getattr(sums, name)}",
            )


def _positions(snapshot: Snapshot) -> dict[tuple[int, str, Kind], str]:
    """Return by team, model and kind which line it is."""
    items = enumerate(items_of(snapshot), 1)
    return {
        (team.id, item.model, item.kind): f"line {position}"
        for position, (team, item) in items
        if isinstance(item, Line)
    }


def _seals(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    """Compare the ledger with what was sealed of it: where it differs, and each record that is gone, new or changed."""
    if not snapshot.usage_sha256:
        return  # it was issued before there were seals
    is_now = seals.sha256(invoice)
    if is_now != snapshot.usage_sha256:
        yield Finding("seals", f"their hash is {is_now}, not {snapshot.usage_sha256}")
    drifts = seals.drifts(invoice, LEDGER_RECORDS_MAX)
    if not drifts:
        return
    slugs = {team.id: team.slug for team in snapshot.teams}
    keys = dict(
        ApiKey.objects.filter(organization=invoice.organization_id).values_list("pk", "public_id")
    )

    def at(place: Place) -> str:
        team = slugs.get(place.team_id, f"team {place.team_id}")
        key = keys.get(place.key_id, place.key_id)
        return f"{team}, {place.model_name}, key {key}, {place.day}"

    for drift in drifts:
        moved = ", ".join(f"{by:+} {name}" for name, by in drift.sums.items() if by)
        yield Finding(
            f"ledger ({at(drift.place)})", f"since it was sealed: {moved or 'the same sums'}"
        )
    for change in seals.changes(invoice, LEDGER_RECORDS_MAX):
        yield Finding(f"usage record {change.request_id}", _changed(change, at))


def _changed(change: seals.Change, at: Callable[[Place], str]) -> str:
    """Say what became of a record since it was sealed."""
    if change.was is None:
        assert change.is_now is not None
        return f"was not there when it was sealed ({at(change.is_now)})"
    if change.is_now is None:
        return f"is missing ({at(change.was)})"
    if change.was != change.is_now:
        return f"was moved from ({at(change.was)}) to ({at(change.is_now)})"
    return f"is not what it was when it was sealed ({at(change.was)})"


def _usage(invoice: Invoice, snapshot: Snapshot, period: Period) -> list[Quantity]:
    """Return the period's usage as booked, or at the versions that the invoice names if it is rated under a list."""
    if snapshot.price_list is None:
        return metered.quantities(invoice.organization_id, period)
    named = snapshots.price_ids(snapshot)
    under = metered.Under(snapshot.price_list.id, snapshot.currency, named)
    return metered.quantities_under(invoice.organization_id, period, under)


def _rated_again(snapshot: Snapshot, usage: list[Quantity]) -> Rated:
    free: Counter[tuple[str, Kind]] = Counter()
    for team in snapshot.teams:
        for allowance in team.allowances:
            free[allowance.model, allowance.kind] += allowance.quantity
    return rate(
        usage,
        prices.versions({quantity.price_id for quantity in usage}),
        currency=snapshot.currency,
        allowances=free,
        discount_bp=snapshot.discount.bp if snapshot.discount else 0,
        tax_bp=0 if snapshot.tax.exempt else snapshot.tax.bp,
    )


def _said(line: tuple[int, int, int] | None) -> str:
    if line is None:
        return "nothing"
    quantity, late, pico = line
    return f"{quantity} units ({late} late) for {pico} pico-units"


def _credit_note(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    """See that it takes back what its invoice has, line by line."""
    original = invoice.corrects
    if original is None or original.number != snapshot.corrects:
        yield Finding("credit note", f"does not correct {snapshot.corrects}")
        return
    has = {
        (t.slug, i.model, i.kind, isinstance(i, Line)): i.amount_pico
        for t, i in items_of(original.frozen)
    }
    for team, item in items_of(snapshot):
        key = (team.slug, item.model, item.kind, isinstance(item, Line))
        if has.get(key) != -item.amount_pico:
            yield Finding(
                f"credit note ({team.slug}, {item.model}, {item.kind})",
                f"is not on {original} like this",
            )


def _kept_pdf(invoice: Invoice, snapshot: Snapshot) -> Iterator[Finding]:
    """Check the kept PDF against its hash, the audit trail and, if the same versions still draw, the snapshot."""
    document = documents.document(invoice)
    content = bytes(document.content)
    kept = {"sha256": document.sha256, "drawn_by": document.drawn_by}
    drawing = documents.drawing(invoice)
    if drawing != kept:
        yield Finding("PDF", f"is kept as {kept}, the audit trail has {drawing}")
    if documents.sha256(content) != document.sha256:
        yield Finding(
            "PDF", f"the kept file has the hash {documents.sha256(content)}, not {document.sha256}"
        )
    elif document.drawn_by == documents.drawn_by() and documents.draw(snapshot) != content:
        yield Finding("PDF", "the kept file is not what the snapshot is drawn to")


def _given_pdf(invoice: Invoice, pdf: bytes) -> Iterator[Finding]:
    kept = documents.document(invoice)
    if documents.sha256(pdf) != kept.sha256:
        yield Finding(
            "PDF", f"the given file has the hash {documents.sha256(pdf)}, not {kept.sha256}"
        )
