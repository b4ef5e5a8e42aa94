"""What a limit lets through. The same promises whether Valkey keeps the counts or the process itself does."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import redis
from django.conf import settings
from redis.crc import key_slot

from gateway.api.admission import duration
from gateway.limit_plans import Load, lay_out
from gateway.limits import Limiter
from gateway.local_limits import LocalLimits
from gateway.request_ids import new_request_id
from tenants.limits import LimitKind
from tenants.principals import Principal
from tests.gateway.limited import (
    NOWHERE,
    a_limiter,
    admitted,
    ask,
    end,
    key_under,
    limit,
    started,
    used,
    wall_ms,
)

BRIEF_MS = 1000


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=["valkey", "process"])
def url(request: pytest.FixtureRequest) -> str:
    return settings.REDIS_URL if request.param == "valkey" else NOWHERE


@pytest.fixture
async def limiter(stack: AsyncExitStack, url: str) -> Limiter:
    return await started(stack, url)


@pytest.fixture
async def brief(stack: AsyncExitStack, url: str) -> Limiter:
    """A limiter whose minute is a second."""
    return await started(stack, url, window_ms=BRIEF_MS)


@pytest.fixture
async def in_valkey(stack: AsyncExitStack) -> Limiter:
    return await started(stack, settings.REDIS_URL)


async def until(elapsed_ms: int) -> None:
    """Sleep until so long after the beginning of the next bucket of a brief minute."""
    await asyncio.sleep((BRIEF_MS - wall_ms() % BRIEF_MS + elapsed_ms) / 1000)


# ------------------------------------------------------------------- what is counted


@pytest.mark.parametrize(("kind", "maximum"), [("requests", 3), ("tokens", 39), ("images", 8)])
async def test_a_limit_admits_what_fits_and_no_more(
    limiter: Limiter, kind: str, maximum: int
) -> None:
    who = key_under(limit(kind, maximum))

    assert await admitted(limiter, who, 5, tokens=13, images=2) == (4 if kind == "images" else 3)

    refusal = (await ask(limiter, who, tokens=13, images=2)).refusal
    assert (refusal.limit, refusal.used) == (who.limits[0], 3 if kind == "requests" else maximum)
    assert 0 < (refusal.wait_ms or 0) <= 120_000


async def test_a_request_is_charged_to_all_limits_or_to_none(limiter: Limiter) -> None:
    team = limit("requests", 100, level="team")
    alice = key_under(team, limit("requests", 2))
    bob = key_under(team, beside=alice)

    assert await admitted(limiter, alice, 5) == 2

    (standing,) = (await ask(limiter, bob)).standings
    assert (standing.used, standing.remaining) == (2, 97)


async def test_each_level_refuses_in_its_own_name(limiter: Limiter) -> None:
    for level in ("organization", "team", "key"):
        limits = [limit("requests", 9, level=each) for each in ("organization", "team", "key")]
        who = key_under(
            *(replace(each, maximum=1) if each.level == level else each for each in limits)
        )
        await ask(limiter, who)

        assert (await ask(limiter, who)).refusal.limit.level == level


async def test_a_limit_of_a_model_counts_that_model_only(limiter: Limiter) -> None:
    who = key_under(limit("requests", 1, model="vision"), limit("requests", 3))

    assert await admitted(limiter, who, 2, model="vision") == 1
    assert await admitted(limiter, who, 5, model="text") == 2


async def test_a_key_of_another_organization_has_its_own_counts(limiter: Limiter) -> None:
    for who in (key_under(limit("requests", 1)), key_under(limit("requests", 1))):
        assert await admitted(limiter, who, 2) == 1


async def test_a_spent_limit_on_images_lets_text_pass(limiter: Limiter) -> None:
    who = key_under(limit("images", 3))
    assert await admitted(limiter, who, 2, images=3) == 1
    lowered = replace(who, limits=(replace(who.limits[0], maximum=1),))

    assert await admitted(limiter, who, 2, images=0) == 2
    assert await admitted(limiter, lowered, 2, images=0) == 2


async def test_what_is_larger_than_a_limit_is_told_that_it_never_fits(limiter: Limiter) -> None:
    refusal = (await ask(limiter, key_under(limit("tokens", 9)), tokens=10)).refusal

    assert refusal.wait_ms is None


async def test_a_limit_that_changes_counts_from_what_was_counted(limiter: Limiter) -> None:
    who = key_under(limit("requests", 2))
    assert await admitted(limiter, who, 3) == 2

    raised = replace(who, limits=(replace(who.limits[0], maximum=3),))

    assert await admitted(limiter, raised, 3) == 1
    assert await admitted(limiter, replace(who, limits=()), 3) == 3


# ------------------------------------------------------------------- sliding windows


async def test_a_burst_at_the_end_of_a_minute_is_not_followed_by_another(brief: Limiter) -> None:
    who = key_under(limit("requests", 20))
    await until(BRIEF_MS * 8 // 10)
    assert await admitted(brief, who, 30) == 20

    edge_ms = wall_ms() // BRIEF_MS * BRIEF_MS + BRIEF_MS
    await until(0)
    second_burst = await admitted(brief, who, 20)

    assert second_burst <= 20 * (wall_ms() - edge_ms) / BRIEF_MS


async def test_the_whole_limit_is_back_after_two_windows_at_most(brief: Limiter) -> None:
    who = key_under(limit("requests", 5))
    assert await admitted(brief, who, 6) == 5

    await asyncio.sleep((await ask(brief, who)).refusal.reset_ms / 1000)

    assert await admitted(brief, who, 6) == 5


async def test_there_is_room_when_the_refusal_said_so(brief: Limiter) -> None:
    who = key_under(limit("requests", 5))
    await until(BRIEF_MS // 2)
    await admitted(brief, who, 5)
    wait_ms = (await ask(brief, who)).refusal.wait_ms
    assert wait_ms

    await asyncio.sleep(wait_ms / 1000 + 0.005)

    assert await admitted(brief, who, 1) == 1


# ------------------------------------------------------------------- at once


async def test_no_more_run_at_once_than_the_limit(limiter: Limiter) -> None:
    who = key_under(limit("concurrent", 2))
    first, second = [await ask(limiter, who) for _ in range(2)]

    assert (await ask(limiter, who)).refusal.used == 2
    end(first, 10)
    assert await admitted(limiter, who, 2) == 1
    end(second, 10)


async def test_a_lease_that_nobody_gives_back_expires(in_valkey: Limiter) -> None:
    who = key_under(limit("concurrent", 1))
    assert await admitted(in_valkey, who, 2, lease_ms=200) == 1

    await asyncio.sleep(0.21)

    assert await admitted(in_valkey, who, 1) == 1


async def test_a_short_lease_does_not_shorten_a_long_one(in_valkey: Limiter) -> None:
    who = key_under(limit("concurrent", 2))
    await ask(in_valkey, who, lease_ms=5000)
    await ask(in_valkey, who, lease_ms=100)

    await asyncio.sleep(0.3)

    assert await admitted(in_valkey, who, 2, lease_ms=100) == 1


# ------------------------------------------------------------------- the end of a request


async def test_tokens_are_corrected_to_what_was_used(limiter: Limiter) -> None:
    who = key_under(limit("tokens", 1000))
    worst = await ask(limiter, who, tokens=900)
    assert not (await ask(limiter, who, tokens=500)).is_admitted

    end(worst, 100)

    assert await used(limiter, who, "tokens") == 100


async def test_more_than_the_worst_case_is_charged_as_well(limiter: Limiter) -> None:
    who = key_under(limit("tokens", 1000))

    end(await ask(limiter, who, tokens=100), 5000)

    assert await used(limiter, who, "tokens") == 5000


async def test_a_second_end_changes_nothing(limiter: Limiter) -> None:
    who = key_under(limit("tokens", 1000), limit("concurrent", 2))
    one, other = [await ask(limiter, who, tokens=100) for _ in range(2)]

    for tokens in (10, 10, 0, 900):
        end(one, tokens)

    assert await used(limiter, who, "tokens") == 110
    assert await used(limiter, who, "concurrent") == 1
    end(other, 0)


async def test_tokens_are_corrected_in_the_minute_in_which_they_were_charged(
    brief: Limiter,
) -> None:
    who = key_under(limit("tokens", 2000))
    await until(BRIEF_MS * 8 // 10)
    worst = await ask(brief, who, tokens=1000)
    await until(0)
    await ask(brief, who, tokens=100)
    assert await used(brief, who, "tokens") > 110

    end(worst, 10)

    assert 100 <= await used(brief, who, "tokens") <= 110


async def test_what_ends_long_after_its_minute_corrects_nothing(brief: Limiter) -> None:
    who = key_under(limit("tokens", 1000))
    old = await ask(brief, who, tokens=900)
    await asyncio.sleep(2 * BRIEF_MS / 1000)
    await ask(brief, who, tokens=50)

    end(old, 0)

    assert await used(brief, who, "tokens") == 50


async def test_requests_and_images_stay_counted(limiter: Limiter) -> None:
    who = key_under(limit("requests", 9), limit("images", 9), limit("tokens", 99))

    end(await ask(limiter, who, images=3), 0)

    standings = (await ask(limiter, who)).standings
    assert [standing.used for standing in standings] == [1, 3, 0]


# ------------------------------------------------------------------- shadow limits


async def test_a_shadow_limit_tells_and_refuses_nothing(
    limiter: Limiter, caplog: pytest.LogCaptureFixture
) -> None:
    who = key_under(limit("requests", 1, shadow=True), limit("concurrent", 1, shadow=True))
    assert not (await ask(limiter, who)).shadow_limited

    with caplog.at_level(logging.WARNING, "gateway.limits"):
        told = [await ask(limiter, who) for _ in range(3)]

    assert all(each.is_admitted and len(each.shadow_limited) == 2 for each in told)
    lines = [record.message for record in caplog.records if "shadow limit" in record.message]
    assert len(lines) == 2, "one line a minute for each limit"
    assert f"shadow limit {who.limits[0].id} (1 requests per minute, key {who.key_id})" in lines[0]


async def test_a_shadow_limit_stands_beside_the_one_that_is_enforced(limiter: Limiter) -> None:
    who = key_under(limit("requests", 1, shadow=True), limit("requests", 2))

    answers = [await ask(limiter, who) for _ in range(3)]

    assert [each.is_admitted for each in answers] == [True, True, False]
    assert [len(each.shadow_limited) for each in answers] == [0, 1, 1]


# ------------------------------------------------------------------- in Valkey


def keys_of(who: Principal) -> list[bytes]:
    client = redis.from_url(settings.REDIS_URL)
    return list(client.scan_iter(f"*{{org:{who.organization_id}}}*"))


async def test_processes_that_ask_at_once_are_admitted_exactly_to_the_limit(
    stack: AsyncExitStack,
) -> None:
    processes = [await started(stack, settings.REDIS_URL) for _ in range(2)]
    organization = limit("tokens", 37 * 10 + 9, level="organization")
    first = key_under(organization)
    keys = [first, *(key_under(organization, beside=first) for _ in range(3))]

    asked = [ask(processes[n % 2], keys[n % 4], tokens=10) for n in range(200)]
    answers = await asyncio.gather(*asked)

    assert sum(answer.is_admitted for answer in answers) == 37
    assert not any(answer.is_degraded for answer in answers)


async def test_every_key_expires_and_an_organization_has_one_slot(in_valkey: Limiter) -> None:
    levels = ("organization", "team", "key")
    who = key_under(
        *(limit(kind, 99, level=level) for kind in LimitKind.values for level in levels)
    )
    await ask(in_valkey, who)

    found = keys_of(who)

    client = redis.from_url(settings.REDIS_URL)
    assert len(found) == 4
    assert all(0 < client.pttl(key) <= 180_000 for key in found)
    assert len({key_slot(key) for key in found}) == 1


async def test_who_is_refused_leaves_nothing_behind(in_valkey: Limiter) -> None:
    who = key_under(limit("requests", 9), limit("tokens", 9), limit("concurrent", 9))

    assert not (await ask(in_valkey, who, tokens=10)).is_admitted

    assert keys_of(who) == []


async def test_what_ends_after_valkey_has_forgotten_it_corrects_nothing(
    in_valkey: Limiter,
) -> None:
    who = key_under(limit("tokens", 1000))
    forgotten = await ask(in_valkey, who, tokens=900)
    redis.from_url(settings.REDIS_URL).delete(*keys_of(who))
    await ask(in_valkey, who, tokens=50)

    end(forgotten, 0)

    assert await used(in_valkey, who, "tokens") == 50


async def test_scripts_that_valkey_has_forgotten_are_sent_again(in_valkey: Limiter) -> None:
    who = key_under(limit("tokens", 1000))
    client = redis.from_url(settings.REDIS_URL)

    client.script_flush()
    admission = await ask(in_valkey, who, tokens=900)
    client.script_flush()
    end(admission, 10)

    assert await used(in_valkey, who, "tokens") == 10
    assert not admission.is_degraded


async def test_lua_and_python_agree_on_what_fits(stack: AsyncExitStack) -> None:
    limiter = await started(stack, settings.REDIS_URL, window_ms=97)
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    who = key_under(
        *(
            limit(kind, dice.randrange(5, 400), level=level)
            for kind in LimitKind.values
            for level in ("team", "key")
        )
    )
    outcomes = set()
    for _ in range(400):
        admission = await ask(limiter, who, tokens=dice.randrange(1, 60), images=dice.randrange(3))
        exceeded = any(each.is_exceeded for each in admission.enforced)
        assert admission.is_admitted is not exceeded, f"seed {seed}"
        outcomes.add(exceeded)
        if dice.random() < 0.8:
            end(admission, dice.randrange(60))
    assert outcomes == {True, False}


# ------------------------------------------------------------------- in shares


async def test_a_process_alone_keeps_to_its_share(stack: AsyncExitStack) -> None:
    limiter = await started(stack, processes=4)

    for maximum, share in ((10, 2), (3, 1), (400, 100)):
        who = key_under(limit("requests", maximum))
        assert await admitted(limiter, who, share + 2) == share
    assert await admitted(limiter, key_under(limit("concurrent", 9)), 5) == 2


async def test_what_is_larger_than_a_share_runs_alone(stack: AsyncExitStack) -> None:
    limiter = await started(stack, processes=4)
    who = key_under(limit("tokens", 100))

    assert await admitted(limiter, who, 3, tokens=90) == 1
    assert (await ask(limiter, who, tokens=101)).refusal.wait_ms is None


async def test_a_process_keeps_a_bounded_number_of_windows() -> None:
    local = LocalLimits(processes=1, windows_max=100)
    for _ in range(300):
        plan = lay_out(key_under(limit("requests", 9)), "vision")
        assert plan is not None
        what = Load(request_id=new_request_id(), tokens=1, images=0, lease_ms=0)
        assert local.admit(plan, what, 60_000).is_admitted

    assert len(local) == 100


async def test_nothing_but_its_window_is_left_of_a_request_that_has_ended() -> None:
    local = LocalLimits(processes=1, windows_max=100)
    plan = lay_out(key_under(limit("concurrent", 99), limit("tokens", 9999)), "vision")
    assert plan is not None
    what = Load(request_id=new_request_id(), tokens=1, images=0, lease_ms=0)
    local.admit(plan, what, 60_000)
    assert len(local) == 3

    local.release(what.request_id, 1)

    assert len(local) == 1


async def test_a_key_without_limits_asks_nobody() -> None:
    unstarted = a_limiter(settings.REDIS_URL)

    admission = await ask(unstarted, key_under())

    assert admission.is_admitted
    assert not admission.is_degraded


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (20, "20ms"),
        (6_000, "6s"),
        (7_250, "7.25s"),
        (60_000, "1m0s"),
        (90_500, "1m30.5s"),
    ],
)
def test_durations_are_written_as_openai_does(ms: int, text: str) -> None:
    assert duration(ms) == text
