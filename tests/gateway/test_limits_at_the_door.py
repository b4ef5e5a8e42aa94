"""Limits over real sockets: two gateway processes, and a Valkey of their own that can be killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from django.core.management import call_command

from billing.models import Budget
from demo.valkey import Valkey
from gateway.models import Model
from tenants.limits import Limit
from tests import factories
from tests.door import (
    DOOR_ENVIRONMENT,
    ROOT,
    Door,
    database_url,
    eventually,
    free_port,
    wait_until_open,
)
from tests.factories import Tenant
from tests.fake_backend import STREAM_HEAD, FakeBackend, Hang, Send, answer, delta, status, stream
from tests.gateway.refusals import Refusal, refusal
from tests.gateway.test_streams import streaming

pytestmark = pytest.mark.xdist_group("limits")

HI = [{"role": "user", "content": "hi"}]
LIMITED = Refusal(429, "rate_limit_exceeded", None, "requests")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def urls(
    django_db_setup: None, store: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Run two gateways that share the store; yield their URLs."""
    directory = tmp_path_factory.mktemp("gateways")
    # A busy machine must not pass for a Valkey that is away.
    environment = {
        "REDIS_URL": store.url,
        "TESSERA_PROCESSES": "2",
        "TESSERA_REDIS_TIMEOUT_MS": "500",
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(serving(environment, directory / f"{number}.log"))
            for number in range(2)
        ]


@contextmanager
def serving(environment: dict[str, str], log: Path) -> Iterator[str]:
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.serve", "--port", str(port)],
            cwd=ROOT,
            env=os.environ
            | {"DATABASE_URL": database_url(), "TESSERA_SPOOL_DIR": str(log.with_suffix(".spool"))}
            | DOOR_ENVIRONMENT
            | environment,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until_open(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(40)


@pytest.fixture
def doors(
    urls: list[str],
    vision: Model,
    fake_backend: FakeBackend,
    http_client: httpx.Client,
    alice: Tenant,
) -> list[Door]:
    fake_backend.script(answer("one"))
    found = [Door(url, 0, fake_backend, vision, http_client) for url in urls]
    for door in found:
        door.wait_for_model(alice, vision.name)
    return found


@pytest.fixture
def door(doors: list[Door]) -> Door:
    return doors[0]


@pytest.fixture
def erin(committed: None) -> Tenant:
    """Whom no door has seen yet, so that her limits count from her first request on."""
    return factories.tenant("erin")


def set_limit(of: Tenant, kind: str, maximum: int, *, level: str = "key", **fields: Any) -> Limit:
    return Limit.objects.create(
        organization=of.organization,
        team=None if level == "organization" else of.team,
        key=of.key if level == "key" else None,
        kind=kind,
        maximum=maximum,
        **fields,
    )


def rate_headers(response: httpx.Response) -> dict[str, str]:
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in response.headers.items()
        if name.startswith("x-ratelimit-")
    }


def test_an_answer_says_what_the_tightest_limits_leave(door: Door, erin: Tenant) -> None:
    set_limit(erin, "requests", 60, level="organization")
    set_limit(erin, "requests", 10, level="team")
    set_limit(erin, "tokens", 100_000)
    set_limit(erin, "images", 5)

    response = door.chat(erin, max_tokens=100)

    headers = rate_headers(response)
    assert response.status_code == 200
    prompt = response.json()["usage"]["prompt_tokens"]
    assert {name: value for name, value in headers.items() if "reset" not in name} == {
        "limit-requests": "10",
        "remaining-requests": "9",
        "limit-tokens": "100000",
        "remaining-tokens": str(100_000 - prompt - 100),
        "limit-images": "5",
        "remaining-images": "5",
    }
    assert headers["reset-images"] == "0s"
    assert headers["reset-requests"].startswith("1m")


def test_a_refusal_says_which_limit_of_whom_and_when_to_come_back(door: Door, erin: Tenant) -> None:
    set_limit(erin, "requests", 1, level="team", model_name=door.model.name)
    door.chat(erin)
    door.backend.script(answer("never"))

    response = door.chat(erin)

    assert refusal(response) == LIMITED
    assert response.json()["error"]["message"].startswith(
        f"Rate limit reached for the team 'vision' for the model {door.model.name!r}: "
        "limit 1 requests per minute, used 1, requested 1. Try again in "
    )
    wait_ms = int(response.headers["retry-after-ms"])
    assert 0 < wait_ms <= 120_000
    assert int(response.headers["retry-after"]) == -(-wait_ms // 1000)
    assert rate_headers(response)["remaining-requests"] == "0"
    assert door.backend.asked == []


def test_tokens_are_refused_as_tokens(door: Door, erin: Tenant) -> None:
    set_limit(erin, "tokens", 250)

    first, response = door.chat(erin, max_tokens=200), door.chat(erin, max_tokens=200)

    assert first.status_code == 200
    assert refusal(response) == Refusal(429, "rate_limit_exceeded", None, "tokens")
    assert "the key 'test': limit 250 tokens per minute" in response.json()["error"]["message"]


def test_what_never_fits_should_not_be_tried_again(door: Door, erin: Tenant) -> None:
    set_limit(erin, "tokens", 150)

    response = door.chat(erin, max_tokens=1000)

    assert "too large" in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


def test_a_stream_and_a_failure_say_it_too(door: Door, erin: Tenant) -> None:
    set_limit(erin, "requests", 10)

    door.backend.script(stream("one"))
    streamed = door.chat(erin, stream=True)
    door.backend.script(status(500))
    failed = door.chat(erin)

    assert (streamed.status_code, failed.status_code) == (200, 502)
    assert rate_headers(streamed)["remaining-requests"] == "9"
    assert rate_headers(failed)["remaining-requests"] == "8"


def test_without_limits_nothing_is_added_and_valkey_is_not_asked(
    door: Door, erin: Tenant, store: Valkey
) -> None:
    client = redis.from_url(store.url)
    client.config_resetstat()

    response = door.chat(erin)

    assert response.status_code == 200
    assert rate_headers(response) == {}
    assert "x-tessera-degraded" not in response.headers
    assert "cmdstat_evalsha" not in client.info("commandstats")


def test_a_shadow_limit_reports_and_does_not_refuse(door: Door, erin: Tenant) -> None:
    set_limit(erin, "requests", 1, is_shadow=True)
    set_limit(erin, "tokens", 2, level="organization", is_shadow=True)

    first, second = door.chat(erin), door.chat(erin)

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.headers["x-tessera-shadow-limited"] == "organization tokens"
    assert second.headers["x-tessera-shadow-limited"] == "key requests, organization tokens"
    assert rate_headers(second) == {}


def test_a_limit_that_is_set_counts_within_a_second(door: Door, erin: Tenant) -> None:
    assert door.chat(erin).status_code == 200
    slug = erin.organization.slug

    call_command("limit", "set", "--organization", slug, "--requests", "1")
    eventually(lambda: door.chat(erin).status_code == 429, within_s=1)

    call_command("limit", "remove", str(Limit.objects.get(organization=erin.organization).pk))
    eventually(lambda: door.chat(erin).status_code == 200, within_s=1)


# ------------------------------------------------------------------- the end of a request


def remaining_tokens(door: Door, tenant: Tenant) -> int:
    """Ask for what never fits, which is charged nothing, to learn what is left."""
    response = door.chat(tenant, max_tokens=8000)
    return int(rate_headers(response)["remaining-tokens"])


def test_an_answer_costs_the_tokens_that_it_used(door: Door, erin: Tenant) -> None:
    set_limit(erin, "tokens", 5000)

    used = door.chat(erin, max_tokens=4000).json()["usage"]["total_tokens"]

    eventually(lambda: remaining_tokens(door, erin) == 5000 - used)


def test_a_failed_answer_costs_no_tokens(door: Door, erin: Tenant) -> None:
    set_limit(erin, "tokens", 5000)
    door.backend.script(status(500))

    assert door.chat(erin, max_tokens=4000).status_code == 502

    eventually(lambda: remaining_tokens(door, erin) == 5000)


def test_what_a_budget_refuses_costs_a_request_and_no_tokens(door: Door, erin: Tenant) -> None:
    set_limit(erin, "tokens", 5000)
    set_limit(erin, "requests", 10)
    set_limit(erin, "concurrent", 1)
    Budget.objects.create(organization=erin.organization, limit_tokens=10)

    for left in (9, 8):
        response = door.chat(erin, max_tokens=4000)
        assert response.json()["error"]["type"] == "insufficient_quota"
        assert rate_headers(response)["remaining-requests"] == str(left)

    eventually(lambda: remaining_tokens(door, erin) == 5000)


def test_a_stream_takes_a_place_until_its_client_leaves(doors: list[Door], erin: Tenant) -> None:
    one, other = doors
    set_limit(erin, "concurrent", 1)
    one.backend.script([STREAM_HEAD, Send(delta("one two")), Hang()])

    with streaming(one, erin) as client:
        client.read_until(b"one two")
        other.backend.script(answer("one"))
        refused = other.chat(erin)
        client.leave()

    assert refusal(refused) == LIMITED
    assert "limit 1 requests at once, used 1" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "1"
    eventually(lambda: other.chat(erin).status_code == 200, within_s=2)


# ------------------------------------------------------------------- many


def test_200_clients_of_two_processes_are_admitted_exactly_to_the_limit(
    doors: list[Door], erin: Tenant
) -> None:
    set_limit(erin, "requests", 37, level="organization")

    assert asyncio.run(flood(doors, erin, 200)) == {200: 37, 429: 163}


async def flood(doors: list[Door], tenant: Tenant, count: int) -> Counter[int]:
    """Ask all at once; count who was refused (429), and who was admitted (200), whatever came of it then."""
    body = {"model": doors[0].model.name, "messages": [{"role": "user", "content": "hi"}]}
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(headers=tenant.headers, timeout=30, limits=limits) as client:
        urls = [f"{doors[n % 2].url}/v1/chat/completions" for n in range(count)]
        answers = await asyncio.gather(*(_ask(client, url, body) for url in urls))
    return Counter(429 if answer.status_code == 429 else 200 for answer in answers)


async def _ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> httpx.Response:
    """Ask until the door has read the question: its deadline for bodies is short here, the machine may be busy."""
    while (answer := await client.post(url, json=body)).status_code == 408:
        pass
    return answer


EARLY = {
    "no JSON": (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
    "no messages": (400, {"json": {"model": "vision"}}),
    "another model": (404, {"json": {"model": "nobody", "messages": HI}}),
    "another content type": (415, {"data": {"model": "vision"}}),
}


@pytest.mark.parametrize(("status_code", "asked"), EARLY.values(), ids=EARLY)
def test_an_error_before_the_limits_says_what_they_leave_and_charges_nothing(
    door: Door, erin: Tenant, status_code: int, asked: dict[str, Any]
) -> None:
    set_limit(erin, "requests", 5)
    set_limit(erin, "images", 1, model_name=door.model.name)
    headers = erin.headers | asked.get("headers", {})

    for _ in range(2):
        response = door.client.post(
            f"{door.url}/v1/chat/completions", **(asked | {"headers": headers})
        )

    assert response.status_code == status_code
    assert rate_headers(response) == {
        "limit-requests": "5",
        "remaining-requests": "5",
        "reset-requests": "0s",
    }


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/nobody", "/v1/me", "/api/models/models"]
)
def test_a_question_says_what_the_limits_leave(door: Door, erin: Tenant, path: str) -> None:
    set_limit(erin, "tokens", 1000)

    assert rate_headers(door.get(erin, path))["remaining-tokens"] == "1000"


def test_who_is_not_known_or_has_no_limits_is_told_of_none(door: Door, erin: Tenant) -> None:
    assert rate_headers(door.get(erin, "/v1/models")) == {}
    assert rate_headers(door.client.get(f"{door.url}/v1/models")) == {}


# ------------------------------------------------------------------- without Valkey


def test_an_organization_may_rather_be_refused_than_go_without_exact_limits(
    door: Door, store: Valkey, committed: None
) -> None:
    strict = factories.tenant("strict", limits_fail_closed=True)
    set_limit(strict, "requests", 100)
    free = factories.tenant("strict", limits_fail_closed=True)
    assert door.chat(strict).status_code == 200

    store.kill()
    try:
        refused, unlimited = door.chat(strict), door.chat(free)
        looked_at = door.get(strict, "/v1/models")
    finally:
        store.start()

    assert refusal(refused) == Refusal(503, "limits_unavailable", None, "server_error")
    assert refused.headers["retry-after"] == "1"
    assert door.is_unbooked(refused.headers["x-request-id"])
    assert (unlimited.status_code, looked_at.status_code) == (200, 200)
    eventually(lambda: door.chat(strict).status_code == 200)


def test_without_valkey_a_question_charges_nothing(door: Door, erin: Tenant, store: Valkey) -> None:
    set_limit(erin, "requests", 4)
    set_limit(erin, "concurrent", 2)
    door.chat(erin)

    store.kill()
    try:
        for _ in range(3):
            response = door.get(erin, "/v1/models")
    finally:
        store.start()

    assert rate_headers(response)["remaining-requests"] == "2"  # all of this process's share
    assert response.headers["x-tessera-degraded"] == "limits"


def test_without_valkey_each_process_keeps_its_share_and_says_so(
    doors: list[Door], erin: Tenant, store: Valkey
) -> None:
    set_limit(erin, "requests", 7)
    assert [door.chat(erin).headers.get("x-tessera-degraded") for door in doors] == [None, None]

    store.kill()
    try:
        answers = [door.chat(erin) for door in doors for _ in range(5)]
    finally:
        store.start()

    assert [each.status_code for each in answers] == [200, 200, 200, 429, 429] * 2
    assert {each.headers["x-tessera-degraded"] for each in answers} == {"limits"}
    assert rate_headers(answers[0])["limit-requests"] == "3"
    assert max(each.elapsed.total_seconds() for each in answers) < 2
    for door in doors:
        eventually(lambda door=door: "x-tessera-degraded" not in door.chat(erin).headers)


def test_a_valkey_that_hangs_delays_nobody_for_long(
    doors: list[Door], erin: Tenant, store: Valkey
) -> None:
    set_limit(erin, "requests", 100)
    door = doors[0]
    door.chat(erin)
    assert store.pid is not None

    os.kill(store.pid, signal.SIGSTOP)
    try:
        answers = [door.chat(erin) for _ in range(10)]
    finally:
        os.kill(store.pid, signal.SIGCONT)

    assert {(each.status_code, each.headers["x-tessera-degraded"]) for each in answers} == {
        (200, "limits")
    }
    assert max(each.elapsed.total_seconds() for each in answers) < 2
    eventually(lambda: "x-tessera-degraded" not in door.chat(erin).headers)


def test_a_place_that_was_taken_in_valkey_is_given_back_when_it_returns(
    door: Door, erin: Tenant, store: Valkey
) -> None:
    set_limit(erin, "concurrent", 1)
    door.backend.script([STREAM_HEAD, Send(delta("one two")), Hang()])
    assert store.pid is not None

    with streaming(door, erin) as client:
        client.read_until(b"one two")
        store.kill()
        store.start()
        eventually(lambda: "x-tessera-degraded" not in door.chat(erin).headers)
        client.leave()
    door.backend.script(answer("one"))

    eventually(lambda: door.chat(erin).status_code == 200, within_s=3)


def test_a_key_can_ask_how_its_limits_stand_and_that_charges_nothing(
    door: Door, erin: Tenant
) -> None:
    set_limit(erin, "requests", 5)
    set_limit(erin, "concurrent", 3, level="team")
    set_limit(erin, "images", 2, model_name=door.model.name)
    door.chat(erin)
    door.chat(erin)

    for _ in range(2):
        limits = door.get(erin, "/v1/me").json()["limits"]

    assert {(each["level"], each["kind"]): (each["used"], each["left"]) for each in limits} == {
        ("key", "requests"): (2, 3),
        ("team", "concurrent"): (0, 3),
        ("key", "images"): (0, 2),
    }
