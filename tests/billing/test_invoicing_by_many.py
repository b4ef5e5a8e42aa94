"""Invoicing by many workers at once, by some that are rolled back, and by some that are killed: the same invoices."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from billing import snapshots
from billing.invoices import Invoice, InvoiceDocument, InvoiceNumbers
from billing.verification import verify
from tests import factories
from tests.door import ROOT, database_url
from tests.factories import Tenant
from tests.invoiced import ISSUED, OVER, use

WORKERS = 8
KILLS = 20
TENANTS = 6

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
    for numbers in InvoiceNumbers.objects.all():
        chain = Invoice.objects.filter(issuer=numbers.issuer, year=numbers.year).order_by("serial")
        assert [each.serial for each in chain] == list(range(1, numbers.last_number + 1))
        assert all(b.previous_sha256 == a.content_sha256 for a, b in pairwise(chain))
        assert all(snapshots.sha256(each.frozen) == each.content_sha256 for each in chain)


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
