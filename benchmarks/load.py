"""The client: a fixed number of connections that ask the same over and over, and check each answer.

It runs in a process of its own and reads no more of an answer than it takes to find its end and to
see that it is whole.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import cast

import uvloop

from benchmarks.backend import HEAD_END, HOST, LENGTH

OK = b"HTTP/1.1 200 "
LAST_CHUNK = b"\r\n0\r\n\r\n"
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """So many requests, so many of them at once, within a time."""

    port: int
    path: str
    key: str
    body: bytes
    mark: tuple[bytes, int]
    requests: int
    in_flight: int
    timeout_s: float = 60.0

    def request(self) -> bytes:
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {HOST}:{self.port}\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
            f"accept: */*\r\nuser-agent: benchmark\r\ncontent-length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


@dataclass
class Outcome:
    """What came of a load. Only whole, right answers count as answered."""

    requests: int
    wall_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    first_wrong: bytes = b""

    @property
    def failed(self) -> int:
        return self.requests - len(self.latencies_s)

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.wall_s

    def percentile_ms(self, percent: int) -> float:
        ranked = sorted(self.latencies_s)
        return ranked[min(len(ranked) * percent // 100, len(ranked) - 1)] * 1000


def put(load: Load) -> Outcome:
    """Put the load on; return when every request has its answer, or the time is over."""
    return uvloop.run(_Run(load).outcome())


class _Run:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.request = load.request()
        self.left = load.requests
        self.result = Outcome(load.requests)
        self._busy = load.in_flight
        self._done = asyncio.Event()

    async def outcome(self) -> Outcome:
        load = self.load
        loop = asyncio.get_running_loop()
        connections = [
            (await loop.create_connection(lambda: _Client(self), HOST, load.port))[1]
            for _ in range(load.in_flight)
        ]
        began = time.perf_counter()
        for client in connections:
            client.ask()
        try:
            async with asyncio.timeout(load.timeout_s):
                await self._done.wait()
        except TimeoutError:
            self.result.first_wrong = self.result.first_wrong or b"(no answer in time)"
        self.result.wall_s = time.perf_counter() - began
        return self.result

    def end(self) -> None:
        """Say that one connection has no more to do."""
        self._busy -= 1
        if not self._busy:
            self._done.set()


class _Client(asyncio.Protocol):
    """One connection with one request in flight. It gives up at the first wrong answer."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._is_asking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        if not self._run.left:
            self._is_asking = False
            self._run.end()
            self._transport.close()
            return
        self._run.left -= 1
        self._is_asking = True
        self._parts: list[bytes] = []
        self._received = 0
        self._length: int | None = None  # of the whole answer, head included; None: chunked
        self._began = time.perf_counter()
        self._transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        if not self._parts:
            self._length = _whole_length(data)
        self._parts.append(data)
        self._received += len(data)
        if self._received == self._length if self._length else self._is_last(data):
            self._take(b"".join(self._parts))

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_asking:
            self._give_up(b"".join(self._parts) or b"(closed without an answer)")

    def _is_last(self, data: bytes) -> bool:
        if len(data) < len(LAST_CHUNK):
            data = b"".join(self._parts[-3:])
        return data.endswith(LAST_CHUNK)

    def _take(self, answer: bytes) -> None:
        mark, count = self._run.load.mark
        if not answer.startswith(OK) or answer.count(mark) != count:
            self._give_up(answer)
            return
        self._run.result.latencies_s.append(time.perf_counter() - self._began)
        self.ask()

    def _give_up(self, answer: bytes) -> None:
        self._is_asking = False
        self._run.result.first_wrong = self._run.result.first_wrong or answer[-2000:]
        self._run.end()
        self._transport.close()


def _whole_length(start: bytes) -> int | None:
    """Return the length of the answer that begins so, if its head tells; heads come in one piece."""
    head_end = start.index(HEAD_END)
    head = start[:head_end]
    if CHUNKED.search(head):
        return None
    length = LENGTH.search(head)
    assert length is not None, start
    return head_end + len(HEAD_END) + int(length[1])
