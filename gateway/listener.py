"""Listens to a stream that passes: what it says was used, and what the model wrote.

Events pass as they came. Held back are the event that carries only the usage (the client gets ours instead, if
it asked) and [DONE]; rewritten are those that would show the backend's name of the model or its usage.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec
from msgspec import Raw

from gateway.completions import Chunk, Delta, UpstreamUsage, read_usage
from gateway.sse import DONE, StreamBroken, payload

MALFORMED_EVENTS_MAX = 3
NULL = Raw(b"null")
# `"model":"…"` at the top of a chunk. Inside a JSON string its quotes would be escaped, so that this can
# only be a key; objects within a chunk have no such key before the first choice.
MODEL_FIELD = re.compile(rb'"model"\s*:\s*"[^"\\]*"')

_chunk = msgspec.json.Decoder(Chunk)
_object = msgspec.json.Decoder(dict[str, Raw])


class Listener:
    """Hears the events of one stream, and says what of them may pass on."""

    def __init__(self, *, public_name: str, is_renamed: bool, bytes_max: int) -> None:
        self.id = ""
        self.created = 0
        self.usage: UpstreamUsage | None = None
        self.is_done = False
        self.heard_at: datetime | None = None
        self.stops = 0  # choices that the model ended by itself
        self._has_finish = False
        self._written: list[str] = []
        self._malformed = 0
        self._bytes_left = bytes_max
        self._model_field = b'"model":' + msgspec.json.encode(public_name) if is_renamed else None

    def hear(self, events: Iterable[bytes]) -> bytes:
        """Return the bytes that may go to the client now. Raises StreamBroken."""
        passed = b"".join([said for event in events if (said := self._hear(event))])
        self._bytes_left -= len(passed)
        if self._bytes_left < 0:
            raise StreamBroken("the stream is longer than any answer may be")
        return passed

    def generated(self) -> Iterator[str]:
        """Yield what the model wrote, to be counted where the backend did not."""
        yield from self._written

    def check_end(self) -> None:
        """Raise StreamBroken if the stream ended before the model had finished."""
        if not self.is_done and not self._has_finish:
            raise StreamBroken("the stream ended without its end")

    def _hear(self, event: bytes) -> bytes:
        data = payload(event)
        if not data:
            return b""  # a comment; we send our own
        if data == DONE:
            self.is_done = True
            return b""
        try:
            chunk = _chunk.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._malformed += 1
            if self._malformed > MALFORMED_EVENTS_MAX:
                raise StreamBroken("too many malformed events") from None
            return b""
        if chunk.error and chunk.error != NULL:
            raise StreamBroken("the backend sent an error event")
        return self._take(chunk, event, data)

    def _take(self, chunk: Chunk, event: bytes, data: bytes) -> bytes:
        if self.heard_at is None:
            self.heard_at = datetime.now(UTC)
            self.id, self.created = chunk.id, chunk.created
        for choice in chunk.choices:
            if choice.finish_reason:
                self._has_finish = True
                self.stops += choice.finish_reason == "stop"
            self._note(choice.delta)
        if chunk.usage != NULL:
            self.usage = read_usage(chunk.usage) or self.usage
            if not chunk.choices:
                return b""
            fields = _object.decode(data)
            event = b"data: " + msgspec.json.encode({**fields, "usage": None}) + b"\n\n"
        if self._model_field is not None:
            event = MODEL_FIELD.sub(lambda _: self._model_field or b"", event, count=1)
        return event

    def _note(self, delta: Delta) -> None:
        for text in (delta.content, delta.reasoning_content, delta.refusal):
            if text:
                self._written.append(text)
        if delta.tool_calls:
            self._written.append(bytes(delta.tool_calls).decode())
