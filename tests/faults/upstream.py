"""U: the model's backend, in a process of its own: `python -m tests.faults.upstream --port P --journal FILE`.

It writes down each request before it answers a byte of it, and again when the answer has ended; the gateway
knows nothing of that journal. What it answers is drawn from the request's seed.
"""

import argparse
import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.journal import Journal
from tests.faults.plan import Plan, seed_in
from tests.faults.scenario import UPSTREAM_NAME

HOST = "127.0.0.1"
BODY_BYTES_MAX = 2**20
PICTURE = b'"image_url":'  # as a field; the part's type is the same word
WORD = " a"  # one token
PROMPT_REPORTED = 11  # wrong on purpose: the gateway's counter is exact, and bills
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
JSON_HEAD = "HTTP/1.1 {} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n"


class Conversation:
    """One request and its answer, word by word."""

    def __init__(
        self, plan: Plan, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.plan = plan
        self.emitted = 0
        self._reader = reader
        self._writer = writer

    async def stream(self) -> None:
        """Answer event by event. Raises ConnectionError as soon as the gateway is seen to be gone."""
        await self._wait(self.plan.first_wait_s)
        await self._send(STREAM_HEAD)
        for _ in range(self.plan.words):
            await self._wait(self.plan.word_wait_s)
            self.emitted += 1
            await self._send(_event(choices=[_choice(delta={"content": WORD})]))
        if self.plan.ending == "broken":
            return
        await self._send(_event(choices=[_choice(delta={}, finish_reason="stop")]))
        if self.plan.reports_usage:
            await self._send(_event(choices=[], usage=self._usage()))
        await self._send(b"data: [DONE]\n\n")

    async def answer(self) -> None:
        """Answer at once, when all is written."""
        await self._wait(self.plan.first_wait_s + self.plan.word_wait_s * self.plan.words)
        self.emitted = self.plan.words
        text = WORD * self.plan.words
        message = {"role": "assistant", "content": text}
        usage = {"usage": self._usage()} if self.plan.reports_usage else {}
        body = json.dumps(
            _head() | {"choices": [_choice(message=message, finish_reason="stop")]} | usage
        ).encode()
        missing = len(body) // 2 if self.plan.ending == "broken" else 0
        await self._send(JSON_HEAD.format(200, len(body)).encode() + body[: len(body) - missing])

    async def refuse(self) -> None:
        await self._send(JSON_HEAD.format(500, 2).encode() + b"{}")

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": PROMPT_REPORTED,
            "completion_tokens": self.emitted,
            "total_tokens": PROMPT_REPORTED + self.emitted,
            "prompt_tokens_details": {"cached_tokens": self.plan.cached},
        }

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._reader.at_eof():
            raise ConnectionAbortedError

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


class Upstream:
    """Serves chat completions, one on each connection."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
        size = int(headers[b"content-length"])
        assert size <= BODY_BYTES_MAX
        body = await reader.readexactly(size)
        request_id = headers[b"x-request-id"].decode()
        talk = Conversation(Plan.of(seed_in(body)), reader, writer)
        is_stream = json.loads(body).get("stream", False)
        self._note(request_id, "started", stream=is_stream, pictures=body.count(PICTURE))
        ended = "aborted"
        try:
            if talk.plan.ending == "refused":
                await talk.refuse()
            else:
                await (talk.stream() if is_stream else talk.answer())
            ended = talk.plan.ending
        finally:
            reported = talk.emitted if ended == "whole" and talk.plan.reports_usage else None
            self._note(request_id, ended, emitted=talk.emitted, reported=reported)

    def _note(self, request_id: str, event: str, **entry: object) -> None:
        self._journal.write(id=request_id, event=event, at=time.time(), **entry)


def _head() -> dict[str, Any]:
    return {"id": "up", "object": "chat.completion", "created": 1736486977, "model": UPSTREAM_NAME}


def _choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": None, **fields}


def _event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(_head() | fields).encode() + b"\n\n"


async def _main(port: int, journal: Path) -> None:
    upstream = Upstream(Journal(journal))
    server = await asyncio.start_server(upstream.handle, HOST, port, backlog=1024, reuse_port=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(_main(options.port, options.journal))
