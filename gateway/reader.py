"""The data plane's thread for what one caller asks of the database, apart from what every request needs."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connection, transaction

from billing.batcher import StoreUnavailable

T = TypeVar("T")


class Reader:
    """Answers questions one after the other, bounded in time and in how many wait. Owns one connection."""

    def __init__(self, *, waiting_max: int, timeout_ms: int) -> None:
        self._waiting_max = waiting_max
        self._timeout_ms = timeout_ms
        self._waiting = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")

    async def read(self, query: Callable[[], T]) -> T:
        """Run the query in one transaction; it returns values, not querysets. Raises StoreUnavailable."""
        if self._waiting >= self._waiting_max:
            raise StoreUnavailable("too many questions wait for the database")
        self._waiting += 1
        in_thread = partial(reconnecting, partial(_in_time, query, self._timeout_ms))
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await asyncio.get_running_loop().run_in_executor(self._thread, in_thread)
        except (TimeoutError, OperationalError, InterfaceError) as error:
            raise StoreUnavailable("the database did not answer") from error
        finally:
            self._waiting -= 1

    async def aclose(self) -> None:
        """Disconnect, after the question that is being answered: PostgreSQL ends that in time."""
        await asyncio.get_running_loop().run_in_executor(self._thread, _disconnect)
        self._thread.shutdown(wait=False)


def reconnecting(query: Callable[[], T]) -> T:
    """Run the query in a thread of its own; drop a broken connection, so that the next one starts afresh."""
    try:
        return query()
    except (OperationalError, InterfaceError):
        connection.close()
        raise


def _in_time(query: Callable[[], T], timeout_ms: int) -> T:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = %s", [timeout_ms])
        return query()


def _disconnect() -> None:
    connection.close()  # the connection of the thread that runs this
