from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User

from tenants.keys import RawKey
from tenants.models import ApiKey, Organization, Team

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

Mint = Callable[..., tuple[ApiKey, RawKey]]


class Clock:
    """Both clocks of a cache, turned by hand."""

    def __init__(self) -> None:
        self.at = NOON
        self.steady_s = 1000.0

    def wall(self) -> datetime:
        return self.at

    def steady(self) -> float:
        return self.steady_s

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.steady_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admin_user(db: None) -> User:
    """Stand in for the plugin's, which hashes a password each time that no test here types."""
    return User.objects.create(username="admin", is_staff=True, is_superuser=True)


@pytest.fixture
def organization(db: None) -> Organization:
    return Organization.objects.create(slug="acme", name="Acme")


@pytest.fixture
def team(organization: Organization) -> Team:
    return organization.teams.create(slug="research", name="Research")


@pytest.fixture
def other_team(db: None) -> Team:
    other = Organization.objects.create(slug="initech", name="Initech")
    return other.teams.create(slug="research", name="Research")


@pytest.fixture
def mint(team: Team) -> Mint:
    """Mint a key for the team at noon."""
    return lambda **options: ApiKey.mint(
        options.pop("team", team), "laptop", by="console:test", at=NOON, **options
    )
