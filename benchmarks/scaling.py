"""One size of `benchmarks.scale`: load it, make its rollups, drafts and invoices, and print what that took.

Run by it as a process of its own, with an empty database: `python -m benchmarks.scaling RECORDS ORGANIZATIONS`, and
`--issue` if the invoices are to be checked and issued. With `--again` it makes all rollups and drafts of what is there,
over and over, until it is stopped.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

import django

django.setup()

# Models can be imported only now.
from django.conf import settings  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.db.models import Sum  # noqa: E402

from benchmarks import month  # noqa: E402
from billing import rollups  # noqa: E402
from billing.invoicing import lifecycle  # noqa: E402
from billing.invoicing.invoices import Invoice  # noqa: E402
from billing.models import Rollup, UsageRecord  # noqa: E402
from billing.periods import month_of  # noqa: E402
from tenants.models import Organization  # noqa: E402

SAMPLE_S = 0.02
KB_PER_MB = 1024
PERIOD = month_of(month.STARTS.year, month.STARTS.month, UTC)
ENDED = PERIOD.end + timedelta(minutes=1)
OVER = ENDED + timedelta(seconds=settings.INVOICE_GRACE_S)
ISSUED = OVER + timedelta(seconds=settings.CLOSE_MARGIN_S)
BUSY_MINUTE = PERIOD.end - timedelta(days=10)

# What was read of a table and its partitions, whichever way.
READ = """
SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint FROM pg_stat_xact_user_tables
WHERE relname LIKE %s
"""


@dataclass
class Step:
    """How long a step took, and the most memory it used: beyond what it began with, and in PostgreSQL's backend."""

    seconds: float = 0
    here_mb: float = 0
    postgres_mb: float = 0


def main(records: int, organizations: int, *, with_issue: bool) -> None:
    call_command("migrate", verbosity=0)
    callers, price_ids = month.organizations(organizations), month.prices()
    start = time.monotonic()
    month.load(os.environ["DATABASE_URL"], callers, price_ids, records)
    loaded_s = time.monotonic() - start

    with stepping() as whole:
        rollups.recompute(everything=True)
    assert Rollup.objects.aggregate(sum=Sum("requests"))["sum"] == records
    with stepping() as minute:
        busy = recompute_busy_minute()
    ids = sorted({caller.organization_id for caller in callers})
    with stepping() as drafts:
        longest_s = max(draft(organization_id) for organization_id in ids)
    read = rows_read(ids[len(ids) // 2])
    row = [
        f"{records:,}",
        f"{loaded_s:.0f} s",
        f"{whole.seconds:.1f} s",
        f"{Rollup.objects.count():,}",
        f"{minute.seconds * 1000:.0f} ms ({busy})",
        f"{drafts.seconds:.2f} s",
        f"{longest_s * 1000:.0f} ms",
        f"{max(whole.here_mb, drafts.here_mb):.0f} MB",
        f"{max(whole.postgres_mb, drafts.postgres_mb):.0f} MB",
        *read,
    ]
    if with_issue:
        took_s = [issue(organization_id) for organization_id in ids]
        row += [f"{sum(took_s):.1f} s", f"{max(took_s) * 1000:.0f} ms"]
    print(f"| {' | '.join(row)} |", flush=True)


def again() -> None:
    """Recompute all rollups and refresh the drafts of all organizations, for ever."""
    print("at work", flush=True)
    while True:
        rollups.recompute(everything=True)
        for organization_id in Organization.objects.values_list("pk", flat=True):
            draft(organization_id)


def recompute_busy_minute() -> int:
    """Recompute what a run finds that comes a minute after the last: with its overlap. Returns of how many buckets."""
    until = BUSY_MINUTE + timedelta(seconds=60 + rollups.OVERLAP_S)
    buckets = rollups.written_between(BUSY_MINUTE, until)
    assert rollups.replace_all(buckets) == 0
    return len(buckets)


def draft(organization_id: int) -> float:
    """Draft the organization's month, or refresh its draft; return the seconds that it took."""
    start = time.monotonic()
    assert lifecycle.draft(organization_id, ENDED)
    return time.monotonic() - start


def issue(organization_id: int) -> float:
    """Close the month and issue its invoice, whose books are checked first; return the seconds that it took."""
    start = time.monotonic()
    drafted = Invoice.objects.get(organization_id=organization_id)
    assert lifecycle.close(drafted.pk, OVER)
    invoice = lifecycle.issue(drafted.pk, ISSUED)
    assert invoice is not None
    assert invoice.number
    return time.monotonic() - start


@transaction.atomic
def rows_read(organization_id: int) -> list[str]:
    """Refresh a draft; return how many rollups and records were read, of how many that are the organization's own."""
    before = _read()
    draft(organization_id)
    read = [now - then for now, then in zip(_read(), before, strict=True)]
    own = [
        each.objects.filter(organization_id=organization_id).count()
        for each in (Rollup, UsageRecord)
    ]
    return [f"{some:,} of {whole:,}" for some, whole in zip(read, own, strict=True)]


def _read() -> list[int]:
    """Return how many rows of rollups and of the ledger this session has read that it has not yet told of."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SET LOCAL max_parallel_workers_per_gather = 0"
        )  # workers tell of theirs themselves
        return [
            int(cursor.execute(READ, [table]).fetchone()[0])
            for table in ("billing_rollup", "billing_usagerecord%")
        ]


@contextmanager
def stepping() -> Iterator[Step]:
    """Measure what happens within, on this thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    step, over = Step(), threading.Event()
    before_mb = _memory_mb(os.getpid(), "VmRSS")

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            step.here_mb = max(step.here_mb, _memory_mb(os.getpid(), "VmRSS") - before_mb)
            step.postgres_mb = max(step.postgres_mb, _memory_mb(backend, "RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.monotonic()
    try:
        yield step
    finally:
        step.seconds = time.monotonic() - start
        over.set()
        sampler.join()


def _memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) / KB_PER_MB


if __name__ == "__main__":
    if sys.argv[1:] == ["--again"]:
        again()
    main(int(sys.argv[1]), int(sys.argv[2]), with_issue="--issue" in sys.argv)
