"""Answers of the data plane: bytes that are ready, streams that own what must be given back, and errors."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
from django.http import HttpResponse, StreamingHttpResponse

from gateway.errors import GatewayError

logger = logging.getLogger(__name__)


class InternalError(GatewayError):
    """Something of ours broke. The client learns its request id, and nothing else."""

    default_code = "internal_error"


class JSONAnswer(HttpResponse):
    """JSON that is already written."""

    def __init__(self, body: bytes, *, status: int = 200) -> None:
        super().__init__(body, status=status, content_type="application/json")


class EventStreamAnswer(StreamingHttpResponse):
    """A stream, with everything that must be given back when it ends, however it ends.

    Not a generator's `finally`: that does not run if the client leaves before the first byte, or while a
    write is blocked.
    """

    def __init__(self, chunks: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        super().__init__(chunks, content_type="text/event-stream")
        self["cache-control"] = "no-cache"
        self["x-accel-buffering"] = "no"
        self._chunks = chunks
        self._stack = stack

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def aclose(self) -> None:
        await self._stack.aclose()


def error_answer(error: GatewayError) -> JSONAnswer:
    answer = JSONAnswer(msgspec.json.encode(error.envelope()), status=error.status)
    for name, value in error.headers.items():
        answer[name] = value
    if error.status == 401:
        answer["www-authenticate"] = "Bearer"
    return answer


def translate(error: Exception) -> GatewayError:
    """Return the error as the client may see it; what is not one of ours is logged and becomes a 500."""
    if isinstance(error, GatewayError):
        return error
    logger.error("a request failed", exc_info=error)
    return InternalError("Something went wrong here. Quote the x-request-id to the operator.")
