"""How rollups and invoices grow with the ledger: `python -m benchmarks.scale --records 1000000 5000000 10000000`.

Each size has a PostgreSQL of its own with a month of usage of 200 organizations (benchmarks/month.py), and a process of
its own that is measured (benchmarks/scaling.py), so that memory does not add up. With `--door` a gateway then answers
on the same database, in turns with nothing beside it and while all rollups and drafts are made over and over. It prints
tables in markdown.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import load, stage, work
from benchmarks.load import Load
from benchmarks.stage import Stage
from demo.postgres import PostgreSQL

ORGANIZATIONS = 200
HEADINGS = (
    *(
        "records",
        "loaded",
        "rollups of all",
        "rows",
        "… of a busy minute",
        "drafts of all",
        "longest",
    ),
    *("memory here", "in PostgreSQL", "rollups read for a draft", "records read for it"),
)
ISSUE_HEADINGS = ("issued", "longest")
DOOR_HEADINGS = ("records", "beside it", "p50", "p99", "longest")
NO_BROKER = "redis://127.0.0.1:1"  # nobody asks it
ROUNDS = 5
CHATS = 400  # in each round, one at a time
IDLE, BUSY = "nothing", "rollups and drafts of all"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--organizations", type=int, default=ORGANIZATIONS)
    parser.add_argument("--issue", action="store_true", help="check and issue the invoices, too")
    parser.add_argument("--door", action="store_true", help="measure the door beside it, too")
    options = parser.parse_args()
    _head(*HEADINGS, *(ISSUE_HEADINGS if options.issue else ()))
    beside = [row for records in options.records for row in measure(records, options)]
    if options.door:
        print()
        _head(*DOOR_HEADINGS)
        for row in beside:
            _row(*row)


def measure(records: int, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Measure one size, which prints its row. Returns those of the door: CalledProcessError if anything is wrong."""
    with (
        tempfile.TemporaryDirectory(prefix="tessera-scale-") as directory,
        PostgreSQL(Path(directory)) as postgres,
    ):
        scaling = [sys.executable, "-m", "benchmarks.scaling"]
        environment = stage.settings(postgres.url, NO_BROKER)
        once = [*scaling, str(records), str(options.organizations)]
        if options.issue:
            once.append("--issue")
        subprocess.run(once, env=environment, check=True)
        if not options.door:
            return []
        with stage.opened("granian", postgres=postgres) as on:
            return [(f"{records:,}", *row) for row in door(on, [*scaling, "--again"], environment)]


def door(on: Stage, again: list[str], environment: dict[str, str]) -> list[tuple[str, ...]]:
    """Measure the latency of small chats, one at a time, with and without the work beside them, in turns."""
    found = defaultdict(list)
    _chats(on)  # warm
    for _ in range(ROUNDS):
        found[IDLE].append(_chats(on))
        with _running(again, environment):
            found[BUSY].append(_chats(on))
    return [
        (beside, *(f"{median(figures):.1f} ms" for figures in zip(*rounds, strict=True)))
        for beside, rounds in found.items()
    ]


def _chats(on: Stage) -> tuple[float, float, float]:
    each = work.small_chat()
    path = "/v1/chat/completions"
    job = Load(on.port, path, on.key, each.body, each.mark, requests=CHATS, in_flight=1)
    outcome = load.put(job)
    assert not outcome.failed, outcome.first_wrong
    on.books.check(each, CHATS)
    return outcome.percentile_ms(50), outcome.percentile_ms(99), outcome.percentile_ms(100)


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Keep the command at work for a while; it says when it begins."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "it ended before it began"
            yield
            assert process.poll() is None, "it ended too early"
        finally:
            process.terminate()


def _head(*cells: str) -> None:
    _row(*cells)
    _row(*["---"] * len(cells))


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
