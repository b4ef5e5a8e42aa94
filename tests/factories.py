"""Rows for tests, with sensible defaults and names that never collide."""

import itertools
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from billing.models import Price, PriceList
from gateway.models import Backend, Model, Route
from tenants.models import ApiKey, Organization, Team

_numbers = itertools.count(1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def unique(word: str) -> str:
    return f"{word}-{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True)
class Tenant:
    """An organization with one team and one key of it."""

    organization: Organization
    team: Team
    key: ApiKey
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}


def tenant(name: str = "acme", **organization: Any) -> Tenant:
    slug = unique(name)
    row = Organization.objects.create(name=slug, slug=slug, **({"currency": "TWD"} | organization))
    team = Team.objects.create(organization=row, name="vision", slug="vision")
    key, raw = ApiKey.mint(team=team, name="test", by=None, at=timezone.now())
    return Tenant(row, team, key, raw.secret)


def price(model_name: str, currency: str = "TWD", **fields: Any) -> Price:
    defaults = {
        "text_in_micro": 10_000_000,
        "image_in_micro": 12_000_000,
        "cached_in_micro": 5_000_000,
        "out_micro": 30_000_000,
        "effective_from": LONG_AGO,
    }
    if "price_list" not in fields:
        defaults["price_list"] = PriceList.standard(currency)
    return Price.objects.create(model_name=model_name, currency=currency, **(defaults | fields))


def backend(url: str, **fields: Any) -> Backend:
    row = Backend(**({"name": unique("backend"), "base_url": url} | fields))
    row.set_credential("backend-credential")
    row.save()
    return row


def model(
    backend: Backend, *, backend_model: str = "", priced: bool = True, **fields: Any
) -> Model:
    """A model like the seed's, priced in TWD, routed to the backend."""
    defaults = {"name": unique("vision"), "counter": "llama-3.2-vision", "context_tokens": 32_768}
    with transaction.atomic():  # a door sees all of it or nothing
        row = Model.objects.create(**(defaults | fields))
        Route.objects.create(model=row, backend=backend, backend_model=backend_model)
        if priced:
            price(row.name)
    return row
