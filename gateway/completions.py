"""OpenAI's chat completions, as the door reads and writes answers: usage, chunks, whole answers, errors.

What the backend says is checked before it is believed; what the client sees has every field of the contract.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

NULL: Final = Raw(b"null")
STOP: Final = Raw(b'"stop"')

_object = msgspec.json.Decoder(dict[str, Raw])
_objects = msgspec.json.Decoder(list[dict[str, Raw]])
_string = msgspec.json.Decoder(str)


# Made for every event of a stream. They hold no cycles, so the collector need not know of them.
class Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: Raw = Raw(b"")


class ChunkChoice(msgspec.Struct, gc=False):
    index: Any = 0  # only ever compared
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """What the door reads of one event of a stream; the event itself passes as it is."""

    choices: list[ChunkChoice] = []
    usage: Raw = NULL
    id: str = ""
    created: int = 0
    error: Raw = Raw(b"")


@dataclass(frozen=True, slots=True)
class UpstreamUsage:
    """What the backend says was used: each figure a sane whole number, or None."""

    prompt: int | None
    out: int | None
    cached: int | None
    details: Raw | None = None  # completion_tokens_details as they came


TOKENS_SANE_MAX: Final = 10_000_000


def read_usage(raw: bytes | Raw) -> UpstreamUsage | None:
    """Read a usage object, trusting nothing: a figure that is no whole number ≥ 0 is as good as absent."""
    try:
        usage = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None
    if not isinstance(usage, dict):
        return None
    prompt_details = usage.get("prompt_tokens_details")
    cached = prompt_details.get("cached_tokens") if isinstance(prompt_details, dict) else None
    details = usage.get("completion_tokens_details")
    return UpstreamUsage(
        prompt=_sane(usage.get("prompt_tokens")),
        out=_sane(usage.get("completion_tokens")),
        cached=_sane(cached),
        details=Raw(msgspec.json.encode(details)) if isinstance(details, dict) else None,
    )


def _sane(value: object) -> int | None:
    is_count = type(value) is int and 0 <= value <= TOKENS_SANE_MAX
    return value if is_count else None  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class BilledUsage:
    """What is billed, as the client is shown it. Text and image tokens include the cached ones, as OpenAI's do."""

    text: int
    image: int
    cached: int
    out: int
    details: Raw | None = None

    def as_json(self) -> dict[str, Any]:
        prompt = self.text + self.image
        return {
            "completion_tokens": self.out,
            "completion_tokens_details": self.details,
            "prompt_tokens": prompt,
            "prompt_tokens_details": {
                "cached_tokens": self.cached,
                "image_tokens": self.image,
                "text_tokens": self.text,
            },
            "total_tokens": prompt + self.out,
        }


@dataclass(frozen=True, slots=True)
class BackendError:
    """What a backend says in OpenAI's error envelope, cut to a sane length."""

    message: str
    code: str | None
    param: str | None


def read_error(body: bytes) -> BackendError:
    """Read an error body, whatever it is."""
    try:
        error = msgspec.json.decode(body)
    except msgspec.DecodeError:
        error = {}
    inner = error.get("error", error) if isinstance(error, dict) else {}
    fields = inner if isinstance(inner, dict) else {"message": inner}
    return BackendError(
        message=_short(fields.get("message")) or "The model's backend refused the request.",
        code=_short(fields.get("code")) or None,
        param=_short(fields.get("param")) or None,
    )


def _short(value: object) -> str:
    return value[:500] if isinstance(value, str) else ""


class Answer:
    """A whole (not streamed) answer of a backend."""

    def __init__(self, body: bytes) -> None:
        """Raises msgspec.DecodeError unless the body is a chat completion."""
        self._fields = _object.decode(body)
        self._choices = (
            _objects.decode(self._fields["choices"]) if "choices" in self._fields else None
        )
        if self._choices is None:
            raise msgspec.DecodeError("no choices")
        self._messages = [
            _object.decode(choice["message"]) for choice in self._choices if "message" in choice
        ]

    @property
    def id(self) -> str:
        raw = self._fields.get("id", NULL)
        return _string.decode(raw) if bytes(raw).startswith(b'"') else ""

    @property
    def usage(self) -> UpstreamUsage | None:
        return read_usage(self._fields["usage"]) if "usage" in self._fields else None

    @property
    def stops(self) -> int:
        """Return how many choices the model ended by itself."""
        return sum(choice.get("finish_reason") == STOP for choice in self._choices or ())

    def generated(self) -> Iterator[str]:
        """Yield the texts that the model wrote, each to be counted where the backend did not."""
        for message in self._messages:
            for name in ("content", "reasoning_content", "refusal"):
                raw = bytes(message.get(name, NULL))
                if raw.startswith(b'"'):
                    yield _string.decode(raw)
            if message.get("tool_calls", NULL) != NULL:
                yield bytes(message["tool_calls"]).decode()

    def shaped(self, *, model: str, usage: BilledUsage) -> bytes:
        """Write the answer for the client: our name of the model, the billed usage, every field of the contract."""
        choices = []
        messages = iter(self._messages)
        for choice in self._choices or ():
            written: dict[str, Any] = {"logprobs": None, **choice}
            if "message" in choice:
                written["message"] = {"tool_calls": None, **next(messages)}
            choices.append(written)
        return msgspec.json.encode(
            {
                "system_fingerprint": None,
                **self._fields,
                "object": "chat.completion",
                "model": model,
                "choices": choices,
                "usage": usage.as_json(),
            }
        )


def usage_chunk(*, id: str, created: int, model: str, usage: BilledUsage) -> bytes:
    """Write the event that closes a stream whose client asked for its usage."""
    chunk = {
        "id": id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "system_fingerprint": None,
        "choices": [],
        "usage": usage.as_json(),
    }
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def error_event(envelope: dict[str, Any]) -> bytes:
    """Write the event that breaks a stream off. No [DONE] follows it."""
    return b"data: " + msgspec.json.encode(envelope) + b"\n\n"
