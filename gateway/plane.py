"""The data plane of one process: everything that requests share, opened at start and closed at the end."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection

from billing.batcher import StoreUnavailable
from billing.holds import Bookkeeper
from gateway import catalog
from gateway.backends import BackendPool
from gateway.catalog import Catalog
from gateway.counting import counters
from gateway.images import ImageLimits
from gateway.images.fetcher import Fetcher
from gateway.relay import Limits
from tenants import principals, revisions
from tenants.principals import Miss, Principal, PrincipalCache, Refusal, Resolved

logger = logging.getLogger(__name__)
T = TypeVar("T")

START_ATTEMPTS_MAX = 30


class DataPlane:
    """Owns the batchers, the sessions to backends, the caches, and the one thread that reads the database."""

    def __init__(self) -> None:
        self.books = Bookkeeper(
            settings.DATABASE_URL,
            rows_max=settings.BATCH_ROWS_MAX,
            queue_max=settings.BATCH_QUEUE_MAX,
            reserve_timeout_s=settings.RESERVE_TIMEOUT_MS / 1000,
            settle_timeout_s=settings.SETTLE_TIMEOUT_MS / 1000,
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
        self.relay_limits = Limits(
            answer_bytes_max=settings.ANSWER_BYTES_MAX,
            event_bytes_max=settings.STREAM_EVENT_BYTES_MAX,
            heartbeat_s=settings.STREAM_HEARTBEAT_S,
        )
        self.principals = PrincipalCache(
            settings.KEY_PEPPER, principals.Limits(principals_max=settings.PRINCIPALS_MAX)
        )
        self.catalog = Catalog(revision=-1, models={}, rates={})
        self.is_open = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._missing: dict[Miss, asyncio.Future[Resolved | None]] = {}
        self._poller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open everything. Fails loudly if the database cannot be reached for a while."""
        await asyncio.to_thread(_load_counters)
        await self._until_the_database_answers()
        await self.books.start()
        self._poller = asyncio.create_task(self._poll(), name="snapshot-poller")
        self.is_open = True

    async def stop(self) -> None:
        """Let the requests in flight end, write what waits, and close. Bounded by SHUTDOWN_TIMEOUT_S."""
        self.is_open = False
        try:
            async with asyncio.timeout(settings.SHUTDOWN_TIMEOUT_S):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d requests were still running at shutdown", self._in_flight)
        if self._poller is not None:
            self._poller.cancel()
        await self.books.stop()
        await self.backends.aclose()
        await self.fetcher.aclose()
        self._loader.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def request_in_flight(self) -> Iterator[None]:
        """Count a request, so that `stop` waits for it."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def resolve(self, miss: Miss) -> Principal | Refusal:
        """Look a key up that the cache does not know. Raises StoreUnavailable if the database is away."""
        waiting = self._missing.get(miss)
        if waiting is None:
            waiting = self._missing[miss] = asyncio.get_running_loop().create_future()
            if len(self._missing) == 1:
                self._lookup = asyncio.create_task(self._look_up())
        resolved = await asyncio.shield(waiting)
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

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(settings.SNAPSHOT_POLL_MS / 1000)
            try:
                await self._refresh()
            except (OperationalError, InterfaceError) as error:
                logger.warning("the snapshot cannot be refreshed: %s", error)
            except Exception:
                logger.exception("the snapshot cannot be refreshed")

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
        return await asyncio.get_running_loop().run_in_executor(self._loader, _reading, read)


def _reading(read: Callable[[], T]) -> T:
    """Run a query in the loader's thread; drop a broken connection, so that the next one starts afresh."""
    try:
        return read()
    except (OperationalError, InterfaceError):
        connection.close()
        raise


def _load_counters() -> None:
    for name in counters.names():
        counters.get(name).load()
