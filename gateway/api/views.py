"""Django REST framework's views, with an async dispatch that does no more than the data plane needs."""

from typing import TYPE_CHECKING, Any

import msgspec
from django.http import HttpResponseBase
from rest_framework.request import Request
from rest_framework.views import APIView

from gateway.api.admission import tell_limits
from gateway.api.answers import JSONAnswer, error_answer, translate
from gateway.api.authentication import KeyAuthentication, resolve
from gateway.api.requests import ClientLeft, DataPlaneRequest
from gateway.errors import MethodNotAllowed, NotFound

if TYPE_CHECKING:
    from tenants.principals import Principal


CLIENT_CLOSED_REQUEST = 499  # nobody reads it; logs do


class DataPlaneView(APIView):
    """An APIView whose handlers are coroutines. Parsing and content negotiation are the handlers' own."""

    authentication_classes = [KeyAuthentication]
    http_method_names = ["get", "post"]

    async def dispatch(  # type: ignore[override]
        self, request: DataPlaneRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        self.args, self.kwargs = args, kwargs
        try:
            await resolve(request)
            self.request = self.initialize_request(request)
            self.initial(self.request)
            method = str(request.method).lower()
            handler = getattr(self, method, None) if method in self.http_method_names else None
            if handler is None:
                raise MethodNotAllowed("This method is not allowed here.")
            answer: HttpResponseBase = await handler(request, *args, **kwargs)
        except ClientLeft:
            return JSONAnswer(b"", status=CLIENT_CLOSED_REQUEST)
        except Exception as error:  # the door: every error becomes an answer
            answer = error_answer(translate(error))
        await tell_limits(request)
        return answer

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.perform_authentication(request)
        self.check_permissions(request)

    @property
    def principal(self) -> "Principal":
        principal: Principal = self.request.user  # type: ignore[assignment]
        return principal


async def health(request: DataPlaneRequest) -> HttpResponseBase:
    """Answer 200 once the door is open; 503 with a reason before, while it closes, and if the disk takes nothing."""
    reason = request.plane.trouble
    if reason is None:
        return JSONAnswer(b'{"status":"ok"}')
    return JSONAnswer(msgspec.json.encode({"status": "unavailable", "reason": reason}), status=503)


async def unknown(request: DataPlaneRequest) -> HttpResponseBase:
    """Answer every path under the prefixes that is nothing else."""
    return error_answer(NotFound(f"Unknown request URL: {request.method} {request.path[:200]}."))
