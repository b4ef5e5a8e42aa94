"""The demo backend: an OpenAI-compatible server on loopback with two models that really answer.

    python -m demo.backend --port 8100 [--var DIR] [--token-delay-ms 5]

See docs/demo-backend.md. Any bearer is accepted, or the one in DEMO_BACKEND_KEY if that is set.
"""

import argparse
import asyncio
import hmac
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from demo import image_reader, text_model
from demo.chat import Chat, parse
from demo.completion import Completion
from demo.image_reader import SIGN, ImageReader
from demo.refusals import BadKey, BadRequest, NotFound, Refused, TooLarge, envelope
from demo.text_model import TextModel
from gateway.errors import InvalidRequest

HOST = "127.0.0.1"
BODY_BYTES_MAX = 64 * 2**20
TOKEN_DELAY_MS = 5
TOKEN_DELAY_MS_MAX = 1000
STOP_TIMEOUT_S = 0.5  # for answers in progress
CREATED = 1735689600  # when the models were made, which nobody asks: 2025-01-01

log = logging.getLogger("demo.backend")


@dataclass(slots=True)
class Backend:
    """The server's models and what it was told at start."""

    reader: ImageReader
    text: TextModel
    key: str
    token_delay_s: float
    answering: int = field(default=0)

    @property
    def skipped(self) -> dict[str, str]:
        reasons = {image_reader.NAME: self.reader.skipped, text_model.NAME: self.text.skipped}
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def models(self) -> list[str]:
        names = (image_reader.NAME, text_model.NAME)
        return [name for name in names if name not in self.skipped]

    @property
    def warming(self) -> list[str]:
        """The models that will answer, only later: they are still being loaded."""
        states = {
            image_reader.NAME: self.reader.is_warming,
            text_model.NAME: self.text.is_warming,
        }
        return [name for name in self.models if states[name]]


BACKEND = web.AppKey("backend", Backend)


def application(backend: Backend) -> web.Application:
    """Return the server's paths, over models that have been told to warm up."""
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[answer_errors, check_key])
    app[BACKEND] = backend
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/demo/sign.png", sign)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{name}", show_model)
    app.router.add_post("/v1/chat/completions", chat_completions)
    return app


async def healthz(request: web.Request) -> web.Response:
    """Say which models answer, which still load, which cannot run here and why."""
    backend = request.app[BACKEND]
    return _json(
        {
            "status": "ok",
            "models": backend.models,
            "warming": backend.warming,
            "skipped": backend.skipped,
            "answering": backend.answering,
        }
    )


async def sign(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(SIGN, headers={"content-type": "image/png"})


async def list_models(request: web.Request) -> web.Response:
    models = [_model(name) for name in request.app[BACKEND].models]
    return _json({"object": "list", "data": models})


async def show_model(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    _check_model(request.app[BACKEND], name)
    return _json(_model(name))


async def chat_completions(request: web.Request) -> web.StreamResponse:
    backend = request.app[BACKEND]
    body = await request.read()
    chat = parse(body)
    _check_model(backend, chat.model)
    backend.answering += 1
    try:
        if chat.model == text_model.NAME:
            return await backend.text.relay(request, chat, body)
        return await _read_images(request, chat)
    finally:
        backend.answering -= 1


async def _read_images(request: web.Request, chat: Chat) -> web.StreamResponse:
    backend = request.app[BACKEND]
    completion = await _completion(backend, chat)
    if chat.stream:
        return await _stream(request, completion, backend.token_delay_s)
    await asyncio.sleep(backend.token_delay_s * completion.telling.tokens)
    return _json(completion.whole())


async def _completion(backend: Backend, chat: Chat) -> Completion:
    try:
        return await backend.reader.answer(chat)
    except InvalidRequest as error:  # the counter's: tools that its template cannot write
        raise BadRequest(error.message, code=error.code, param=error.param) from error


async def _stream(
    request: web.Request, completion: Completion, token_delay_s: float
) -> web.StreamResponse:
    """Write the answer token by token. A client that leaves cancels this, which ends it."""
    response = web.StreamResponse(
        headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
    )
    with suppress(ConnectionResetError):  # it left between two chunks
        await response.prepare(request)
        for chunk in completion.chunks():
            await response.write(b"data: " + msgspec.json.encode(chunk) + b"\n\n")
            await asyncio.sleep(token_delay_s)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
    return response


@web.middleware
async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Ask for the key under /v1, if there is one to ask for."""
    key = request.app[BACKEND].key
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if request.path.startswith("/v1/") and key and not _equal(given, key):
        raise BadKey("This is not the demo backend's key.")
    return await handler(request)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Put every refusal and failure into OpenAI's envelope."""
    try:
        return await handler(request)
    except Refused as refused:
        return _refusal(refused)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(TooLarge(f"A body may have at most {BODY_BYTES_MAX:,} bytes."))
    except web.HTTPNotFound:
        return _refusal(NotFound(f"There is no {request.path} here."))
    except web.HTTPException as other:
        answer = envelope(other.reason, "invalid_request_error")
        return _json(answer, status=other.status)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _json(envelope("The demo backend failed.", "server_error"), status=500)


def _refusal(refused: Refused) -> web.Response:
    answer = envelope(refused.message, refused.type, code=refused.code, param=refused.param)
    return _json(answer, status=refused.status)


def _check_model(backend: Backend, name: str) -> None:
    if name not in backend.models:
        reason = backend.skipped.get(name)
        why = f"{name} does not run here: {reason}" if reason else f"There is no model {name!r}."
        raise NotFound(why, code="model_not_found", param="model")


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "tessera-demo"}


def _json(content: object, *, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(content), status=status, content_type="application/json"
    )


def _equal(given: str, key: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), key.encode())


@asynccontextmanager
async def running(options: argparse.Namespace) -> AsyncIterator[int]:
    """Serve inside, on the port that is given; the models load in the background."""
    async with AsyncExitStack() as stack:
        reader, text = ImageReader(), TextModel(_log_file(options.var, stack))
        stack.callback(reader.close)
        stack.push_async_callback(text.close)
        key = os.environ.get("DEMO_BACKEND_KEY", "")
        backend = Backend(reader, text, key, options.token_delay_ms / 1000)
        # Without handler_cancellation, a client that leaves would be answered to the end.
        runner = web.AppRunner(
            application(backend),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=STOP_TIMEOUT_S,
        )
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, HOST, options.port).start()
        reader.warm_up()
        text.warm_up()
        yield runner.addresses[0][1]


def _log_file(var: Path | None, stack: AsyncExitStack) -> BinaryIO | None:
    if var is None:
        return None
    path = var / "log" / "text_model.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(path.open("wb"))


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with running(options) as port:
        print(f"demo backend: http://{HOST}:{port}", flush=True)
        await stopped.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.backend", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one and prints it")
    parser.add_argument("--var", type=Path, help="where log/text_model.log goes; else stderr")
    parser.add_argument(
        "--token-delay-ms",
        type=int,
        default=TOKEN_DELAY_MS,
        choices=range(TOKEN_DELAY_MS_MAX + 1),
        metavar="MS",
        help="between two tokens of image-reader",
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(options))
    except OSError as error:
        sys.exit(f"demo backend: {error}")
    sys.stdout.flush()
    os._exit(0)  # an image that is being read now would keep the process for seconds


if __name__ == "__main__":
    main()
