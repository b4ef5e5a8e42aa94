"""People at the dashboard: Alice owns her organization, Charlie another, Olga runs the installation."""

from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from billing.models import Price
from tenants.models import Membership, Role
from tests import factories
from tests.factories import Tenant, unique

CHEAP = ["django.contrib.auth.hashers.MD5PasswordHasher"]
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Person:
    """Somebody signed in, and the organization that is theirs."""

    user: User
    tenant: Tenant
    client: Client

    def url(self, page: str = "") -> str:
        return f"/o/{self.tenant.organization.slug}/{page}"

    def read(self, page: str = "", **query: Any) -> str:
        """Return the text of a page of their organization, which must be there."""
        answer = self.client.get(self.url(page), query)
        assert answer.status_code == 200, answer.status_code
        return answer.content.decode()

    def status(self, path: str, **query: Any) -> int:
        return self.client.get(path, query).status_code


@pytest.fixture(autouse=True)
def plain_settings(settings: Any) -> None:
    settings.PASSWORD_HASHERS = CHEAP


def person(tenant: Tenant, *, role: Role | None = Role.OWNER, **fields: Any) -> Person:
    """Sign somebody in, as a member of the organization if there is a role."""
    user = User.objects.create_user(unique("person"), password=PASSWORD, **fields)
    if role:
        Membership.objects.create(organization=tenant.organization, user=user, role=role)
    client = Client()
    client.force_login(user)
    return Person(user, tenant, client)


@pytest.fixture
def alice(db: None) -> Person:
    return person(factories.tenant("alice"))


@pytest.fixture
def charlie(db: None) -> Person:
    return person(factories.tenant("charlie"))


@pytest.fixture
def olga(alice: Person) -> Person:
    return person(alice.tenant, role=None, is_staff=True, is_superuser=True)


@pytest.fixture
def vlm(db: None) -> Price:
    return factories.price("vlm")
