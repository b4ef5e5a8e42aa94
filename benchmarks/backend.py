"""A backend that is far cheaper than the gateway: it looks for the end of a request and writes bytes.

It runs in a process of its own, so that its cost is not the gateway's and can be shown. It reads no
JSON: each kind of work has an address of its own, and one answer, which is laid out before the start.
"""

import asyncio
import multiprocessing
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from benchmarks.work import Work, completion, events

HOST = "127.0.0.1"
START_S_MAX = 20
HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True)
class Backend:
    """A running backend: where it is, and whose CPU time is its own."""

    port: int
    pid: int


@dataclass(frozen=True)
class Reply:
    """What is written to the network, and how long to wait after each piece."""

    pieces: list[bytes]
    interval_s: float


@contextmanager
def running(works: Sequence[Work]) -> Iterator[Backend]:
    """Answer every kind of work from a process of its own."""
    replies = {work.model.encode(): _reply(work) for work in works}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(replies, theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(START_S_MAX), "the fake backend does not start"
        assert process.pid is not None
        yield Backend(port=ours.recv(), pid=process.pid)
    finally:
        process.kill()
        process.join()


def _reply(work: Work) -> Reply:
    pieces = list(_pieces(work))
    return Reply(pieces if work.interval_s else [b"".join(pieces)], work.interval_s)


def _pieces(work: Work) -> Iterator[bytes]:
    """Yield the answer chunk by chunk as it is written to the network, head included."""
    if not work.chunks:
        body = completion(work)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        yield head % len(body) + body
        return
    frames = [b"%x\r\n%b\r\n" % (len(event), event) for event in events(work)]
    yield STREAM_HEAD + frames[0]
    yield from frames[1 : work.chunks]
    yield b"".join([*frames[work.chunks :], b"0\r\n\r\n"])  # the end comes with no pause


class Server(asyncio.Protocol):
    """One connection, kept alive. Takes requests with a content-length, one after the other."""

    def __init__(self, replies: dict[bytes, Reply]) -> None:
        self._replies = replies
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._reply = Reply([], 0)
        self._missing = 0  # bytes of the body that are still to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._head += data
            end = self._head.find(HEAD_END)
            if end < 0:
                return
            length = LENGTH.search(self._head)
            assert length is not None, "a request without its length"
            self._missing = int(length[1]) - (len(self._head) - end - len(HEAD_END))
            self._reply = self._replies[self._head[: self._head.index(b"/chat/")][6:]]
            self._head = b""
        if not self._missing:
            self._write(0)

    def _write(self, index: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._reply.pieces[index])
        if index + 1 < len(self._reply.pieces):
            self._loop.call_later(self._reply.interval_s, self._write, index + 1)


def _serve(replies: dict[bytes, Reply], tell: Connection) -> None:
    uvloop.run(_listen(replies, tell))


async def _listen(replies: dict[bytes, Reply], tell: Connection) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(replies), HOST, 0, backlog=2048)
    tell.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
