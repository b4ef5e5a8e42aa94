"""The data plane of one process: everything that requests share, opened at start and closed at the end."""

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection

from billing import idempotency, processes, reconciliation
from billing.batcher import StoreUnavailable
from billing.holds import Bookkeeper
from gateway import catalog, limits
from gateway.backends import BackendPool
from gateway.catalog import Catalog
from gateway.counting import counters
from gateway.images import ImageLimits
from gateway.images.fetcher import Fetcher
from gateway.limits import Limiter
from gateway.local_limits import LocalLimits
from gateway.reader import Reader, reconnecting
from gateway.relay import Limits
from gateway.valkey import Valkey
from tenants import principals, revisions
from tenants.principals import Miss, Principal, PrincipalCache, Refusal, Resolved

logger = logging.getLogger(__name__)
T = TypeVar("T")

START_ATTEMPTS_MAX = 30
DRAIN_EVERY_BEATS = 6
LEAVE_TIMEOUT_S = 1.0
MISSES_MAX = 10 * principals.LOAD_MAX  # keys that wait to be looked up
SETTLING_S_MAX = 5  # what a request takes to end once it is cut off


class Cuttable(Protocol):
    """A request in flight, as far as its end concerns the process."""

    def cut_off(self) -> None: ...


class DataPlane:
    """Owns the batchers, the sessions to backends, the caches, and the two threads that read the database.

    The loader reads what every request needs, keys and catalog; the reader what one caller asks, so that no
    question keeps the keys waiting.
    """

    def __init__(self) -> None:
        self.books = Bookkeeper(
            settings.DATABASE_URL,
            rows_max=settings.BATCH_ROWS_MAX,
            queue_max=settings.BATCH_QUEUE_MAX,
            reserve_timeout_s=settings.RESERVE_TIMEOUT_MS / 1000,
            settle_timeout_s=settings.SETTLE_TIMEOUT_MS / 1000,
            silence_max_s=settings.DATABASE_SILENCE_MS / 1000,
            spool_directory=settings.SPOOL_DIR,
            spool_bytes_max=settings.SPOOL_BYTES_MAX,
        )
        self.backends = BackendPool(connections_max=settings.BACKEND_CONNECTIONS_MAX)
        self.image_limits = ImageLimits(
            file_bytes_max=settings.IMAGE_FILE_BYTES_MAX,
            pixels_max=settings.IMAGE_PIXELS_MAX,
            side_px_max=settings.IMAGE_SIDE_PX_MAX,
            fetch_timeout_s=settings.IMAGE_FETCH_TIMEOUT_S,
            fetches_at_once_max=settings.IMAGE_FETCHES_AT_ONCE_MAX,
            allow_loopback=settings.IMAGE_ALLOW_LOOPBACK,
        )
        self.fetcher = Fetcher(self.image_limits)
        self.limiter = Limiter(
            Valkey(
                settings.REDIS_URL,
                scripts=(limits.ADMIT, limits.RELEASE),
                timeout_s=settings.REDIS_TIMEOUT_MS / 1000,
                queue_max=settings.REDIS_QUEUE_MAX,
            ),
            LocalLimits(processes=settings.PROCESSES, windows_max=settings.LOCAL_WINDOWS_MAX),
        )
        self.relay_limits = Limits(
            answer_bytes_max=settings.ANSWER_BYTES_MAX,
            event_bytes_max=settings.STREAM_EVENT_BYTES_MAX,
            heartbeat_s=settings.STREAM_HEARTBEAT_S,
            kept_bytes_max=settings.IDEMPOTENT_ANSWER_BYTES_MAX,
        )
        self.principals = PrincipalCache(
            settings.KEY_PEPPER,
            principals.Limits(
                principals_max=settings.PRINCIPALS_MAX,
                refusals_max=settings.REFUSALS_MAX,
                refusal_ttl_s=settings.REFUSAL_TTL_S,
                unconfirmed_s_max=settings.UNCONFIRMED_S_MAX,
            ),
        )
        self.catalog = Catalog(revision=-1, models={}, rates={}, default_lists={}, own_lists={})
        self.reader = Reader(
            waiting_max=settings.READS_WAITING_MAX, timeout_ms=settings.READ_TIMEOUT_MS
        )
        self.is_open = False
        self._requests: set[Cuttable] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._missing: dict[Miss, asyncio.Future[Resolved | None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str | None:
        """Say why requests cannot be taken; None if they can. PostgreSQL's absence does not close the door."""
        return self.books.trouble if self.is_open else "the door is not open"

    async def start(self) -> None:
        """Open everything. Fails loudly if the database cannot be reached for a while."""
        await asyncio.to_thread(_load_counters)
        await self._until_the_database_answers()
        await self.books.start()
        await self.limiter.start()
        await self._in_loader(self._beat)  # before the first hold: a process nobody knows is dead
        self._tasks = [
            asyncio.create_task(self._poll(), name="snapshot-poller"),
            asyncio.create_task(self._live(), name="heart"),
        ]
        self.is_open = True

    def close_soon(self) -> None:
        """Let the requests in flight end; cut off what still runs when SHUTDOWN_TIMEOUT_S have passed."""
        if self.is_open:
            self.is_open = False
            asyncio.get_running_loop().call_later(settings.SHUTDOWN_TIMEOUT_S, self._cut_off)

    async def stop(self) -> None:
        """Wait for the requests in flight, whose time is bounded by `close_soon`; write what waits, and close.

        May be called twice: both callers wait for the one end.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="stop")
        await self._stopping

    async def _stop(self) -> None:
        self.close_soon()
        try:
            async with asyncio.timeout(settings.SHUTDOWN_TIMEOUT_S + SETTLING_S_MAX):
                await self._idle.wait()
        except TimeoutError:
            logger.error("%d requests are left to the expiry of their holds", len(self._requests))
        for task in self._tasks:
            task.cancel()
        await self.limiter.stop()
        await self.books.stop()
        await self._leave()
        await self.backends.aclose()
        await self.fetcher.aclose()
        await self.reader.aclose()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _cut_off(self) -> None:
        if self._requests:
            logger.warning("%d requests are cut off by the shutdown", len(self._requests))
        for request in list(self._requests):
            request.cut_off()

    @contextmanager
    def request_in_flight(self, request: Cuttable) -> Iterator[None]:
        """Note a request, so that `stop` waits for it, or cuts it off."""
        self._requests.add(request)
        self._idle.clear()
        try:
            yield
        finally:
            self._requests.discard(request)
            if not self._requests:
                self._idle.set()

    async def resolve(self, miss: Miss) -> Principal | Refusal:
        """Look a key up that the cache does not know. Raises StoreUnavailable if the database is away."""
        if not self.books.is_up or len(self._missing) >= MISSES_MAX:
            raise StoreUnavailable("keys cannot be looked up now")
        waiting = self._missing.get(miss)
        if waiting is None:
            waiting = self._missing[miss] = asyncio.get_running_loop().create_future()
            if len(self._missing) == 1:
                self._lookup = asyncio.create_task(self._look_up())
        try:
            async with asyncio.timeout(settings.RESERVE_TIMEOUT_MS / 1000):
                resolved = await asyncio.shield(waiting)
        except TimeoutError:
            resolved = None
        if resolved is None:
            raise StoreUnavailable("keys cannot be looked up now")
        return self.principals.put(miss, resolved)

    async def _look_up(self) -> None:
        """Resolve all keys that are missing, in as few queries as can be: after a change they all are.

        A miss is waited for together with its generation, so that what was read before a revocation never
        answers a request that came after it.
        """
        while self._missing:
            misses = list(itertools.islice(self._missing, principals.LOAD_MAX))
            digests = {miss.digest for miss in misses}
            try:
                found: Mapping[bytes, Resolved] = await self._in_loader(
                    partial(principals.load, digests)
                )
            except Exception:  # whatever it was, nobody may wait forever
                logger.exception("keys cannot be looked up")
                found = {}
            for miss in misses:
                self._missing.pop(miss).set_result(found.get(miss.digest))

    async def kept_answer(self, request_id: UUID) -> bytes | None:
        """Return the sealed answer of a request. Raises StoreUnavailable if the database is away."""
        try:
            return await self._in_loader(partial(idempotency.kept_answer, request_id))
        except (OperationalError, InterfaceError) as error:
            raise StoreUnavailable("answers cannot be looked up now") from error

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(settings.SNAPSHOT_POLL_MS / 1000)
            try:
                await self._refresh()
            except (OperationalError, InterfaceError) as error:
                logger.warning("the snapshot cannot be refreshed: %s", error)
            except Exception:
                logger.exception("the snapshot cannot be refreshed")

    async def _live(self) -> None:
        """Say every few seconds that this process lives, and now and then book what dead ones left on this disk."""
        for beat in itertools.count(1):
            await asyncio.sleep(processes.BEAT_EVERY_S)
            try:
                await self._in_loader(self._beat)
                if beat % DRAIN_EVERY_BEATS == 1:
                    await asyncio.to_thread(_drain)
            except (OperationalError, InterfaceError) as error:
                logger.warning("the heart cannot beat: %s", error)
            except Exception:
                logger.exception("the heart cannot beat")

    def _beat(self) -> None:
        processes.beat(self.books.process_id, socket.gethostname())

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._in_loader(partial(processes.leave, self.books.process_id))
        except (OperationalError, InterfaceError, TimeoutError):
            logger.warning("this process is gone without a word; its row will be found stale")

    async def _refresh(self) -> None:
        """Take over what changed in keys and catalog since the last look."""
        asked_at = time.monotonic()
        names = [revisions.PRINCIPALS, catalog.REVISION]
        current = await self._in_loader(lambda: revisions.read(names))
        self.principals.confirm(current[revisions.PRINCIPALS], asked_at)
        if current[catalog.REVISION] != self.catalog.revision:
            self.catalog = await self._in_loader(catalog.load)
            self.backends.keep_only(self.catalog.backends)

    async def _until_the_database_answers(self) -> None:
        for attempt in range(START_ATTEMPTS_MAX):
            try:
                await self._refresh()
            except (OperationalError, InterfaceError) as error:
                if attempt == START_ATTEMPTS_MAX - 1:
                    raise
                logger.warning("waiting for the database: %s", error)
                await asyncio.sleep(1)
            else:
                return

    async def _in_loader(self, read: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, reconnecting, read)


def _drain() -> None:
    """Book the spools of dead processes. In a thread of its own: a long file must not stop the heart."""
    try:
        reconciliation.drain()
    finally:
        connection.close()


def _load_counters() -> None:
    for name in counters.names():
        counters.get(name).load()
