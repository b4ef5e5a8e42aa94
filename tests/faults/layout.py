"""Fills an empty database: organizations, teams and keys, under budgets and limits, some too tight.

Run in `manage.py shell`, as it needs Django; the rest of the fault runner does not.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from django.core.management import call_command
from django.utils import timezone

from billing.budgets import Budget
from tenants.limits import Limit
from tenants.models import ApiKey, Organization, Team
from tests import factories
from tests.faults.scenario import CURRENCY, MODEL, RATES, TOKENS_OUT_MAX, UPSTREAM_NAME

PLENTY_MICRO = 10**14
PLENTY_TOKENS = 10**12
PLENTY = 10**8
AT_ONCE_MAX = 2
TIGHT_MICRO = 300_000  # a few worst cases at a time, and soon spent
TIGHT_TOKENS_PER_S = 2000
# What an abandoned, a broken and a lost answer costs differs between the organizations.
SHARES = (
    {"bills_aborted": "delivered", "bills_failed": "nothing", "bills_lost": "prompt"},
    {"bills_aborted": "prompt", "bills_failed": "delivered", "bills_lost": "prompt"},
    {"bills_aborted": "nothing", "bills_failed": "prompt", "bills_lost": "nothing"},
)
TEAMS = KEYS = 2


def write(upstream_url: str, *, seconds: int) -> None:
    """Migrate, lay out, and print the keys as JSON. Tight budgets are sized for a run of so many seconds."""
    call_command("migrate", verbosity=0)
    backend = factories.backend(upstream_url, first_byte_timeout_s=20, chunk_timeout_s=20)
    model = factories.model(
        backend,
        name=MODEL,
        backend_model=UPSTREAM_NAME,
        priced=False,
        tokens_out_default=TOKENS_OUT_MAX,
        tokens_out_max=TOKENS_OUT_MAX,
    )
    factories.price(model.name, CURRENCY, **RATES)
    callers = [
        caller
        for number, shares in enumerate(SHARES)
        for caller in _organization(f"org-{number}", seconds, **shares)
    ]
    json.dump(callers, sys.stdout)


def _organization(name: str, seconds: int, **shares: str) -> Iterator[dict[str, Any]]:
    organization = Organization.objects.create(name=name, slug=name, currency=CURRENCY, **shares)
    _budget(organization, limit_micro=PLENTY_MICRO, limit_tokens=PLENTY_TOKENS)
    for kind in ("requests", "tokens", "images", "concurrent"):
        _limit(organization, kind=kind, maximum=PLENTY)
    by_status = {
        "client_closed": shares["bills_aborted"],
        "backend_error": shares["bills_failed"],
        "timeout": shares["bills_failed"],
        "expired": shares["bills_lost"],
    }
    for number in range(TEAMS):
        team = Team.objects.create(organization=organization, name=f"t{number}", slug=f"t{number}")
        tokens = TIGHT_TOKENS_PER_S * seconds if number else PLENTY_TOKENS
        _budget(organization, team=team, period="day", limit_tokens=tokens)
        for index in range(KEYS):
            caller = _key(
                team, is_tight=number == 0 and index == 1, is_limited=bool(number and index)
            )
            yield {"shares": by_status, **caller}


def _key(team: Team, *, is_tight: bool, is_limited: bool) -> dict[str, Any]:
    key, raw = ApiKey.mint(team=team, name="k", by=None, at=timezone.now())
    micro = TIGHT_MICRO if is_tight else PLENTY_MICRO
    _budget(team.organization, team=team, key=key, period="life", limit_micro=micro)
    if is_limited:
        _limit(team.organization, team=team, key=key, kind="concurrent", maximum=AT_ONCE_MAX)
    at_once_max = AT_ONCE_MAX if is_limited else None
    return {"key_id": key.pk, "secret": raw.secret, "at_once_max": at_once_max}


def _budget(organization: Organization, **fields: Any) -> None:
    budget = Budget(organization=organization, **fields)
    budget.full_clean()
    budget.save()


def _limit(organization: Organization, **fields: Any) -> None:
    limit = Limit(organization=organization, **fields)
    limit.full_clean()
    limit.save()
