"""One connection to Valkey (or Redis) for a process, shared by everything in its event loop.

All commands of one turn of the loop go out in one write, and nobody waits for a connection from a pool. While
Valkey is away, or slower than a command may take, callers are told at once instead of waiting: the connection is
dropped, and commands are taken again only when a new one has answered.
"""

import asyncio
import hashlib
import logging
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 1.0
RECONNECT_WAIT_S_MIN = 0.1
RECONNECT_WAIT_S_MAX = 1.0
STEADY_S = 5.0  # a connection that has lasted so long was a good one
UNHEARD_WAIT_S = 0.005  # a write, and the reading of its reply, cost more than the command
LATE_S = 0.005  # a reply that came while the loop was busy is read before it counts as missing


class ValkeyAway(Exception):
    """Valkey did not answer, or refused the command. Whether it ran may be unknown."""


class Script:
    """A Lua script, called by its digest; Valkey is sent the source when it does not know it."""

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()


@dataclass(frozen=True, slots=True)
class Address:
    """Where Valkey listens: redis://, rediss:// (TLS) or unix://, as redis-py writes it."""

    host: str
    port: int
    path: str  # of a unix socket; else empty
    database: int
    login: tuple[str, ...] = field(repr=False)  # what AUTH takes; empty for none
    tls: bool
    ca_file: str | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read the URL. ValueError if it is none; options of other clients are passed over."""
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("REDIS_URL must start with redis://, rediss:// or unix://.")
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        is_socket = parts.scheme == "unix"
        database = options.get("db", "0" if is_socket else parts.path.strip("/") or "0")
        password = unquote(parts.password or "") or options.get("password", "")
        return cls(
            host=parts.hostname or "localhost",
            port=parts.port or 6379,
            path=unquote(parts.path) if is_socket else "",
            database=int(database),
            login=tuple(filter(None, (unquote(parts.username or ""), password)))
            if password
            else (),
            tls=parts.scheme == "rediss",
            ca_file=options.get("ssl_ca_certs"),
        )

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(slots=True)
class _Call:
    """A command under way. Nobody waits for one without a future."""

    deadline: float
    future: asyncio.Future[Any] | None
    script: Script | None
    arguments: tuple[Any, ...]


class _Connection(asyncio.Protocol):
    """One socket. Replies come in the order of the commands, so only the oldest call needs a timer."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader()
        self._calls: deque[_Call] = deque()
        self._unsent: list[bytes] = []
        self._is_flushing = False
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[str] = self._loop.create_future()

    def __len__(self) -> int:
        return len(self._calls)

    def send(
        self,
        command: tuple[Any, ...],
        future: asyncio.Future[Any] | None,
        script: Script | None = None,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        """Send a command at the end of this turn; one that nobody waits for may wait for the next one's write."""
        self._unsent.append(hiredis.pack_command(command))
        if future is not None and not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)
        elif len(self._unsent) == 1:
            self._loop.call_later(UNHEARD_WAIT_S, self._flush)
        deadline = self._loop.time() + self._timeout_s
        self._calls.append(_Call(deadline, future, script, arguments))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._look)

    def close(self, reason: str) -> None:
        """Drop the connection; whoever waits for a reply learns why."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._calls:
            _fail(self._calls.popleft(), reason)

    # ------------------------------------------------------------ what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._take(self._calls.popleft(), reply)
        except (hiredis.ProtocolError, IndexError):
            self.close("it does not speak the Redis protocol")

    def connection_lost(self, error: Exception | None) -> None:
        self.close(f"the connection broke: {error}" if error else "it closed the connection")

    def _take(self, call: _Call, reply: Any) -> None:
        if not isinstance(reply, hiredis.ReplyError):
            if call.future is not None and not call.future.done():
                call.future.set_result(reply)
        elif call.script is not None and str(reply).startswith("NOSCRIPT"):
            self.send((b"EVAL", call.script.source, *call.arguments), call.future)
            self._flush()
        else:
            _fail(call, str(reply))

    def _flush(self) -> None:
        self._is_flushing = False
        commands, self._unsent = self._unsent, []
        if commands and self._transport is not None and not self.lost.done():
            self._transport.write(b"".join(commands))

    def _look(self) -> None:
        """Look at the clock when the oldest call's time is up, or was when the timer was set."""
        self._timer = None
        if not self._calls:
            return
        oldest = self._calls[0]
        if self._loop.time() < oldest.deadline:
            self._timer = self._loop.call_at(oldest.deadline, self._look)
        else:
            self._timer = self._loop.call_later(LATE_S, self._give_up, oldest)

    def _give_up(self, call: _Call) -> None:
        self._timer = None
        if self._calls and self._calls[0] is call:
            self.close(f"no answer within {self._timeout_s * 1000:.0f} ms")
        else:
            self._look()


class Valkey:
    """Keeps one connection, and makes a new one when it is lost. Belongs to one event loop."""

    def __init__(
        self, url: str, *, scripts: tuple[Script, ...], timeout_s: float, queue_max: int
    ) -> None:
        self._address = Address.parse(url)
        self._scripts = scripts
        self._timeout_s = timeout_s
        self._queue_max = queue_max
        self._connection: _Connection | None = None
        self._tried = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, or try to: from then on it is tried again until `stop`."""
        self._keeper = asyncio.create_task(self._keep_connected(), name="valkey")
        await self._tried.wait()

    async def stop(self) -> None:
        """Let Valkey take what was sent, then disconnect."""
        with suppress(ValkeyAway):
            await self.command(b"PING")
            await self.command(b"PING")  # after the scripts that it had forgotten
        if self._connection is not None:
            self._connection.close("this process is stopping")
        if self._keeper is not None:
            self._keeper.cancel()

    @property
    def is_up(self) -> bool:
        return self._connection is not None and not self._connection.lost.done()

    def command(self, *words: Any) -> asyncio.Future[Any]:
        """Send a command; the future gives its reply. ValkeyAway, at once or from the future."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._ready().send(words, future)
        return future

    def evaluate(self, script: Script, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Run a script. `arguments` are EVALSHA's: the number of keys, the keys, and the rest."""
        connection = self._ready()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        connection.send((b"EVALSHA", script.digest, *arguments), future, script, arguments)
        return future

    def evaluate_unheard(self, script: Script, arguments: tuple[Any, ...]) -> None:
        """Run a script whose result nobody waits for. ValkeyAway if it cannot even be sent."""
        self._ready().send((b"EVALSHA", script.digest, *arguments), None, script, arguments)

    def _ready(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.lost.done():
            raise ValkeyAway("there is no connection")
        if len(connection) >= self._queue_max:
            raise ValkeyAway("too many commands wait")
        return connection

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        wait_s, told = RECONNECT_WAIT_S_MIN, ""
        while True:
            began_at = loop.time()
            reason = await self._live_and_die()
            if reason != told:  # once for an outage, not at every attempt
                logger.warning("Valkey at %s is away: %s", self._address, reason)
                told = reason
            if loop.time() - began_at > STEADY_S:
                wait_s = RECONNECT_WAIT_S_MIN
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RECONNECT_WAIT_S_MAX)

    async def _live_and_die(self) -> str:
        """Connect, and return when and why the connection has ended."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._open()
        except (OSError, TimeoutError, ValkeyAway) as error:
            return str(error) or "no answer to the greeting"
        finally:
            self._tried.set()
        self._connection = connection
        logger.info("connected to Valkey at %s", self._address)
        try:
            return await connection.lost
        finally:
            self._connection = None

    async def _open(self) -> _Connection:
        address, loop = self._address, asyncio.get_running_loop()
        connection = _Connection(self._timeout_s)
        if address.path:
            await loop.create_unix_connection(lambda: connection, address.path)
        else:
            tls = ssl.create_default_context(cafile=address.ca_file) if address.tls else None
            await loop.create_connection(lambda: connection, address.host, address.port, ssl=tls)
        try:
            await self._greet(connection)
        except BaseException:
            connection.close("the greeting failed")
            raise
        return connection

    async def _greet(self, connection: _Connection) -> None:
        address = self._address
        greeting: list[tuple[Any, ...]] = []
        if address.login:
            greeting.append(("AUTH", *address.login))
        if address.database:
            greeting.append(("SELECT", address.database))
        greeting += [("SCRIPT", "LOAD", script.source) for script in self._scripts]
        for command in [*greeting, ("PING",)]:
            reply = asyncio.get_running_loop().create_future()
            connection.send(command, reply)
            await reply


def _fail(call: _Call, reason: str) -> None:
    if call.future is not None and not call.future.done():
        call.future.set_exception(ValkeyAway(reason))
