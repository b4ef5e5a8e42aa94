"""One size of `benchmarks.scale`: load it, recompute its rollups, draft its invoices, and print what that took.

Run by it as a process of its own: `python -m benchmarks.scaling RECORDS ORGANIZATIONS`, with an empty database.
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
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

import django

django.setup()

# Models can be imported only now.
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import Sum  # noqa: E402

from benchmarks import month  # noqa: E402
from billing import prices, rollups  # noqa: E402
from billing.models import PriceList, Rollup  # noqa: E402
from billing.periods import month_of  # noqa: E402
from billing.rating import rate  # noqa: E402

SAMPLE_S = 0.02
KB_PER_MB = 1024
PERIOD = month_of(month.STARTS.year, month.STARTS.month, UTC)
DAY = [month.STARTS + timedelta(days=14) + rollups.BUCKET * n for n in range(96)]

OWN_ROLLUPS = """
FROM billing_rollup WHERE organization_id = %(organization)s AND bucket >= %(first)s AND bucket < %(until)s
"""
OWN_RECORDS = """
FROM billing_usagerecord WHERE organization_id = %(organization)s AND billed_at >= %(first)s AND billed_at < %(until)s
"""


@dataclass
class Step:
    """How long a step took, and the most memory it used: beyond what it began with, and in PostgreSQL's backend."""

    seconds: float = 0
    here_mb: float = 0
    postgres_mb: float = 0


def main(records: int, organizations: int) -> None:
    call_command("migrate", verbosity=0)
    callers, price_ids = month.organizations(organizations), month.prices()
    start = time.monotonic()
    month.load(os.environ["DATABASE_URL"], callers, price_ids, records)
    loaded_s = time.monotonic() - start

    with stepping() as whole:
        rollups.recompute(everything=True)
    assert Rollup.objects.aggregate(sum=Sum("requests"))["sum"] == records
    with stepping() as minute:
        assert rollups.recompute() == 0
    ids = sorted({caller.organization_id for caller in callers})
    with stepping() as drafts:
        longest_s = max(draft(organization_id, list(price_ids.values())) for organization_id in ids)
    row = (
        f"{records:,}",
        f"{loaded_s:.0f} s",
        f"{whole.seconds:.1f} s",
        f"{Rollup.objects.count():,}",
        f"{minute.seconds * 1000:.0f} ms",
        f"{drafts.seconds:.2f} s",
        f"{longest_s * 1000:.0f} ms",
        f"{max(whole.here_mb, drafts.here_mb):.0f} MB",
        f"{max(whole.postgres_mb, drafts.postgres_mb):.0f} MB",
        *rows_read(ids[len(ids) // 2]),
    )
    print(f"| {' | '.join(row)} |", flush=True)


def draft(organization_id: int, price_ids: list[int]) -> float:
    """Rate the organization's month from its rollups; return the seconds that it took."""
    start = time.monotonic()
    price_list = PriceList.standard(month.CURRENCY)
    rated = rate(
        rollups.quantities(organization_id, PERIOD),
        prices.versions(price_ids),
        currency=month.CURRENCY,
        allowances=prices.allowances(price_list, PERIOD.start, PERIOD.end),
        tax_bp=500,
    )
    assert rated.lines
    return time.monotonic() - start


def rows_read(organization_id: int) -> tuple[str, str]:
    """Return how many rows PostgreSQL reads of how many that are the organization's own: for a draft, and for a day."""
    whole_month = {"first": PERIOD.start, "until": PERIOD.end}
    one_day = {"first": DAY[0], "until": DAY[-1] + rollups.BUCKET, "buckets": DAY}
    draft = f"SELECT sum(amount_pico) {OWN_ROLLUPS}"
    return (
        _read_of(draft, OWN_ROLLUPS, {"organization": organization_id} | whole_month),
        _read_of(rollups.OF_BUCKETS, OWN_RECORDS, {"organization": organization_id} | one_day),
    )


def _read_of(statement: str, own: str, values: dict[str, Any]) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) {own}", values)
        (rows,) = cursor.fetchone()
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
        ((plan,),) = cursor.fetchone()
    return f"{_read(plan['Plan']):,} of {rows:,}"


def _read(plan: dict[str, Any]) -> int:
    """Return how many rows of tables the plan has looked at, those that it then left out included."""
    read = sum(_read(part) for part in plan.get("Plans", ()))
    if "Relation Name" in plan:
        removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
        each = plan["Actual Rows"] + sum(plan.get(name, 0) for name in removed)
        read += round(each * plan["Actual Loops"])
    return read


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
    main(int(sys.argv[1]), int(sys.argv[2]))
