"""OpenAI's own Python client against the running door, under both of its base URLs."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.door import Door
from tests.factories import Tenant
from tests.fake_backend import (
    DONE,
    STREAM_HEAD,
    Hang,
    Reset,
    Send,
    Wait,
    answer,
    delta,
    event,
    status,
    stream,
    usage_event,
)
from tests.pictures import PictureServer, data_url, question

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "crop",
        "parameters": {"type": "object", "properties": {"width_px": {"type": "integer"}}},
    },
}
CALL = {
    "id": "call-1",
    "type": "function",
    "function": {"name": "crop", "arguments": '{"width_px": 560}'},
}
HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(params=["/v1", "/api/models"])
def base_url(request: pytest.FixtureRequest, door: Door) -> str:
    return f"{door.url}{request.param}"


@pytest.fixture
def client(base_url: str, alice: Tenant) -> Iterator[OpenAI]:
    with OpenAI(api_key=alice.secret, base_url=base_url, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def ask(client: OpenAI, door: Door) -> Callable[..., Any]:
    """Create a chat completion with the door's own model; by default the smallest question."""

    def ask(messages: Any = HI, **parameters: Any) -> Any:
        return client.chat.completions.create(
            model=door.model.name, messages=messages, **parameters
        )

    return ask


@pytest.fixture(scope="module")
def pictures() -> Iterator[PictureServer]:
    with PictureServer() as server:
        yield server


Ask = Callable[..., Any]


def test_a_question_is_answered_counted_and_booked(door: Door, ask: Ask) -> None:
    door.backend.script(answer("one two three"))

    completion = ask(temperature=0.1, max_tokens=3600, top_p=0.5)

    assert completion.choices[0].message.content == "one two three"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == door.model.name
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 3
    assert door.record(completion._request_id).tokens_out == 3


def test_a_stream_is_read_to_its_end_without_usage(door: Door, ask: Ask) -> None:
    door.backend.script(stream("一", "二", "三"))

    chunks = list(ask(stream=True))

    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "一二三"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.model for chunk in chunks} == {door.model.name}
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_the_usage_if_it_is_asked_for(door: Door, ask: Ask) -> None:
    door.backend.script(stream("one", " two", " three"))

    *chunks, last = ask(stream=True, stream_options={"include_usage": True})

    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert (last.usage.completion_tokens, last.model) == (3, door.model.name)
    assert last.id == chunks[0].id


def test_the_clients_stream_helper_puts_the_answer_together(door: Door, client: OpenAI) -> None:
    door.backend.script(stream("one", " two"))

    with client.chat.completions.stream(
        model=door.model.name, messages=HI, stream_options={"include_usage": True}
    ) as events:
        told = [each.delta for each in events if each.type == "content.delta"]
        whole = events.get_final_completion()

    assert "".join(told) == "one two"
    assert whole.choices[0].message.content == "one two"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 3


def test_comments_that_keep_a_silent_stream_alive_are_not_seen(door: Door, ask: Ask) -> None:
    door.backend.script([STREAM_HEAD, Wait(1.2), *stream("late")[1:]])

    contents = [chunk.choices[0].delta.content for chunk in ask(stream=True)]

    assert contents == ["late", ""]


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "gif"])
def test_an_image_by_data_url_is_counted(door: Door, ask: Ask, form: str) -> None:
    door.backend.script(answer())
    url = data_url(840, 1400, form)

    completion = ask([question("這張圖裡面有什麼?", url)])

    assert completion.usage.prompt_tokens == 6424
    assert completion.usage.prompt_tokens_details.image_tokens == 6404
    assert completion.usage.prompt_tokens_details.text_tokens == 20
    sent = door.backend.asked[0].body["messages"][0]["content"][0]["image_url"]["url"]
    assert sent == url


def test_an_image_by_url_is_fetched_once_and_sent_on_as_bytes(
    door: Door, ask: Ask, pictures: PictureServer
) -> None:
    door.backend.script(answer())
    pictures.asked.clear()
    url = pictures.url(570, 1180, "jpeg")

    completion = ask([question("What is this?", url), question("And now?", url)])

    assert completion.usage.prompt_tokens_details.image_tokens == 2 * 3 * 1601
    assert pictures.asked == ["/570x1180.jpeg"]
    first, second = (message["content"][0] for message in door.backend.asked[0].body["messages"])
    assert first == second == question("", data_url(570, 1180, "jpeg"))["content"][0]


def test_images_by_url_and_by_data_url_go_together(
    door: Door, ask: Ask, pictures: PictureServer
) -> None:
    door.backend.script(stream("three pictures"))
    urls = [data_url(560, 560), pictures.url(1792, 280), data_url(200, 280, "webp")]

    *_, last = ask(
        [question("Compare them.", *urls)], stream=True, stream_options={"include_usage": True}
    )

    assert last.usage.prompt_tokens_details.image_tokens == (1 + 4 + 1) * 1601
    parts = door.backend.asked[0].body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url"] * 3 + ["text"]
    assert parts[1]["image_url"]["url"] == data_url(1792, 280)


def test_the_seeds_conversation_of_many_turns_goes_on(door: Door, ask: Ask) -> None:
    door.backend.script(answer("一排大型的電腦機櫃"))
    messages: list[Any] = [question("這張圖裡面有什麼?", data_url(1120, 1120))]

    first = ask(messages)
    messages.append({"role": "assistant", "content": first.choices[0].message.content})
    messages.append({"role": "user", "content": [{"type": "text", "text": "請用古詩詞來描述"}]})
    second = ask(messages, temperature=1)

    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.image_tokens == 6404
    assert door.backend.asked[1].body["messages"] == messages


def test_an_answer_can_be_sent_back_as_it_came(door: Door, ask: Ask) -> None:
    """Clients append `choices[0].message` itself, with every null in it."""
    door.backend.script(answer("one"))
    message = ask().choices[0].message

    again = ask([*HI, message, {"role": "user", "content": "go on"}])

    assert again.choices[0].message.content == "one"


def test_tools_and_tool_calls_pass_through(door: Door, ask: Ask) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    door.backend.script(answer(choices=[choice(message=message, finish="tool_calls")]))

    completion = ask(tools=[TOOL], tool_choice="auto", parallel_tool_calls=False)
    call = completion.choices[0].message.tool_calls[0]
    ask(
        [
            *HI,
            completion.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "done"},
        ],
        tools=[TOOL],
    )

    assert (call.function.name, call.function.arguments) == ("crop", '{"width_px": 560}')
    first, second = (asked.body for asked in door.backend.asked)
    assert (first["tools"], first["tool_choice"]) == ([TOOL], "auto")
    assert second["messages"][1]["tool_calls"] == [CALL]
    assert second["messages"][2]["tool_call_id"] == "call-1"


def test_tool_calls_are_streamed(door: Door, ask: Ask) -> None:
    pieces = [
        {"index": 0, **CALL, "function": {"name": "crop", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"width_px": 560}'}},
    ]
    events = [
        Send(event(choices=[{"index": 0, "delta": {"tool_calls": [each]}}])) for each in pieces
    ]
    end = Send(event(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]))
    door.backend.script([STREAM_HEAD, *events, end, usage_event(), DONE])

    *chunks, last = ask(tools=[TOOL], stream=True)

    heard = [chunk.choices[0].delta.tool_calls[0].function for chunk in chunks]
    assert heard[0].name == "crop"
    assert "".join(each.arguments for each in heard) == '{"width_px": 560}'
    assert last.choices[0].finish_reason == "tool_calls"


def test_a_backends_own_parameters_pass_as_extra_body(door: Door, ask: Ask) -> None:
    door.backend.script(answer())

    ask(
        extra_body={"top_k": 40, "min_p": 0.1}, seed=7, stop=["x"], response_format={"type": "text"}
    )

    body = door.backend.asked[0].body
    assert (body["top_k"], body["min_p"], body["seed"], body["stop"]) == (40, 0.1, 7, ["x"])
    assert body["response_format"] == {"type": "text"}


def test_a_structured_answer_is_parsed_by_the_client(door: Door, client: OpenAI) -> None:
    class Sign(BaseModel):
        text: str

    door.backend.script(answer('{"text": "出口 EXIT"}'))

    completion = client.chat.completions.parse(
        model=door.model.name, messages=HI, response_format=Sign
    )

    assert completion.choices[0].message.parsed == Sign(text="出口 EXIT")
    assert door.backend.asked[0].body["response_format"]["json_schema"]["name"] == "Sign"


def test_several_choices_are_answered(door: Door, ask: Ask) -> None:
    choices = [choice({"role": "assistant", "content": "one"}, index=index) for index in range(2)]
    door.backend.script(answer(choices=choices))

    completion = ask(n=2, max_tokens=10)

    assert [each.message.content for each in completion.choices] == ["one", "one"]
    assert door.backend.asked[0].body["n"] == 2
    assert door.record(completion._request_id).held_pico >= 2 * 10 * 30_000_000


def test_models_are_listed_and_retrieved(door: Door, client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    retrieved = client.models.retrieve(door.model.name)

    assert listed[door.model.name] == retrieved
    assert (retrieved.object, retrieved.id) == ("model", door.model.name)
    assert isinstance(retrieved.created, int)
    assert isinstance(retrieved.owned_by, str)


def test_the_raw_answer_carries_the_request_id(door: Door, client: OpenAI) -> None:
    door.backend.script(answer("one"))

    raw = client.chat.completions.with_raw_response.create(model=door.model.name, messages=HI)
    completion = raw.parse()

    assert raw.headers["x-request-id"] == raw.request_id == completion._request_id
    assert door.backend.asked[0].headers["x-request-id"] == raw.request_id


@pytest.mark.parametrize(
    ("key", "error", "code"),
    [
        ("tsr_nonsense", openai.AuthenticationError, "invalid_api_key"),
        ("sk-another-services-key", openai.AuthenticationError, "invalid_api_key"),
    ],
)
def test_a_wrong_key_is_an_authentication_error(
    client: OpenAI, key: str, error: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(error) as raised:
        client.with_options(api_key=key).models.list()

    assert (raised.value.status_code, raised.value.code) == (401, code)
    assert raised.value.request_id


@pytest.mark.parametrize(
    ("parameters", "error", "param", "code"),
    [
        ({"model": "gpt-nonexistent"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"temperature": 9}, openai.BadRequestError, "temperature", "decimal_above_max_value"),
        ({"extra_body": {"x": 1}}, openai.BadRequestError, "x", "unknown_parameter"),
        (
            {"messages": [question("?", "data:image/png;base64,AAAA")]},
            openai.BadRequestError,
            "messages[0].content[0].image_url",
            "unsupported_image_media_type",
        ),
    ],
    ids=["unknown model", "no messages", "too hot", "unknown parameter", "no image"],
)
def test_a_clients_mistake_raises_the_clients_own_error(
    door: Door,
    client: OpenAI,
    parameters: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str,
    code: str,
) -> None:
    request = {"model": door.model.name, "messages": HI, **parameters}

    with pytest.raises(error) as raised:
        client.chat.completions.create(**request)

    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.type == "invalid_request_error"
    assert door.backend.asked == []


def test_an_unknown_path_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="any", input="hi")

    assert raised.value.code == "unknown_url"


@pytest.mark.parametrize(
    ("backend_says", "error", "code"),
    [
        (400, openai.BadRequestError, "backend_refused"),
        (429, openai.RateLimitError, "upstream_rate_limited"),
        (500, openai.InternalServerError, "backend_failed"),
        (503, openai.InternalServerError, "backend_busy"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_backends_failure_raises_the_clients_own_error(
    door: Door,
    ask: Ask,
    backend_says: int,
    error: type[openai.APIStatusError],
    code: str,
    streamed: bool,
) -> None:
    door.backend.script(status(backend_says))

    with pytest.raises(error) as raised:
        ask(stream=streamed)

    assert raised.value.code == code
    assert raised.value.request_id


def test_a_busy_backend_says_when_to_ask_again(door: Door, ask: Ask) -> None:
    door.backend.script(status(429, retry_after="7"))

    with pytest.raises(openai.RateLimitError) as raised:
        ask()

    assert raised.value.response.headers["retry-after"] == "7"


def test_a_failure_that_may_pass_is_retried_by_the_client(door: Door, client: OpenAI) -> None:
    door.backend.script(status(503, retry_after="0"))

    with pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=1).chat.completions.create(
            model=door.model.name, messages=HI
        )

    assert len(door.backend.asked) == 2


def test_a_stream_that_breaks_off_raises_instead_of_ending(door: Door, ask: Ask) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one")), Wait(0.05), Reset()])
    heard = []

    with pytest.raises(openai.APIError) as raised:
        heard += [chunk.choices[0].delta.content for chunk in ask(stream=True)]

    assert raised.value.code == "upstream_stream_interrupted"


def test_closing_a_stream_early_stops_the_backend_and_books_what_was_heard(
    door: Door, ask: Ask
) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one two")), Hang()])

    with ask(stream=True) as chunks:
        assert next(chunks).choices[0].delta.content == "one two"

    assert door.backend.asked[0].closed_early.wait(5)
    record = door.record(chunks.response.headers["x-request-id"])
    assert (record.status, record.tokens_out) == ("client_closed", 2)


def choice(message: dict[str, Any], *, index: int = 0, finish: str = "stop") -> dict[str, Any]:
    return {"index": index, "message": message, "finish_reason": finish}
