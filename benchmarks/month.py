"""A month of usage of many organizations, loaded with COPY: as the data plane would have booked it, only faster."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg

from billing.models import Allowance, Price, PriceList, PriceTier
from billing.prices import add
from tenants.models import ApiKey, Organization, Team

STARTS = datetime(2026, 3, 1, tzinfo=UTC)
SECONDS = 31 * 86_400
CURRENCY = "TWD"
MODELS = ("small", "large")
TEAMS = KEYS = 2  # of each organization; of each team
IMAGE_TOKENS = 6404
TEXT_IN, IMAGE_IN, CACHED_IN, OUT = 12_500_000, 15_000_000, 6_000_000, 40_000_000
LINES_AT_ONCE = 10_000

COPY = """
COPY billing_usagerecord (
    request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at, billed_at,
    tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico, status, usage_source,
    counted_prompt, upstream_id, canvases, streamed, window_ids, held_at, finished_at, recorded_at) FROM STDIN
"""


@dataclass(frozen=True)
class Caller:
    organization_id: int
    team_id: int
    key_id: int


def organizations(count: int) -> list[Caller]:
    """Create so many organizations with teams and keys; return their callers."""
    return [
        Caller(organization.pk, team.pk, key.pk)
        for n in range(count)
        for organization in [
            Organization.objects.create(
                name=f"Org {n}", slug=f"org-{n}", currency=CURRENCY, timezone="UTC"
            )
        ]
        for team_number in range(TEAMS)
        for team in [
            Team.objects.create(
                organization=organization, name=f"Team {team_number}", slug=f"team-{team_number}"
            )
        ]
        for key_number in range(KEYS)
        for key, _ in [ApiKey.mint(team, f"key {key_number}", by=None, at=STARTS)]
    ]


def prices() -> dict[str, int]:
    """Price the models with tiers and an allowance; return the price of each."""
    price_list = PriceList.standard(CURRENCY)
    found = {}
    for name in MODELS:
        price = Price(
            price_list=price_list,
            model_name=name,
            currency=CURRENCY,
            text_in_micro=TEXT_IN,
            image_in_micro=IMAGE_IN,
            cached_in_micro=CACHED_IN,
            out_micro=OUT,
            tier_mode="graduated",
            effective_from=STARTS - timedelta(days=1),
        )
        add(price, [PriceTier(kind="image_in", from_tokens=10**7, micro=IMAGE_IN // 2)], by=None)
        found[name] = price.pk
        Allowance.objects.create(
            price_list=price_list,
            model_name=name,
            kind="image_in",
            tokens_per_month=10**6,
            effective_from=STARTS,
        )
    return found


def load(url: str, callers: list[Caller], price_ids: dict[str, int], records: int) -> None:
    """Book so many requests, spread over the month and the callers at random, always the same."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT billing_create_partitions(0, %s)", [STARTS])
        with cursor.copy(COPY) as copy:
            for chunk in _chunks(callers, price_ids, records):
                copy.write(chunk)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE billing_usagerecord")


def _chunks(callers: list[Caller], price_ids: dict[str, int], records: int) -> Iterator[str]:
    chance = random.Random(1)
    for start in range(0, records, LINES_AT_ONCE):
        numbers = range(start, min(start + LINES_AT_ONCE, records))
        yield "".join(_line(chance, callers, price_ids, number, records) for number in numbers)


def _line(
    chance: random.Random, callers: list[Caller], price_ids: dict[str, int], n: int, records: int
) -> str:
    caller = callers[chance.randrange(len(callers))]
    name = MODELS[chance.random() < 0.3]
    at = STARTS + timedelta(seconds=SECONDS * n / records)
    text, cached, out = chance.randrange(20, 900), chance.randrange(40), chance.randrange(10, 500)
    amount = text * TEXT_IN + IMAGE_TOKENS * IMAGE_IN + cached * CACHED_IN + out * OUT
    milliseconds = int(at.timestamp() * 1000)
    request_id = f"{milliseconds:012x}7{chance.getrandbits(12):03x}8{chance.getrandbits(60):015x}"
    moment = at.isoformat()
    fields = (
        *(request_id, caller.organization_id, caller.team_id, caller.key_id, name, "backend"),
        *(price_ids[name], moment, moment, text, IMAGE_TOKENS, cached, out, amount, amount),
        *("ok", "upstream", text + IMAGE_TOKENS + cached, f"chatcmpl-{n}", "{jpeg 1120x1120 2x2}"),
        *("t", "{}", moment, moment, moment),
    )
    return "\t".join(map(str, fields)) + "\n"
