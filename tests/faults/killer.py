"""The killer: SIGKILL at random moments, by a seeded draw, and SIGSTOP of PostgreSQL. What it kills comes back.

Faults overlap: while one part is on its way back another may fall. Only the same part is not hit twice at once.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from demo.child import Child, StartFailed
from tests.faults.journal import Journal
from tests.faults.stage import Stage, kill, wait_until_gone

PAUSE_S = (0.5, 2.5)
STOPPED_S = (1.0, 3.0)
ORPHANED_S_MAX = 2.0  # how long the processes of a killed gateway may go on beside their successors
START_ATTEMPTS_MAX = 5
SUPERVISION_S = 0.3
WORKER_REST_S = 6.0
# How often each, in a hundred. A gateway process takes some seconds to come back on a small machine.
WEIGHTS = {
    "gateway worker": 18,
    "gateway worker, postgres stopped": 16,
    "gateway": 4,
    "celery worker": 8,
    "valkey": 12,
    "postgres backend": 14,
    "postmaster": 13,
    "postgres stopped": 15,
}


class Killer:
    """Draws a fault, strikes, and sees to it that what fell is started again."""

    def __init__(self, stage: Stage, draw: random.Random, journal: Journal) -> None:
        self.kills: Counter[str] = Counter()
        self.failures: list[str] = []  # of ours, not of what we kill
        self._stage = stage
        self._draw = draw
        self._journal = journal
        self._busy: set[str] = set()
        self._strikes: set[asyncio.Task[None]] = set()
        # Which parts a fault hits, and how.
        self._faults: dict[str, tuple[set[str], Callable[[random.Random], Awaitable[bool]]]] = {
            "gateway worker": ({"gateway"}, self._gateway_worker),
            "gateway worker, postgres stopped": ({"gateway", "postgres"}, self._while_stopped),
            "gateway": ({"gateway"}, self._gateway),
            "celery worker": ({"worker"}, lambda _: self._restart(stage.worker)),
            "valkey": ({"valkey"}, lambda _: self._restart(stage.valkey)),
            "postgres backend": ({"postgres"}, self._postgres_backend),
            "postmaster": ({"postgres"}, self._postmaster),
            "postgres stopped": ({"postgres"}, self._postgres_stopped),
        }

    async def run(self, until: float) -> None:
        """Strike until that moment of the monotonic clock, then wait until everything is back."""
        supervising = asyncio.create_task(self._supervise())
        try:
            await self._strike_at_random(until)
        finally:
            supervising.cancel()
            await asyncio.wait({supervising, *self._strikes})
        await self._revive()

    async def _strike_at_random(self, until: float) -> None:
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        while time.monotonic() < until:
            name = self._draw.choices(names, weights)[0]
            details = random.Random(self._draw.random())  # so that the order never depends on them
            if not self._faults[name][0] & self._busy:
                task = asyncio.create_task(self._strike(name, details))
                self._strikes.add(task)
                task.add_done_callback(self._strikes.discard)
            await asyncio.sleep(self._draw.uniform(*PAUSE_S))

    async def _supervise(self) -> None:
        """Start again whatever ends by itself, as a supervisor would: a gateway whose workers die too often does."""
        while True:
            await asyncio.sleep(SUPERVISION_S)
            await self._revive()

    async def _revive(self) -> None:
        for child in self._stage.children:
            if child.name not in self._busy and not child.is_alive():
                self.kills[f"({child.name} ended by itself)"] += 1
                self._busy.add(child.name)
                try:
                    await self._restart(child)
                finally:
                    self._busy.discard(child.name)

    async def _strike(self, name: str, details: random.Random) -> None:
        parts, strike = self._faults[name]
        self._busy |= parts
        try:
            self._journal.write(fault=name, at=time.time())
            if await strike(details):
                self.kills[name] += 1
        except Exception as error:
            self.failures.append(f"{name}: {error!r}")
        finally:
            self._busy -= parts

    async def _gateway_worker(self, draw: random.Random) -> bool:
        """Kill one of its processes, and leave it alone for a while: granian gives up if they die too often."""
        workers = self._stage.gateway_workers()
        is_hit = bool(workers) and kill(draw.choice(workers)) > 0
        await asyncio.sleep(WORKER_REST_S)
        return is_hit

    async def _while_stopped(self, draw: random.Random) -> bool:
        """Kill a gateway process while nothing can be booked: what it answered all the same would be lost."""
        stopped = asyncio.create_task(self._postgres_stopped(draw))
        await asyncio.sleep(draw.uniform(*STOPPED_S) / 2)
        return await self._gateway_worker(draw) and await stopped

    async def _gateway(self, draw: random.Random) -> bool:
        """Kill the parent alone. Its workers live on, until whoever supervises them notices."""
        orphans = self._stage.gateway_workers()
        kill(self._stage.gateway.pid)
        await asyncio.sleep(draw.uniform(0, ORPHANED_S_MAX))
        kill(*orphans)
        await asyncio.to_thread(wait_until_gone, orphans)
        return await self._restart(self._stage.gateway)

    async def _postgres_backend(self, draw: random.Random) -> bool:
        """Kill a server process: the postmaster then ends all the others, and recovers."""
        backends = self._stage.postgres_backends()
        return bool(backends) and kill(draw.choice(backends)) > 0

    async def _postmaster(self, _: random.Random) -> bool:
        kill(self._stage.postgres.pid)
        return await self._restart(self._stage.postgres)

    async def _postgres_stopped(self, draw: random.Random) -> bool:
        pids = self._stage.postgres_all()
        kill(*pids, number=signal.SIGSTOP)
        try:
            await asyncio.sleep(draw.uniform(*STOPPED_S))
        finally:
            kill(*reversed(pids), number=signal.SIGCONT)
        return bool(pids)

    async def _restart(self, child: Child) -> bool:
        """Kill the child with all that it started, and start it again."""
        await asyncio.to_thread(child.kill)
        await self._start(child)
        return True

    async def _start(self, child: Child) -> None:
        """Start the child. What it needs may itself be down for the moment: try again."""
        for attempt in range(START_ATTEMPTS_MAX):
            try:
                await asyncio.to_thread(child.start)
            except StartFailed:
                if attempt == START_ATTEMPTS_MAX - 1:
                    raise
            else:
                return
