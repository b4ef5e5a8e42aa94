"""Rollups are what the ledger says: whoever writes, however often they are recomputed, wherever that is interrupted."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import psycopg
import pytest
from django.db import OperationalError, connection, transaction
from django.utils.timezone import now

from billing import books, prices, reconciliation, rollups, tasks
from billing.accounts import Account
from billing.models import Price, Rollup, RollupMark, UsageRecord
from billing.periods import Period, month_of, period_of
from billing.rating import Kind, Quantity, rate
from tenants.models import ApiKey, Team
from tests import booked, factories
from tests.billing.test_late_usage import in_threads
from tests.console import run
from tests.door import ROOT, database_url
from tests.factories import Tenant

KILLS = 20
TAIPEI = ZoneInfo("Asia/Taipei")
NOON = datetime(2026, 3, 10, 4, 7, tzinfo=UTC)
MARCH = month_of(2026, 3, TAIPEI)
NAMES = (rollups.KEYS + ", " + rollups.SUMS).split(", ")
IN_USE = ("tokens_in_text", "tokens_in_image", "tokens_in_cached", "tokens_out")


@pytest.fixture(autouse=True)
def unmarked(committed: None) -> Iterator[None]:
    """Forget what was said of the last run: other tests book in the same database."""
    yield
    RollupMark.objects.all().delete()


def book(tenant: Tenant, price: Price, at: datetime = NOON, **fields: Any) -> None:
    """Book a request of 20 tokens of text and 30 of output, rated as the data plane would."""
    policy = fields.get("policy", "")
    text, out = fields.pop("text", 20), fields.pop("tokens_out", 30)
    amount = 0 if policy == "nothing" else text * price.text_in_micro
    amount += 0 if policy in ("nothing", "prompt") else out * price.out_micro
    amount += 0 if policy == "nothing" else price.request_micro * 10**6
    held = booked.hold(tenant, price, received_at=at, tokens_in_text=text)
    booked.settle(held, tokens_out=out, amount_pico=amount, **fields)


def rows(tenant: Tenant) -> list[dict[str, Any]]:
    found = Rollup.objects.filter(organization=tenant.organization)
    return list(found.order_by(*NAMES).values(*NAMES))


def fingerprint(tenant: Tenant) -> str:
    return hashlib.sha256(repr(rows(tenant)).encode()).hexdigest()


def only(tenant: Tenant) -> dict[str, Any]:
    (row,) = rows(tenant)
    return row


def by_hand(statement: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        try:
            cursor.execute(statement, values)
            assert cursor.rowcount > 0
        finally:
            cursor.execute("SET session_replication_role = origin")


def broken(tenant: Tenant) -> set[str]:
    """Return what is wrong long after the last run, when nothing is excused as new."""
    with transaction.atomic():
        RollupMark.objects.update(recorded_until=now() + timedelta(hours=1))
        violations = books.check(tenant.organization.pk)
        transaction.set_rollback(True)  # other tests' bookings are new
    return {violation.invariant for violation in violations}


def test_a_quarter_of_an_hour_is_one_row(acme: Tenant, vlm: Price) -> None:
    for _ in range(3):
        book(acme, vlm, canvases=["jpeg 560x560 1x1"])

    assert rollups.recompute() >= 1

    row = only(acme)
    assert row["bucket"] == datetime(2026, 3, 10, 4, 0, tzinfo=UTC)
    assert (row["requests"], row["images"], row["tokens_in_text"], row["tokens_out"]) == (
        3,
        3,
        60,
        90,
    )
    assert (row["billed_requests"], row["billed_in_text"], row["billed_out"]) == (3, 60, 90)
    assert row["amount_pico"] == 60 * vlm.text_in_micro + 90 * vlm.out_micro


def test_quarters_keys_models_prices_and_lateness_are_kept_apart(acme: Tenant, vlm: Price) -> None:
    team = Team.objects.create(organization=acme.organization, name="Other", slug="other")
    key, raw = ApiKey.mint(team=team, name="other", by=None, at=now())
    other = Tenant(acme.organization, team, key, raw.secret)
    later = factories.price("vlm", effective_from=NOON)

    book(acme, vlm)
    book(acme, vlm, NOON + timedelta(minutes=8))
    book(acme, later)
    book(other, vlm)
    Account.of(acme.organization).close(NOON + timedelta(hours=1))
    book(acme, vlm)
    rollups.recompute()

    assert len(rows(acme)) == 5
    assert [row["is_late"] for row in rows(acme)].count(True) == 1


@pytest.mark.parametrize(
    ("policy", "billed"), [("", (20, 30, 1)), ("prompt", (20, 0, 1)), ("nothing", (0, 0, 0))]
)
def test_what_is_billed_of_a_broken_answer_is_by_its_policy(
    acme: Tenant, vlm: Price, policy: str, billed: tuple[int, int, int]
) -> None:
    book(acme, vlm, policy=policy, status="backend_error")
    rollups.recompute()

    row = only(acme)
    assert (row["tokens_in_text"], row["tokens_out"], row["requests"]) == (20, 30, 1)
    assert (row["billed_in_text"], row["billed_out"], row["billed_requests"]) == billed


@pytest.mark.parametrize("bills_lost", ["prompt", "nothing"])
@pytest.mark.parametrize("truth", ["", "prompt", "nothing", "void"])
def test_an_estimate_and_its_truth_together_are_billed_as_the_truth(
    acme: Tenant, bills_lost: str, truth: str
) -> None:
    price = factories.price("vlm", request_micro=5)
    acme.organization.bills_lost = bills_lost
    acme.organization.save(update_fields=["bills_lost"])
    held = booked.hold(acme, price, received_at=NOON, expires_at=now() - timedelta(seconds=1))
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_reap('1 hour', 1000)")
    rollups.recompute()
    billed = only(acme)["billed_requests"]
    assert billed == (1 if bills_lost == "prompt" else 0)

    amount = {"": 20 * 10 + 30 * 30 + 5, "prompt": 20 * 10 + 5, "nothing": 0, "void": 0}[truth]
    tokens = {"tokens_in_text": 0, "tokens_out": 0} if truth == "void" else {"tokens_out": 30}
    policy = bills_lost if truth == "void" else truth
    booked.settle(held, amount_pico=amount * 10**6, policy=policy, **tokens)
    rollups.recompute()

    row = only(acme)
    expected = {"": (20, 30, 1), "prompt": (20, 0, 1), "nothing": (0, 0, 0), "void": (0, 0, 0)}
    assert (row["billed_in_text"], row["billed_out"], row["billed_requests"]) == expected[truth]
    assert row["amount_pico"] == amount * 10**6
    assert broken(acme) == set()


def test_a_run_changes_only_what_was_written_to_since_the_last(acme: Tenant, vlm: Price) -> None:
    book(acme, vlm)
    rollups.recompute()
    assert rollups.recompute() == 0

    book(acme, vlm, NOON + timedelta(days=1))
    assert rollups.recompute() == 1
    book(acme, vlm)
    assert rollups.recompute() == 1


def test_what_was_recorded_long_before_the_last_run_is_not_read_again(
    acme: Tenant, vlm: Price
) -> None:
    book(acme, vlm)
    RollupMark.objects.create(recorded_until=now() + timedelta(hours=1))

    assert rollups.recompute() == 0
    assert rollups.recompute(everything=True) >= 1


def test_a_record_that_commits_late_is_found_by_the_overlap(acme: Tenant, vlm: Price) -> None:
    """A record may be dated before a run that could not see it yet."""
    rollups.recompute()
    seconds = rollups.OVERLAP_S - 5
    book(acme, vlm)
    by_hand(
        "UPDATE billing_usagerecord SET recorded_at = recorded_at - make_interval(secs => %s) "
        "WHERE organization_id = %s",
        seconds,
        acme.organization.pk,
    )

    rollups.recompute()

    assert only(acme)["requests"] == 1


def test_the_mark_does_not_pass_a_transaction_that_may_still_book(alice: Tenant) -> None:
    price = factories.price(factories.unique("vlm"))
    book(alice, price)
    with psycopg.connect(database_url()) as slow:
        slow.execute("SELECT pg_current_xact_id()")
        (began,) = slow.execute("SELECT transaction_timestamp()").fetchone() or (None,)
        rollups.recompute()

    assert only(alice)["requests"] == 1
    assert RollupMark.objects.get().recorded_until == began


def test_a_run_that_breaks_off_has_caught_up_with_what_it_says(
    alice: Tenant,
) -> None:
    bob = factories.tenant("bob")
    price = factories.price(factories.unique("vlm"))
    book(alice, price)
    by_hand(
        "UPDATE billing_usagerecord SET recorded_at = recorded_at - interval '2 days' WHERE organization_id = %s",
        alice.organization.pk,
    )
    book(bob, price)
    long_ago = now() - timedelta(days=3)
    RollupMark.objects.create(recorded_until=long_ago)

    with psycopg.connect(database_url()) as other:
        other.execute(rollups.LOCK, [[bob.organization.pk]])
        with impatient(), pytest.raises(OperationalError, match="lock timeout"):
            rollups.recompute()

    assert only(alice)["requests"] == 1
    assert RollupMark.objects.get().recorded_until > long_ago + timedelta(days=2)
    assert rows(bob) == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE billing_rollup SET amount_pico = amount_pico + 1",
        "UPDATE billing_rollup SET billed_out = billed_out + 1",
        "UPDATE billing_rollup SET bucket = bucket + interval '15 minutes'",
        "DELETE FROM billing_rollup",
    ],
)
def test_a_rollup_changed_by_hand_is_named_and_put_right(
    acme: Tenant, vlm: Price, change: str, settings: Any, tmp_path: Any
) -> None:
    settings.SPOOL_DIR = tmp_path
    book(acme, vlm)
    rollups.recompute()
    before = fingerprint(acme)
    by_hand(f"{change} WHERE organization_id = %s", acme.organization.pk)
    assert "rollups_are_the_ledger" in broken(acme)

    reconciliation.run(fix=True)

    assert broken(acme) == set()
    assert fingerprint(acme) == before


def test_a_ledger_changed_by_hand_shows_in_the_rollups(acme: Tenant, vlm: Price) -> None:
    book(acme, vlm)
    rollups.recompute()
    by_hand(
        "UPDATE billing_usagerecord SET tokens_out = tokens_out + 1 WHERE organization_id = %s",
        acme.organization.pk,
    )

    assert {"rollups_are_the_ledger", "amount_is_rated"} <= broken(acme)


def test_a_rollup_that_its_price_does_not_explain_is_named(acme: Tenant, vlm: Price) -> None:
    book(acme, vlm)
    rollups.recompute()
    by_hand(
        "UPDATE billing_rollup SET amount_pico = amount_pico + 1 WHERE organization_id = %s",
        acme.organization.pk,
    )

    assert "rollups_are_rated" in broken(acme)


def test_a_record_that_was_billed_too_late_is_named(acme: Tenant, vlm: Price) -> None:
    book(acme, vlm)
    by_hand(
        "UPDATE billing_usagerecord SET billed_at = billed_at + interval '1 day' "
        "WHERE organization_id = %s",
        acme.organization.pk,
    )

    assert "billed_in_an_open_period" in broken(acme)


def test_what_was_just_booked_is_no_drift(acme: Tenant, vlm: Price) -> None:
    rollups.recompute()
    book(acme, vlm)

    assert books.check(acme.organization.pk) == []


def test_reconciling_recomputes(acme: Tenant, vlm: Price, settings: Any, tmp_path: Any) -> None:
    settings.SPOOL_DIR = tmp_path
    rollups.recompute()
    book(acme, vlm)

    assert "1 rollups recomputed." in run("reconcile")[0]
    assert only(acme)["requests"] == 1


def test_quantities_are_the_billed_ones_of_the_period(acme: Tenant, vlm: Price) -> None:
    image = {"canvases": ["jpeg 560x560 1x1"]}
    book(acme, vlm, MARCH.start, **image)
    book(acme, vlm, MARCH.end - timedelta(microseconds=1), policy="prompt", status="timeout")
    book(acme, vlm, MARCH.start - timedelta(microseconds=1))
    book(acme, vlm, MARCH.end)
    rollups.recompute()

    found = rollups.quantities(acme.organization.pk, MARCH)

    team = acme.team.pk
    assert found == [
        Quantity(team, vlm.pk, Kind.TEXT_IN, 40),
        Quantity(team, vlm.pk, Kind.OUT, 30),
        Quantity(team, vlm.pk, Kind.REQUEST, 2),
    ]


def test_late_quantities_are_told_apart(acme: Tenant, vlm: Price) -> None:
    Account.of(acme.organization).close(MARCH.start)
    book(acme, vlm, MARCH.start - timedelta(days=3))
    book(acme, vlm)
    rollups.recompute()

    found = rollups.quantities(acme.organization.pk, MARCH)

    texts = [quantity for quantity in found if quantity.kind is Kind.TEXT_IN]
    assert [(text.units, text.late_units) for text in texts] == [(20, 0), (20, 20)]


def test_a_period_that_is_cut_within_a_quarter_is_refused(acme: Tenant) -> None:
    with pytest.raises(ValueError, match="no full quarter"):
        rollups.quantities(acme.organization.pk, Period(NOON, NOON + timedelta(hours=1)))


def test_a_period_costs_what_the_ledger_has_of_it_where_there_are_no_tiers(
    acme: Tenant, vlm: Price
) -> None:
    chance = random.Random(7)
    for _ in range(40):
        at = MARCH.start + timedelta(minutes=chance.randint(-9000, 60_000))
        policy = chance.choice(["", "", "prompt", "nothing"])
        book(acme, vlm, at, text=chance.randint(0, 9000), policy=policy)
    rollups.recompute()

    usage = rollups.quantities(acme.organization.pk, MARCH)
    rated = rate(usage, prices.versions([vlm.pk]), currency="TWD")

    records = UsageRecord.objects.filter(
        organization=acme.organization, billed_at__gte=MARCH.start, billed_at__lt=MARCH.end
    )
    expected = sum(record.amount_pico for record in records)
    assert sum(line.amount_pico for line in rated.lines) == expected > 0


# --- At once, and interrupted -----------------------------------------------------------------------------------


@pytest.fixture
def busy(alice: Tenant) -> Tenant:
    """An organization with a month of usage, committed."""
    chance = random.Random(4)
    price = factories.price(factories.unique("vlm"))
    for _ in range(300):
        book(alice, price, MARCH.start + timedelta(minutes=chance.randint(0, 44_000)))
    return alice


def forget(tenant: Tenant) -> None:
    """Have the next run read everything again, and find nothing."""
    Rollup.objects.filter(organization=tenant.organization).delete()
    RollupMark.objects.all().delete()


def test_eight_runs_at_once_give_the_same_rows_as_one(busy: Tenant) -> None:
    tasks.recompute_rollups()
    once = fingerprint(busy)
    forget(busy)

    def recompute() -> None:
        tasks.recompute_rollups()

    in_threads(*[recompute] * 8)

    assert fingerprint(busy) == once
    assert len(rows(busy)) > 200


def test_a_worker_killed_anywhere_leaves_nothing_that_the_next_run_does_not_mend(
    busy: Tenant,
) -> None:
    rollups.recompute()
    whole, count = fingerprint(busy), len(rows(busy))
    last_recorded_at = (
        UsageRecord.objects.filter(organization=busy.organization).latest("recorded_at").recorded_at
    )
    chance = random.Random(20)
    partial = 0
    with workers() as start:
        for _ in range(KILLS):
            forget(busy)
            worker = start()
            wait_for(busy, chance.randrange(count))
            time.sleep(chance.uniform(0, 0.005))
            os.kill(worker, signal.SIGKILL)
            is_partial = 0 < len(rows(busy)) < count
            done = RollupMark.objects.filter(recorded_until__gt=last_recorded_at)
            assert not (is_partial and done.exists()), "it said that it was done"
            partial += is_partial
            rollups.recompute(everything=True)
            assert fingerprint(busy) == whole
    assert partial > KILLS / 4, "too few were killed in the middle"


@contextmanager
def impatient() -> Iterator[None]:
    """Give up soon where another session has locked something."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '100ms'")
        yield
        cursor.execute("SET lock_timeout = 0")


@contextmanager
def workers() -> Iterator[Callable[[], int]]:
    """Start workers that recompute everything, one after the other; give each one's process id."""
    command = [sys.executable, "-m", "tests.billing.recomputing"]
    environment = {**os.environ, "DATABASE_URL": database_url()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, text=True)  # type: ignore[call-overload]

    def start() -> int:
        process.stdin.write("\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    with process:
        yield start
        process.stdin.close()


def wait_for(tenant: Tenant, count: int) -> None:
    """Wait until a worker has written so many of the organization's rollups."""
    deadline = time.monotonic() + 30
    while Rollup.objects.filter(organization=tenant.organization).count() < count:
        assert time.monotonic() < deadline


def test_rollups_are_the_ledger_while_everybody_writes(alice: Tenant) -> None:
    price = factories.price(factories.unique("vlm"))

    def write(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            book(alice, price, NOON + timedelta(minutes=chance.randint(0, 90)), text=seed)

    def recompute() -> None:
        for _ in range(30):
            rollups.recompute()

    in_threads(*[lambda seed=seed: write(seed) for seed in range(1, 5)], recompute, recompute)
    rollups.recompute()

    summed: dict[datetime, int] = defaultdict(int)
    for record in UsageRecord.objects.filter(organization=alice.organization):
        quarter = record.billed_at.minute % 15
        bucket = record.billed_at.replace(second=0, microsecond=0) - timedelta(minutes=quarter)
        summed[bucket] += record.tokens_in_text
    assert sum(summed.values()) == 60 * (1 + 2 + 3 + 4)
    assert {row["bucket"]: row["tokens_in_text"] for row in rows(alice)} == summed
    assert broken(alice) == set()


def test_zones_cut_periods_where_rollups_are_cut() -> None:
    """Every cut of this decade, in every zone, is a full quarter of an hour."""
    for name in available_timezones():
        for month in range(1, 13):
            period = period_of(datetime(2026, month, 15, tzinfo=UTC), ZoneInfo(name))
            assert period.start.timestamp() % 900 == 0, name
