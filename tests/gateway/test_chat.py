"""A chat completion through the running door, over real sockets."""

import base64
import io

import pytest
from PIL import Image

from billing.models import Hold, UsageRecord
from tests.door import Door
from tests.factories import Tenant
from tests.fake_backend import answer, status


def data_url(width: int, height: int, form: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def about(question: str, *urls: str) -> list[dict[str, object]]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


SEED = about("這張圖裡面有什麼?", data_url(1120, 1120))


def test_the_seeds_example_is_counted_to_the_token(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("一"))

    response = door.chat(alice, messages=SEED, temperature=0.1, max_tokens=3600, top_p=0.5)

    assert response.status_code == 200
    assert response.json()["usage"] == {
        "completion_tokens": 3,
        "completion_tokens_details": None,
        "prompt_tokens": 6424,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 6404, "text_tokens": 20},
        "total_tokens": 6427,
    }


def test_a_terse_answer_is_given_the_seeds_shape(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("one"))

    body = door.chat(alice).json()

    assert body["model"] == door.model.name
    assert body["system_fingerprint"] is None
    assert body["object"] == "chat.completion"
    assert body["choices"][0] == {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": None,
        "message": {"role": "assistant", "content": "one", "tool_calls": None},
    }


def test_the_usage_record_says_what_was_used_and_what_it_costs(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("一"))

    response = door.chat(alice, messages=SEED, max_tokens=100)
    record = door.record(response.headers["x-request-id"])

    assert (record.organization_id, record.team_id, record.key_id) == (
        alice.organization.pk,
        alice.team.pk,
        alice.key.pk,
    )
    assert (record.tokens_in_text, record.tokens_in_image, record.tokens_out) == (20, 6404, 3)
    assert record.amount_pico == 20 * 10_000_000 + 6404 * 12_000_000 + 3 * 30_000_000
    assert record.held_pico == 20 * 10_000_000 + 6404 * 12_000_000 + 100 * 30_000_000
    assert (record.upstream_prompt, record.upstream_out) == (6424, 3)
    assert (record.status, record.usage_source, record.streamed) == ("ok", "upstream", False)
    assert record.canvases == ["png 1120x1120 1120x1120"]
    assert record.first_byte_at is not None
    assert record.received_at <= record.first_byte_at <= record.finished_at


def test_the_record_is_there_when_the_answer_is(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("one"))

    request_id = door.chat(alice).headers["x-request-id"]

    assert UsageRecord.objects.filter(pk=request_id).exists()
    assert not Hold.objects.filter(pk=request_id).exists()


def test_the_backend_is_asked_under_its_own_name_with_a_limit_and_its_credential(
    door: Door, alice: Tenant
) -> None:
    door.backend.script(answer("one"))

    response = door.chat(alice, seed=7, top_k=40, stop=["x"])
    asked = door.backend.asked[0]

    assert asked.body["model"] == "upstream-vision"
    assert asked.body["max_tokens"] == 2048
    assert (asked.body["seed"], asked.body["top_k"], asked.body["stop"]) == (7, 40, ["x"])
    assert asked.headers["authorization"] == "bearer backend-credential"
    assert asked.headers["x-request-id"] == response.headers["x-request-id"]
    assert alice.secret not in str(asked.headers)


def test_a_backend_that_reports_nothing_is_counted(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("one two three", usage=None))

    response = door.chat(alice)
    record = door.record(response.headers["x-request-id"])

    assert response.json()["usage"]["completion_tokens"] == 4  # the end of turn is one, too
    assert (record.usage_source, record.counted_out, record.upstream_out) == ("counted", 4, None)


@pytest.mark.parametrize(
    "lie",
    [
        {"prompt_tokens": -5, "completion_tokens": -7},
        {"prompt_tokens": 1, "completion_tokens": 10**9},
        {"prompt_tokens": "1", "completion_tokens": 2.5},
        {"prompt_tokens": True, "completion_tokens": True},
        [],
    ],
)
def test_a_backend_that_lies_is_counted(door: Door, alice: Tenant, lie: object) -> None:
    door.backend.script(answer("one two three", usage=lie))

    record = door.record(door.chat(alice).headers["x-request-id"])

    assert (record.tokens_out, record.usage_source) == (4, "counted")


def test_cached_tokens_are_billed_at_their_price_and_once(door: Door, alice: Tenant) -> None:
    usage = {
        "prompt_tokens": 6424,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 30},
    }
    door.backend.script(answer("一", usage=usage))

    response = door.chat(alice, messages=SEED)
    record = door.record(response.headers["x-request-id"])

    assert response.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 30
    assert (record.tokens_in_cached, record.tokens_in_text, record.tokens_in_image) == (30, 0, 6394)


@pytest.mark.parametrize(
    ("backend_says", "client_sees", "code"),
    [
        (400, 400, "backend_refused"),
        (401, 502, "backend_failed"),
        (404, 502, "backend_failed"),
        (500, 502, "backend_failed"),
        (503, 503, "backend_busy"),
        (429, 429, "upstream_rate_limited"),
    ],
)
def test_a_refusal_of_the_backend_costs_nothing(
    door: Door, alice: Tenant, backend_says: int, client_sees: int, code: str
) -> None:
    door.backend.script(status(backend_says))

    response = door.chat(alice)

    assert (response.status_code, response.json()["error"]["code"]) == (client_sees, code)
    assert door.is_unbooked(response.headers["x-request-id"])


def test_images_of_every_turn_are_counted(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("ok"))
    turns = [
        *about("first", data_url(560, 560), data_url(200, 280)),
        {"role": "assistant", "content": "a square"},
        *about("second", data_url(570, 1180, "JPEG")),
    ]

    response = door.chat(alice, messages=turns)

    assert response.json()["usage"]["prompt_tokens_details"]["image_tokens"] == (1 + 1 + 3) * 1601
    assert door.record(response.headers["x-request-id"]).canvases == [
        "png 560x560 560x560",
        "png 200x280 560x560",
        "jpeg 570x1180 560x1680",
    ]
