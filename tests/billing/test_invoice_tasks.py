"""Invoicing by Celery: what is due is found in the database, so a broker that forgets loses nothing."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from django.conf import settings
from django.utils.timezone import now

from billing import tasks
from billing.accounts import Account
from billing.invoicing import documents, lifecycle, sweeping
from billing.invoicing.invoices import Invoice, InvoiceDocument
from billing.models import Price
from billing.notifications.events import Event
from gateway.celery import app
from tests.factories import Tenant
from tests.invoiced import ENDED, ISSUED, OVER, draft, issue, use

pytestmark = pytest.mark.django_db


@pytest.fixture
def eager() -> Iterator[None]:
    """Run tasks where they are enqueued."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


def of(tenant: Tenant) -> Invoice:
    return Invoice.objects.get(organization=tenant.organization)


def test_sweeps_take_an_invoice_from_its_usage_to_its_pdf(
    empty_database: None, acme: Tenant, vlm: Price, eager: None, settings: Any
) -> None:
    settings.CLOSE_MARGIN_S = 0
    use(acme, vlm, at=now() - timedelta(days=70))
    tasks.recompute_rollups()
    for _ in range(4):
        tasks.sweep_invoices()

    issued = Invoice.objects.filter(organization=acme.organization, status="issued")
    assert InvoiceDocument.objects.filter(invoice__in=issued).count() == 1


def test_what_the_broker_forgets_at_any_step_is_enqueued_again(
    empty_database: None, acme: Tenant, vlm: Price, settings: Any
) -> None:
    settings.CLOSE_MARGIN_S = 0
    use(acme, vlm, at=now() - timedelta(days=70))
    tasks.recompute_rollups()
    lose(tasks.sweep_invoices)
    assert not Invoice.objects.exists()
    at_once(tasks.sweep_invoices)  # drafted and closed
    lose(tasks.sweep_invoices)
    assert not Invoice.objects.exclude(number=None).exists()
    tasks.advance_invoices(acme.organization.pk)  # issued; nothing is committed, so nobody is sent
    assert of(acme).status == "issued"
    lose(tasks.sweep_invoices)
    assert not InvoiceDocument.objects.exists()

    at_once(tasks.sweep_invoices)

    assert InvoiceDocument.objects.get().invoice == of(acme)


def test_a_draft_is_told_of_though_nobody_had_summed_its_usage_up(
    empty_database: None, acme: Tenant, vlm: Price
) -> None:
    use(acme, vlm, at=now() - timedelta(days=70))

    tasks.advance_invoices(acme.organization.pk)

    assert Invoice.objects.earliest("period_start").closed_at is not None
    assert Event.objects.filter(type="invoice.drafted").count() == 1


def lose(task: Callable[[], Any]) -> None:
    """Run a task that enqueues others, and then flush all that Celery keeps in the broker."""
    broker = redis.Redis.from_url(settings.REDIS_URL)
    task()
    assert broker.llen("celery") > 0
    assert broker.delete(*broker.keys("*celery*"), "deliveries", "unacked", "unacked_index")


def at_once(task: Callable[[], Any]) -> None:
    """Run a task, and those that it enqueues in their place."""
    app.conf.task_always_eager = True
    try:
        task()
    finally:
        app.conf.task_always_eager = False


def test_an_organization_is_due_when_its_period_has_ended(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    pk = acme.organization.pk

    assert pk not in sweeping.due_organizations(ENDED - timedelta(seconds=1))
    assert pk in sweeping.due_organizations(ENDED)


def test_a_draft_is_due_for_a_refresh_its_close_and_its_issue(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    drafted, pk = draft(acme), acme.organization.pk
    assert pk not in sweeping.due_organizations(ENDED + timedelta(minutes=14))
    assert pk in sweeping.due_organizations(ENDED + timedelta(minutes=15))
    assert pk in sweeping.due_organizations(OVER)
    lifecycle.close(drafted.pk, OVER)

    assert pk not in sweeping.due_organizations(OVER + timedelta(seconds=59))
    assert pk in sweeping.due_organizations(ISSUED)


def test_who_used_nothing_is_never_due(acme: Tenant) -> None:
    assert acme.organization.pk not in sweeping.due_organizations(now() + timedelta(days=400))
    assert not Account.objects.filter(organization=acme.organization).exists()


def test_an_overdue_invoice_is_reminded_of_a_few_times(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    assert issued.due_at is not None
    for day in range(60):
        for _ in range(2):
            sweeping.remind(issued.pk, issued.due_at + timedelta(days=day))

    told = Event.objects.filter(organization=acme.organization, type="invoice.overdue")
    assert told.count() == len(sweeping.REMINDED_AFTER)
    assert of(acme).reminders == len(sweeping.REMINDED_AFTER)


def test_reminders_that_were_missed_are_sent_as_one(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    assert issued.due_at is not None
    for minute in range(4):
        sweeping.remind(issued.pk, issued.due_at + timedelta(days=20, minutes=minute))

    told = Event.objects.filter(organization=acme.organization, type="invoice.overdue")
    assert told.count() == 1
    assert issued.pk not in sweeping.due_reminders(issued.due_at + timedelta(days=29))
    assert issued.pk in sweeping.due_reminders(issued.due_at + timedelta(days=30))


def test_an_undrawn_invoice_is_drawn(acme: Tenant, vlm: Price) -> None:
    use(acme, vlm)
    issued = issue(acme)
    assert issued.pk in documents.undrawn()
    tasks.draw_document(issued.pk)

    assert issued.pk not in documents.undrawn()
