"""What an invoice says: a rated period, an account and an issuer, put together as a snapshot. Reads; writes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

import msgspec

from billing import prices
from billing.accounts import Account
from billing.invoicing import snapshots
from billing.invoicing.invoices import Invoice, Issuer
from billing.invoicing.snapshots import Document, Snapshot
from billing.money import minor_digits
from billing.periods import Period
from billing.price_lists import PriceList
from billing.rating import Credit, Kind, Line, Quantity, Rated, Step, rate
from tenants.models import Team


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an invoice has once it is issued, and a draft lacks."""

    number: str
    issued_at: datetime
    due_at: datetime
    previous_sha256: str
    usage_sha256: str


def rated(
    account: Account,
    period: Period,
    usage: Sequence[Quantity],
    *,
    price_list: PriceList | None = None,
) -> Rated:
    """Return the period's usage in money, as the account has it now; its allowances by `price_list` if given."""
    currency, chosen = account.organization.currency, price_list or account.rating_list
    return rate(
        usage,
        prices.versions({quantity.price_id for quantity in usage}),
        currency=currency,
        allowances=prices.allowances(currency, chosen, period.start, period.end),
        discount_bp=account.discount_bp,
        tax_bp=0 if account.tax_exempt else account.tax_bp,
    )


def compose(invoice: Invoice, account: Account, rated: Rated) -> Snapshot:
    """Return what the draft shows."""
    organization = account.organization
    discount = snapshots.Discount(rated.discount_bp, rated.discount_minor)
    sums = (rated.subtotal_minor, rated.discount_minor, rated.tax_minor, rated.total_minor)
    return Snapshot(
        version=snapshots.VERSION,
        kind=Document.INVOICE,
        number=None,
        issuer=issuer(invoice.issuer),
        customer=snapshots.Customer(
            organization.slug,
            organization.name,
            account.legal_name,
            account.tax_id,
            account.address,
        ),
        currency=organization.currency,
        minor_digits=minor_digits(organization.currency),
        language=cast(Literal["en", "zh-hant"], account.invoice_language),
        timezone=organization.timezone,
        period=snapshots.Span(utc(invoice.period_start), utc(invoice.period_end)),
        issued_at=None,
        due_at=None,
        corrects=None,
        reason="",
        teams=_teams(rated),
        discount=discount if rated.discount_bp else None,
        credits=[],
        tax=snapshots.Tax(account.tax_bp, account.tax_exempt, rated.tax_minor),
        totals=snapshots.Totals(*sums, credits_minor=0, due_minor=rated.total_minor),
        previous_sha256=None,
        replaces=(invoice.replaces.number or "") if invoice.replaces else "",
        price_list=_price_list(invoice.rated_under),
    )


def stamped(snapshot: Snapshot, stamp: Stamp, credits: Sequence[snapshots.Credit]) -> Snapshot:
    """Return the snapshot as it is issued: with its number, its dates, and the credit that was drawn."""
    drawn = sum(credit.amount_minor for credit in credits)
    sums = snapshot.totals
    return msgspec.structs.replace(
        snapshot,
        number=stamp.number,
        issued_at=utc(stamp.issued_at),
        due_at=utc(stamp.due_at),
        previous_sha256=stamp.previous_sha256,
        usage_sha256=stamp.usage_sha256,
        credits=list(credits),
        totals=msgspec.structs.replace(
            sums, credits_minor=drawn, due_minor=sums.total_minor + drawn
        ),
    )


def issuer(row: Issuer) -> snapshots.Issuer:
    return snapshots.Issuer(row.name, row.tax_id, row.address, row.timezone)


def utc(instant: datetime) -> datetime:
    """Return the instant in UTC, so that it is written in one way only."""
    return instant.astimezone(UTC)


def _price_list(row: PriceList | None) -> snapshots.PriceList | None:
    return snapshots.PriceList(row.pk, row.slug, row.name) if row else None


def _teams(rated: Rated) -> list[snapshots.Team]:
    """Return the teams by their names' order, each with its lines."""
    ids = {row.team_id for row in rated.lines} | {row.team_id for row in rated.credits}
    return [
        _team(
            team,
            [line for line in rated.lines if line.team_id == team.pk],
            [credit for credit in rated.credits if credit.team_id == team.pk],
        )
        for team in Team.objects.filter(pk__in=ids).order_by("slug")
    ]


def _team(team: Team, lines: Sequence[Line], credits: Sequence[Credit]) -> snapshots.Team:
    return snapshots.Team(
        id=team.pk,
        slug=team.slug,
        name=team.name,
        lines=[_line(line) for line in lines],
        allowances=[_allowance(credit) for credit in credits],
        subtotal_minor=sum(line.amount_minor for line in lines)
        + sum(credit.amount_minor for credit in credits),
    )


def _line(line: Line) -> snapshots.Line:
    return snapshots.Line(
        model=line.model_name,
        kind=line.kind,
        quantity=line.quantity,
        unit="requests" if line.kind is Kind.REQUEST else "tokens",
        images=line.images if line.kind is Kind.IMAGE_IN else None,
        late_quantity=line.late_quantity,
        tiers=[_tier(step) for step in line.steps],
        amount_pico=line.amount_pico,
        amount_minor=line.amount_minor,
    )


def _allowance(credit: Credit) -> snapshots.Allowance:
    return snapshots.Allowance(
        model=credit.model_name,
        kind=credit.kind,
        quantity=credit.quantity,
        tiers=[_tier(step) for step in credit.steps],
        amount_pico=credit.amount_pico,
        amount_minor=credit.amount_minor,
    )


def _tier(step: Step) -> snapshots.Tier:
    return snapshots.Tier(
        step.price_id, step.from_units, step.to_units, step.quantity, step.micro, step.amount_pico
    )
