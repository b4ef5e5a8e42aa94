"""Group commit: everything that is waiting goes to PostgreSQL in one transaction.

One connection per kind of work and process. There is no timer: while one batch is under way the next one
gathers, so that batches grow with the load and a lone request waits for nobody. A batch whose outcome is
unknown (the connection broke) is sent again; the functions that it calls are idempotent by request id.
A batch that the database refuses is halved until the one bad row stands alone.

Nobody waits here for longer than they want: whoever gives a row up ends its future, and the row is
dropped. While PostgreSQL is away the batcher tries to connect until it is back, with or without work.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo

logger = logging.getLogger(__name__)

Connection = psycopg.AsyncConnection[tuple[str, str]]

CONNECT_TIMEOUT_S = 1.0
STOP_TIMEOUT_S = 5.0
RECONNECT_WAIT_S_MIN = 0.1
RECONNECT_WAIT_S_MAX = 1.0
CONNECTION: dict[str, str | int] = {
    "target_session_attrs": "read-write",  # a standby cannot book
    # A peer that vanished without a word is noticed by the kernel; on a unix socket these mean nothing.
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
# The faults of the store, not of a row: all else that PostgreSQL says is said of what it was given.
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, OSError)
# Every query in the booking functions goes by a key: one plan serves them all, and it must not be one that was made
# while a table was empty. Compiling a statement takes longer than any of them runs.
PLANS = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off"
# Ends what a connection that we gave up may still be doing, so that it cannot write after we said it did not.
END_ABANDONED = """
    SELECT pid::text, pg_terminate_backend(pid)::text FROM pg_stat_activity
    WHERE pid = %s AND application_name = %s AND usename = current_user
"""


class StoreUnavailable(Exception):
    """PostgreSQL did not take the row in time, or too many rows wait. The outcome may be unknown."""


class RowRefused(Exception):
    """PostgreSQL understood the row and refused it: a mistake of ours, not a passing fault."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a batcher waits for an answer before it says that the database is away, and before it hangs up."""

    answer_timeout_s: float
    silence_max_s: float


@dataclass(slots=True, eq=False)
class _Waiting:
    request_id: UUID
    body: bytes  # JSON
    done: asyncio.Future[str]
    is_sent: bool = False

    @property
    def is_given_up(self) -> bool:
        return self.done.done()


class Batcher:
    """Hands rows to one SQL function, many at a time, and each row's outcome back to whoever waits for it.

    `statement` takes one json array of rows and returns (request_id, outcome) pairs. `when_abandoned` is told
    the request ids of rows that were sent though nobody waited for the outcome any more.
    """

    def __init__(
        self,
        dsn: str,
        statement: str,
        *,
        name: str,
        rows_max: int,
        queue_max: int,
        patience: Patience,
        refuses_while_away: bool = False,
        when_abandoned: Callable[[UUID], None] | None = None,
    ) -> None:
        self._dsn = make_conninfo(dsn, application_name=name, **CONNECTION)
        self._statement = statement
        self._name = name
        self._rows_max = rows_max
        self._queue_max = queue_max
        self._patience = patience
        self._refuses_while_away = refuses_while_away
        self._when_abandoned = when_abandoned
        self._queue: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._opened = asyncio.Event()
        self._connection: Connection | None = None
        self._worker: asyncio.Task[None] | None = None
        self._closing = False
        self._failures = 0
        self._silent_pid: int | None = None
        self._away_since: float | None = None

    @property
    def is_up(self) -> bool:
        """Tell whether the database answered when it was last asked something."""
        return self._away_since is None

    @property
    def away_s(self) -> float:
        """Return for how long the database has been away; 0 if it is not."""
        if self._away_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._away_since

    async def start(self) -> None:
        """Begin to take rows, and connect. A database that is away now is awaited in the background."""
        self._worker = asyncio.create_task(self._work(), name=self._name)
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._opened.wait()

    async def stop(self) -> None:
        """Write what waits, if the database is there to take it, then disconnect."""
        self._closing = True
        self._filled.set()
        if self._worker is not None:
            timeout_s = STOP_TIMEOUT_S if self.is_up else 0
            _, unfinished = await asyncio.wait({self._worker}, timeout=timeout_s)
            if unfinished:
                self._hang_up()  # psycopg would try to cancel on the server, and wait for that
                self._worker.cancel()
                await asyncio.wait(unfinished, timeout=CONNECT_TIMEOUT_S)
        if self._connection is not None:
            await self._connection.close()

    def put(self, request_id: UUID, body: bytes) -> asyncio.Future[str]:
        """Queue a row, in JSON; the future gives its outcome. Set or cancel it to give the row up.

        Raises StoreUnavailable at once if the queue is full, or if rows are not kept while the database is away.
        """
        if self._refuses_while_away and not self.is_up:
            raise StoreUnavailable("the database is away")
        if len(self._queue) >= self._queue_max:
            raise StoreUnavailable("too many rows wait for the database")
        waiting = _Waiting(request_id, body, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._filled.set()
        return waiting.done

    # ------------------------------------------------------------ the worker

    async def _work(self) -> None:
        while True:
            await self._connected()
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                count = min(len(self._queue), self._rows_max)
                await self._write_or_fail([self._queue.popleft() for _ in range(count)])
            if self._closing:
                return

    async def _write_or_fail(self, batch: list[_Waiting]) -> None:
        try:
            await self._write(batch)
        except (
            Exception
        ):  # whatever it was, nobody may wait forever, and the next batch is to go on
            logger.exception("%s failed for %d rows", self._name, len(batch))
            for waiting in batch:
                if not waiting.is_given_up:
                    waiting.done.set_exception(StoreUnavailable("the row could not be written"))

    async def _write(self, batch: list[_Waiting]) -> None:
        """Write the batch for certain, however often the connection breaks, or give each row its error."""
        while True:
            connection = await self._connected()
            batch = self._still_wanted(batch)
            if not batch:
                return
            try:
                outcomes = await self._execute(connection, batch)
            except AWAY as error:
                await self._lose(connection, error)
            except psycopg.Error as error:
                await self._bisect(batch, error)
                return
            else:
                self._deliver(batch, outcomes)
                return

    async def _execute(self, connection: Connection, batch: Sequence[_Waiting]) -> dict[str, str]:
        loop = asyncio.get_running_loop()
        doubt = loop.call_later(self._patience.answer_timeout_s, self._doubt, "no answer")
        end = loop.call_later(self._patience.silence_max_s, self._hang_up)
        for waiting in batch:
            waiting.is_sent = True
        rows = b"[" + b",".join(waiting.body for waiting in batch) + b"]"
        try:
            cursor = await connection.execute(self._statement, (rows.decode(),))
            outcomes = dict(await cursor.fetchall())
        finally:
            doubt.cancel()
            end.cancel()
        self._failures = 0
        self._come_back()
        return outcomes

    async def _bisect(self, batch: list[_Waiting], error: psycopg.Error) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        logger.error("PostgreSQL refuses the row of %s: %s", batch[0].request_id, error)
        if not batch[0].is_given_up:
            batch[0].done.set_exception(RowRefused(str(error)))

    def _deliver(self, batch: Sequence[_Waiting], outcomes: dict[str, str]) -> None:
        for waiting in batch:
            outcome = outcomes.get(str(waiting.request_id))
            if waiting.is_given_up:
                self._abandon(waiting)
            elif outcome is None:
                waiting.done.set_exception(RowRefused("PostgreSQL gave no outcome for the row"))
            else:
                waiting.done.set_result(outcome)

    def _still_wanted(self, batch: Sequence[_Waiting]) -> list[_Waiting]:
        for waiting in batch:
            if waiting.is_given_up and waiting.is_sent:
                self._abandon(waiting)
        return [waiting for waiting in batch if not waiting.is_given_up]

    def _abandon(self, waiting: _Waiting) -> None:
        if self._when_abandoned is not None:
            self._when_abandoned(waiting.request_id)

    # ------------------------------------------------------------ the connection

    async def _connected(self) -> Connection:
        """Return the connection, however long that takes: at once, then after 0.1 s, 0.2 s, … 1 s."""
        while self._connection is None:
            if self._failures > 1:
                wait_s = RECONNECT_WAIT_S_MIN * 2 ** min(self._failures - 2, 10)
                await asyncio.sleep(min(wait_s, RECONNECT_WAIT_S_MAX))
            try:
                self._connection = await self._connect()
            except (*AWAY, TimeoutError) as error:
                self._failures += 1
                self._doubt(str(error).strip() or "no connection in time")
            else:
                self._opened.set()
                self._come_back()
        return self._connection

    async def _connect(self) -> Connection:
        doubt = asyncio.get_running_loop().call_later(
            self._patience.answer_timeout_s, self._doubt, "no connection"
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
                await connection.execute(PLANS)
        finally:
            doubt.cancel()
        if self._silent_pid is not None:
            pid, self._silent_pid = self._silent_pid, None
            await connection.execute(END_ABANDONED, (pid, self._name))
        return connection

    async def _lose(self, connection: Connection, error: Exception) -> None:
        logger.warning("%s lost its connection: %s", self._name, str(error).strip())
        self._failures += 1
        self._connection = None
        await connection.close()

    def _hang_up(self) -> None:
        """Wake whoever waits for the connection, by closing it under them.

        Nothing is cancelled: psycopg would then ask the server, which is silent, to cancel too.
        """
        if self._connection is None or self._connection.closed:
            return
        self._silent_pid = self._connection.info.backend_pid
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    def _doubt(self, why: str) -> None:
        if self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()
            logger.warning("PostgreSQL is away for %s: %s", self._name, why)

    def _come_back(self) -> None:
        if self._away_since is not None:
            logger.warning("PostgreSQL is back for %s after %.1f s", self._name, self.away_s)
            self._away_since = None
