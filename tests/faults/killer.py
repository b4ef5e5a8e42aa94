"""The killer: SIGKILL and SIGSTOP at random moments, by a seeded draw. What it kills comes back.

Faults overlap: while one part is on its way back another may fall. Only the same part is not hit twice at once.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from demo.child import Cancelled, Child, StartFailed
from tests.faults.journal import Journal
from tests.faults.stage import REAP_AFTER_S, Stage, kill, wait_until_gone

WARM_UP_S = 2.0  # until there is something to lose
PAUSE_S = (0.5, 2.0)
STOPPED_S = (1.0, 3.0)
FROZEN_S = (REAP_AFTER_S + 12.0, REAP_AFTER_S + 17.0)  # its last beat, then Celery's next round
ORPHANED_S_MAX = 2.0  # how long the processes of a killed gateway may go on beside their successors
START_ATTEMPTS_MAX = 5
SUPERVISION_S = 0.3
WORKER_REST_S = 6.0
POLL_S = 0.1
TELLING = "gateway worker, postgres stopped"
OVERTIME_S_MAX = 30  # to deal a short deck to its end on a slow machine

Strike = Callable[[random.Random], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done, to which parts, how often in a deck. `strike` returns whom it hit, or nothing."""

    name: str
    parts: frozenset[str]
    strike: Strike
    count: int
    is_brief: bool = True  # done within seconds, so that a short run has room for it


class Killer:
    """Deals faults from a shuffled deck, and sees to it that what fell is started again.

    A short run deals each brief fault once; a long one deals whole decks until its time is over.
    """

    def __init__(
        self, stage: Stage, draw: random.Random, journal: Journal, *, is_short: bool
    ) -> None:
        self.kills: Counter[str] = Counter()
        self.failures: list[str] = []  # of ours, not of what we kill
        self.began = time.monotonic()
        self.told: list[tuple[float, str]] = []  # when, and what was hit
        self._stage = stage
        self._draw = draw
        self._journal = journal
        self._is_short = is_short
        self._is_over = False
        self._busy: set[str] = set()
        self._strikes: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        """Strike for so long, then wait until everything is back."""
        self.began = time.monotonic()
        supervising = asyncio.create_task(self._supervise())
        try:
            await asyncio.sleep(WARM_UP_S)
            await self._deal(self.began + seconds)
        except BaseException:
            self._is_over = True
            raise
        finally:
            supervising.cancel()
            await asyncio.wait({supervising, *self._strikes})
        await self._revive()

    def _faults(self) -> list[Fault]:
        stage = self._stage
        gateway, postgres = frozenset({"gateway"}), frozenset({"postgres"})
        valkey, worker = frozenset({"valkey"}), frozenset({"worker"})
        return [
            Fault("gateway worker", gateway, self._gateway_worker, 3),
            Fault(TELLING, gateway | postgres, self._while_stopped, 3),
            Fault("gateway worker stopped", gateway, self._gateway_stopped, 2),
            Fault("gateway worker frozen", gateway, self._gateway_frozen, 1, is_brief=False),
            Fault("gateway", gateway, self._gateway, 1, is_brief=False),
            Fault("celery worker", worker, lambda _: self._restart(stage.worker), 2),
            Fault("celery worker stopped", worker, self._celery_stopped, 1, is_brief=False),
            Fault("valkey", valkey, lambda _: self._restart(stage.valkey), 3),
            Fault("valkey stopped", valkey, self._valkey_stopped, 2),
            Fault("postgres backend", postgres, self._postgres_backend, 3),
            Fault("postgres backend stopped", postgres, self._backend_stopped, 2),
            Fault("postmaster", postgres, self._postmaster, 3),
            Fault("postgres stopped", postgres, self._postgres_stopped, 2),
        ]

    def _decks(self) -> Iterator[list[Fault]]:
        faults = self._faults()
        while True:
            if self._is_short:
                deck = [fault for fault in faults if fault.is_brief]
            else:
                deck = [fault for fault in faults for _ in range(fault.count)]
            self._draw.shuffle(deck)
            if self._is_short:  # what tells most comes while all is well
                deck.sort(key=lambda fault: fault.name != TELLING)
            yield deck

    # ------------------------------------------------------------ when

    async def _deal(self, until: float) -> None:
        for deck in self._decks():
            while deck:
                if time.monotonic() > until + (OVERTIME_S_MAX if self._is_short else 0):
                    return
                fault = next((each for each in deck if not each.parts & self._busy), None)
                if fault is None:
                    await asyncio.sleep(POLL_S)
                    continue
                deck.remove(fault)
                self._begin(fault, random.Random(self._draw.random()))
                await asyncio.sleep(self._draw.uniform(*PAUSE_S))
            if self._is_short:
                return

    def _begin(self, fault: Fault, details: random.Random) -> None:
        self._busy |= fault.parts
        task = asyncio.create_task(self._strike(fault, details))
        self._strikes.add(task)
        task.add_done_callback(self._strikes.discard)

    async def _strike(self, fault: Fault, details: random.Random) -> None:
        at_s = time.monotonic() - self.began
        try:
            self._journal.write(fault=fault.name, at=time.time())
            if hit := await fault.strike(details):
                self.kills[fault.name] += 1
                self.told.append((at_s, f"{fault.name} ({hit})"))
        except Exception as error:
            self.failures.append(f"{fault.name}: {error!r}")
        finally:
            self._busy -= fault.parts

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

    # ------------------------------------------------------------ what

    async def _gateway_worker(self, draw: random.Random) -> str:
        """Kill one of its processes, and leave it alone for a while: granian gives up if they die too often."""
        hit = _any(self._stage.gateway_workers(), draw)
        kill(*hit)
        await asyncio.sleep(WORKER_REST_S)
        return _pids(hit)

    async def _while_stopped(self, draw: random.Random) -> str:
        """Kill a gateway process while nothing can be booked: what it answered all the same would be lost."""
        stopped = asyncio.create_task(self._postgres_stopped(draw))
        await asyncio.sleep(draw.uniform(*STOPPED_S) / 2)
        hit = await self._gateway_worker(draw)
        return hit and await stopped and hit

    async def _gateway_stopped(self, draw: random.Random) -> str:
        return await self._stop(_any(self._stage.gateway_workers(), draw), draw.uniform(*STOPPED_S))

    async def _gateway_frozen(self, draw: random.Random) -> str:
        """Stop a process until it is taken for dead and its holds are estimated; then it tells the truth."""
        return await self._stop(_any(self._stage.gateway_workers(), draw), draw.uniform(*FROZEN_S))

    async def _gateway(self, draw: random.Random) -> str:
        """Kill the parent alone. Its workers live on, until whoever supervises them notices."""
        orphans, parent = self._stage.gateway_workers(), self._stage.gateway.pid
        kill(parent)
        await asyncio.sleep(draw.uniform(0, ORPHANED_S_MAX))
        kill(*orphans)
        await asyncio.to_thread(wait_until_gone, orphans)
        await self._restart(self._stage.gateway)
        return str(parent)

    async def _celery_stopped(self, draw: random.Random) -> str:
        return await self._stop(self._stage.celery_all(), draw.uniform(*STOPPED_S))

    async def _valkey_stopped(self, draw: random.Random) -> str:
        return await self._stop([self._stage.valkey.pid], draw.uniform(*STOPPED_S))

    async def _postgres_backend(self, draw: random.Random) -> str:
        """Kill a server process: the postmaster then ends all the others, and recovers."""
        hit = _any(self._stage.postgres_backends(), draw)
        kill(*hit)
        return _pids(hit)

    async def _backend_stopped(self, draw: random.Random) -> str:
        """Stop one server process, with the locks that it holds."""
        return await self._stop(
            _any(self._stage.postgres_backends(), draw), draw.uniform(*STOPPED_S)
        )

    async def _postmaster(self, _: random.Random) -> str:
        postmaster = self._stage.postgres.pid
        kill(postmaster)
        await self._restart(self._stage.postgres)
        return str(postmaster)

    async def _postgres_stopped(self, draw: random.Random) -> str:
        return await self._stop(self._stage.postgres_all(), draw.uniform(*STOPPED_S))

    async def _stop(self, pids: Sequence[int | None], seconds: float) -> str:
        kill(*pids, number=signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            kill(*reversed(pids), number=signal.SIGCONT)
        return f"{_pids(pids)} for {seconds:.1f} s" if any(pids) else ""

    async def _restart(self, child: Child) -> str:
        """Kill the child with all that it started, and start it again."""
        pid = child.pid
        await asyncio.to_thread(child.kill)
        await self._start(child)
        return str(pid)

    async def _start(self, child: Child) -> None:
        """Start the child. What it needs may itself be down for the moment: try again."""
        for attempt in range(START_ATTEMPTS_MAX):
            try:
                await asyncio.to_thread(child.start, lambda: self._is_over)
            except Cancelled:
                return
            except StartFailed:
                if attempt == START_ATTEMPTS_MAX - 1:
                    raise
            else:
                return


def _any(pids: list[int], draw: random.Random) -> list[int]:
    return [draw.choice(pids)] if pids else []


def _pids(pids: Sequence[int | None]) -> str:
    found = [str(pid) for pid in pids if pid is not None]
    return found[0] if len(found) == 1 else f"{len(found)} processes" if found else ""
