"""Who may see what: members their own organization, operators all. Nobody else sees that there is one.

A role decides one thing here, as these pages change nothing: whether its person sees what was invoiced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import QuerySet

from tenants.models import Membership, Organization, Role

INVOICE_ROLES = (Role.OWNER, Role.ADMIN, Role.BILLING)
NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class Visit:
    """A person in an organization that they may see."""

    organization: Organization
    role: str  # empty for an operator
    is_operator: bool

    @property
    def sees_invoices(self) -> bool:
        return self.is_operator or self.role in INVOICE_ROLES


def is_operator(user: User | AnonymousUser) -> bool:
    """Say whether the person runs this installation."""
    return user.is_active and user.is_staff and user.is_superuser


def organizations_of(user: User | AnonymousUser) -> QuerySet[Organization]:
    """Return the organizations that the person may see; for somebody who did not sign in, none."""
    if is_operator(user):
        return Organization.objects.all()
    if not (user.is_authenticated and user.is_active):
        return Organization.objects.none()
    return Organization.objects.filter(memberships__user=user)


def visit(user: User | AnonymousUser, slug: str) -> Visit | None:
    """Let the person in; None where there is nothing that they may see. One query."""
    if is_operator(user):
        organization = Organization.objects.filter(slug=slug).first()
        return Visit(organization, "", is_operator=True) if organization else None
    if not (user.is_authenticated and user.is_active):
        return None
    memberships = Membership.objects.filter(user=user, organization__slug=slug)
    mine = memberships.select_related("organization").first()
    return Visit(mine.organization, mine.role, is_operator=False) if mine else None


def who_sees_invoices(organization: Organization) -> Sequence[str]:
    """Return the names of some members who do, at most NAMED_MAX."""
    rows = organization.memberships.filter(role__in=INVOICE_ROLES, user__is_active=True)
    return list(rows.values_list("user__username", flat=True)[:NAMED_MAX])
