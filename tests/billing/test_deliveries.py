"""An alert reaches its organization at least once, and nobody else; what fails is tried again, for a while."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.utils.timezone import now

from billing import tasks
from billing.models import Price
from billing.notifications import alerts, deliveries
from billing.notifications.channels import Channel
from billing.notifications.events import Delivery
from gateway.celery import app
from tests import booked, factories
from tests.billing.test_alerts import TEN, eight_at_once
from tests.factories import Tenant
from tests.receiver import Receiver

Mailbox = list[EmailMessage]


def channel(tenant: Tenant, **fields: Any) -> tuple[Channel, str]:
    row = Channel(organization=tenant.organization, **fields)
    secret = row.renew_secret()
    row.save()
    return row, secret


def alert(tenant: Tenant, price: Price) -> list[Delivery]:
    """Spend most of a budget, and return the deliveries of the alert about it."""
    budget = booked.budget(tenant, limit_micro=TEN, name="pilot")
    booked.spend(tenant, price, 9)
    alerts.raise_due(now())
    return list(budget.alerts.get().deliveries.order_by("medium"))


def try_all(found: list[Delivery], at: datetime | None = None) -> list[bool]:
    return [deliveries.attempt(delivery.pk, at or now()) for delivery in found]


def test_a_webhook_says_what_happened_and_is_signed(
    acme: Tenant, vlm: Price, receiver: Receiver
) -> None:
    _, secret = channel(acme, webhook_url=f"{receiver.url}/hook")

    assert try_all(alert(acme, vlm)) == [True]

    ((headers, body),) = receiver.received
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - now().timestamp()) < 60
    event = json.loads(body)
    assert (event["type"], event["data"]["threshold_percent"]) == ("budget.threshold", 80)
    assert event["data"]["organization"] == acme.organization.slug
    assert (event["data"]["spent"], event["data"]["limit"]) == ("9.00", "10.00")


def test_a_mail_names_the_budget_its_figures_and_its_reset(
    acme: Tenant, vlm: Price, mailoutbox: Mailbox
) -> None:
    channel(acme, emails=["ops@example.com", "cfo@example.com"])

    assert try_all(alert(acme, vlm)) == [True]

    (mail,) = mailoutbox
    assert mail.to == ["ops@example.com", "cfo@example.com"]
    assert "pilot" in mail.subject
    assert "80 % spent this month" in mail.subject
    assert "TWD 9.00 of TWD 10.00" in mail.body
    assert "00:00 Asia/Taipei" in mail.body


def test_an_overage_is_told_as_such(acme: Tenant, vlm: Price, mailoutbox: Mailbox) -> None:
    channel(acme, emails=["ops@example.com"])
    budget = booked.budget(acme, limit_micro=100 * TEN)
    held = booked.hold(acme, vlm)
    booked.settle(held, amount_pico=held.amount_pico * 3)
    alerts.raise_due(now())

    try_all(list(budget.alerts.get().deliveries.all()))

    assert "TWD 2.00 more by request" in mailoutbox[0].body
    assert str(held.request_id) in mailoutbox[0].body


def test_only_the_organization_itself_is_told(
    acme: Tenant, vlm: Price, receiver: Receiver, mailoutbox: Mailbox
) -> None:
    channel(factories.tenant("charlie"), webhook_url=receiver.url, emails=["c@example.com"])

    assert alert(acme, vlm) == []


def test_a_failure_is_tried_again_later_and_not_before(
    acme: Tenant, vlm: Price, receiver: Receiver
) -> None:
    receiver.statuses = [500, 204]
    channel(acme, webhook_url=receiver.url)
    found = alert(acme, vlm)
    at = now()

    assert [try_all(found, at + timedelta(seconds=s)) for s in (0, 59, 60, 999)] == [
        [False],
        [False],
        [True],
        [False],
    ]
    ids = {headers["webhook-id"] for headers, _ in receiver.received}
    assert (len(receiver.received), len(ids)) == (2, 1)
    found[0].refresh_from_db()
    assert (found[0].attempts, found[0].last_error, found[0].next_attempt_at) == (2, "", None)


def test_it_is_given_up_after_so_many_attempts(
    acme: Tenant, vlm: Price, receiver: Receiver
) -> None:
    receiver.statuses = [503]
    channel(acme, webhook_url=receiver.url)
    found = alert(acme, vlm)

    for day in range(2 * deliveries.ATTEMPTS_MAX):
        try_all(found, now() + timedelta(days=day))

    assert len(receiver.received) == deliveries.ATTEMPTS_MAX
    found[0].refresh_from_db()
    assert (found[0].next_attempt_at, found[0].delivered_at) == (None, None)
    assert found[0].last_error == "It answered with status 503"


def test_a_redirect_is_a_failure(acme: Tenant, vlm: Price, receiver: Receiver) -> None:
    receiver.statuses = [307]
    channel(acme, webhook_url=receiver.url)

    assert try_all(alert(acme, vlm)) == [False]
    assert len(receiver.received) == 1


def test_a_corrected_address_gets_what_the_wrong_one_did_not(
    acme: Tenant, vlm: Price, receiver: Receiver
) -> None:
    wrong, _ = channel(acme, webhook_url="http://127.0.0.1:1/")
    found = alert(acme, vlm)
    assert try_all(found) == [False]

    wrong.webhook_url = receiver.url
    wrong.save()

    assert try_all(found, now() + timedelta(minutes=1)) == [True]


def test_a_medium_that_is_no_longer_wanted_gets_nothing(
    acme: Tenant, vlm: Price, receiver: Receiver, mailoutbox: Mailbox
) -> None:
    row, _ = channel(acme, webhook_url=receiver.url, emails=["ops@example.com"])
    found = alert(acme, vlm)
    Channel.objects.filter(pk=row.pk).update(webhook_url="", emails=[])

    assert try_all(found) == [False, False]
    assert (receiver.received, mailoutbox) == ([], [])


def test_eight_workers_at_once_deliver_it_once(alice: Tenant, mailoutbox: Mailbox) -> None:
    channel(alice, emails=["ops@example.com"])
    (delivery,) = alert(alice, factories.price(factories.unique("vlm")))

    outcomes = eight_at_once(lambda: deliveries.attempt(delivery.pk, now()))

    assert sorted(outcomes) == [False] * 7 + [True]
    assert len(mailoutbox) == 1


@pytest.fixture
def eager() -> Iterator[None]:
    """Run what a task sends to the broker at once, in place."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


def test_the_task_raises_and_delivers_and_does_both_once(
    acme: Tenant, vlm: Price, mailoutbox: Mailbox, eager: None
) -> None:
    channel(acme, emails=["ops@example.com"])
    booked.budget(acme, limit_micro=TEN)
    booked.spend(acme, vlm, 9)

    for _ in range(3):
        tasks.raise_alerts()

    assert len([mail for mail in mailoutbox if acme.organization.slug in mail.subject]) == 1


def test_what_a_lost_broker_forgot_is_still_due(acme: Tenant, vlm: Price) -> None:
    channel(acme, emails=["ops@example.com"])
    (delivery,) = alert(acme, vlm)

    assert delivery.pk in deliveries.due(now())
    deliveries.attempt(delivery.pk, now())
    assert delivery.pk not in deliveries.due(now() + timedelta(days=9))
