"""The same request sent again, with an Idempotency-Key."""

import threading
from typing import Any

import httpx

from billing.models import IdempotentRequest, UsageRecord
from tests.door import Door, eventually
from tests.factories import Tenant
from tests.fake_backend import STREAM_HEAD, Hang, Reset, Send, Wait, answer, delta, stream


def ask(door: Door, tenant: Tenant, key: str, **body: Any) -> httpx.Response:
    request = {"model": door.model.name, "messages": [{"role": "user", "content": "hi"}], **body}
    headers = {**tenant.headers, "idempotency-key": key}
    return door.client.post(f"{door.url}/v1/chat/completions", json=request, headers=headers)


def test_the_same_request_gets_the_same_answer_and_costs_once(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("one"))

    first, second = ask(door, alice, "k"), ask(door, alice, "k")

    assert first.content == second.content
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-original-request-id"] == first.headers["x-request-id"]
    assert len(door.backend.asked) == 1
    assert UsageRecord.objects.filter(key=alice.key).count() == 1


def test_a_stream_is_replayed_to_its_last_byte(door: Door, alice: Tenant) -> None:
    door.backend.script(stream("one", " two"))
    body = {"stream": True, "stream_options": {"include_usage": True}}

    first, second = ask(door, alice, "k", **body), ask(door, alice, "k", **body)

    assert first.text == second.text
    assert second.text.endswith("data: [DONE]\n\n")
    assert second.headers["content-type"] == "text/event-stream"


def test_a_kept_answer_cannot_be_read_in_the_database(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("a very secret answer"))
    ask(door, alice, "k")

    kept = IdempotentRequest.objects.get(key=alice.key).answer

    assert kept is not None
    assert b"secret" not in bytes(kept)


def test_another_body_with_the_same_key_is_a_conflict(door: Door, alice: Tenant) -> None:
    door.backend.script(answer("one"))
    ask(door, alice, "k")

    response = ask(door, alice, "k", temperature=1)

    assert response.status_code == 409
    assert response.json()["error"]["code"] == "idempotency_key_reused"
    assert len(door.backend.asked) == 1


def test_while_the_first_runs_the_second_is_told_to_wait(door: Door, alice: Tenant) -> None:
    door.backend.script([Wait(1), *answer("one")])
    first = threading.Thread(target=ask, args=(door, alice, "k"))
    first.start()
    eventually(lambda: door.backend.asked)

    response = ask(door, alice, "k")
    first.join()

    assert (response.status_code, response.headers["retry-after"]) == (409, "1")
    assert response.json()["error"]["code"] == "idempotency_in_progress"
    assert ask(door, alice, "k").headers["idempotent-replayed"] == "true"


def test_after_a_failure_the_request_runs_anew(door: Door, alice: Tenant) -> None:
    door.backend.script([Reset()])
    assert ask(door, alice, "k").status_code == 502

    door.backend.script(answer("one"))

    assert ask(door, alice, "k").status_code == 200
    assert len(door.backend.asked) == 1


def test_an_answer_that_broke_off_is_not_kept(door: Door, alice: Tenant) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one")), Reset()])
    assert "upstream_stream_interrupted" in ask(door, alice, "k", stream=True).text

    door.backend.script(stream("one"))

    assert "[DONE]" in ask(door, alice, "k", stream=True).text


def test_keys_of_others_do_not_meet(door: Door, alice: Tenant, charlie: Tenant) -> None:
    door.backend.script(answer("one"))
    ask(door, alice, "k")

    response = ask(door, charlie, "k")

    assert "idempotent-replayed" not in response.headers
    assert len(door.backend.asked) == 2


def test_a_key_that_cannot_be_one_is_refused(door: Door, alice: Tenant) -> None:
    door.backend.script([Hang()])

    for key in ("x" * 256, "with space", ""):
        response = ask(door, alice, key)
        assert (response.status_code, response.json()["error"]["code"]) == (
            400,
            "invalid_idempotency_key",
        )
    assert not door.backend.asked
