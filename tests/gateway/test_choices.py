"""Several choices: all of them are billed, also where the backend reports the tokens of one only."""

from typing import Any

import pytest

from gateway.models import Model
from tests import factories
from tests.door import Door
from tests.factories import Tenant
from tests.fake_backend import (
    DONE,
    STREAM_HEAD,
    UPSTREAM_NAME,
    FakeBackend,
    Send,
    Step,
    answer,
    event,
    usage_event,
)

OF_ONE = {"prompt_tokens": 36, "completion_tokens": 4, "total_tokens": 40}
CHOICES = 3
TOKENS_OUT = CHOICES * 4  # "one two three", and the token that ends it
WORDS = ("one", " tw", "o three")  # not as tokens are: only whole texts can be counted


@pytest.fixture(scope="module")
def models(
    django_db_setup: None, django_db_blocker: Any, fake_backend: FakeBackend
) -> dict[str, Model]:
    """A model behind each kind of backend."""
    with django_db_blocker.unblock():
        return {
            kind: factories.model(
                factories.backend(fake_backend.url, kind=kind), backend_model=UPSTREAM_NAME
            )
            for kind in ("openai", "llama_cpp")
        }


def whole() -> list[Step]:
    choices = [
        {
            "index": index,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "one two three"},
        }
        for index in range(CHOICES)
    ]
    return answer(usage=OF_ONE, choices=choices)


def streamed() -> list[Step]:
    """The choices' events interleave, as llama.cpp sends them."""
    words = [
        Send(event(choices=[{"index": index, "delta": {"content": word}, "finish_reason": None}]))
        for word in WORDS
        for index in range(CHOICES)
    ]
    ends = [
        Send(event(choices=[{"index": index, "delta": {}, "finish_reason": "stop"}]))
        for index in range(CHOICES)
    ]
    return [STREAM_HEAD, *words, *ends, usage_event(OF_ONE), DONE]


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_llama_cpp_is_counted_by_us(
    door: Door, alice: Tenant, models: dict[str, Model], is_stream: bool
) -> None:
    record = ask(door, alice, models["llama_cpp"], is_stream=is_stream)

    assert (record.tokens_out, record.usage_source) == (TOKENS_OUT, "counted")
    assert record.upstream_out == 4


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_others_are_believed(
    door: Door, alice: Tenant, models: dict[str, Model], is_stream: bool
) -> None:
    record = ask(door, alice, models["openai"], is_stream=is_stream)

    assert (record.tokens_out, record.usage_source) == (4, "upstream")


@pytest.mark.parametrize("index", [None, "one", [1], {"1": 1}], ids=repr)
def test_a_choice_without_a_number_is_counted_too(
    door: Door, alice: Tenant, models: dict[str, Model], index: Any
) -> None:
    door.wait_for_model(alice, models["llama_cpp"].name)
    words = [
        Send(event(choices=[{"index": each, "delta": {"content": " one two three"}}]))
        for each in (0, index)
    ]
    door.backend.script([STREAM_HEAD, *words, usage_event(OF_ONE), DONE])

    response = door.chat(alice, model=models["llama_cpp"].name, n=2, max_tokens=20, stream=True)

    assert door.record(response.headers["x-request-id"]).tokens_out == 2 * 3


def ask(door: Door, tenant: Tenant, model: Model, *, is_stream: bool) -> Any:
    door.wait_for_model(tenant, model.name)
    door.backend.script(streamed() if is_stream else whole())
    response = door.chat(tenant, model=model.name, n=CHOICES, max_tokens=20, stream=is_stream)
    assert response.status_code == 200, response.text
    return door.record(response.headers["x-request-id"])


def test_one_choice_of_llama_cpp_is_believed(
    door: Door, alice: Tenant, models: dict[str, Model]
) -> None:
    model = models["llama_cpp"]
    door.wait_for_model(alice, model.name)
    door.backend.script(answer(usage=OF_ONE))

    response = door.chat(alice, model=model.name, max_tokens=20)

    record = door.record(response.headers["x-request-id"])
    assert (record.tokens_out, record.usage_source) == (4, "upstream")
