"""A relay with nothing in it: granian in front, aiohttp behind. No key, no count, no books.

It is what the door would cost if it did nothing, on this machine and in this minute; the budgets are scaled by it.
`python -m benchmarks.relay --port 18100 --backend 18200`
"""

import argparse
import os
import sys
from pathlib import Path

import aiohttp
from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server.mp import MPServer

from benchmarks.backend import HOST
from demo.parts import Program, fetch
from gateway.api.requests import Receive, Scope, Send

BACKEND = "BENCHMARK_RELAY_BACKEND"
JSON = {"content-type": "application/json"}


class Relay(Program):
    """The relay as a process of its own."""

    name = "relay"
    stop_timeout_s = 5.0

    def __init__(self, var: Path, *, port: int, backend_port: int) -> None:
        super().__init__(var, os.environ)
        self.port = port
        self._backend_port = backend_port

    def command(self) -> list[str]:
        ports = ["--port", str(self.port), "--backend", str(self._backend_port)]
        return [sys.executable, "-m", "benchmarks.relay", *ports]

    def is_ready(self) -> bool:
        return fetch(self.port, "/healthz") is not None


class Application:
    """Sends every body on to the same path of the backend, and what comes back to the client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] == "/healthz":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
        else:
            await self._relay(scope["path"], await _body(receive), send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        connector = aiohttp.TCPConnector(limit=0)
        base = f"http://{HOST}:{os.environ[BACKEND]}"
        self._session = aiohttp.ClientSession(base, connector=connector, read_bufsize=2**18)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _relay(self, path: str, body: bytes, send: Send) -> None:
        async with self._session.post(path, data=body, headers=JSON) as answer:
            kind = answer.headers["content-type"].encode()
            headers = [(b"content-type", kind)]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message.get("more_body"):
            return b"".join(parts)


application = Application()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.relay", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--backend", type=int, required=True, help="the port of the fake backend")
    options = parser.parse_args()
    os.environ[BACKEND] = str(options.backend)
    MPServer(
        "benchmarks.relay:application",
        address=HOST,
        port=options.port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        log_level=LogLevels.warning,
        backlog=2048,
    ).serve()


if __name__ == "__main__":
    main()
