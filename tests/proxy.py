"""A proxy before PostgreSQL that fails as networks do: it swallows, resets, or loses the answer to a commit."""

import asyncio
from enum import Enum, auto
from pathlib import Path
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

READY = b"Z\x00\x00\x00\x05I"  # the server has committed and waits for the next question


class Mode(Enum):
    PASS = auto()
    BLACKHOLE = auto()  # connections stand, and nothing comes through
    RESET = auto()  # connections break at once


class Proxy:
    """Listens on loopback; `dsn` leads through it. Use as `async with`."""

    def __init__(self, dsn: str) -> None:
        parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
        self._host, self._port = parts["host"], int(parts.get("port", "5432"))
        self._dsn = dsn
        self._mode = Mode.PASS
        self._passes = asyncio.Event()
        self._passes.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.commits_to_lose = 0

    @property
    def dsn(self) -> str:
        return make_conninfo(
            self._dsn, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable"
        )

    @property
    def url(self) -> str:
        """Return `dsn` as a URL."""
        parts = conninfo_to_dict(self._dsn)
        who = f"{parts['user']}:{parts.get('password', '')}"
        options = "sslmode=disable&gssencmode=disable"
        return f"postgresql://{who}@127.0.0.1:{self.port}/{parts['dbname']}?{options}"

    def set(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.BLACKHOLE:
            self._passes.clear()
        else:
            self._passes.set()
        if mode is Mode.RESET:
            for writer in self._writers:
                writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.set(Mode.RESET)
        await asyncio.sleep(0.01)  # let the handlers see it

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.RESET:
            writer.transport.abort()
            return
        if Path(self._host).is_absolute():
            path = f"{self._host}/.s.PGSQL.{self._port}"
            server_reader, server_writer = await asyncio.open_unix_connection(path)
        else:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, server_writer}
        await asyncio.gather(
            self._pump(reader, server_writer, is_answer=False),
            self._pump(server_reader, writer, is_answer=True),
            return_exceptions=True,
        )
        for each in (writer, server_writer):
            each.close()
            self._writers.discard(each)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while data := await reader.read(65536):
            await self._passes.wait()
            if is_answer and self.commits_to_lose and data.endswith(READY):
                self.commits_to_lose -= 1
                writer.transport.abort()
                return
            writer.write(data)
            await writer.drain()
        writer.close()
