"""What happens is told: once, in the transaction in which it happens, signed, and again on demand."""

import json
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.core.mail import EmailMessage
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.utils.timezone import now

from billing.accounts import Account
from billing.invoicing import credit, notices, payments
from billing.models import Price
from billing.notifications import deliveries, events
from billing.notifications.events import Delivery, Event, EventType
from tenants.models import ApiKey, AuditEntry
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
        notices.tell(EventType.INVOICE_ISSUED, drafted, ISSUED)
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


def test_a_silence_of_months_loses_no_event_of_a_key(acme: Tenant) -> None:
    began = now()
    events.record_keys(began)
    for days in (3, 40):
        ApiKey.mint(team=acme.team, name=f"day {days}", by="alice", at=began + timedelta(days=days))

    events.record_keys(began + timedelta(days=100))

    told = Event.objects.filter(organization=acme.organization, type="key.created")
    names = [event.data["key"].split(" (")[0] for event in told.order_by("pk")]
    assert names[-2:] == ["day 3", "day 40"]
    assert events.record_keys(began + timedelta(days=200)) == 0


def test_more_keys_than_one_run_takes_are_all_told_of(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    events.record_keys(now())
    monkeypatch.setattr(events, "KEYS_AT_ONCE_MAX", 2)
    later = now() + timedelta(days=10)
    for number in range(5):
        ApiKey.mint(team=acme.team, name=f"n{number}", by=None, at=later)

    runs = [events.record_keys(later + timedelta(days=10 * n)) for n in range(1, 5)]

    assert runs == [2, 2, 1, 0]


def test_a_key_whose_transaction_was_slow_is_told_of(acme: Tenant) -> None:
    events.record_keys(now())
    ApiKey.mint(team=acme.team, name="slow", by=None, at=now() - timedelta(hours=20))

    assert events.record_keys(now()) == 1


def test_no_event_of_a_key_holds_its_secret(acme: Tenant) -> None:
    _, raw = ApiKey.mint(team=acme.team, name="laptop", by=None, at=now())
    events.record_keys(now())

    assert raw.secret not in str(list(Event.objects.values_list("data", flat=True)))


def test_an_event_without_its_deliveries_is_none(acme: Tenant) -> None:
    channel(acme, emails=["cfo@example.com"])
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE billing_delivery ADD CONSTRAINT broken CHECK (false) NOT VALID")

    data = {"number": "TSR-2026-000001"}
    with pytest.raises(IntegrityError):
        events.record(EventType.INVOICE_ISSUED, acme.organization.pk, "broken", data, now())

    assert not Event.objects.filter(subject="broken").exists()


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


def test_a_mail_is_in_the_language_of_the_invoice(
    acme: Tenant, vlm: Price, mailoutbox: list[EmailMessage]
) -> None:
    channel(acme, emails=["cfo@example.com"])
    Account.of(acme.organization).change(by=None, at=now(), invoice_language="zh-hant")
    use(acme, vlm, text=100_000_000, out=0)
    issued = issue(acme)
    deliver(acme)

    (mail,) = mailoutbox
    assert mail.subject == f"[Tessera] 帳單 {issued.number}，金額 TWD 1050"
    assert "應繳金額：TWD 1050，繳款期限 2026-05-02" in mail.body


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


def replayed(tenant: Tenant, receiver: Receiver) -> Event:
    """An event that was given up, and then sent again by the console."""
    channel(tenant, webhook_url=receiver.url)
    with transaction.atomic():
        event = events.record(
            EventType.KEY_CREATED, tenant.organization.pk, "a key", {"key": "k"}, now()
        )
    assert event is not None
    Delivery.objects.filter(event=event).update(
        attempts=10, next_attempt_at=None, last_error="It answered with status 500"
    )
    run("event", "replay", str(event.pk))
    return event


def test_a_replay_is_a_delivery_of_its_own_and_the_log_keeps_both(
    acme: Tenant, receiver: Receiver
) -> None:
    event = replayed(acme, receiver)
    words = ("event", "list", "--organization", acme.organization.slug, "--type", "key.created")
    assert [row["id"] for row in run_json(*words, "--undelivered")] == [event.pk]
    deliver(acme)

    (row,) = run_json(*words)
    assert row["deliveries"] == [
        "webhook given up, 10 attempts (It answered with status 500)",
        "again by webhook delivered",
    ]
    assert run_json(*words, "--undelivered") == []


def test_what_was_delivered_stays_delivered_when_it_is_sent_again(
    acme: Tenant, receiver: Receiver
) -> None:
    event = replayed(acme, receiver)
    deliver(acme)
    before = list(event.deliveries.order_by("replay").values())
    receiver.statuses = [500]
    run("event", "replay", str(event.pk))
    deliver(acme)

    after = list(event.deliveries.order_by("replay").values())
    assert after[:2] == before
    assert (after[2]["attempts"], after[2]["delivered_at"]) == (1, None)


def test_what_is_on_its_way_is_only_brought_forward(acme: Tenant, receiver: Receiver) -> None:
    receiver.statuses = [500, 204]
    event = replayed(acme, receiver)
    deliver(acme)  # fails, and waits for its next attempt
    for _ in range(2):
        run("event", "replay", str(event.pk))
    deliver(acme)
    deliver(acme)

    last = event.deliveries.get(replay=1)
    assert (event.deliveries.count(), last.attempts, len(receiver.received)) == (2, 2, 2)
    assert last.delivered_at is not None


def test_a_replay_is_recorded_with_who_asked_for_it(acme: Tenant, receiver: Receiver) -> None:
    event = replayed(acme, receiver)

    entry = AuditEntry.objects.get(organization=acme.organization, action="event.replay")
    assert entry.actor.startswith("console:")
    assert (entry.subject_id, entry.detail) == (str(event.pk), {"media": ["webhook"]})


@pytest.mark.parametrize("right", ["view", "change"])
def test_only_who_may_change_events_sends_one_again(
    acme: Tenant, receiver: Receiver, client: Client, right: str
) -> None:
    event = replayed(acme, receiver)
    clerk = User.objects.create(username="clerk", is_staff=True)
    rights = Permission.objects.filter(codename__in=["view_event", f"{right}_event"])
    clerk.user_permissions.set(rights)
    client.force_login(clerk)
    client.post("/admin/billing/event/", {"action": "replay", "_selected_action": [event.pk]})

    sent = AuditEntry.objects.filter(action="event.replay", actor="clerk").count()
    assert sent == (right == "change")
    assert "Save" not in client.get(f"/admin/billing/event/{event.pk}/change/").content.decode()


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
