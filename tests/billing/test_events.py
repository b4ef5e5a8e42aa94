"""What happens is told: once, in the transaction in which it happens, signed, and again on demand."""

import json

import pytest
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils.timezone import now

from billing import credit, deliveries, events, invoice_events, payments
from billing.events import Delivery, Event, EventType
from billing.models import Price
from tenants.models import ApiKey
from tests.billing.test_deliveries import channel
from tests.console import run, run_json
from tests.factories import Tenant
from tests.invoiced import ISSUED, draft, issue, use
from tests.receiver import Receiver

pytestmark = pytest.mark.django_db


def deliver(tenant: Tenant) -> None:
    for delivery in Delivery.objects.filter(event__organization=tenant.organization).order_by("pk"):
        deliveries.attempt(delivery.pk, now())


def received(receiver: Receiver) -> list[str]:
    return [json.loads(body)["type"] for _, body in receiver.received]


def test_a_webhook_is_told_of_an_invoices_life(
    acme: Tenant, vlm: Price, receiver: Receiver
) -> None:
    channel(acme, webhook_url=receiver.url)
    use(acme, vlm)
    issued = issue(acme)
    payments.pay(issued.pk, issued.due_minor, received_at=ISSUED, by=None, at=ISSUED)
    deliver(acme)

    assert received(receiver) == ["invoice.drafted", "invoice.issued", "invoice.paid"]
    told = json.loads(receiver.received[1][1])["data"]
    assert (told["number"], told["content_sha256"]) == (issued.number, issued.content_sha256)


def test_what_is_rolled_back_is_not_told(acme: Tenant, vlm: Price) -> None:
    channel(acme, webhook_url="https://example.com/hook")
    use(acme, vlm)
    drafted = draft(acme)
    with transaction.atomic():
        invoice_events.tell(EventType.INVOICE_ISSUED, drafted, ISSUED)
        transaction.set_rollback(True)

    assert not Event.objects.filter(organization=acme.organization, type="invoice.issued").exists()


def test_keys_are_told_of_once(acme: Tenant, receiver: Receiver) -> None:
    channel(acme, webhook_url=receiver.url)
    key, _ = ApiKey.mint(team=acme.team, name="laptop", by="alice", at=now())
    key.revoke(by="alice", at=now())
    for _ in range(3):
        events.record_keys(now())
    deliver(acme)

    ours = [json.loads(body) for _, body in receiver.received]
    laptop = [each["type"] for each in ours if "laptop" in each["data"]["key"]]
    assert laptop == ["key.created", "key.revoked"]


def test_no_event_of_a_key_holds_its_secret(acme: Tenant) -> None:
    _, raw = ApiKey.mint(team=acme.team, name="laptop", by=None, at=now())
    events.record_keys(now())

    assert raw.secret not in str(list(Event.objects.values_list("data", flat=True)))


def test_people_get_a_mail_of_an_invoice(
    acme: Tenant, vlm: Price, mailoutbox: list[EmailMessage]
) -> None:
    channel(acme, emails=["cfo@example.com"])
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)
    deliver(acme)

    (mail,) = mailoutbox  # of the issue, not of the draft
    assert mail.subject == f"[Tessera] {issued.number} of TWD 1050"
    assert "Due: TWD 1050 by 2026-05-02" in mail.body


def test_an_event_is_replayed_to_the_channel_of_today(
    acme: Tenant, vlm: Price, receiver: Receiver
) -> None:
    use(acme, vlm)
    issue(acme)
    channel(acme, webhook_url=receiver.url)
    event = Event.objects.get(organization=acme.organization, type="invoice.issued")
    for _ in range(2):
        run("event", "replay", str(event.pk))
        deliver(acme)

    assert received(receiver) == ["invoice.issued"] * 2
    ids = {headers["webhook-id"] for headers, _ in receiver.received}
    assert ids == {f"event_{event.pk}"}  # a receiver knows that it has it already


def test_the_log_says_how_far_a_delivery_has_come(
    acme: Tenant, vlm: Price, receiver: Receiver
) -> None:
    channel(acme, webhook_url=receiver.url)
    receiver.statuses = [500]
    use(acme, vlm)
    draft(acme)
    deliver(acme)

    words = ("event", "list", "--organization", acme.organization.slug, "--undelivered")
    (row,) = run_json(*words)
    assert row["deliveries"] == ["webhook waits, 1 attempts (It answered with status 500)"]
    assert json.loads(run("event", "show", str(row["id"]))[0])["type"] == "invoice.drafted"


def test_credit_alone_pays_and_tells(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    run("invoice", "grant", acme.organization.slug, "--amount", "500")
    issue(acme, now())

    told = Event.objects.filter(organization=acme.organization).values_list("type", flat=True)
    assert "invoice.paid" in told
    assert credit.balance(acme.organization, now()) == 496
