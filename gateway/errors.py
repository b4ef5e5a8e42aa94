"""
Every way in which the door says no. Raised where it is known, translated once (`gateway.api.answers`).

* GatewayError
  x InvalidRequest           400
    + InvalidImage           400   with OpenAI's image codes
  x Unauthenticated          401
  x Forbidden                403
  x NotFound                 404
  x MethodNotAllowed         405
  x RequestTimeout           408
  x IdempotencyConflict      409
  x RateLimited              429   a limit is reached; `retry-after` says when there is room again
  x InsufficientQuota        429   a budget is spent; coming back does not help until it resets
  x TooLarge                 413
  x UnsupportedMediaType     415
  x BackendRefused           4xx   what the backend said to this request
  x BackendFailed            502
    + BackendBusy            503   come back after `retry_after_s`
      - BackendRateLimited   429
    + BackendTimeout         504
  x MeteringUnavailable      503   money cannot be counted now, so nothing is served
  x LimitsUnavailable        503   limits cannot be kept now, and the organization does not go without
  x ShuttingDown             503   this process stops; another one will take the request
"""

from typing import Any, ClassVar


class GatewayError(Exception):
    """An answer in OpenAI's error envelope. `message` is for the client: it never holds a secret or an address."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.headers = headers or {}

    def envelope(self) -> dict[str, Any]:
        """Return the body: {"error": {"message", "type", "param", "code"}}."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class InvalidImage(InvalidRequest):
    default_code = "invalid_image"


class Unauthenticated(GatewayError):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class Forbidden(GatewayError):
    status = 403
    type = "permission_error"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    default_code = "unknown_url"


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeout(GatewayError):
    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class IdempotencyConflict(GatewayError):
    status = 409
    type = "idempotency_error"


class RateLimited(GatewayError):
    """`type` is "tokens" for tokens, "requests" for all other kinds of limits, as OpenAI has it."""

    status = 429
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, *, type: str, headers: dict[str, str]) -> None:
        super().__init__(message, headers=headers)
        self.type = type  # type: ignore[misc]


class InsufficientQuota(GatewayError):
    status = 429
    type = "insufficient_quota"

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message, code=code, headers={"x-should-retry": "false"})


class TooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class UnsupportedMediaType(GatewayError):
    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class BackendRefused(GatewayError):
    """The backend refused this very request; its status is passed on, its headers and address are not."""

    type = "invalid_request_error"
    default_code = "backend_refused"

    def __init__(
        self, message: str, *, status: int, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status  # type: ignore[misc]


class BackendFailed(GatewayError):
    status = 502
    default_code = "backend_failed"


class BackendBusy(BackendFailed):
    status = 503
    default_code = "backend_busy"

    def __init__(self, message: str, *, retry_after_s: int, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"retry-after": str(retry_after_s)})


class BackendRateLimited(BackendBusy):
    status = 429
    type = "rate_limit_error"
    default_code = "upstream_rate_limited"


class BackendTimeout(BackendFailed):
    status = 504
    default_code = "backend_timeout"


class MeteringUnavailable(GatewayError):
    status = 503
    default_code = "metering_unavailable"


class LimitsUnavailable(GatewayError):
    status = 503
    default_code = "limits_unavailable"


class ShuttingDown(GatewayError):
    status = 503
    default_code = "gateway_shutting_down"

    def __init__(self) -> None:
        super().__init__(
            "This gateway is being restarted. Try again.", headers={"retry-after": "1"}
        )
