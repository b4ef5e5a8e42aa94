"""Budgets are exact across processes: as many are admitted as fit, to the last token, however many ask at once."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import aiohttp
import msgspec
import pytest

from billing.budgets import Budget, BudgetWindow
from billing.holds import HoldRow
from billing.models import Hold, Price, UsageRecord
from gateway.request_ids import new_request_id
from tests import factories
from tests.door import ROOT, Door, database_url
from tests.factories import Tenant
from tests.fake_backend import answer

PROCESSES = 4
COPIES = 100  # that each process asks for at once
TOKENS = 100  # the worst case of each request
MICRO = 1000

Process = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def processes(django_db_setup: None) -> Iterator[list[Process]]:
    """Four processes with a Bookkeeper each. They answer a hold with how many of its copies were admitted."""
    command = [sys.executable, "-m", "tests.billing.reserving", database_url(), str(COPIES)]
    with ExitStack() as stack:
        started = [
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(PROCESSES)
        ]
        for process in started:
            stack.enter_context(process)
            stack.callback(process.kill)
        yield started


@pytest.fixture
def price(committed: None) -> Price:
    return factories.price(factories.unique("model"))


def hold(tenant: Tenant, price: Price) -> HoldRow:
    now = datetime.now(UTC)
    return HoldRow(
        request_id=new_request_id(),
        organization_id=tenant.organization.pk,
        team_id=tenant.team.pk,
        key_id=tenant.key.pk,
        model_name=price.model_name,
        backend_name="b",
        price_id=price.pk,
        received_at=now,
        tokens_in_text=20,
        tokens_in_image=0,
        tokens_out_max=TOKENS - 20,
        tokens_held=TOKENS,
        amount_pico=MICRO * 1_000_000,
        canvases=[],
        streamed=False,
        process_id=new_request_id(),
        expires_at=now + timedelta(minutes=10),
    )


def admitted(processes: list[Process], row: HoldRow) -> int:
    """Let every process ask for COPIES of the hold at the same time."""
    for process in processes:
        assert process.stdin
        process.stdin.write(msgspec.json.encode(row) + b"\n")
        process.stdin.flush()
    return sum(int(process.stdout.readline()) for process in processes if process.stdout)


@pytest.mark.parametrize(
    ("estimates", "more", "count"),
    [(0, 0, 0), (1, -1, 0), (1, 0, 1), (37, 0, 37), (38, -1, 37), (400, 0, 400)],
    ids=["0", "est−1", "est", "37·est", "37·est+est−1", "400·est"],
)
@pytest.mark.parametrize(("unit", "estimate"), [("limit_tokens", TOKENS), ("limit_micro", MICRO)])
def test_of_400_that_ask_at_once_in_four_processes_as_many_are_admitted_as_fit(
    processes: list[Process],
    alice: Tenant,
    price: Price,
    unit: str,
    estimate: int,
    estimates: int,
    more: int,
    count: int,
) -> None:
    budget = Budget.objects.create(
        organization=alice.organization, **{unit: estimates * estimate + more}
    )

    assert admitted(processes, hold(alice, price)) == count

    assert Hold.objects.filter(key=alice.key).count() == count
    assert BudgetWindow.objects.get(budget=budget).held_tokens == count * TOKENS


CLIENTS = 200
TRY_AGAIN = {
    408,
    502,
    503,
    504,
}  # a busy machine, short deadlines: nothing was spent, so the sum stays exact
# "hi" is 36 tokens with the chat template. The backend writes all the tokens it may, so that a request costs its
# worst case, and it makes no difference which have ended when the next one asks.
PROMPT_TOKENS = 36
OUT_TOKENS = 10
WORST_CASE_MICRO = PROMPT_TOKENS * 10 + OUT_TOKENS * 30


async def ask_at_once(door: Door, tenant: Tenant) -> list[tuple[int, str, str]]:
    """Return of each answer the status, `x-should-retry`, and the body."""
    body = {
        "model": door.model.name,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": OUT_TOKENS,
    }
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(connector=connector, headers=tenant.headers) as session:

        async def ask() -> tuple[int, str, str]:
            while True:
                async with session.post(f"{door.url}/v1/chat/completions", json=body) as response:
                    retry = response.headers.get("x-should-retry", "")
                    text = await response.text()
                if response.status not in TRY_AGAIN:
                    return response.status, retry, text

        return await asyncio.gather(*(ask() for _ in range(CLIENTS)))


@pytest.mark.parametrize("level", ["organization", "team", "key"])
def test_of_200_clients_as_many_are_admitted_as_fit_and_the_others_are_told_why(
    door: Door, alice: Tenant, level: str
) -> None:
    budget = Budget.objects.create(
        organization=alice.organization,
        team=alice.team if level != "organization" else None,
        key=alice.key if level == "key" else None,
        name="pilot",
        limit_micro=38 * WORST_CASE_MICRO - 1,
    )
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUT_TOKENS}
    door.backend.script(answer(usage=usage))

    answers = asyncio.run(ask_at_once(door, alice))

    assert Counter(status for status, *_ in answers) == {200: 37, 429: 163}
    window = BudgetWindow.objects.get(budget=budget)
    assert (int(window.spent_pico), int(window.held_pico)) == (37 * WORST_CASE_MICRO * 10**6, 0)
    assert UsageRecord.objects.filter(key=alice.key).count() == 37
    for status, retry, text in answers:
        if status == 429:
            error = msgspec.json.decode(text)["error"]
            assert retry == "false"
            assert (error["type"], error["code"]) == (
                "insufficient_quota",
                f"{level}_spend_limit_exceeded",
            )
            for said in ("'pilot'", "spent TWD", "held", "left TWD", "resets at 20"):
                assert said in error["message"]
