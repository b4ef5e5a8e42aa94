"""Invoicing by many workers at once, by some that are rolled back, and by some that are killed: the same invoices.

Numbers without a gap (P12), the same invoice whenever and however often its task runs (P9), no half state (P14).
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from threading import Barrier
from threading import Event as Signal
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec
import psycopg
import pytest
from celery.contrib.testing.worker import start_worker
from celery.signals import task_postrun
from django.db import transaction
from django.utils.timezone import now

from billing import rollups, tasks
from billing.holds import SETTLE
from billing.invoicing import lifecycle, snapshots
from billing.invoicing.invoices import Invoice, InvoiceDocument, InvoiceNumbers, Issuer
from billing.invoicing.verification import verify
from billing.notifications.events import Event
from gateway.celery import app
from tests import booked, bookings, factories
from tests.billing.test_alerts import eight_at_once
from tests.billing.test_late_usage import in_threads
from tests.door import ROOT, database_url
from tests.factories import Tenant
from tests.invoiced import ISSUED, NOON, OVER, draft, use

WORKERS = 8
KILLS = 20
TENANTS = 6
ISSUES = 50
ROLLED_BACK = 10  # of them, 20 %

pytestmark = pytest.mark.slow


class Workers:
    """A process that forks workers, which can be waited for or killed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin
        assert process.stdout
        self.stdin, self.stdout = process.stdin, process.stdout

    def start(self, at: datetime, tenants: list[Tenant], *seeds: int) -> list[int]:
        ids = ",".join(str(tenant.organization.pk) for tenant in tenants)
        self.stdin.write(f"{at.isoformat()} {','.join(map(str, seeds))} {ids}\n")
        self.stdin.flush()
        return [int(self.stdout.readline()) for _ in seeds]

    def run(self, at: datetime, tenants: list[Tenant], *seeds: int) -> None:
        self.start(at, tenants, *seeds)
        assert [self.ended() for _ in seeds] == [0] * len(seeds)

    def ended(self) -> int:
        return int(self.stdout.readline())


@contextmanager
def forking() -> Iterator[Workers]:
    command = [sys.executable, "-m", "tests.billing.issuing"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "DATABASE_URL": database_url()}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        workers = Workers(process)
        yield workers
        workers.stdin.close()


@pytest.fixture
def tenants(committed: None) -> list[Tenant]:
    """Organizations with the same month of usage."""
    price = factories.price(factories.unique("vlm"))
    found = [factories.tenant(f"many{n}") for n in range(TENANTS)]
    for tenant in found:
        for n in range(5):
            use(tenant, price, text=1_000_000 + n, out=77_777)
    return found


def invoices(tenants: list[Tenant]) -> list[Invoice]:
    pks = [tenant.organization.pk for tenant in tenants]
    return list(Invoice.objects.filter(organization__in=pks).order_by("organization"))


def prove(tenants: list[Tenant]) -> None:
    """Each has one invoice, right to the last unit; no gap in the numbers, no break in the chain."""
    found = invoices(tenants)
    assert [each.organization_id for each in found] == sorted(
        tenant.organization.pk for tenant in tenants
    )
    assert {each.status for each in found} == {"issued"}
    assert {each.total_minor for each in found} == {65}  # 50 + 12 and 5 %
    assert [str(finding) for each in found for finding in verify(each)] == []
    assert InvoiceDocument.objects.filter(invoice__in=found).count() == len(found)
    prove_the_chain()


def prove_the_chain() -> None:
    for numbers in InvoiceNumbers.objects.all():
        chain = Invoice.objects.filter(issuer=numbers.issuer, year=numbers.year).order_by("serial")
        assert [each.serial for each in chain] == list(range(1, numbers.last_number + 1))
        assert all(b.previous_sha256 == a.content_sha256 for a, b in pairwise(chain))
        assert all(snapshots.sha256(each.frozen) == each.content_sha256 for each in chain)


def test_an_invoice_waits_for_what_is_being_booked_while_its_period_is_closed(
    alice: Tenant,
) -> None:
    price = factories.price(factories.unique("vlm"))
    use(alice, price)
    held = booked.hold(alice, price, received_at=NOON)
    amount = held.tokens_in_text * price.text_in_micro + 7 * price.out_micro
    row = bookings.usage(held, tokens_out=7, amount_pico=amount)

    with psycopg.connect(database_url()) as slow:
        slow.execute(SETTLE, [json.dumps([msgspec.to_builtins(row)])])
        closed = draft(alice, OVER)
        assert lifecycle.close(closed.pk, OVER)
        with pytest.raises(lifecycle.NotDue, match="began before"):
            lifecycle.issue(closed.pk, ISSUED)
        slow.commit()

    issued = lifecycle.issue(closed.pk, ISSUED)
    assert issued is not None
    assert sum(line.quantity for line in issued.lines.filter(kind="out")) == 50_000 + 7
    assert verify(issued) == []


def test_eight_workers_at_once_issue_each_invoice_once(tenants: list[Tenant]) -> None:
    with forking() as workers:
        for at in (OVER, ISSUED):
            workers.run(at, tenants, *range(-WORKERS, 0))

    prove(tenants)


def test_what_is_rolled_back_leaves_no_gap(tenants: list[Tenant]) -> None:
    with forking() as workers:
        for at in (OVER, ISSUED):
            workers.run(at, tenants, *range(1, WORKERS + 1))

    prove(tenants)


def test_fifty_issues_at_once_leave_no_gap_where_one_in_five_is_rolled_back(
    committed: None,
) -> None:
    price = factories.price(factories.unique("vlm"))
    tenants = [factories.tenant("fifty") for _ in range(ISSUES)]
    for tenant in tenants:
        use(tenant, price)
    rollups.recompute()
    drafts = [closed(tenant) for tenant in tenants]
    together = Barrier(ISSUES)

    def issue(number: int, pk: int) -> None:
        together.wait()
        if number < ROLLED_BACK:
            with transaction.atomic():
                assert lifecycle.issue(pk, ISSUED) is not None  # it has taken a number
                transaction.set_rollback(True)
        lifecycle.issue(pk, ISSUED)

    in_threads(*(partial(issue, number, pk) for number, pk in enumerate(drafts)))

    issued = Invoice.objects.filter(pk__in=drafts, status="issued").order_by("serial")
    serials = [each.serial for each in issued]
    assert len(serials) == ISSUES
    assert serials == list(range(serials[0] or 0, (serials[0] or 0) + ISSUES))
    prove_the_chain()


def test_fifty_issues_at_once_around_new_year_leave_no_gap_in_either_year(
    committed: None,
) -> None:
    price = factories.price(factories.unique("vlm"))
    tenants = [factories.tenant("new-year") for _ in range(ISSUES)]
    for tenant in tenants:
        use(tenant, price)
    rollups.recompute()
    drafts = [closed(tenant) for tenant in tenants]
    issuer = Issuer.objects.create(name="Of its own years", prefix="NEWYEAR")
    Invoice.objects.filter(pk__in=drafts).update(issuer=issuer)
    midnight = datetime(2027, 1, 1, tzinfo=ZoneInfo(issuer.timezone))
    has_begun = Signal()

    def issue(number: int, pk: int) -> None:
        at = midnight + timedelta(seconds=number - ISSUES / 2)
        if at >= midnight:
            assert has_begun.wait(30)  # for one that ends the old year; the others go on
        assert lifecycle.issue(pk, at) is not None
        has_begun.set()

    in_threads(*(partial(issue, number, pk) for number, pk in enumerate(drafts)))

    issued = Invoice.objects.filter(pk__in=drafts, status="issued")
    assert issued.count() == ISSUES
    assert set(issued.values_list("year", flat=True)) == {2026, 2027}
    assert not issued.filter(year=2026, issued_at__gte=midnight).exists()
    prove_the_chain()


def closed(tenant: Tenant) -> int:
    draft = lifecycle.draft(tenant.organization.pk, OVER)
    assert draft is not None
    assert lifecycle.close(draft.pk, OVER)
    return draft.pk


def fingerprint(tenant: Tenant) -> str:
    """Hash everything that invoicing has written for the organization."""
    found = []
    for invoice in Invoice.objects.filter(organization=tenant.organization).order_by("pk"):
        documents = InvoiceDocument.objects.filter(invoice=invoice).values_list("pk", "sha256")
        row = Invoice.objects.filter(pk=invoice.pk).values_list()
        found.append((list(row), list(invoice.lines.values_list()), list(documents)))
    told = Event.objects.filter(organization=tenant.organization).order_by("pk").values_list()
    return hashlib.sha256(repr((found, list(told))).encode()).hexdigest()


@pytest.fixture
def due(committed: None, settings: Any) -> Tenant:
    """An organization whose one month of usage is long over."""
    settings.CLOSE_MARGIN_S = 0
    tenant = factories.tenant("due")
    use(tenant, factories.price(factories.unique("vlm")), at=now() - timedelta(days=40))
    tasks.recompute_rollups()
    return tenant


def redelivered(task: str, pk: int) -> None:
    """Have a worker take one message twice, as the broker delivers it again if who had it died before the ack."""
    ran: list[str] = []

    def note(task_id: str, **_: Any) -> None:
        ran.append(task_id)

    queue, message = factories.unique("redelivery"), str(uuid4())
    for _ in range(2):
        app.send_task(task, (pk,), task_id=message, queue=queue)
    task_postrun.connect(note)
    with start_worker(app, pool="solo", queues=[queue], perform_ping_check=False):
        deadline = time.monotonic() + 30
        while len(ran) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert ran == [message] * 2


def test_the_task_makes_one_invoice_at_once_one_after_the_other_and_delivered_again(
    due: Tenant,
) -> None:
    pk = due.organization.pk
    for _ in range(2):  # to close, and to issue
        eight_at_once(lambda: tasks.advance_invoices(pk))
    (invoice,) = Invoice.objects.filter(organization=due.organization, number__isnull=False)
    tasks.draw_document(invoice.pk)
    once = fingerprint(due)

    for _ in range(3):
        tasks.advance_invoices(pk)
    assert fingerprint(due) == once

    redelivered(tasks.advance_invoices.name, pk)
    redelivered(tasks.draw_document.name, invoice.pk)
    assert fingerprint(due) == once


def test_workers_that_are_killed_leave_nothing_half_done(tenants: list[Tenant]) -> None:
    chance, killed = random.Random(7), 0
    with forking() as workers:
        for kill in range(KILLS):
            (pid,) = workers.start(OVER if kill < KILLS / 2 else ISSUED, tenants, 0)
            time.sleep(chance.uniform(0, 0.6))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed += workers.ended() == -signal.SIGKILL
        # Who was killed may have closed a period no sooner than ISSUED: it is issued a margin later.
        for at in (OVER, ISSUED, ISSUED + (ISSUED - OVER)):
            workers.run(at, tenants, 0)

    assert killed > KILLS / 2
    prove(tenants)
