"""Group commit: everything that is waiting goes to PostgreSQL in one transaction.

One connection per kind of work and process. There is no timer: while one batch is under way the next one
gathers, so that batches grow with the load and a lone request waits for nobody. A batch whose outcome is
unknown (the connection broke) is sent again; the functions that it calls are idempotent by request id.
A batch that the database refuses is halved until the one bad row stands alone.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg

logger = logging.getLogger(__name__)

Row = Any  # a msgspec struct with a request_id
RECONNECT_WAIT_S = 0.1


class StoreUnavailable(Exception):
    """PostgreSQL did not take the row in time, or too many rows wait. The outcome may be unknown."""


class RowRefused(Exception):
    """PostgreSQL understood the row and refused it: a mistake of ours, not a passing fault."""


@dataclass(slots=True)
class _Waiting:
    row: Row
    done: asyncio.Future[str]


class Batcher:
    """Hands rows to one SQL function, many at a time, and each row's outcome back to whoever waits for it.

    `statement` takes one json array of rows and returns (request_id, outcome) pairs.
    """

    def __init__(self, dsn: str, statement: str, *, rows_max: int, queue_max: int) -> None:
        self._dsn = dsn
        self._statement = statement
        self._rows_max = rows_max
        self._queue_max = queue_max
        self._queue: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._connection: psycopg.AsyncConnection[tuple[str, str]] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._closing = False
        self.is_up = True

    async def start(self) -> None:
        """Connect, and begin to take rows. Raises psycopg.OperationalError if the database is away."""
        await self._connect()
        self._worker = asyncio.create_task(self._work(), name="batcher")

    async def stop(self) -> None:
        """Write what waits, then disconnect."""
        self._closing = True
        self._filled.set()
        if self._worker:
            await self._worker
        if self._connection:
            await self._connection.close()

    def put(self, row: Row) -> asyncio.Future[str]:
        """Queue a row; the future gives its outcome. StoreUnavailable at once if the queue is full."""
        if len(self._queue) >= self._queue_max:
            raise StoreUnavailable("too many rows wait for the database")
        waiting = _Waiting(row, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._filled.set()
        return waiting.done

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                count = min(len(self._queue), self._rows_max)
                batch = [self._queue.popleft() for _ in range(count)]
                batch = [waiting for waiting in batch if not waiting.done.done()]
                await self._write(batch)
            if self._closing:
                return

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        """Write the batch for certain, however often the connection breaks, or give each row its error."""
        while batch:
            try:
                outcomes = await self._execute([waiting.row for waiting in batch])
            except (psycopg.OperationalError, OSError) as error:
                self.is_up = False
                logger.warning("PostgreSQL is away, %d rows wait: %s", len(batch), error)
                await asyncio.sleep(RECONNECT_WAIT_S)
                batch = [waiting for waiting in batch if not waiting.done.done()]
            except psycopg.Error as error:
                await self._bisect(batch, error)
                return
            else:
                self.is_up = True
                for waiting in batch:
                    _resolve(waiting, outcomes)
                return

    async def _bisect(self, batch: Sequence[_Waiting], error: psycopg.Error) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        logger.error("PostgreSQL refuses a row: %s", error)
        if not batch[0].done.done():
            batch[0].done.set_exception(RowRefused(str(error)))

    async def _execute(self, rows: list[Row]) -> dict[str, str]:
        connection = self._connection
        if connection is None or connection.closed or connection.broken:
            connection = await self._connect()
        cursor = await connection.execute(self._statement, (msgspec.json.encode(rows).decode(),))
        return dict(await cursor.fetchall())

    async def _connect(self) -> psycopg.AsyncConnection[tuple[str, str]]:
        self._connection = await psycopg.AsyncConnection.connect(
            self._dsn, autocommit=True, connect_timeout=2, application_name="tessera-batcher"
        )
        return self._connection


def _resolve(waiting: _Waiting, outcomes: dict[str, str]) -> None:
    if not waiting.done.done():
        waiting.done.set_result(outcomes[str(waiting.row.request_id)])
