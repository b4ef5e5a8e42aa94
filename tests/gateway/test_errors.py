"""Everything that can be wrong with a request, and the answer to it. None of it is booked, none reaches a backend.

The cases are those of OpenAI's own API, of clients that are broken, and of people who try the door.
"""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.models import Model
from tests import factories
from tests.door import Door
from tests.factories import Tenant
from tests.fake_backend import UPSTREAM_NAME
from tests.gateway.refusals import Refusal, refusal
from tests.pictures import data_url, question

HI: dict[str, Any] = {"role": "user", "content": "hi"}
MIB = 2**20
JSON = {"content-type": "application/json"}


@pytest.fixture
def send(door: Door, alice: Tenant) -> Iterator[Callable[..., httpx.Response]]:
    """Send a chat request as raw as need be; afterwards, nothing may have come of it."""
    answers: list[httpx.Response] = []

    def send(body: Any, headers: Any = None, path: str = "/v1/chat/completions") -> httpx.Response:
        sent = alice.headers | JSON if headers is None else headers
        answers.append(door.client.post(f"{door.url}{path}", content=body, headers=sent))
        return answers[-1]

    yield send

    assert answers
    assert door.backend.asked == []
    for answer in answers:
        assert door.is_unbooked(answer.headers["x-request-id"])
        assert alice.secret not in answer.text


Send = Callable[..., httpx.Response]


@pytest.fixture
def chat(door: Door, send: Send) -> Callable[..., Refusal]:
    """Send a chat request with these parameters and return the refusal."""

    def chat(**parameters: Any) -> Refusal:
        request = {"model": door.model.name, "messages": [HI], **parameters}
        return refusal(send(json.dumps(request)))

    return chat


Chat = Callable[..., Refusal]


def invalid(param: str | None, code: str = "invalid_value") -> Refusal:
    return Refusal(400, code, param)


# ---------------------------------------------------------------- who calls


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"x-api-key": "tsr_x"}, id="another header"),
    ],
)
def test_a_request_without_a_key_is_refused(send: Send, headers: dict[str, str]) -> None:
    assert refusal(send(b"{}", JSON | headers)) == Refusal(401, "missing_api_key")


def test_a_key_in_the_address_is_no_key(send: Send, alice: Tenant) -> None:
    response = send(b"{}", JSON, f"/v1/chat/completions?api_key={alice.secret}")

    assert refusal(response) == Refusal(401, "missing_api_key")


@pytest.mark.parametrize(
    "value",
    [
        b"Basic dXNlcjpwYXNzd29yZA==",
        b"Bearer",
        b"",
        b"tsr_without_a_scheme",
        b"Bearer sk-another-services-key",
        b"Bearer tsr_AbCd1234_tooshort",
        b"Bearer " + b"a" * 10_000,
        b"Bearer ' OR '1'='1",
        "Bearer 密鑰".encode(),
        b"Bearer \xff\xfe",
    ],
)
def test_what_is_no_key_is_refused(send: Send, value: bytes) -> None:
    response = send(b"{}", [(b"content-type", b"application/json"), (b"authorization", value)])

    assert refusal(response) == Refusal(401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("change", [str.swapcase, lambda key: key[:-1], lambda key: f"{key}0"])
def test_a_key_with_a_slip_is_refused(
    send: Send, alice: Tenant, change: Callable[[str], str]
) -> None:
    response = send(b"{}", JSON | {"authorization": f"Bearer {change(alice.secret)}"})

    assert refusal(response) == Refusal(401, "invalid_api_key")


def test_two_keys_are_no_key(send: Send, alice: Tenant, bob: Tenant) -> None:
    headers = [*JSON.items(), *alice.headers.items(), *bob.headers.items()]

    assert refusal(send(b"{}", headers)) == Refusal(401, "invalid_api_key")


def test_the_key_is_looked_at_before_the_body(send: Send) -> None:
    response = send(b"x" * 100, {"content-type": "text/plain", "authorization": "Bearer x"})

    assert response.status_code == 401


# ---------------------------------------------------------------- what is sent


def body_with(raw: bytes) -> bytes:
    """Return a body that is sound but for these bytes, its last member."""
    return b'{"model": "any", "messages": [{"role": "user", "content": "hi"}], ' + raw + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b'{"model": "any", "messages": [',
        body_with(b'"user": "me"') + b" and more",
        body_with(b'"temperature": NaN'),
        body_with(b'"temperature": Infinity'),
        body_with(b'"temperature": 01'),
        body_with(b'"user": "me",'),
        json.dumps({"model": "any"}).encode("utf-16"),
        b"\xef\xbb\xbf" + body_with(b'"user": "me"'),
        body_with(b'"user": "\xff"'),
        body_with(b'"metadata": {"a": ["\xff"]}'),
        body_with(b'"tools": [{"type": "\xff"}]'),
        body_with(b'"\xff": 1'),
        body_with(b'"user": "\\ud800"'),
        b'{"model": "any", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "any", "messages": [{"role": "user", "content": "hi", "name": "\xff"}]}',
        b'{"model": "any", "messages": [{"role": "user", "content": [{"type": "text", "text": "\xff"}]}]}',
        b'{"model": "any", "messages": [{"role": "user", "content": "\\ud800"}]}',
        body_with(b'"metadata": ' + b"[" * 100_000),
        body_with(b'"metadata": ' + b"[" * 100_000 + b"]" * 100_000),
    ],
)
def test_what_is_not_json_is_refused(send: Send, body: bytes) -> None:
    assert refusal(send(body)) == invalid(None, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"7", b"true", b"[" * 100_000])
def test_json_that_is_no_object_is_refused(send: Send, body: bytes) -> None:
    assert refusal(send(body)) == invalid(None, "invalid_type")


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/vnd.api+json",
    ],
)
def test_another_media_type_is_refused(send: Send, alice: Tenant, content_type: str | None) -> None:
    declared = {} if content_type is None else {"content-type": content_type}

    response = send(body_with(b'"user": "me"'), alice.headers | declared)

    assert refusal(response) == Refusal(415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_refused_unread(send: Send, alice: Tenant, encoding: str) -> None:
    response = send(b"\x1f\x8b", alice.headers | JSON | {"content-encoding": encoding})

    assert refusal(response) == Refusal(415, "unsupported_content_encoding")


def test_a_body_that_is_too_large_is_refused(send: Send) -> None:
    response = send(body_with(b'"user": "' + b"a" * 32 * MIB + b'"'))

    assert refusal(response) == Refusal(413, "request_too_large")
    assert "33554432 bytes" in response.json()["error"]["message"]


def test_a_body_that_is_too_large_and_does_not_say_so_is_refused(send: Send) -> None:
    response = send(b"a" * MIB for _ in range(34))

    assert refusal(response) == Refusal(413, "request_too_large")


class Trickle:
    """A client that begins a request and takes its time."""

    def __init__(self, door: Door, tenant: Tenant, *, announces: int) -> None:
        host, port = urlsplit(door.url).netloc.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        self.send(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
            f"content-type: application/json\r\nauthorization: Bearer {tenant.secret}\r\n"
            f"content-length: {announces}\r\n\r\n".encode()
        )

    def __enter__(self) -> "Trickle":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> tuple[int, Any]:
        """Return the status and the error's code."""
        answer = HTTPResponse(self._socket)
        answer.begin()
        return answer.status, json.loads(answer.read())["error"]["code"]

    def is_hung_up(self, within_s: float = 5) -> bool:
        """Return whether the door closes the connection."""
        self._socket.settimeout(within_s)
        try:
            return self._socket.recv(1) == b""
        except TimeoutError:
            return False


def test_a_body_that_is_announced_as_too_large_is_refused_before_it_comes(
    door: Door, alice: Tenant
) -> None:
    with Trickle(door, alice, announces=33 * MIB) as client:
        assert client.answer() == (413, "request_too_large")


def test_a_body_that_does_not_arrive_is_given_up(door: Door, alice: Tenant) -> None:
    """The door of the tests waits for two seconds."""
    with Trickle(door, alice, announces=100) as client:
        client.send(b"{")
        assert client.answer() == (408, "request_timeout")

    assert door.backend.asked == []


# TODO for gateway/api/requests.py: `close_watch` must let go of `_receive`. View and request form a cycle, so
# that the server's side of the body, and with it the connection, lives on until a garbage collection.
def test_clients_that_were_given_up_hold_no_connections(door: Door, alice: Tenant) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Trickle(door, alice, announces=100)) for _ in range(12)]
        for client in clients:
            client.send(b"{")
        assert {client.answer() for client in clients} == {(408, "request_timeout")}

        assert all(client.is_hung_up() for client in clients)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("value", [None, ""])
def test_a_request_names_a_model(chat: Chat, value: Any) -> None:
    assert chat(model=value) == invalid("model", "missing_required_parameter")


@pytest.mark.parametrize("name", ["gpt-4o", "../../etc/passwd", "模型", "a\0b", "x" * MIB])
def test_an_unknown_model_is_not_found(chat: Chat, name: str) -> None:
    assert chat(model=name) == Refusal(404, "model_not_found", "model")


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(None, id="none"),
        pytest.param([], id="empty"),
        pytest.param([HI] * 1025, id="too many"),
    ],
)
def test_a_request_holds_some_messages(chat: Chat, messages: Any) -> None:
    assert chat(messages=messages) == invalid("messages")


WRONG_TYPES: dict[str, list[Any]] = {
    "model": [7, True, [], {}],
    "messages": [7, "hi", {}, [7], ["hi"], [None]],
    "stream": ["yes", 1, []],
    "n": [1.5, "2", True],
    "max_tokens": [1.5, "7", True],
    "max_completion_tokens": [1.5, "7"],
    "temperature": ["hot", True, []],
    "top_p": ["x"],
    "seed": ["x", 1.5],
    "stop": [7, [7], {}],
    "logit_bias": ["x", []],
    "tools": ["x", {}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_TYPES.items() for value in values]
)
def test_a_parameter_of_the_wrong_type_is_named(chat: Chat, name: str, value: Any) -> None:
    assert chat(**{name: value}) == invalid(name, "invalid_type")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("n", 0, "integer_below_min_value"),
        ("n", -1, "integer_below_min_value"),
        ("n", 129, "integer_above_max_value"),
        ("n", 18446744073686646784, "integer_above_max_value"),
        ("max_tokens", 0, "integer_below_min_value"),
        ("max_tokens", -1, "integer_below_min_value"),
        ("max_tokens", 8193, "integer_above_max_value"),
        ("max_tokens", 10**9, "integer_above_max_value"),
        ("max_tokens", 2**63, "integer_above_max_value"),
        ("max_completion_tokens", 0, "integer_below_min_value"),
        ("max_completion_tokens", 2**63, "integer_above_max_value"),
        ("seed", 2**63, "integer_above_max_value"),
        ("temperature", 9, "decimal_above_max_value"),
        ("temperature", -0.1, "decimal_below_min_value"),
        ("top_p", -1, "decimal_below_min_value"),
        ("presence_penalty", 5, "decimal_above_max_value"),
        ("frequency_penalty", -5, "decimal_below_min_value"),
        ("stop", ["a"] * 5, "invalid_value"),
        ("stop", "a" * 10_000, "invalid_value"),
        ("logit_bias", {str(token): 1 for token in range(2000)}, "invalid_value"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_parameter_out_of_its_range_is_named(
    chat: Chat, name: str, value: Any, code: str
) -> None:
    assert chat(**{name: value}) == invalid(name, code)


@pytest.mark.parametrize(
    ("number", "code"), [("1e999", "invalid_type"), ("9" * 5000, "invalid_type")]
)
def test_a_number_beyond_all_numbers_is_refused(send: Send, number: str, code: str) -> None:
    for name in ("temperature", "max_tokens", "n", "seed"):
        body = body_with(f'"{name}": {number}'.encode())
        assert refusal(send(body)) == invalid(name, code)


def test_max_tokens_is_given_once(chat: Chat) -> None:
    assert chat(max_tokens=5, max_completion_tokens=5) == invalid("max_tokens")


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": "x"}, "stream_options", "invalid_type"),
        (
            {"stream": True, "stream_options": {"include_usage": "x"}},
            "include_usage",
            "invalid_type",
        ),
    ],
)
def test_stream_options_are_checked(
    chat: Chat, parameters: dict[str, Any], param: str, code: str
) -> None:
    assert chat(**parameters) == invalid(param, code)


@pytest.mark.parametrize(
    "name",
    ["extra_body", "api_base", "api_key", "base_url", "user_config", "chat_template", "x" * 99],
)
def test_an_unknown_parameter_is_refused(chat: Chat, name: str) -> None:
    """Above all one that would send the request elsewhere, or rewrite the prompt after it was counted."""
    assert chat(**{name: "x"}) == invalid(name, "unknown_parameter")


def test_tools_that_are_too_large_are_refused(chat: Chat) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 5_000_000}}

    assert chat(tools=[tool]) == invalid("messages", "context_length_exceeded")


# ---------------------------------------------------------------- messages


PART = "messages[0].content[0]"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"content": "hi"}, "messages[0].role", "invalid_value"),
        ({"role": "wizard", "content": "hi"}, "messages[0].role", "invalid_value"),
        ({"role": 7, "content": "hi"}, "messages[0].role", "invalid_type"),
        ({"role": "tool", "content": "hi"}, "messages[0].role", "invalid_value"),
        ({"role": "user"}, "messages[0].content", "invalid_type"),
        ({"role": "assistant", "content": None}, "messages[0].content", "invalid_type"),
        (user(None), "messages[0].content", "invalid_type"),
        (user(7), "messages[0].content", "invalid_type"),
        (user({}), "messages[0].content", "invalid_type"),
        (user(["hi"]), "messages[0].content", "invalid_type"),
        (user([]), "messages[0].content", "invalid_value"),
        (user([{}]), f"{PART}.type", "invalid_value"),
        (user([{"type": 7}]), f"{PART}.type", "invalid_type"),
        (user([{"type": "video_url"}]), f"{PART}.type", "invalid_value"),
        (user([{"type": "text"}]), f"{PART}.text", "missing_required_parameter"),
        (user([{"type": "text", "text": 7}]), f"{PART}.text", "invalid_type"),
        (user([{"type": "image_url"}]), f"{PART}.image_url", "invalid_type"),
        (user([{"type": "image_url", "image_url": {}}]), f"{PART}.image_url", "invalid_type"),
    ],
    ids=str,
)
def test_a_message_that_is_none_is_named(
    chat: Chat, message: dict[str, Any], param: str, code: str
) -> None:
    assert chat(messages=[message]) == invalid(param, code)


def test_the_message_that_is_wrong_is_the_one_that_is_named(chat: Chat) -> None:
    assert chat(messages=[HI, HI, {"role": "user"}]).param == "messages[2].content"


def test_a_prompt_longer_than_the_context_is_refused(chat: Chat) -> None:
    assert chat(messages=[user("word " * 40_000)]) == invalid("messages", "context_length_exceeded")


def test_a_prompt_that_leaves_no_room_for_the_answer_is_refused(chat: Chat) -> None:
    refused = chat(messages=[user("word " * 30_000)], max_tokens=8000)

    assert refused == invalid("messages", "context_length_exceeded")


def test_images_fill_the_context_too(chat: Chat) -> None:
    images = question("?", *[data_url(1120, 1120)] * 6)

    assert chat(messages=[images]) == invalid("messages", "context_length_exceeded")


# ---------------------------------------------------------------- images


@pytest.fixture
def text_model(door: Door, alice: Tenant) -> Model:
    backend = door.model.routes.get().backend
    model = factories.model(backend, backend_model=UPSTREAM_NAME, images_max=0)
    door.wait_for_model(alice, model.name)
    return model


def test_a_model_that_reads_text_takes_no_image(chat: Chat, text_model: Model) -> None:
    refused = chat(model=text_model.name, messages=[question("?", data_url(9, 9))])

    assert refused == invalid(f"{PART}.image_url", "invalid_image_mode")


@pytest.mark.parametrize("count", [17, 33], ids=["for the model", "for any request"])
def test_too_many_images_are_refused(chat: Chat, count: int) -> None:
    refused = chat(messages=[question("?", *[data_url(9, 9)] * count)])

    assert (refused.status, refused.code) == (400, "too_many_images")
    assert refused.param is not None
    assert refused.param.startswith(f"messages[0].content[{count - 1}]")


PNG = data_url(200, 280)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64", "invalid_base64_image"),
        (PNG.replace(";base64", ""), "invalid_base64_image"),
        (PNG[:-1], "invalid_base64_image"),
        (PNG[:60] + "\n" + PNG[60:], "invalid_base64_image"),
        (PNG.replace("image/png", "image/svg+xml"), "unsupported_image_media_type"),
        ("data:image/png;base64,", "empty_image_file"),
        ("data:image/png;base64,JVBERi0xLjcKJcOkw7zDtsOf", "unsupported_image_media_type"),
        (PNG[: len("data:image/png;base64,") + 40], "image_parse_error"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("http://169.254.169.254/latest/meta-data/", "invalid_image_url"),
        ("http://[::ffff:10.0.0.1]/x.png", "invalid_image_url"),
        ("", "invalid_image_url"),
        ("http://127.0.0.1:9/x.png", "failed_to_download_image"),
    ],
    ids=lambda value: value[:48],
)
def test_an_image_that_is_none_is_refused_with_openais_code(
    chat: Chat, url: str, code: str
) -> None:
    refused = chat(messages=[HI, question("?", data_url(9, 9), url)])

    assert refused == invalid("messages[1].content[1].image_url", code)
