"""OpenAI's own asynchronous Python client against the running door, under both of its base URLs.

Each test runs the client in a loop of its own, which is over when the books are looked at.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.door import Door
from tests.factories import Tenant
from tests.fake_backend import STREAM_HEAD, USAGE, Hang, Send, answer, delta, stream
from tests.pictures import data_url, question

HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(params=["/v1", "/api/models"])
def make_client(
    request: pytest.FixtureRequest, door: Door, alice: Tenant
) -> Callable[[], AsyncOpenAI]:
    """Return what makes a client, to be called in the loop that is to use it."""
    base_url = f"{door.url}{request.param}"
    return lambda: AsyncOpenAI(api_key=alice.secret, base_url=base_url, max_retries=0, timeout=20)


MakeClient = Callable[[], AsyncOpenAI]


def test_the_asynchronous_client_is_answered_many_times_at_once(
    door: Door, make_client: MakeClient
) -> None:
    door.backend.script(answer("one two three"))

    async def ask_often() -> list[Any]:
        async with make_client() as client:
            create = client.chat.completions.create
            return await asyncio.gather(
                *(create(model=door.model.name, messages=HI) for _ in range(8))
            )

    ids = {completion._request_id for completion in asyncio.run(ask_often())}

    assert len(ids) == 8
    assert {door.record(id).tokens_out for id in ids} == {3}


def test_the_asynchronous_client_streams(door: Door, make_client: MakeClient) -> None:
    door.backend.script(stream("一", "二", usage={**USAGE, "completion_tokens": 2}))

    async def listen() -> list[Any]:
        async with make_client() as client:
            messages: Any = [question("?", data_url(200, 280))]
            chunks = await client.chat.completions.create(
                model=door.model.name,
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
            )
            return [chunk async for chunk in chunks]

    *chunks, last = asyncio.run(listen())

    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "一二"
    assert last.usage.completion_tokens == 2
    assert last.usage.prompt_tokens_details.image_tokens == 1601


def test_the_asynchronous_client_lists_models(door: Door, make_client: MakeClient) -> None:
    async def names() -> list[str]:
        async with make_client() as client:
            return [model.id async for model in client.models.list()]

    assert door.model.name in asyncio.run(names())


def test_the_asynchronous_client_raises_its_own_errors(door: Door, make_client: MakeClient) -> None:
    async def ask() -> None:
        async with make_client() as client:
            await client.chat.completions.create(model="gpt-nonexistent", messages=HI)

    with pytest.raises(openai.NotFoundError) as raised:
        asyncio.run(ask())

    assert raised.value.code == "model_not_found"


def test_a_cancelled_task_stops_the_backend_and_books_what_was_heard(
    door: Door, make_client: MakeClient
) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one two")), Hang()])
    ids: list[str] = []

    async def listen(heard: asyncio.Event) -> None:
        async with make_client() as client:
            chunks = await client.chat.completions.create(
                model=door.model.name, messages=HI, stream=True
            )
            ids.append(chunks.response.headers["x-request-id"])
            async for _ in chunks:
                heard.set()

    async def listen_and_leave() -> None:
        heard = asyncio.Event()
        task = asyncio.create_task(listen(heard))
        await heard.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(listen_and_leave())

    assert door.backend.asked[0].closed_early.wait(5)
    assert door.record(ids[0]).status == "client_closed"
