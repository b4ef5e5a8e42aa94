"""A backend that lies: what the client sees and pays is what docs/lying-upstreams.md says, case by case."""

import gzip
import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from billing.models import UsageRecord
from gateway.models import Model
from tests import factories
from tests.door import ROOT, Door
from tests.factories import Tenant
from tests.fake_backend import (
    DONE,
    STREAM_HEAD,
    UPSTREAM_NAME,
    FakeBackend,
    Hang,
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

TABLE = (ROOT / "docs" / "lying-upstreams.md").read_text()
MAX_TOKENS = 8
PROMPT_TOKENS = 36
TEXT = ("one", " two", " three")
TRICKLE: list[Step] = [Wait(0.25), Send(b": still here\n\n")] * 40
BEGUN: list[Step] = [STREAM_HEAD, *(Send(delta(word)) for word in TEXT)]
LONG = " a" * 50
ERROR = {"error": {"message": "out of memory", "type": "server_error"}}


def out(tokens: object, **fields: Any) -> dict[str, Any]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, **fields}


def cached(tokens: int) -> dict[str, Any]:
    return out(3, prompt_tokens_details={"cached_tokens": tokens})


CASES: dict[str, list[Step]] = {
    "usage above max_tokens": answer(usage=out(9000)),
    "usage above max_tokens, streamed": stream(*TEXT, usage=out(9000)),
    "usage negative": answer(usage=out(-5)),
    "usage a float": answer(usage=out(3.7)),
    "usage a text": answer(usage=out("3")),
    "usage beyond 64 bits": answer(usage=out(2**70)),
    "usage no object": answer(usage=[3]),
    "usage missing": answer(usage=None),
    "usage missing, streamed": stream(*TEXT, usage=None),
    "usage far below what was sent": answer(LONG, usage=out(1)),
    "prompt tokens absurd": answer(usage=out(3, prompt_tokens=10**9)),
    "more cached tokens than the prompt has": answer(usage=cached(10**6)),
    "a negative number of cached tokens": answer(usage=cached(-36)),
    "a stream that runs past max_tokens": stream(*[" a"] * 50, usage=out(50)),
    "a stream that never ends": [STREAM_HEAD, *[Send(delta(" a"))] * 50, Hang()],
    "a whole answer longer than max_tokens": answer(LONG, usage=out(50)),
    "no [DONE] after the end": [*BEGUN, Send(delta("", "stop")), usage_event(out(3))],
    "neither an end nor [DONE]": BEGUN,
    "silence before the answer": [Hang()],
    "silence within the answer": [*BEGUN, Hang()],
    "a trickle without content": [*BEGUN, *TRICKLE],
    "another content type": [Send(head(content_type="text/html")), Send(b"<h1>Welcome</h1>")],
    "another content type, streamed": answer(),
    "gzip that nobody asked for": [
        Send(head(content_encoding="gzip")),
        Send(gzip.compress(b'{"choices": []}')),
    ],
    "gzip that nobody asked for, streamed": [
        Send(head(content_type="text/event-stream", content_encoding="gzip")),
        Send(gzip.compress(delta("one", "stop") + DONE.data)),
    ],
    "a redirect": [Send(head(307, location="/elsewhere")), Send(b"")],
    "an endless line": [*BEGUN, Send(b"data: " + b"x" * 2**21)],
    "an error in a 200": [Send(head()), Send(json.dumps(ERROR).encode())],
    "an error in a 200, streamed": [*BEGUN, Send(event(**ERROR))],
    "a body shorter than announced": [Send(head(content_length="1000")), Send(b'{"choices": [')],
}


@dataclass(frozen=True)
class Promise:
    """A row of the table."""

    case: str
    answer: str
    seen: str
    recorded: str
    cached: str
    output: str
    by: str
    paid: str
    borne: str


PROMISES = [
    Promise(*(cell.strip() for cell in line.strip("|").split("|")))
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| case ")
]


@pytest.fixture(scope="module")
def liar(django_db_setup: None, django_db_blocker: Any, fake_backend: FakeBackend) -> Model:
    """A model whose backend has little time."""
    with django_db_blocker.unblock():
        backend = factories.backend(
            fake_backend.url,
            connect_timeout_s=1,
            first_byte_timeout_s=2,
            chunk_timeout_s=2,
            total_timeout_s=4,
        )
        return factories.model(backend, backend_model=UPSTREAM_NAME)


def test_every_case_of_the_table_is_played() -> None:
    assert [promise.case for promise in PROMISES] == list(CASES)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.case)
def test_a_lie_costs_what_the_table_says(
    door: Door, alice: Tenant, liar: Model, promise: Promise
) -> None:
    door.wait_for_model(alice, liar.name)
    door.backend.script(CASES[promise.case])

    response = door.chat(
        alice, model=liar.name, max_tokens=MAX_TOKENS, stream=promise.answer == "streamed"
    )

    assert seen(response) == promise.seen
    assert len(door.backend.asked) == 1
    request_id = response.headers["x-request-id"]
    if promise.recorded == "nothing":
        assert promise.paid == "nothing"
        assert door.is_unbooked(request_id)
    else:
        check(door.record(request_id), promise)


def seen(response: httpx.Response) -> str:
    """Say what the client saw, in the table's words."""
    if response.headers["content-type"] != "text/event-stream":
        code = response.json().get("error", {}).get("code", "")
        return f"{response.status_code} {code}".strip()
    last = response.text.strip().split("\n\n")[-1].removeprefix("data: ")
    return last if last == "[DONE]" else str(json.loads(last)["error"]["code"])


def check(record: UsageRecord, promise: Promise) -> None:
    assert (record.status, record.usage_source) == (promise.recorded, promise.by)
    assert (record.tokens_in_cached, record.tokens_out) == (
        int(promise.cached),
        int(promise.output),
    )
    assert record.tokens_in_text + record.tokens_in_cached == PROMPT_TOKENS
    cost = record.tokens_in_text * 10 + record.tokens_in_cached * 5 + record.tokens_out * 30
    assert record.amount_pico == {"prompt and output": cost * 10**6, "nothing": 0}[promise.paid]
    assert 0 <= record.amount_pico <= record.held_pico


def test_a_stream_that_is_cut_ends_as_one_that_reached_its_length(
    door: Door, alice: Tenant
) -> None:
    door.backend.script([STREAM_HEAD, *[Send(delta(" a"))] * 50, Hang()])

    text = door.chat(alice, max_tokens=MAX_TOKENS, stream=True).text

    events = [json.loads(each) for each in text.split("data: ")[1:-1]]
    contents = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert len("".join(contents)) <= len(" a") * MAX_TOKENS
    assert [event["choices"][0]["finish_reason"] for event in events][-1] == "length"
    assert door.backend.asked[0].closed_early.wait(1)
