"""C: clients that ask again and again, streamed and not, with pictures and without; some leave early.

Each attempt is one line of their journal: what the client saw, and nothing that it did not.
"""

import asyncio
import json
import random
import time
from typing import Any

import aiohttp

from tests.faults.journal import Entry, Journal
from tests.faults.scenario import MODEL, TILE_TOKENS, TOKENS_OUT_MAX, Caller
from tests.pictures import data_url, question

PAUSE_S_MAX = 0.4
LEAVE_SHARE = 0.1
LEAVE_AFTER_S_MAX = 0.8
PATIENCE_S = 40
REFUSED_PAUSE_S = 1.0
TILE = data_url(560, 560)
DONE = b"data: [DONE]\n\n"


class Client:
    """One caller that never tires. `run` returns once it may stop and its last answer has ended."""

    def __init__(
        self,
        caller: Caller,
        url: str,
        session: aiohttp.ClientSession,
        journal: Journal,
        draw: random.Random,
    ) -> None:
        self._caller = caller
        self._url = f"{url}/v1/chat/completions"
        self._session = session
        self._journal = journal
        self._draw = draw

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            began = time.monotonic()
            entry = await self._ask()
            took_ms = round((time.monotonic() - began) * 1000)
            self._journal.write(key=self._caller.key_id, took_ms=took_ms, **entry)
            is_well = entry["outcome"] in {"completed", "left"}
            await asyncio.sleep(self._draw.uniform(0, PAUSE_S_MAX) if is_well else REFUSED_PAUSE_S)

    async def _ask(self) -> Entry:
        leaves = self._draw.random() < LEAVE_SHARE
        patience_s = self._draw.uniform(0, LEAVE_AFTER_S_MAX) if leaves else PATIENCE_S
        pictures = self._draw.choice((0, 0, 0, 0, 1, 2))
        received = Received()
        try:
            async with (
                asyncio.timeout(patience_s),
                self._session.post(
                    self._url, json=self._body(pictures), headers=self._headers
                ) as response,
            ):
                await received.take(response)
            outcome = "broken"
        except TimeoutError:
            outcome = "left" if leaves else "no answer"
        except aiohttp.ClientConnectorError:
            outcome = "unreachable"
        except (aiohttp.ClientError, OSError):
            outcome = "broken"
        return {"image": TILE_TOKENS * pictures, "outcome": outcome} | received.entry()

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._caller.secret}"}

    def _body(self, pictures: int) -> dict[str, Any]:
        draw = self._draw
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [question(f"seed {draw.randrange(10**9)}", *[TILE] * pictures)],
        }
        if draw.random() < 0.5:
            body["max_tokens"] = TOKENS_OUT_MAX
        if draw.random() < 0.6:
            body["stream"] = True
            if draw.random() < 0.8:
                body["stream_options"] = {"include_usage": True}
        return body


class Received:
    """What of an answer has arrived. An answer is complete with its last byte, however its connection ends."""

    def __init__(self) -> None:
        self._response: aiohttp.ClientResponse | None = None
        self._body = b""

    async def take(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        async for data in response.content.iter_any():
            self._body += data

    def entry(self) -> Entry:
        """Say what it amounts to: an answer, with the usage it shows, an error, or nothing certain."""
        if self._response is None:
            return {"id": None}
        headers = self._response.headers
        if headers["content-type"] == "text/event-stream":
            said = _read_stream(self._body)
        else:
            said = _read_whole(self._response.status, self._body)
        return {"id": headers["x-request-id"], "status": self._response.status, **said}


def _read_whole(status: int, body: bytes) -> Entry:
    try:
        answer = json.loads(body)
    except ValueError:  # a part of an object is none
        return {}
    if status == 200:
        return {"outcome": "completed", "usage": _usage(answer["usage"])}
    outcome = "refused" if status == 429 else "error"
    return {"outcome": outcome, "code": answer["error"]["code"]}


def _read_stream(body: bytes) -> Entry:
    events = [line[6:] for line in body.split(b"\n\n")[:-1] if line.startswith(b"data: {")]
    if body.endswith(DONE):
        shown = [chunk["usage"] for event in events if (chunk := json.loads(event)).get("usage")]
        return {"outcome": "completed", "usage": _usage(shown[-1]) if shown else None}
    last = json.loads(events[-1]) if events else {}
    return {"outcome": "error", "code": last["error"]["code"]} if "error" in last else {}


def _usage(shown: dict[str, Any]) -> dict[str, int]:
    details = shown["prompt_tokens_details"]
    return {
        "prompt": shown["prompt_tokens"],
        "image": details["image_tokens"],
        "cached": details["cached_tokens"],
        "out": shown["completion_tokens"],
    }


async def crowd(
    callers: list[Caller],
    url: str,
    journal: Journal,
    draw: random.Random,
    *,
    count: int,
    stopping: asyncio.Event,
) -> None:
    """Run so many clients at once until they are told to stop, and have stopped."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        clients = [
            Client(
                callers[number % len(callers)],
                url,
                session,
                journal,
                random.Random(draw.random()),
            )
            for number in range(count)
        ]
        await asyncio.gather(*(client.run(stopping) for client in clients))
