"""Measure what the door costs: `python -m benchmarks [--quick] [--setup bare] [--workers 2] [--server uvicorn]`.

Each figure is the median of several rounds, and after each step the books are read: a request that was
not booked to the token makes the whole run worth nothing, and it fails.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import median

from benchmarks import load, processes, report, stage, work
from benchmarks.books import Misbooked
from benchmarks.load import Load, Outcome
from benchmarks.report import Budget, Figure
from benchmarks.stage import NotInstalled, Stage
from benchmarks.work import BURST_CHUNKS, SLOW_CHUNKS, Work
from demo.child import StartFailed

IN_FLIGHT = 32
STREAMS = 500
RELAY = "small chat: bare relay, CPU µs/request"
SETTLE_DOWN_S = 0.3


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, and requests in each. A slow machine gets fewer rounds."""

    rounds: int
    rounds_s_max: int  # no round begins after that
    chats: int
    images: int
    bursts: int
    alone: int
    slow_streams: int


# Enough requests that the kernel's clock ticks of 10 ms do not show, few enough for three minutes
# on a machine that is busy with other things, and for half a minute with --quick.
PLAN = Plan(7, 90, chats=1500, images=200, bursts=200, alone=150, slow_streams=2 * STREAMS)
QUICK = Plan(3, 10, chats=500, images=60, bursts=60, alone=40, slow_streams=0)


@dataclass(frozen=True)
class Cost:
    """One load, and what it took of the gateway, PostgreSQL and the fake backend, per request."""

    outcome: Outcome
    gateway_us: float
    postgres_us: float
    backend_us: float


class Wrong(Exception):
    """The gateway did not answer as it must."""


class Bench:
    """Puts loads on a stage and keeps the figures."""

    def __init__(self, on: Stage, client: ProcessPoolExecutor) -> None:
        self._stage = on
        self._client = client
        self._values: defaultdict[str, list[float]] = defaultdict(list)
        self._budgets: dict[str, Budget | None] = {}

    def keep(self, name: str, value: float, budget: Budget | None = None) -> None:
        self._values[name].append(value)
        self._budgets[name] = budget

    def figures(self) -> list[Figure]:
        return [Figure(name, values, self._budgets[name]) for name, values in self._values.items()]

    def warm_up(self) -> None:
        """Fill every cache and pool, and see once that each kind of work is answered and booked."""
        for each in work.everything():
            self.through(each, requests=2 * IN_FLIGHT)
            self.relayed(each, requests=2 * IN_FLIGHT)
        time.sleep(SETTLE_DOWN_S)

    def round(self, plan: Plan) -> None:
        """Measure everything but the slow streams once."""
        self.keep("calibration: a fixed job, ms", processes.calibration_ms())
        self._chats(plan.chats)
        self._commits(plan.chats)
        self._images(plan.images)
        self._bursts(plan.bursts)
        self._alone(plan.alone)

    def through(self, each: Work, *, requests: int, in_flight: int = IN_FLIGHT) -> Cost:
        """Put a load on the door and check its answers and its books. Raises Wrong, Misbooked."""
        on = self._stage
        pids = (on.gateway_pid, on.postgres_pid, on.backend.pid)
        before = [processes.cpu_us(pid) for pid in pids]
        outcome = self._put(each, on.port, "/v1/chat/completions", requests, in_flight)
        after = [processes.cpu_us(pid) for pid in pids]
        on.books.check(each, requests)
        used = [(end - start) / requests for start, end in zip(before, after, strict=True)]
        return Cost(outcome, *used)

    def relayed(self, each: Work, *, requests: int) -> float:
        """Put the same load on the bare relay; return its CPU time per request, in µs."""
        relay = self._stage.relay
        assert relay.pid is not None
        path = f"/{each.model}/chat/completions"
        before = processes.cpu_us(relay.pid)
        self._put(replace(each, is_raw=True), relay.port, path, requests, IN_FLIGHT)
        return (processes.cpu_us(relay.pid) - before) / requests

    @property
    def scale(self) -> float:
        """Return how much more a bare relay costs here than where the budgets were set; at least 1."""
        return max(1.0, median(self._values[RELAY]) / report.RELAY_US)

    def direct(self, each: Work, *, requests: int, in_flight: int) -> Outcome:
        """Put the same load on the backend, with no door in between."""
        path = f"/{each.model}/chat/completions"
        raw = replace(each, is_raw=True)
        return self._put(raw, self._stage.backend.port, path, requests, in_flight)

    def _put(self, each: Work, port: int, path: str, requests: int, in_flight: int) -> Outcome:
        key = self._stage.key
        job = Load(port, path, key, each.body, each.mark, requests=requests, in_flight=in_flight)
        outcome = self._client.submit(load.put, job).result()
        if outcome.failed:
            raise Wrong(f"{each.name}: {outcome.failed} failed: {outcome.first_wrong.decode()}")
        return outcome

    def _chats(self, requests: int) -> None:
        self.keep(RELAY, self.relayed(work.small_chat(), requests=requests))
        cost = self.through(work.small_chat(), requests=requests)
        self.keep("small chat: CPU µs/request", cost.gateway_us, report.CHAT_US)
        self.keep("small chat: requests/s", cost.outcome.per_s)
        self.keep("small chat: p50 ms", cost.outcome.percentile_ms(50))
        self.keep("small chat: p99 ms", cost.outcome.percentile_ms(99))
        self.keep("small chat: PostgreSQL, µs/request", cost.postgres_us, report.POSTGRES_US)
        self.keep("small chat: fake backend, µs/request", cost.backend_us)

    def _commits(self, requests: int) -> None:
        """Count PostgreSQL's transactions: two for each request if it were not for the batches."""
        before = self._stage.books.commits()
        cost = self.through(work.small_chat(), requests=requests)
        commits = self._stage.books.commits() - before
        self.keep("small chat: PostgreSQL, commits/s", commits / cost.outcome.wall_s)
        self.keep("small chat: PostgreSQL, commits/request", commits / requests)

    def _images(self, requests: int) -> None:
        relay_us = self.relayed(work.image_chat(), requests=requests)
        self.keep("1 MB image: bare relay, CPU µs/request", relay_us)
        cost = self.through(work.image_chat(), requests=requests)
        self.keep("1 MB image: CPU µs/request", cost.gateway_us, report.IMAGE_US)
        self.keep("1 MB image: requests/s", cost.outcome.per_s)
        self.keep("1 MB image: p50 ms", cost.outcome.percentile_ms(50))

    def _bursts(self, requests: int) -> None:
        for each in (work.burst(), work.renamed_burst()):
            relay_us = self.relayed(each, requests=requests) / BURST_CHUNKS
            self.keep(f"{each.name}: bare relay, CPU µs/chunk", relay_us)
            cost = self.through(each, requests=requests)
            chunk_us = cost.gateway_us / BURST_CHUNKS
            self.keep(f"{each.name}: CPU µs/chunk", chunk_us, report.BURST_CHUNK_US)
            self.keep(f"{each.name}: CPU µs/request", cost.gateway_us)

    def _alone(self, requests: int) -> None:
        each = work.small_chat()
        direct = self.direct(each, requests=requests, in_flight=1)
        door = self.through(each, requests=requests, in_flight=1).outcome
        added_ms = door.percentile_ms(50) - direct.percentile_ms(50)
        self.keep("alone: added p50 ms", added_ms, report.ADDED_MS)
        self.keep("alone: p99 ms", door.percentile_ms(99))

    def slow_streams(self, requests: int) -> None:
        """Keep many streams open whose chunks come 200 ms apart."""
        worker = processes.largest(self._stage.gateway_pid)
        processes.forget_peak(worker)
        idle_kb = processes.rss_kb(worker)
        cost = self.through(work.slow_stream(), requests=requests, in_flight=STREAMS)
        grown_kb = processes.peak_rss_kb(worker) - idle_kb
        name = f"{STREAMS} slow streams"
        self.keep(f"{name}: CPU µs/chunk", cost.gateway_us / SLOW_CHUNKS, report.SLOW_CHUNK_US)
        ideal_s = requests / STREAMS * work.SLOW_STREAM_S
        self.keep(f"{name}: wall s (ideal {ideal_s:g})", cost.outcome.wall_s)
        self.keep(f"{name}: RSS kB/stream", grown_kb / STREAMS, report.RSS_STREAM_KB)

    def memory(self, idle_kb: int, worker: int) -> None:
        self.keep("RSS idle, MB", idle_kb / 1024, report.RSS_IDLE_MB)
        self.keep("RSS peak, MB", processes.peak_rss_kb(worker) / 1024)


def main() -> None:
    options = _options()
    plan = QUICK if options.quick else PLAN
    began, load_average = time.monotonic(), os.getloadavg()[0]
    try:
        figures, scale = measure(plan, options.server, options.setup, options.workers)
    except StartFailed as error:
        sys.exit(f"{error}\n{error.tail}")
    except (Wrong, Misbooked, NotInstalled) as error:
        sys.exit(str(error))
    print(report.figures_table(figures, scale))
    print(
        f"\n{options.workers} worker(s) of {options.server}, setup {options.setup}, {IN_FLIGHT} in flight, on "
        f"{os.cpu_count()} cores that others use too (load average {load_average:.1f} before). A bare relay costs "
        f"{scale:.1f} times here what it cost where the budgets were set ({report.RELAY_US} µs): scaled budgets.\n"
        f"{time.monotonic() - began:.0f} s in all; every request was booked, to the token."
    )


def measure(plan: Plan, server: str, setup: str, workers: int) -> tuple[list[Figure], float]:
    """Start everything, warm up, measure, stop. Raises Wrong, NotInstalled, Misbooked."""
    spawn = multiprocessing.get_context("spawn")
    with (
        stage.opened(server, setup=setup, workers=workers) as on,
        ProcessPoolExecutor(1, mp_context=spawn) as client,
    ):
        worker = processes.largest(on.gateway_pid)
        idle_kb = processes.rss_kb(worker)
        bench = Bench(on, client)
        bench.warm_up()
        if plan.slow_streams:  # first: the images leave memory behind that streams would use again
            bench.slow_streams(plan.slow_streams)
        deadline = time.monotonic() + plan.rounds_s_max
        for _ in range(plan.rounds):
            if time.monotonic() < deadline:
                bench.round(plan)
        bench.memory(idle_kb, worker)
        return bench.figures(), bench.scale


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.door", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no slow streams")
    parser.add_argument("--server", choices=stage.SERVERS, default="granian")
    parser.add_argument(
        "--setup",
        choices=stage.SETUPS,
        default="full",
        help="with budgets and limits on all three levels (default), or with none",
    )
    parser.add_argument("--workers", type=int, default=1, help="gateway processes (default 1)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
