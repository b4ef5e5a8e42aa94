"""Who may see which organization: members their own, operators all. Nobody else sees that there is one."""

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import QuerySet

from tenants.models import Organization


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
