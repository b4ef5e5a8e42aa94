"""PostgreSQL goes away under a running door, and comes back (promises P3 and P24)."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from billing import books
from billing.models import UsageRecord
from gateway.models import Model
from tests.bookings import eventually, in_thread
from tests.door import database_url, serving
from tests.factories import Tenant
from tests.fake_backend import (
    DONE,
    STREAM_HEAD,
    FakeBackend,
    Send,
    Wait,
    delta,
    stream,
    usage_event,
)
from tests.proxy import Mode, Proxy

RESERVE_TIMEOUT_MS = 150
REFUSED_S_MAX = 0.3


@pytest.fixture
async def proxy(committed: None) -> AsyncIterator[Proxy]:
    async with Proxy(database_url()) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy, vision: Model, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a door whose way to PostgreSQL leads through the proxy."""
    environment = {
        "DATABASE_URL": proxy.url,
        "TESSERA_SPOOL_DIR": str(tmp_path / "spool"),
        "TESSERA_RESERVE_TIMEOUT_MS": str(RESERVE_TIMEOUT_MS),
        "TESSERA_SETTLE_TIMEOUT_MS": "500",
    }
    async with AsyncExitStack() as stack:
        door = serving(tmp_path, **environment)
        url, _ = await asyncio.to_thread(door.__enter__)
        stack.push_async_callback(asyncio.to_thread, door.__exit__, None, None, None)
        stack.callback(proxy.set, Mode.PASS)
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))


def question(model: Model, **fields: object) -> dict[str, object]:
    return {"model": model.name, "messages": [{"role": "user", "content": "hi"}], **fields}


async def refusal(
    client: httpx.AsyncClient, tenant: Tenant, model: Model
) -> tuple[int, str, float]:
    began = time.monotonic()
    answer = await client.post("/v1/chat/completions", json=question(model), headers=tenant.headers)
    return answer.status_code, answer.json()["error"]["code"], time.monotonic() - began


async def answered(client: httpx.AsyncClient, tenant: Tenant, model: Model) -> httpx.Response:
    """Ask until the door answers."""
    async with asyncio.timeout(15):
        while True:
            answer = await client.post(
                "/v1/chat/completions", json=question(model, stream=True), headers=tenant.headers
            )
            if answer.status_code == 200:
                return answer
            await asyncio.sleep(0.1)


async def test_new_requests_are_refused_and_those_in_flight_end_and_are_booked_later(
    client: httpx.AsyncClient,
    proxy: Proxy,
    vision: Model,
    fake_backend: FakeBackend,
    alice: Tenant,
    charlie: Tenant,
    tmp_path: Path,
) -> None:
    fake_backend.script(stream("warm"))
    await answered(client, alice, vision)
    fake_backend.script(
        [STREAM_HEAD, Send(delta("one")), Wait(1.5), Send(delta("", "stop")), usage_event(), DONE]
    )
    async with client.stream(
        "POST", "/v1/chat/completions", json=question(vision, stream=True), headers=alice.headers
    ) as running:
        lines = running.aiter_lines()
        assert "one" in await anext(lines)
        proxy.set(Mode.BLACKHOLE)

        for tenant in (alice, alice, charlie):  # whose key nobody has seen yet
            status, code, after_s = await refusal(client, tenant, vision)
            assert (status, code) == (503, "metering_unavailable")
            assert after_s < REFUSED_S_MAX
        assert len(fake_backend.asked) == 1
        assert "data: [DONE]" in [line async for line in lines]
    request_id = running.headers["x-request-id"]
    assert request_id in "".join(path.read_text() for path in (tmp_path / "spool").iterdir())
    assert (await client.get("/healthz")).status_code == 200

    proxy.set(Mode.PASS)
    fake_backend.script(stream("again"))
    await answered(client, alice, vision)
    await eventually(UsageRecord.objects.filter(pk=request_id, status="ok").exists)
    assert await in_thread(books.check, alice.organization.pk) == []
