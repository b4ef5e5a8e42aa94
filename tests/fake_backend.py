"""A backend at the network's edge that does what a test tells it: answer, stream, stall, break off, lie.

It runs in a thread of its own, speaks HTTP/1.1 over real sockets, and remembers what it was asked and whether
the gateway closed the connection before the end.
"""

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

UPSTREAM_NAME = "upstream-vision"
USAGE = {"prompt_tokens": 6424, "completion_tokens": 3, "total_tokens": 6427}


@dataclass(frozen=True)
class Send:
    data: bytes


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Hang:
    """Say nothing until the gateway closes the connection."""


@dataclass(frozen=True)
class Reset:
    """Break the connection in the middle."""


Step = Send | Wait | Hang | Reset


@dataclass
class Asked:
    """One request as the backend saw it."""

    headers: dict[str, str]
    body: dict[str, Any]
    closed_early: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


def head(status: int = 200, content_type: str = "application/json", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(content: str = "one two three", *, usage: Any = USAGE, **fields: Any) -> list[Step]:
    """A whole answer, as terse as backends dare: the gateway must fill in the rest."""
    body = {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1736486977,
        "model": UPSTREAM_NAME,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": content},
            }
        ],
        **({"usage": usage} if usage is not None else {}),
        **fields,
    }
    return [Send(head()), Send(json.dumps(body).encode())]


def status(code: int, message: str = "no", **headers: str) -> list[Step]:
    return [Send(head(code, **headers)), Send(json.dumps({"error": {"message": message}}).encode())]


def event(**fields: Any) -> bytes:
    chunk = {
        "id": "chatcmpl-up",
        "object": "chat.completion.chunk",
        "created": 1736486977,
        "model": UPSTREAM_NAME,
        **fields,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def delta(content: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": finish}])


STREAM_HEAD = Send(head(content_type="text/event-stream"))
DONE = Send(b"data: [DONE]\n\n")


def usage_event(usage: Any = USAGE) -> Send:
    return Send(event(choices=[], usage=usage))


def stream(*contents: str, usage: Any = USAGE) -> list[Step]:
    """A stream that ends as it should."""
    steps: list[Step] = [STREAM_HEAD, *(Send(delta(content)) for content in contents)]
    steps.append(Send(delta("", "stop")))
    if usage is not None:
        steps.append(usage_event(usage))
    return [*steps, DONE]


class FakeBackend:
    """Serves every request with the current script, from a thread; see `script` and `asked`."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._steps: Sequence[Step] = ()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-backend", daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def script(self, steps: Sequence[Step]) -> None:
        """Forget what was asked so far; answer with these steps from now on."""
        self.asked = []
        self._steps = list(steps)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await self._read(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        self.asked.append(asked)
        try:
            await self._play(asked, list(self._steps), reader, writer)
        except ConnectionError:
            asked.closed_early.set()
        finally:
            asked.done.set()
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Asked:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Asked(headers, json.loads(body) if body else {})

    async def _play(
        self,
        asked: Asked,
        steps: list[Step],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        gone = asyncio.ensure_future(
            reader.read(1)
        )  # the gateway sends nothing more: EOF says it left
        try:
            for step in steps:
                match step:
                    case Send(data):
                        writer.write(data)
                        await writer.drain()
                    case Wait(seconds):
                        await asyncio.wait({gone}, timeout=seconds)
                    case Hang():
                        await asyncio.wait({gone}, timeout=30)
                    case Reset():
                        writer.transport.abort()
                        return
                if gone.done():
                    asked.closed_early.set()
                    return
        finally:
            gone.cancel()
