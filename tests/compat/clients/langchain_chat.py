"""LangChain's ChatOpenAI, under both base URLs. Fails at the first thing that is wrong."""

import asyncio
import base64
import os
from pathlib import Path

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_openai import ChatOpenAI

BASE_URL = os.environ["TESSERA_BASE_URL"]
MODEL = os.environ["MODEL"]
IMAGE_URL = os.environ["IMAGE_URL"]
IMAGE = base64.b64encode(Path(os.environ["IMAGE_PATH"]).read_bytes()).decode()
DATA_URL = f"data:image/jpeg;base64,{IMAGE}"
WORD = "Taipei"  # stands in the image


def chat(path: str, **options) -> ChatOpenAI:
    settings = {"model": MODEL, "temperature": 0.1, "max_tokens": 500, "max_retries": 0, **options}
    return ChatOpenAI(
        base_url=BASE_URL + path, api_key=os.environ["TESSERA_API_KEY"], timeout=60, **settings
    )


def question(*urls: str) -> list[HumanMessage]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [HumanMessage([*images, {"type": "text", "text": "What does it say?"}])]


def answers_about_images(path: str) -> None:
    for urls in ([DATA_URL], [IMAGE_URL], [DATA_URL, IMAGE_URL]):
        answer = chat(path).invoke(question(*urls))
        assert WORD in answer.text, answer.text
        assert answer.usage_metadata["input_tokens"] > 1601 * len(urls)
        assert answer.response_metadata["model_name"] == MODEL


def takes_an_image_block_of_its_own(path: str) -> None:
    block = {"type": "image", "base64": IMAGE, "mime_type": "image/jpeg"}
    message = HumanMessage([block, {"type": "text", "text": "What does it say?"}])
    assert WORD in chat(path).invoke([message]).text


def goes_on(path: str) -> None:
    messages = question(DATA_URL)
    messages.append(chat(path).invoke(messages))
    messages.append(HumanMessage("And its colours?"))
    assert chat(path).invoke(messages).text


def streams(path: str) -> None:
    whole = AIMessageChunk("")
    for chunk in chat(path, stream_usage=True).stream(question(DATA_URL)):
        whole += chunk
    assert WORD in whole.text, whole.text
    assert whole.usage_metadata["output_tokens"] > 0


def streams_without_usage(path: str) -> None:
    """What LangChain does by default with a base URL of one's own."""
    chunks = list(chat(path).stream(question(DATA_URL)))
    assert WORD in "".join(chunk.text for chunk in chunks)


async def streams_asynchronously(path: str) -> None:
    told = [chunk.text async for chunk in chat(path).astream(question(DATA_URL))]
    assert WORD in "".join(told)


def raises_openais_errors(path: str) -> None:
    with pytest.raises(openai.NotFoundError, match="'none'"):
        chat(path, model="none").invoke("hi")


for each in ("/v1", "/api/models"):
    answers_about_images(each)
    takes_an_image_block_of_its_own(each)
    goes_on(each)
    streams(each)
    streams_without_usage(each)
    asyncio.run(streams_asynchronously(each))
    raises_openais_errors(each)
