"""What somebody waits for is done right after its commit, which stands whatever the broker does; a sweep follows."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
from celery.contrib.testing.worker import start_worker
from django.db import connection, transaction

from billing import errands
from billing.invoicing import documents
from billing.invoicing.invoices import InvoiceDocument
from billing.notifications import deliveries, events
from billing.notifications.events import Delivery, Event, EventType
from demo.valkey import Valkey
from gateway.celery import EVERY_S, app
from gateway.env import celery_broker
from tests import factories
from tests.billing.test_deliveries import channel
from tests.door import eventually
from tests.factories import Tenant
from tests.invoiced import issue, use
from tests.receiver import Receiver

BOUND_S = 3.0  # much less than Celery's own six seconds, however busy the machine


@pytest.fixture
def broker(committed: None, tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that Celery uses and nobody else, so that it may be stopped and counted in."""
    errands._sender = errands.Sender()
    with Valkey(tmp_path) as valkey:
        before = app.conf.broker_url
        app.conf.update(broker_url=celery_broker(valkey.url))
        yield valkey
        app.conf.update(broker_url=before)
        errands._sender = errands.Sender()


def waiting(broker: Valkey) -> dict[str, int]:
    """Return how many messages wait in each queue."""
    client = redis.Redis.from_url(broker.url)
    found = {name: int(client.llen(name)) for name in app.amqp.queues}
    client.close()
    return found


def tell(tenant: Tenant) -> Event:
    with transaction.atomic():
        subject = factories.unique("subject")
        event = events.record(
            EventType.KEY_CREATED, tenant.organization.pk, subject, {}, datetime.now(UTC)
        )
    assert event is not None
    return event


@contextmanager
def at_work(*queues: str) -> Iterator[None]:
    with start_worker(app, pool="solo", queues=queues, perform_ping_check=False):
        yield
    connection.close()


def test_a_webhook_comes_right_after_its_event_and_nobody_has_swept(
    alice: Tenant, broker: Valkey, receiver: Receiver
) -> None:
    channel(alice, webhook_url=receiver.url)

    with at_work("deliveries"):
        began = time.monotonic()
        tell(alice)
        eventually(lambda: receiver.received)

    assert time.monotonic() - began < EVERY_S["raise_alerts"] / 2
    assert waiting(broker) == {"celery": 0, "deliveries": 0}


def test_a_pdf_is_drawn_right_after_its_issue(alice: Tenant, broker: Valkey) -> None:
    use(alice, factories.price(factories.unique("vlm")))

    with at_work("celery"):
        issued = issue(alice)
        eventually(InvoiceDocument.objects.filter(invoice=issued).exists, 20)


def test_what_is_rolled_back_sends_nobody(alice: Tenant, broker: Valkey) -> None:
    channel(alice, webhook_url="https://example.com/hook")
    with transaction.atomic():
        tell(alice)
        transaction.set_rollback(True)

    assert waiting(broker) == {"celery": 0, "deliveries": 0}
    tell(alice)
    assert waiting(broker) == {"celery": 0, "deliveries": 1}


def test_a_slow_receiver_keeps_no_invoice_waiting(alice: Tenant, broker: Valkey) -> None:
    channel(alice, webhook_url="https://example.com/hook")
    use(alice, factories.price(factories.unique("vlm")))
    issued = issue(alice)
    assert waiting(broker) == {"celery": 1, "deliveries": 2}  # drafted and issued

    with at_work("celery"):  # while nobody delivers
        eventually(InvoiceDocument.objects.filter(invoice=issued).exists, 20)

    assert waiting(broker)["deliveries"] == 2


@pytest.mark.parametrize("is_frozen", [False, True], ids=["refuses", "is silent"])
def test_a_broker_that_is_away_costs_a_moment_once_and_never_the_transaction(
    alice: Tenant, broker: Valkey, caplog: pytest.LogCaptureFixture, is_frozen: bool
) -> None:
    channel(alice, webhook_url="https://example.com/hook")
    assert broker.pid is not None
    if is_frozen:
        os.kill(broker.pid, signal.SIGSTOP)
    else:
        broker.stop()

    took_s = []
    with caplog.at_level(logging.WARNING, errands.__name__):
        for _ in range(3):
            began = time.monotonic()
            event = tell(alice)
            took_s.append(time.monotonic() - began)

    if is_frozen:
        os.kill(broker.pid, signal.SIGCONT)
    assert took_s[0] < BOUND_S
    assert max(took_s[1:]) < errands.SEND_S_MAX / 2
    assert caplog.text.count("deliver_event is left to a sweep, the broker is away") == 1
    assert event.deliveries.get().pk in deliveries.due(datetime.now(UTC))


def test_what_was_not_sent_is_for_a_sweep_to_find(alice: Tenant, broker: Valkey) -> None:
    channel(alice, webhook_url="https://example.com/hook")
    errands.leave_to_sweeps()
    use(alice, factories.price(factories.unique("vlm")))
    issued = issue(alice)
    assert waiting(broker) == {"celery": 0, "deliveries": 0}

    told = Delivery.objects.filter(event__organization=alice.organization)
    assert {row.pk for row in told} <= set(deliveries.due(datetime.now(UTC)))
    assert issued.pk in documents.undrawn()


def test_nothing_that_beat_sends_piles_up() -> None:
    for entry in app.conf.beat_schedule.values():
        assert entry["options"]["expires"] <= entry["schedule"]
        assert entry["task"] in app.tasks


def test_every_task_is_bounded() -> None:
    for name, task in app.tasks.items():
        if name.startswith("billing."):
            assert 0 < (task.time_limit or app.conf.task_time_limit) <= 900
    assert app.conf.broker_transport_options["visibility_timeout"] > app.conf.task_time_limit
