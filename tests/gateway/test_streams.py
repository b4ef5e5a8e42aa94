"""How streams end. Each ending settles the hold and closes the upstream, over real sockets."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import transaction

from billing.budgets import Budget, BudgetWindow
from billing.models import Hold, UsageRecord
from tests.door import Door, eventually
from tests.factories import Tenant
from tests.fake_backend import (
    DONE,
    STREAM_HEAD,
    USAGE,
    Hang,
    Reset,
    Send,
    Step,
    Wait,
    answer,
    delta,
    event,
    stream,
    usage_event,
)

# More than fits into the pipe, and not a token in it.
FLOOD: list[Step] = [Send(event(choices=[{"index": 0, "delta": {}}], padding="x" * 100_000))] * 300


class RawStream:
    """A client on a bare socket, which can leave or stop reading at any moment."""

    def __init__(self, door: Door, tenant: Tenant, **body: Any) -> None:
        host, port = urlsplit(door.url).netloc.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        payload = json.dumps(
            {
                "model": door.model.name,
                "messages": [{"role": "user", "content": "hi"}],
                "stream": True,
                **body,
            }
        ).encode()
        self.socket.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s"
            % (tenant.secret.encode(), len(payload), payload)
        )
        self.received = b""

    def read_until(self, mark: bytes) -> bytes:
        while mark not in self.received:
            data = self.socket.recv(65536)
            assert data, self.received
            self.received += data
        return self.received

    def read_all(self) -> bytes:
        while data := self.socket.recv(65536):
            self.received += data
            if b"\r\n0\r\n\r\n" in self.received:
                break
        return self.received

    @property
    def request_id(self) -> str:
        return self.read_until(b"\r\n\r\n").split(b"x-request-id: ")[1][:36].decode()

    def leave(self) -> None:
        """Close with a reset, as a killed client does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextmanager
def streaming(door: Door, tenant: Tenant, **body: Any) -> Iterator[RawStream]:
    client = RawStream(door, tenant, **body)
    try:
        yield client
    finally:
        client.socket.close()


def test_a_stream_that_completes_is_booked_before_done(door: Door, alice: Tenant) -> None:
    door.backend.script(stream("one", " two", " three"))

    with streaming(door, alice) as client:
        text = client.read_all()

    assert text.count(b"data: ") == 5
    assert b"data: [DONE]\n\n" in text
    assert b'"usage":{' not in text
    record = door.record(client.request_id, within_s=0)
    assert (record.status, record.tokens_out, record.streamed) == ("ok", 3, True)


def test_a_client_that_asks_for_usage_is_shown_what_is_billed(door: Door, alice: Tenant) -> None:
    door.backend.script(stream("one", usage={**USAGE, "prompt_tokens": 1}))

    with streaming(door, alice, stream_options={"include_usage": True}) as client:
        *_, last, done = client.read_all().split(b"data: ")[1:]

    assert done.startswith(b"[DONE]")
    chunk = json.loads(last.split(b"\n")[0])
    assert chunk["choices"] == []
    assert chunk["model"] == door.model.name
    assert chunk["usage"]["prompt_tokens"] == door.record(client.request_id).counted_prompt != 1


def test_the_backend_is_always_asked_for_usage(door: Door, alice: Tenant) -> None:
    door.backend.script(stream("one"))

    with streaming(door, alice, stream_options={"include_usage": False}) as client:
        client.read_all()

    assert door.backend.asked[0].body["stream_options"] == {"include_usage": True}


def test_events_show_our_name_of_the_model(door: Door, alice: Tenant) -> None:
    door.backend.script(stream('"model":"upstream-vision"'))

    with streaming(door, alice) as client:
        first = client.read_all().split(b"data: ")[1].split(b"\n")[0]

    assert json.loads(first)["model"] == door.model.name
    assert json.loads(first)["choices"][0]["delta"]["content"] == '"model":"upstream-vision"'


def test_a_client_that_leaves_while_we_wait_for_the_backend_pays_for_what_was_streamed(
    door: Door, alice: Tenant
) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one two")), Hang()])

    with streaming(door, alice) as client:
        client.read_until(b"one two")
        client.leave()
        record = door.record(client.request_id)

    assert (record.status, record.usage_source, record.tokens_out) == (
        "client_closed",
        "counted",
        2,
    )
    assert record.amount_pico == (record.tokens_in_text * 10 + 2 * 30) * 1_000_000
    assert door.backend.asked[0].closed_early.wait(1)


def test_a_client_that_leaves_before_the_answer_begins_pays_for_its_prompt(
    door: Door, alice: Tenant
) -> None:
    door.backend.script([Hang()])

    with streaming(door, alice) as client:
        eventually(lambda: door.backend.asked)
        request_id = door.backend.asked[0].headers["x-request-id"]
        client.leave()

    assert door.backend.asked[0].closed_early.wait(1)
    record = door.record(request_id)
    assert (record.status, record.tokens_out) == ("client_closed", 0)
    assert record.amount_pico == record.tokens_in_text * 10_000_000


def test_a_client_that_leaves_before_its_request_was_sent_on_pays_nothing(
    door: Door, alice: Tenant
) -> None:
    budget = Budget.objects.create(organization=alice.organization, limit_micro=10**9)
    door.backend.script(answer())
    door.chat(alice)  # opens the budget's window
    door.backend.script(stream("one"))

    with transaction.atomic():
        list(BudgetWindow.objects.select_for_update().filter(budget=budget))
        with streaming(door, alice) as client:
            time.sleep(0.2)  # it waits for its hold by now
            client.leave()
        time.sleep(0.2)

    assert door.chat(alice).status_code == 502  # behind it in the queue; the script is a stream's
    eventually(lambda: not Hold.objects.filter(key=alice.key).exists())
    assert UsageRecord.objects.filter(key=alice.key).count() == 1
    assert len(door.backend.asked) == 1


def test_a_client_that_leaves_while_a_write_is_blocked_is_settled(
    door: Door, alice: Tenant
) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one")), *FLOOD, DONE])

    with streaming(door, alice) as client:
        request_id = client.request_id
        time.sleep(0.5)  # the pipe is full by now
        client.leave()

    record = door.record(request_id)
    assert record.status == "client_closed"
    assert record.tokens_out > 0
    assert door.backend.asked[0].closed_early.wait(1)


def test_a_client_that_stops_reading_is_treated_as_gone(door: Door, alice: Tenant) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one")), *FLOOD, DONE])

    with streaming(door, alice) as client:
        assert door.record(client.request_id, within_s=10).status == "client_closed"
    assert door.backend.asked[0].closed_early.wait(1)


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param([Reset()], id="reset"),
        pytest.param([], id="closed without its end"),
        pytest.param([Send(event(error={"message": "boom"}))], id="an error event"),
        pytest.param([Send(b"data: {nonsense\n\n")] * 5, id="nonsense"),
        pytest.param([Send(b"data: " + b"x" * 2**21)], id="an event without end"),
    ],
)
def test_a_backend_that_breaks_off_ends_the_stream_with_an_error_and_costs_nothing(
    door: Door, alice: Tenant, ending: list[Step]
) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one")), Wait(0.05), *ending])

    with streaming(door, alice) as client:
        text = client.read_all()

    assert b'"code":"upstream_stream_interrupted"' in text
    assert b"[DONE]" not in text
    record = door.record(client.request_id)
    assert (record.status, record.tokens_out, record.amount_pico) == ("backend_error", 1, 0)


def test_a_backend_that_falls_silent_is_cut_off(door: Door, alice: Tenant) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one")), Hang()])

    with streaming(door, alice) as client:
        text = client.read_all()

    assert b": waiting" in text
    assert b'"code":"upstream_timeout"' in text
    assert door.record(client.request_id).status == "timeout"
    assert door.backend.asked[0].closed_early.wait(1)


def test_a_backend_that_never_answers_is_a_504_and_costs_nothing(door: Door, alice: Tenant) -> None:
    door.backend.script([Hang()])

    response = door.chat(alice)

    assert (response.status_code, response.json()["error"]["code"]) == (504, "backend_timeout")
    assert door.is_unbooked(response.headers["x-request-id"])
    assert door.backend.asked[0].closed_early.wait(1)


def test_a_stream_cut_anywhere_by_the_network_reads_the_same(door: Door, alice: Tenant) -> None:
    whole = b"".join(step.data for step in stream("é", "世界") if isinstance(step, Send))
    body = whole[len(STREAM_HEAD.data) :].replace(b"\n\n", b"\r\n\r\n")
    pieces: list[Step] = []
    for index in range(0, len(body), 7):
        pieces += [Send(body[index : index + 7]), Wait(0.001)]
    door.backend.script([STREAM_HEAD, *pieces])

    with streaming(door, alice) as client:
        text = client.read_all()

    assert "世界".encode() in text or b"\\u4e16\\u754c" in text
    assert door.record(client.request_id).tokens_out == 3


def test_running_usage_is_believed_when_the_client_leaves(door: Door, alice: Tenant) -> None:
    running = event(
        choices=[{"index": 0, "delta": {"content": "one two"}}], usage={"completion_tokens": 9}
    )
    door.backend.script([STREAM_HEAD, Send(running), Hang()])

    with streaming(door, alice) as client:
        assert b'"usage":null' in client.read_until(b"one two")
        client.leave()
        record = door.record(client.request_id)

    assert (record.status, record.usage_source, record.tokens_out) == (
        "client_closed",
        "upstream",
        9,
    )


def test_no_connection_to_the_backend_is_leaked(door: Door, alice: Tenant) -> None:
    door.backend.script([STREAM_HEAD, Send(delta("one")), Hang()])

    for index in range(30):
        with streaming(door, alice) as client:
            if index % 3:
                client.read_until(b"one")
            client.leave()

    asked = door.backend.asked
    eventually(lambda: len(asked) >= 20 and all(each.closed_early.is_set() for each in asked), 10)
    door.backend.script([*stream("ok")[:-2], usage_event(), DONE])
    with streaming(door, alice) as client:
        assert b"[DONE]" in client.read_all()
