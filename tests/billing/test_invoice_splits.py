"""The same usage makes the same invoice, however it is split into requests, over keys, and over the period (P25).

Through the booking functions, the rollups and the draft, on PostgreSQL. Whoever is billed by the request is billed by
how many they are, so the prices here have none.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import msgspec
import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import prices, rating, rollups
from billing.accounts import Account
from billing.invoicing import lifecycle, metered
from billing.invoicing.snapshots import Snapshot
from billing.models import Allowance, Price, PriceTier
from billing.rating import Tokens
from tenants.models import ApiKey, Team
from tests import booked, factories
from tests.factories import Tenant
from tests.invoiced import ENDED, MARCH

pytestmark = pytest.mark.django_db

TEAMS, PRICES, KEYS, PARTS_MAX = 3, 4, 3, 4
LAST = MARCH.end - timedelta(microseconds=1)

# What a team used at a price in the period: tokens of each kind, and images. Keys of teams and prices are their places.
Used: TypeAlias = dict[tuple[int, int], tuple[Tokens, int]]


@dataclass(frozen=True)
class Customer:
    """An organization with teams, each with several keys."""

    tenant: Tenant
    keys: list[list[ApiKey]]


tokens = st.builds(Tokens, *[st.integers(0, 3_000_000)] * 4)
usage = st.dictionaries(
    st.tuples(st.integers(0, TEAMS - 1), st.integers(0, PRICES - 1)),
    st.tuples(tokens, st.integers(0, 9)),
    min_size=1,
    max_size=5,
)
terms = st.fixed_dictionaries(
    {"discount_bp": st.integers(-2000, 10_000), "tax_bp": st.integers(0, 2500)}
)


@pytest.fixture
def versions(empty_database: None) -> list[Price]:
    """A flat, a graduated and a volume price, and a later version of it; amounts that need rounding; an allowance."""
    flat = factories.price("flat", text_in_micro=12_345_678, out_micro=333_333_333)
    found = [flat, tiered("graduated"), tiered("volume")]
    Allowance.objects.create(
        price_list=flat.price_list,
        model_name="graduated",
        kind="text_in",
        tokens_per_month=777_777,
        effective_from=factories.LONG_AGO,
    )
    return [*found, tiered("volume", effective_from=MARCH.start + timedelta(days=9))]


def tiered(mode: str, **fields: Any) -> Price:
    price = factories.price(mode, tier_mode=mode, tier_count=2, **fields)
    for start, micro in ((1_000_000, 7_777_777), (3_333_333, 3_141_592)):
        PriceTier.objects.create(price=price, kind="text_in", from_tokens=start, micro=micro)
    return price


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(usage=usage, terms=terms, seed=st.integers(0, 2**32))
def test_any_split_of_a_periods_usage_is_the_same_invoice(
    customers: list[Customer], versions: list[Price], usage: Used, terms: dict[str, int], seed: int
) -> None:
    one, other = customers
    with transaction.atomic():
        whole = invoiced(one, usage, versions, terms, lambda used: [used])
        parts = invoiced(other, usage, versions, terms, partial(split, random.Random(seed)))
        transaction.set_rollback(True)

    assert parts.teams == whole.teams
    assert (parts.totals, parts.discount, parts.tax) == (whole.totals, whole.discount, whole.tax)
    assert whole.totals.subtotal_minor == sum(team.subtotal_minor for team in whole.teams)


def invoiced(
    customer: Customer, usage: Used, versions: list[Price], terms: dict[str, int], split: Any
) -> Snapshot:
    """Book the usage in the pieces that `split` makes of it, and return what the draft says."""
    organization, chance = customer.tenant.organization, random.Random(1)
    Account.objects.filter(organization=organization).update(**terms)
    for (team, price), used in usage.items():
        for each, images in split(used):
            key = chance.choice(customer.keys[team])
            book(key, versions[price], each, images, moment(chance))
    rollups.recompute()
    assert metered.rollups_agree(organization.pk, MARCH)
    draft = lifecycle.draft(organization.pk, ENDED)
    assert draft is not None
    return comparable(draft.frozen)


@pytest.fixture
def customers(empty_database: None) -> list[Customer]:
    """Two that are alike."""
    return [enter() for _ in range(2)]


def enter() -> Customer:
    tenant = factories.tenant("split")
    organization = tenant.organization
    Account.of(organization)
    teams = [
        Team.objects.create(organization=organization, name=f"team {n}", slug=f"team-{n}")
        for n in range(TEAMS)
    ]
    keys = [[mint(team) for _ in range(KEYS)] for team in teams]
    return Customer(tenant, keys)


def mint(team: Team) -> ApiKey:
    return ApiKey.mint(team=team, name="key", by=None, at=MARCH.start)[0]


def moment(chance: random.Random) -> datetime:
    """Return an instant of the period: its first and its last one often."""
    seconds = (LAST - MARCH.start).total_seconds() * chance.random()
    return chance.choice([MARCH.start, LAST, MARCH.start + timedelta(seconds=seconds)])


def book(key: ApiKey, price: Price, tokens: Tokens, images: int, at: datetime) -> None:
    amount = rating.amount_pico(prices.rates(price), tokens)
    owner = Tenant(key.organization, key.team, key, "")
    held = booked.hold(
        owner,
        price,
        received_at=at,
        tokens_in_text=tokens.text_in,
        tokens_in_image=tokens.image_in,
        amount_pico=amount + 1,
        canvases=["jpeg 560x560 1x1"] * images,
    )
    booked.settle(
        held, tokens_in_cached=tokens.cached_in, tokens_out=tokens.out, amount_pico=amount
    )


def split(chance: random.Random, used: tuple[Tokens, int]) -> Iterator[tuple[Tokens, int]]:
    """Return the same tokens and images as several requests, some with nothing of a kind in them."""
    tokens, images = used
    count = chance.randint(1, PARTS_MAX)
    of_kinds = [
        pieces(chance, units, count)
        for units in (tokens.text_in, tokens.image_in, tokens.cached_in, tokens.out)
    ]
    of_images = pieces(chance, images, count)
    parts = [(Tokens(*each), n) for *each, n in zip(*of_kinds, of_images, strict=True)]
    return iter(chance.sample(parts, len(parts)))


def pieces(chance: random.Random, units: int, count: int) -> list[int]:
    cuts = sorted(chance.randint(0, units) for _ in range(count - 1))
    return [end - start for start, end in pairwise([0, *cuts, units])]


def comparable(snapshot: Snapshot) -> Snapshot:
    """Leave out which of the two customers it is."""
    teams = [msgspec.structs.replace(team, id=0) for team in snapshot.teams]
    return msgspec.structs.replace(snapshot, teams=teams)
