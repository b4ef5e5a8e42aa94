"""A month of usage for demonstrations: believable requests, booked by the function that books real ones.

The requests are made up, and say so (`backend_name` is "made-up"); what is counted and what it costs is not: images are
counted by the tile rule, and amounts come from the price versions.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from django.db import connection

from billing import prices
from billing.holds import SETTLE, UsageRow
from billing.models import Price
from billing.periods import Period
from billing.rating import Tokens, amount_pico
from gateway.counting.tiles import TILE_PX, fit
from tenants.models import ApiKey

BATCH_ROWS = 250
SIZES_PX = ((1120, 1120), (840, 1400), (640, 480), (1920, 1080), (2480, 3508))
OFFICE_HOURS = (8, 19)


@dataclass(frozen=True, slots=True)
class Habit:
    """How a key is used: which model, how often, and with how many images of a request."""

    key: ApiKey
    price: Price
    requests: int
    images_max: int
    text_max: int
    out_max: int


def load(habit: Habit, period: Period, chance: random.Random) -> int:
    """Book the habit's requests over the period; return how many."""
    zone = ZoneInfo(habit.key.organization.timezone)
    rows = [_row(habit, _moment(period, zone, chance), chance) for _ in range(habit.requests)]
    for batch in _batches(rows):
        with connection.cursor() as cursor:
            cursor.execute(SETTLE, [json.dumps([msgspec.to_builtins(row) for row in batch])])
    return len(rows)


def book(habit: Habit, at: datetime, chance: random.Random) -> None:
    """Book one request that was received at that moment, now: late, if its period is closed."""
    with connection.cursor() as cursor:
        cursor.execute(SETTLE, [json.dumps([msgspec.to_builtins(_row(habit, at, chance))])])


def _moment(period: Period, zone: ZoneInfo, chance: random.Random) -> datetime:
    """Return a moment of the period, mostly in office hours of a working day."""
    while True:
        moment = period.start + (period.end - period.start) * chance.random()
        local = moment.astimezone(zone)
        if local.weekday() < 5 and OFFICE_HOURS[0] <= local.hour < OFFICE_HOURS[1]:
            return moment
        if chance.random() < 0.1:
            return moment


def _row(habit: Habit, at: datetime, chance: random.Random) -> UsageRow:
    images = chance.randint(0, habit.images_max)
    sizes = [chance.choice(SIZES_PX) for _ in range(images)]
    text = chance.randint(20, habit.text_max)
    cached = chance.choice((0, 0, text // 2))
    tokens = Tokens(
        text_in=text - cached,
        image_in=sum(fit(*size).tokens for size in sizes),
        cached_in=cached,
        out=chance.randint(10, habit.out_max),
    )
    amount = amount_pico(prices.rates(habit.price), tokens)
    prompt = tokens.total - tokens.out
    finished = at + timedelta(milliseconds=chance.randint(400, 9000))
    return UsageRow(
        request_id=_request_id(at, chance),
        organization_id=habit.key.organization_id,
        team_id=habit.key.team_id,
        key_id=habit.key.pk,
        model_name=habit.price.model_name,
        backend_name="made-up",
        price_id=habit.price.pk,
        received_at=at,
        tokens_in_text=tokens.text_in,
        tokens_in_image=tokens.image_in,
        tokens_in_cached=tokens.cached_in,
        tokens_out=tokens.out,
        amount_pico=amount,
        held_pico=amount,
        status="ok",
        usage_source="upstream",
        policy="",
        counted_prompt=prompt,
        counted_out=None,
        upstream_prompt=prompt,
        upstream_out=tokens.out,
        upstream_cached=cached,
        upstream_id="",
        canvases=[_described(*size) for size in sizes],
        streamed=chance.random() < 0.5,
        first_byte_at=at + timedelta(milliseconds=300),
        finished_at=finished,
    )


def _described(width_px: int, height_px: int) -> str:
    canvas = fit(width_px, height_px)
    across, down = canvas.width_px // TILE_PX, canvas.height_px // TILE_PX
    return f"png {width_px}x{height_px} {across}x{down}"


def _request_id(at: datetime, chance: random.Random) -> UUID:
    """Return a UUIDv7 of that moment, as the gateway would have made then."""
    milliseconds = int(at.timestamp() * 1000)
    return UUID(
        int=milliseconds << 80
        | 0x7 << 76
        | chance.getrandbits(12) << 64
        | 0b10 << 62
        | chance.getrandbits(62)
    )


def _batches(rows: Sequence[UsageRow]) -> Iterator[Sequence[UsageRow]]:
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]
