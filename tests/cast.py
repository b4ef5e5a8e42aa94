"""The cast: Alice owns an organization, Bob has a key in her team, Charlie belongs to another organization."""

import pytest
from django.utils import timezone

from tenants.models import ApiKey
from tests import factories
from tests.factories import Tenant


@pytest.fixture
def alice(committed: None) -> Tenant:
    return factories.tenant("alice")


@pytest.fixture
def bob(alice: Tenant) -> Tenant:
    key, raw = ApiKey.mint(team=alice.team, name="bob", by=None, at=timezone.now())
    return Tenant(alice.organization, alice.team, key, raw.secret)


@pytest.fixture
def charlie(committed: None) -> Tenant:
    return factories.tenant("charlie")
