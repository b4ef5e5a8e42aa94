"""Asks a backend which models it has, once, and says in one line what is wrong if it does not tell.

It connects as the data plane does: no proxy from the environment, no redirect, the certificates
of the system.
"""

import ssl
import time
from dataclasses import dataclass

import httpx
import msgspec

TIMEOUT_S = 10
ANSWER_BYTES_MAX = 2**20
MODELS_MAX = 1000


class ProbeFailed(Exception):
    """The backend did not list its models; the message says why."""


class _OfferedModel(msgspec.Struct):
    id: str


class _Offer(msgspec.Struct):
    data: list[_OfferedModel]


@dataclass(frozen=True, slots=True)
class Offer:
    """The models' names as the backend has them, and how long it took to tell."""

    models: tuple[str, ...]
    took_ms: int


def models_offered(base_url: str, credential: str, *, timeout_s: int) -> Offer:
    """Return what GET {base_url}/models lists, MODELS_MAX names at most. Raises ProbeFailed."""
    started = time.monotonic()
    try:
        body = _get(f"{base_url}/models", credential, timeout_s)
        offer = msgspec.json.decode(body, type=_Offer)
    except httpx.TimeoutException as error:
        raise ProbeFailed(f"it did not answer within {timeout_s} s.") from error
    except httpx.HTTPError as error:
        raise ProbeFailed(f"it cannot be reached: {error or type(error).__name__}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProbeFailed("it answered, but not with OpenAI's list of models.") from error
    names = tuple(model.id for model in offer.data[:MODELS_MAX])
    return Offer(names, took_ms=round((time.monotonic() - started) * 1000))


def _get(url: str, credential: str, timeout_s: int) -> bytes:
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    with (
        httpx.Client(
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=False,
            verify=ssl.create_default_context(),
        ) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        if not response.is_success:
            raise ProbeFailed(_refusal(response.status_code, has_credential=bool(credential)))
        return _read(response, deadline=time.monotonic() + timeout_s)


def _read(response: httpx.Response, *, deadline: float) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX or time.monotonic() > deadline:
            raise ProbeFailed("its list of models does not end.")
    return bytes(body)


def _refusal(status: int, *, has_credential: bool) -> str:
    if status in {401, 403}:
        if has_credential:
            return f"it refuses the stored credential ({status})."
        return f"it wants a credential, and none is stored ({status})."
    if 300 <= status < 400:
        return f"it redirects ({status}), which is not followed: give the address it leads to."
    if status == 404:
        return "it has no /models (404): is the address right, up to and without /chat/completions?"
    return f"it answered {status} to a question for its models."
