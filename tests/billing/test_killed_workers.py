"""Celery's own worker, killed (P14), and its broker, flushed (P15): what it leaves, the next run finishes.

What is killed, by SIGKILL and at random: the processes of the pool, which run the tasks, and a few times the whole
group, with the parent that talks to the broker. Nothing of a task is left but what it committed.
"""

import hashlib
import logging
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
from django.db import connection
from django.test import override_settings
from django.utils.timezone import now

from billing import books, rollups, tasks
from billing.invoicing import documents, sweeping
from billing.invoicing.invoices import Invoice, InvoiceDocument, InvoiceLine
from billing.models import Rollup, RollupMark
from billing.notifications.events import Event
from tenants.models import Organization
from tests import factories, workers
from tests.door import database_url
from tests.faults.stage import kill, wait_until_gone
from tests.invoiced import use
from tests.workers import Stage, wait_until

logger = logging.getLogger(__name__)
pytestmark = pytest.mark.slow

TENANTS, MONTHS, USES = 2, 2, 8
KILLS, WHOLE_KILLS, OF_ROLLUPS = 20, 2, 6
PAUSE_S = (0.05, 0.6)
FLUSHES = 6
FINISH_S_MAX = 60.0
Hashes: TypeAlias = dict[str, str]  # by what the rows are
# Every write takes a while, so that there is much to interrupt: in milliseconds, by statement and by row.
SLOWED = {
    "billing_rollup": ("ROW", 20),
    "billing_invoice": ("STATEMENT", 40),
    "billing_invoiceline": ("STATEMENT", 40),
    "billing_invoicedocument": ("STATEMENT", 40),
    "billing_event": ("STATEMENT", 40),
}
SLOW = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_sleep(TG_ARGV[0]::float / 1000); RETURN NEW; END $$
"""


@pytest.fixture(scope="module")
def month(django_db_setup: None, django_db_blocker: Any) -> Iterator[tuple[str, Hashes]]:
    """A database with usage that nobody has summed up, and the hash of what an undisturbed run makes of it."""
    with django_db_blocker.unblock(), workers.empty() as name:
        with workers.connected_to(name):
            _lay_out()
        with workers.copied(name), override_settings(CLOSE_MARGIN_S=0):
            with connection.cursor() as cursor:
                cursor.execute("DROP FUNCTION dawdle() CASCADE")
            tasks.recompute_rollups()
            for organization_id in sweeping.due_organizations(now()):
                for _ in range(2):  # to close, and to issue
                    tasks.advance_invoices(organization_id)
            undisturbed = _fingerprint()
        yield name, undisturbed


def _lay_out() -> None:
    price = factories.price("vlm")
    begin = datetime(now().year, now().month, 5, 3, 7, tzinfo=UTC) - timedelta(
        days=31 * (MONTHS + 1)
    )
    for number in range(TENANTS):
        tenant = factories.tenant(f"month{number}")
        for n in range(MONTHS * USES):
            at = begin + timedelta(days=30 * (n // USES), hours=n % USES)
            use(tenant, price, at=at, text=1_000_000 + number * 1_000 + n, out=77_777)
    with connection.cursor() as cursor:
        cursor.execute(SLOW)
        for table, (level, ms) in SLOWED.items():
            cursor.execute(
                f"CREATE TRIGGER dawdle BEFORE INSERT OR UPDATE ON {table} "
                f"FOR EACH {level} EXECUTE FUNCTION dawdle('{ms}')"
            )


def _fingerprint() -> Hashes:
    """Hash the rollups, the numbers, and of each invoice all but what its hour and its turn decide."""
    owner = "organization_id period_start"
    content = (
        f"{owner} kind status subtotal_minor tax_minor total_minor due_minor currency held_back"
    )
    line = "position team_slug model_name kind is_allowance quantity late_quantity amount_pico amount_minor"
    rows = {
        "rollups": _rows(Rollup, " ".join(rollups.KEYS.split(", ") + rollups.SUMS.split(", "))),
        "numbers": _rows(Invoice, "number serial"),
        "invoices": _rows(Invoice, content),
        "lines": _rows(InvoiceLine, f"invoice__organization_id invoice__period_start {line}"),
        "events": _rows(Event, "organization_id type"),
    }
    assert all(rows.values())
    return {name: hashlib.sha256(repr(found).encode()).hexdigest() for name, found in rows.items()}


def _rows(model: Any, columns: str) -> list[Any]:
    return sorted(model.objects.order_by().values_list(*columns.split()), key=repr)


def _prove(undisturbed: Hashes) -> None:
    """The same rows as without a disturbance, the books right, and every PDF drawn."""
    assert [str(violation) for violation in books.check()] == []
    assert InvoiceDocument.objects.count() == TENANTS * MONTHS
    assert _fingerprint() == undisturbed


def _a_minute(stage: Stage) -> None:
    """Send what beat sends each minute."""
    stage.enqueue("recompute_rollups")
    stage.enqueue("sweep_invoices")


def _finish(stage: Stage) -> None:
    """Let minutes pass until nothing is due any more, and stop the worker once it has done what it took."""

    def is_quiet() -> bool:
        return not stage.waiting() and not stage.transactions()

    def is_done() -> bool:
        wait_until(is_quiet, FINISH_S_MAX)
        if not sweeping.due_organizations(now()) and not documents.undrawn():
            return True
        _a_minute(stage)
        return False

    _a_minute(stage)
    wait_until(is_done, FINISH_S_MAX)
    stage.worker.stop()


def _seeded() -> random.Random:
    seed = random.SystemRandom().randrange(10**6)
    logger.warning("seed %d", seed)
    return random.Random(seed)


def _kill_the_pool(stage: Stage) -> None:
    """Kill what runs the tasks; the parent replaces it, and takes their messages back to the broker."""
    pool = stage.worker.children()
    assert kill(*pool) == len(pool)
    wait_until_gone(pool)


@contextmanager
def _held_up(stage_of: AbstractContextManager[Stage]) -> Iterator[Stage]:
    """Start a worker, and kill its pool while the task that it begins with waits for us; then let go."""
    with psycopg.connect(database_url()) as holder:
        first = Organization.objects.earliest("pk").pk
        holder.execute("SELECT pg_advisory_xact_lock(hashtext('billing_rollup'), %s)", [first])
        with stage_of as stage:
            wait_until(lambda: stage.transactions() >= 2, FINISH_S_MAX)  # the holder's, and its own
            _kill_the_pool(stage)
            holder.rollback()
            yield stage


def test_a_worker_that_is_killed_twenty_times_leaves_what_one_does_that_is_not(
    month: tuple[str, Hashes], tmp_path: Path, committed: None
) -> None:
    chance, struck = _seeded(), 0
    name, undisturbed = month
    whole = set(chance.sample(range(KILLS), WHOLE_KILLS))

    with workers.copied(name), _held_up(workers.at_work(tmp_path)) as stage:
        wait_until(RollupMark.objects.exists, FINISH_S_MAX)  # the task was taken again
        wait_until(lambda: not stage.taken() + stage.waiting(), FINISH_S_MAX)
        Rollup.objects.all().delete()
        RollupMark.objects.all().delete()
        for number in range(KILLS):
            stage.enqueue("recompute_rollups")
            if number >= OF_ROLLUPS:
                stage.enqueue("sweep_invoices")
            time.sleep(chance.uniform(*PAUSE_S))
            struck += bool(stage.transactions())
            if number in whole:
                stage.worker.kill()
                stage.worker.start()
            else:
                _kill_the_pool(stage)
        logger.warning("%d of %d struck while a transaction ran", struck, KILLS)
        _finish(stage)
        _prove(undisturbed)

    assert struck >= KILLS / 5


def test_without_late_acknowledgement_a_kill_loses_the_task(
    month: tuple[str, Hashes], tmp_path: Path, committed: None
) -> None:
    """What the setting is for: this worker differs by it alone."""
    forgetful = workers.at_work(tmp_path, application="tests.billing.forgetful")
    with workers.copied(month[0]), _held_up(forgetful) as stage:
        wait_until(lambda: not stage.transactions() + stage.waiting(), FINISH_S_MAX)

        assert stage.taken() == 0
        assert not Rollup.objects.exists()


def test_a_broker_that_forgets_everything_again_and_again_loses_no_work(
    month: tuple[str, Hashes], tmp_path: Path, committed: None
) -> None:
    chance, lost = _seeded(), 0
    name, undisturbed = month

    with workers.copied(name), workers.at_work(tmp_path) as stage:
        for _ in range(FLUSHES):
            _a_minute(stage)
            time.sleep(chance.uniform(*PAUSE_S))
            lost += stage.waiting() + stage.taken()
            stage.broker.flushall()
        _finish(stage)
        _prove(undisturbed)

    assert lost >= FLUSHES / 2
