"""One run: set the stage, let the clients in, let the killer loose, wait until all is quiet, check."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg

from demo.child import ROOT
from tests.faults import journal
from tests.faults.checker import Books, Checker, Verdict
from tests.faults.clients import crowd
from tests.faults.journal import Journal
from tests.faults.killer import Killer
from tests.faults.sampler import Sampler
from tests.faults.scenario import Caller
from tests.faults.stage import Stage

CLIENTS_JOURNAL = "clients.jsonl"
FAULTS_JOURNAL = "faults.jsonl"
REAPED_BY_CELERY_S_MAX = 45
REAPED_BY_HAND_S_MAX = 20
SHORT_S = 30  # what a short run's tight budgets are sized for
POLL_S = 0.25
REAP = "SELECT billing_reap('0 s', 1000)"  # no gateway is left, so whoever held is dead


@dataclass(frozen=True)
class Report:
    """What a run did and what it found."""

    outcomes: Counter[str]
    faults: Counter[str]
    verdicts: list[Verdict]
    notes: list[str]

    @property
    def is_clean(self) -> bool:
        return not any(verdict.broken for verdict in self.verdicts)

    def __str__(self) -> str:
        title = f"  {'promise':<68} {'checked':>7} {'broken':>6}"
        return "\n".join(
            [
                "requests: " + _figures(self.outcomes),
                "faults:   " + _figures(self.faults),
                *self.notes,
                title,
                *map(str, self.verdicts),
            ]
        )


def run(var: Path, *, seed: int, seconds: int, clients: int) -> Report:
    """Run in that empty directory, where the journals and the logs stay. No seconds: each brief fault once.

    A short run does not wait for Celery's schedule to end the holds of the dead, it reaps by hand.
    """
    stage = Stage(var)
    times = Times()
    with stage.stores():
        callers = _lay_out(stage, seconds or SHORT_S)
        times.take("laid out")
        with stage.door():
            times.take("up")
            performance = asyncio.run(_perform(stage, callers, seed, seconds, clients))
            times.take("quiet")
        times.take("down")
        report = _report(stage, callers, *performance)
    times.take("checked")
    return replace(report, notes=[*report.notes, str(times)])


class Times:
    """When each part of the run was over, in seconds from its start."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._taken: list[str] = []

    def take(self, what: str) -> None:
        self._taken.append(f"{what} {time.monotonic() - self._began:.0f} s")

    def __str__(self) -> str:
        return "times:    " + ", ".join(self._taken)


async def _perform(
    stage: Stage, callers: list[Caller], seed: int, seconds: int, clients: int
) -> tuple[Killer, Sampler, bool]:
    """Let all of them at it at once; return when the clients have gone and, if all is well, no hold is left."""
    draw = random.Random(seed)
    stopping = asyncio.Event()
    sampler = Sampler(stage.postgres.url)
    killer = Killer(
        stage,
        random.Random(draw.random()),
        Journal(stage.var / FAULTS_JOURNAL),
        is_short=not seconds,
    )
    asked = Journal(stage.var / CLIENTS_JOURNAL)
    sampling = asyncio.create_task(sampler.run())
    crowding = asyncio.create_task(
        crowd(callers, stage.gateway.url, asked, draw, count=clients, stopping=stopping)
    )
    await killer.run(seconds)
    stopping.set()
    await crowding
    is_reaped = not seconds or await asyncio.to_thread(
        _no_holds_within, stage.postgres.url, REAPED_BY_CELERY_S_MAX
    )
    sampling.cancel()
    return killer, sampler, is_reaped


def _report(
    stage: Stage, callers: list[Caller], killer: Killer, sampler: Sampler, is_reaped: bool
) -> Report:
    """Check; the gateway has been asked to stop by now, and has written what it still had to."""
    url = stage.postgres.url
    _manage(stage, "reconcile")
    _no_holds_within(url, REAPED_BY_HAND_S_MAX, reap=True)
    entries = list(journal.read(stage.var / CLIENTS_JOURNAL))
    checker = Checker(
        entries,
        journal.read(stage.upstream.journal),
        journal.read(stage.var / FAULTS_JOURNAL),
        Books(url),
        callers,
    )
    estimates, corrected = checker.estimates()
    verdicts = [
        *checker.verdicts(),
        Verdict(
            "at no instant more is spent and held than allowed",
            sampler.instants,
            sampler.violations,
        ),
        Verdict("everything that was killed came back", killer.kills.total(), killer.failures),
        Verdict(
            "the Celery worker ends the holds of the dead", 1, [] if is_reaped else ["it did not"]
        ),
    ]
    verdicts.append(_check_books(stage))
    return Report(
        outcomes=Counter(_outcome(entry) for entry in entries),
        faults=killer.kills,
        verdicts=verdicts,
        notes=[
            "struck at: " + ", ".join(f"{at_s:.1f} s {what}" for at_s, what in sorted(killer.told)),
            f"books:    {len(checker.books.usage)} records, {estimates} of them estimates, "
            f"{corrected} of those corrected by a late truth; "
            f"{len(checker.talks)} requests reached the upstream; "
            f"{sampler.by_late_truth} times a late truth passed a budget",
        ],
    )


def _outcome(entry: journal.Entry) -> str:
    code = entry.get("code")
    return f"{entry['outcome']} {code}" if code else str(entry["outcome"])


def _figures(counts: Counter[str]) -> str:
    total = f"{counts.total()}"
    return f"{total} ({', '.join(f'{name} {count}' for name, count in counts.most_common())})"


def _lay_out(stage: Stage, seconds: int) -> list[Caller]:
    script = (
        f"from tests.faults import layout; layout.write({stage.upstream.url!r}, seconds={seconds})"
    )
    written = _manage(stage, "shell", "--no-imports", "-c", script)
    return [Caller(**each) for each in json.loads(written)]


def _check_books(stage: Stage) -> Verdict:
    try:
        _manage(stage, "check_books")
    except subprocess.CalledProcessError as error:
        return Verdict("manage.py check_books agrees", 1, [str(error.stdout)[-1000:]])
    return Verdict("manage.py check_books agrees", 1)


def _manage(stage: Stage, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=stage.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def _no_holds_within(url: str, seconds: float, *, reap: bool = False) -> bool:
    """Wait until no hold is left; ask the reaper ourselves if told to."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2) as books:
            if reap:
                books.execute(REAP)
            row = books.execute("SELECT count(*) FROM billing_hold").fetchone()
            if row == (0,):
                return True
        time.sleep(POLL_S)
    return False
