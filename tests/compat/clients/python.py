"""OpenAI's own Python client, sync and async, with every model there is. `make test` asks it far more."""

import asyncio
import base64
import os
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

MODEL = os.environ["MODEL"]
IMAGE = base64.b64encode(Path(os.environ["IMAGE_PATH"]).read_bytes()).decode()
URLS = (f"data:image/jpeg;base64,{IMAGE}", os.environ["IMAGE_URL"])
WORD = "Taipei"  # stands in the image


def options(path: str) -> dict[str, str]:
    return {
        "base_url": os.environ["TESSERA_BASE_URL"] + path,
        "api_key": os.environ["TESSERA_API_KEY"],
    }


def question(*urls: str) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": "What does it say?"}]}]


def answers(client: OpenAI) -> None:
    for model in client.models.list():
        urls = URLS if getattr(model, "images_max", 0) else ()
        answer = client.chat.completions.create(
            model=model.id, messages=question(*urls), max_tokens=200
        )
        assert answer.choices[0].message.content
        assert (WORD in answer.choices[0].message.content) == bool(urls)
        assert answer.usage.completion_tokens <= 200
        assert answer._request_id


async def streams(client: AsyncOpenAI) -> None:
    chunks = await client.chat.completions.create(
        model=MODEL,
        messages=question(*URLS),
        stream=True,
        stream_options={"include_usage": True},
    )
    *told, last = [chunk async for chunk in chunks]
    assert WORD in "".join(chunk.choices[0].delta.content or "" for chunk in told)
    assert last.usage.prompt_tokens_details.image_tokens % 1601 == 0
    await client.close()


def raises_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'none'"):
        client.chat.completions.create(model="none", messages=question())


for each in ("/v1", "/api/models"):
    answers(OpenAI(**options(each)))
    asyncio.run(streams(AsyncOpenAI(**options(each))))
    raises_its_own_errors(OpenAI(**options(each)))
