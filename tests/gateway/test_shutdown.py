"""SIGTERM: the door takes nothing new, lets streams end until a deadline, books everything, and goes."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from billing import books
from billing.models import GatewayProcess, Hold
from gateway.models import Model
from tests.door import Door, serving
from tests.factories import Tenant
from tests.fake_backend import DONE, STREAM_HEAD, FakeBackend, Send, Step, Wait, delta, usage_event
from tests.gateway.test_streams import FLOOD, RawStream, streaming

SHUTDOWN_S = 3
FLUSH_S_MAX = 10


def test_streams_end_by_themselves_or_at_the_deadline_and_all_are_booked(
    vision: Model,
    fake_backend: FakeBackend,
    alice: Tenant,
    http_client: httpx.Client,
    tmp_path: Path,
) -> None:
    processes = set(GatewayProcess.objects.values_list("pk", flat=True))
    patient = dict.fromkeys(("TESSERA_BODY_READ_TIMEOUT_S", "TESSERA_CLIENT_WRITE_TIMEOUT_S"), "60")
    with serving(tmp_path, TESSERA_SHUTDOWN_TIMEOUT_S=str(SHUTDOWN_S), **patient) as (url, process):
        door = Door(url, process.pid, backend=fake_backend, model=vision, client=http_client)
        door.wait_for_model(alice, vision.name)
        (own,) = set(GatewayProcess.objects.values_list("pk", flat=True)) - processes

        long = [step for _ in range(100) for step in (Send(delta("one")), Wait(0.1))]
        endless: list[Step] = [STREAM_HEAD, *long]
        ending: list[Step] = [
            STREAM_HEAD,
            Send(delta("one")),
            Wait(1),
            Send(delta("", "stop")),
            usage_event(),
        ]
        unread = [STREAM_HEAD, Send(delta("one")), *FLOOD]
        with (
            started(door, alice, [*ending, DONE]) as completes,
            started(door, alice, endless) as never_ends,
            started(door, alice, unread) as is_not_read,
            half_a_request(door, alice),
        ):
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert b"[DONE]" in completes.read_all()
            assert b'"code":"gateway_shutting_down"' in never_ends.read_all()
            assert time.monotonic() - began > SHUTDOWN_S - 0.5
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/healthz")
            assert process.wait(SHUTDOWN_S + FLUSH_S_MAX) == 0

    assert door.record(completes.request_id, within_s=0).status == "ok"
    cut = door.record(never_ends.request_id, within_s=0)
    assert (cut.status, cut.amount_pico) == ("timeout", 0)
    assert cut.tokens_out > 0
    assert door.record(is_not_read.request_id, within_s=0).status in {"timeout", "client_closed"}
    assert not Hold.objects.filter(process_id=own).exists()
    assert not GatewayProcess.objects.filter(pk=own).exists()
    assert books.check(alice.organization.pk) == []


@contextmanager
def started(door: Door, tenant: Tenant, steps: list[Step]) -> Iterator[RawStream]:
    """A stream of which the client has seen the head."""
    door.backend.script(steps)
    with streaming(door, tenant) as client:
        client.read_until(b"\r\n\r\n")
        yield client


@contextmanager
def half_a_request(door: Door, tenant: Tenant) -> Iterator[None]:
    """A client that announces a body, sends a part of it, and waits."""
    host, port = urlsplit(door.url).netloc.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %s\r\ncontent-length: 100\r\n\r\n{" % tenant.secret.encode()
        )
        yield
