"""The data plane's own ASGI handler (ADR 0002).

Beside Django's stock handler it has no middleware, starts no threads and sends no signals, and it always closes
the answer: a stream gives back what it holds also when the client left before its first byte. It keeps Django's
URL resolver, request and response, and Django REST framework's views. It holds no database connection.
"""

import logging
from itertools import chain

from django.conf import settings
from django.http import HttpResponseBase
from django.urls import get_resolver

from gateway.api.answers import EventStreamAnswer, error_answer, translate
from gateway.api.requests import DataPlaneRequest, Receive, Scope, Send
from gateway.api.urls import CHAT_PATHS
from gateway.plane import DataPlane

logger = logging.getLogger(__name__)

URLCONF = "gateway.api.urls"


class DataPlaneHandler:
    """An ASGI application for the paths of `gateway.api.urls`."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._resolver = get_resolver(URLCONF)
        self._known = {path: self._resolver.resolve(path) for path in CHAT_PATHS}  # nearly all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = DataPlaneRequest(scope, receive, self._plane)
        answer: HttpResponseBase | None = None
        with self._plane.request_in_flight(request):
            try:
                answer = await self._answer(request)
                await self._send(answer, request, send)
            finally:
                request.close_watch()
                if isinstance(answer, EventStreamAnswer):
                    await answer.aclose()

    async def _answer(self, request: DataPlaneRequest) -> HttpResponseBase:
        try:
            path = request.path_info
            match = self._known.get(path) or self._resolver.resolve(path)
            answer: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
        except Exception as error:
            return error_answer(translate(error))
        return answer

    async def _send(self, answer: HttpResponseBase, request: DataPlaneRequest, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": answer.status_code,
                "headers": [
                    (name.encode("ascii"), value.encode("latin-1"))
                    for name, value in chain(answer.headers.items(), request.answer_headers.items())
                ]
                + [(b"x-request-id", str(request.request_id).encode())],
            }
        )
        if not isinstance(answer, EventStreamAnswer):
            await send({"type": "http.response.body", "body": answer.content})  # type: ignore[attr-defined]
            return
        try:
            async for chunk in answer:
                with request.patience(settings.CLIENT_WRITE_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            request.client_left()
            return
        await send({"type": "http.response.body", "body": b""})
