"""Credit that was granted or bought beforehand, drawn down when an invoice is issued."""

from datetime import UTC, datetime
from typing import Literal, cast

from django.db.models import Q, Sum
from django.db.models.functions import Coalesce

from billing.invoicing.invoices import CreditDraw, CreditGrant, GrantSource, Invoice
from billing.invoicing.snapshots import Credit
from tenants.models import Organization


def draw(invoice: Invoice, total_minor: int, at: datetime) -> list[Credit]:
    """Draw what the organization's credit covers of the total, and return it as the invoice shows it: below zero.

    Granted before purchased, then by priority, then what expires first. Locks the organization's grants.
    """
    left, found = total_minor, []
    for grant in _usable(invoice, at):
        amount = min(left, remaining(grant))
        if amount <= 0:
            continue
        CreditDraw.objects.create(grant=grant, invoice=invoice, amount_minor=amount, created_at=at)
        found.append(_shown(grant, amount))
        left -= amount
    return found


def give_back(invoice: Invoice, at: datetime, amount_minor: int | None = None) -> None:
    """Give back what the invoice has drawn, or so much of it: the other way round, so purchased before granted.

    What has expired since then stays expired.
    """
    left = invoice.drawn_minor if amount_minor is None else min(amount_minor, invoice.drawn_minor)
    drawn = invoice.draws.values("grant").annotate(sum=Sum("amount_minor")).filter(sum__gt=0)
    sums = {row["grant"]: int(row["sum"]) for row in drawn}
    for grant in sorted(CreditGrant.objects.filter(pk__in=sums), key=_turn, reverse=True):
        amount = min(left, sums[grant.pk])
        if amount <= 0:
            break
        CreditDraw.objects.create(grant=grant, invoice=invoice, amount_minor=-amount, created_at=at)
        left -= amount


def remaining(grant: CreditGrant) -> int:
    """Return what is left of it, in minor units."""
    drawn = grant.draws.aggregate(sum=Coalesce(Sum("amount_minor"), 0))["sum"]
    return grant.amount_minor - int(drawn)


def balance(organization: Organization, at: datetime) -> int:
    """Return what the organization has left in its currency, in minor units."""
    grants = CreditGrant.objects.filter(organization=organization, currency=organization.currency)
    usable = grants.filter(Q(expires_at=None) | Q(expires_at__gt=at))
    return sum(remaining(grant) for grant in usable)


def _usable(invoice: Invoice, at: datetime) -> list[CreditGrant]:
    grants = CreditGrant.objects.select_for_update().filter(
        organization_id=invoice.organization_id, currency=invoice.currency, created_at__lte=at
    )
    unexpired = grants.filter(Q(expires_at=None) | Q(expires_at__gt=at))
    locked = unexpired.order_by("pk")  # everybody locks in the same order
    return sorted(locked, key=_turn)


def _turn(grant: CreditGrant) -> tuple[bool, int, datetime, int]:
    return (
        grant.source != GrantSource.GRANTED,
        grant.priority,
        grant.expires_at or datetime.max.replace(tzinfo=UTC),
        grant.pk,
    )


def _shown(grant: CreditGrant, amount_minor: int) -> Credit:
    expires_at = grant.expires_at.astimezone(UTC) if grant.expires_at else None
    source = cast(Literal["granted", "purchased"], grant.source)
    return Credit(grant.pk, source, -amount_minor, expires_at)
