"""
Every way in which the demo backend says no, in OpenAI's envelope.

* Refused
  x BadRequest      400   the body, a parameter
    + BadImage      400   with OpenAI's image codes
  x BadKey          401
  x NotFound        404   a model, a path
  x TooLarge        413
  x Unavailable     503   come back later
"""

from typing import ClassVar


class Refused(Exception):
    """An answer with an error in it; the message is for the client."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param


class BadRequest(Refused):
    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class BadImage(BadRequest):
    default_code = "invalid_image"


class BadKey(Refused):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class NotFound(Refused):
    status = 404
    type = "invalid_request_error"
    default_code = "unknown_url"


class TooLarge(Refused):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class Unavailable(Refused):
    status = 503
    default_code = "overloaded"


def envelope(
    message: str, kind: str, *, code: str | None = None, param: str | None = None
) -> dict[str, object]:
    """Return the body of an error answer."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
