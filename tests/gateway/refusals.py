"""What a refusal by the door looks like, and how tests read one."""

from typing import NamedTuple
from uuid import UUID

import httpx


class Refusal(NamedTuple):
    """An error answer: OpenAI's envelope without its text."""

    status: int
    code: str | None
    param: str | None = None
    type: str = "invalid_request_error"


def refusal(response: httpx.Response) -> Refusal:
    """Read an error answer; fails unless it is OpenAI's envelope and nothing else."""
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["content-type"] == "application/json"
    assert UUID(response.headers["x-request-id"]).version == 7
    return Refusal(response.status_code, error["code"], error["param"], error["type"])
