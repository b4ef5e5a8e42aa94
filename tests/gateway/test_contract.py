"""The contract as anyone may check it with plain HTTP: shapes, paths, methods, headers."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from gateway.api.answers import error_answer, translate
from tests.door import Door
from tests.factories import Tenant
from tests.fake_backend import (
    DONE,
    STREAM_HEAD,
    USAGE,
    Send,
    Step,
    Wait,
    answer,
    delta,
    event,
    head,
    stream,
    usage_event,
)
from tests.gateway.refusals import Refusal, refusal

PREFIXES = ("/v1", "/api/models")
HI = [{"role": "user", "content": "hi"}]

# The seed's example answer, as it stands there.
SEED_ANSWER: dict[str, Any] = {
    "choices": [
        {
            "finish_reason": "stop",
            "index": 0,
            "logprobs": None,
            "message": {
                "content": "這張圖片顯示的是一排大型的電腦機櫃,機櫃上標有“TAIWANIA 2”的標誌。",
                "role": "assistant",
                "tool_calls": None,
            },
        }
    ],
    "created": 1736486977,
    "id": "chatcmpl-DqJjZMAJ4tLkZwirzyz3DVtD",
    "model": "llama3.2-ffm-11b-v-32k-chat",
    "object": "chat.completion",
    "system_fingerprint": None,
    "usage": {
        "completion_tokens": 52,
        "completion_tokens_details": None,
        "prompt_tokens": 6424,
        "prompt_tokens_details": None,
        "total_tokens": 6476,
    },
}
SEED_BYTES = [Send(head()), Send(json.dumps(SEED_ANSWER).encode())]


@pytest.fixture(params=PREFIXES)
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def post(
    door: Door, tenant: Tenant, prefix: str = "/v1", model: str = "", **body: Any
) -> httpx.Response:
    request = {"model": model or door.model.name, "messages": HI, **body}
    url = f"{door.url}{prefix}/chat/completions"
    return door.client.post(url, json=request, headers=tenant.headers)


# ---------------------------------------------------------------- shapes


def assert_same_shape(given: Any, expected: Any, at: str = "$") -> None:
    """Fail unless both have the same keys and types at every level. What is null in the seed is not looked into."""
    if expected is None:
        return
    assert type(given) is type(expected), at
    if isinstance(expected, dict):
        assert set(given) == set(expected), at
        for name, value in expected.items():
            assert_same_shape(given[name], value, f"{at}.{name}")
    if isinstance(expected, list):
        assert given, at
        for each in given:
            assert_same_shape(each, expected[0], f"{at}[]")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(SEED_BYTES, id="the seed's own answer"),
        pytest.param(answer("one"), id="a terse answer"),
        pytest.param(answer("one", usage=None), id="no usage"),
    ],
)
def test_an_answer_has_the_seeds_shape(
    door: Door, alice: Tenant, prefix: str, script: list[Step]
) -> None:
    door.backend.script(script)

    response = post(door, alice, prefix)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert_same_shape(response.json(), SEED_ANSWER)


def test_what_the_backend_answers_is_not_rewritten(door: Door, alice: Tenant) -> None:
    door.backend.script(SEED_BYTES)

    given = post(door, alice).json()

    ours = {"model", "usage"}
    assert {name: given[name] for name in given if name not in ours} == {
        name: SEED_ANSWER[name] for name in SEED_ANSWER if name not in ours
    }
    assert given["usage"]["completion_tokens"] == 52


def test_the_usage_adds_up_and_tells_the_kinds_apart(door: Door, alice: Tenant) -> None:
    door.backend.script(answer())

    usage = post(door, alice).json()["usage"]

    details = usage["prompt_tokens_details"]
    assert set(details) == {"image_tokens", "text_tokens", "cached_tokens"}
    assert details["image_tokens"] + details["text_tokens"] == usage["prompt_tokens"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]


def events_of(response: httpx.Response) -> Iterator[Any]:
    """Yield the stream's data; fails at anything that is no event, comment or empty line."""
    for line in response.text.split("\n"):
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
        else:
            assert not line or line.startswith(":"), line


def test_a_stream_is_chunks_and_then_done(door: Door, alice: Tenant, prefix: str) -> None:
    door.backend.script(stream("one", " two"))

    response = post(door, alice, prefix, stream=True)
    *chunks, last = events_of(response)

    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert last == "[DONE]"
    for chunk in map(json.loads, chunks):
        assert {"id", "object", "created", "model", "choices"} <= set(chunk)
        assert chunk["object"] == "chat.completion.chunk"
        assert {"index", "delta", "finish_reason"} <= set(chunk["choices"][0])
        assert chunk.get("usage") is None


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
def test_no_usage_chunk_comes_unasked(door: Door, alice: Tenant, options: Any) -> None:
    """Some clients index choices[0] of every chunk."""
    door.backend.script(stream("one"))

    *chunks, _ = events_of(post(door, alice, stream=True, stream_options=options))

    assert all(json.loads(chunk)["choices"] for chunk in chunks)


@pytest.mark.parametrize("usage", [USAGE, None], ids=["reported", "counted"])
def test_the_usage_chunk_comes_last_if_it_is_asked_for(
    door: Door, alice: Tenant, prefix: str, usage: Any
) -> None:
    door.backend.script(stream("one", " two", " three", usage=usage))

    response = post(door, alice, prefix, stream=True, stream_options={"include_usage": True})
    first, *_, last, done = events_of(response)

    chunk = json.loads(last)
    assert (chunk["choices"], done) == ([], "[DONE]")
    assert_same_shape(chunk["usage"], SEED_ANSWER["usage"])
    record = door.record(response.headers["x-request-id"])
    assert chunk["usage"]["completion_tokens"] == record.tokens_out >= 3
    assert {name: chunk[name] for name in ("id", "created", "model")} == {
        name: json.loads(first)[name] for name in ("id", "created", "model")
    }


def test_what_keeps_a_silent_stream_alive_is_a_comment(door: Door, alice: Tenant) -> None:
    door.backend.script([STREAM_HEAD, Wait(1.2), *stream("late")[1:]])

    response = post(door, alice, stream=True)

    assert "\n: waiting\n" in f"\n{response.text}"
    assert len(list(events_of(response))) == 3


def test_a_backends_comments_do_not_pass(door: Door, alice: Tenant) -> None:
    door.backend.script([STREAM_HEAD, Send(b": secret\n\n"), *stream("one")[1:]])

    assert "secret" not in post(door, alice, stream=True).text


def test_a_stream_whose_lines_end_otherwise_reads_the_same(door: Door, alice: Tenant) -> None:
    lines = delta("one") + event(choices=[], usage=USAGE)
    door.backend.script([STREAM_HEAD, Send(lines.replace(b"\n", b"\r\n")), usage_event(), DONE])

    first, last = events_of(post(door, alice, stream=True))

    assert (json.loads(first)["choices"][0]["delta"]["content"], last) == ("one", "[DONE]")


def test_models_have_openais_shape(door: Door, alice: Tenant, prefix: str) -> None:
    listed = door.get(alice, f"{prefix}/models").json()
    one = door.get(alice, f"{prefix}/models/{door.model.name}").json()

    assert (set(listed), listed["object"]) == ({"object", "data"}, "list")
    assert one in listed["data"]
    assert (one["id"], one["object"]) == (door.model.name, "model")
    assert isinstance(one["created"], int)
    assert isinstance(one["owned_by"], str)


# ---------------------------------------------------------------- paths, methods, headers


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//chat/completions",
        "/chat/completions/",
        "/chat/completions/x",
        "/chat",
        "/completions",
        "/embeddings",
        "/responses",
        "/proxy/x",
        "/models/",
        "/%2e%2e",
        "/%00",
        "/x" * 2000,
    ],
    ids=lambda path: path[:24] or "the prefix itself",
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_is_nothing_is_not_found(
    door: Door, alice: Tenant, prefix: str, path: str, method: str
) -> None:
    response = door.client.request(method, f"{door.url}{prefix}{path}", headers=alice.headers)

    assert refusal(response) == Refusal(404, "unknown_url")
    assert door.backend.asked == []


METHODS = ["PUT", "PATCH", "DELETE", "TRACE", "BREW", "OPTIONS", "DISPATCH", "PRINCIPAL"]


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/models/any"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_none_is_refused(
    door: Door, alice: Tenant, prefix: str, method: str, path: str
) -> None:
    response = door.client.request(method, f"{door.url}{prefix}{path}", headers=alice.headers)

    assert refusal(response) == Refusal(405, "method_not_allowed")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/chat/completions"), ("POST", "/models"), ("POST", "/models/any")]
)
def test_another_paths_method_is_refused(
    door: Door, alice: Tenant, prefix: str, method: str, path: str
) -> None:
    response = door.client.request(method, f"{door.url}{prefix}{path}", headers=alice.headers)

    assert refusal(response) == Refusal(405, "method_not_allowed")


def test_a_failure_of_ours_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    answer = error_answer(translate(RuntimeError("a secret of the inside")))

    error = json.loads(answer.content)["error"]
    assert (answer.status_code, error["type"], error["code"]) == (
        500,
        "server_error",
        "internal_error",
    )
    assert "secret" not in error["message"]
    assert "a secret of the inside" in caplog.text  # the operator is told


def test_every_answer_has_an_id_of_its_own(door: Door, alice: Tenant, prefix: str) -> None:
    door.backend.script(answer())
    mine = "01890000-0000-7000-8000-000000000000"
    headers = {**alice.headers, "x-request-id": mine}

    ids = [
        door.client.request(method, f"{door.url}{path}", headers=headers).headers["x-request-id"]
        for method, path in [
            ("GET", f"{prefix}/models"),
            ("GET", f"{prefix}/models/none"),
            ("GET", f"{prefix}/nothing"),
            ("PUT", f"{prefix}/models"),
            ("POST", f"{prefix}/chat/completions"),
            ("GET", "/healthz"),
        ]
    ]
    ids.append(post(door, alice, prefix).headers["x-request-id"])
    ids.append(door.client.get(f"{door.url}{prefix}/models").headers["x-request-id"])

    assert len(set(ids)) == len(ids)
    assert mine not in ids
    assert all(UUID(each).version == 7 for each in ids)


def test_nothing_that_the_client_sends_beside_the_body_reaches_the_backend(
    door: Door, alice: Tenant
) -> None:
    door.backend.script(answer())
    sent = {"x-title": "t", "cookie": "c=1", "x-internal-admin": "1", "openai-organization": "o"}

    response = door.client.post(
        f"{door.url}/v1/chat/completions?debug=1",
        json={"model": door.model.name, "messages": HI},
        headers={**alice.headers, **sent, "host": "evil.example"},
    )

    assert response.status_code == 200
    asked = door.backend.asked[0].headers
    assert not set(sent) & set(asked)
    assert "evil" not in asked["host"]
