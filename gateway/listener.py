"""Listens to a stream that passes: what it says was used, and what the model wrote.

Events pass as they came. Held back are the event that carries only the usage (the client gets ours instead, if
it asked) and [DONE]; rewritten are those that would show the backend's name of the model or its usage.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw

from gateway.completions import BilledUsage, Chunk, Delta, UpstreamUsage, read_usage, usage_chunk
from gateway.counting.counters import Counter
from gateway.sse import DONE, END, StreamBroken, payload

MALFORMED_EVENTS_MAX = 3
CHARS_PER_TOKEN = 3  # fewer than in any prose, so that a text is counted rather too soon
NULL = Raw(b"null")
# `"model":"…"` at the top of a chunk. Inside a JSON string its quotes would be escaped, so that this can
# only be a key; objects within a chunk have no such key before the first choice.
MODEL_FIELD = re.compile(rb'"model"\s*:\s*"[^"\\]*"')

_chunk = msgspec.json.Decoder(Chunk)
_object = msgspec.json.Decoder(dict[str, Raw])


class OutputMeter:
    """Notices when a stream has run past the tokens it may have, without counting at every event.

    Most events carry a token or less, so the text is counted only once there are so many events, or so many
    characters, that it might be too long; and then again when as many more have come as were still free.
    """

    def __init__(self, counter: Counter, tokens_max: int) -> None:
        self._counter = counter
        self._tokens_max = tokens_max
        self._events_left = tokens_max
        self._chars_left = tokens_max * CHARS_PER_TOKEN

    def is_over(self, written: Callable[[], Iterable[str]], more_chars: int) -> bool:
        """Return whether what was written is more than `tokens_max`, given that `more_chars` came just now."""
        self._events_left -= 1
        self._chars_left -= more_chars
        if self._events_left >= 0 and self._chars_left >= 0:
            return False
        left = self._tokens_max - sum(map(self._counter.count_text, written()))
        self._events_left = max(left, 0)
        self._chars_left = max(left, 1) * CHARS_PER_TOKEN
        return left < 0


class Listener:
    """Hears the events of one stream, and says what of them may pass on."""

    def __init__(
        self, *, public_name: str, is_renamed: bool, bytes_max: int, meter: OutputMeter
    ) -> None:
        self.id = ""
        self.created = 0
        self.usage: UpstreamUsage | None = None
        self.is_done = False
        self.is_cut = False
        self.heard_at: datetime | None = None
        self.stops = 0  # choices that the model ended by itself
        self._broken: StreamBroken | None = None
        self._has_finish = False
        self._written: dict[int | None, list[str]] = {}  # by choice: their events interleave
        self._meter = meter
        self._malformed = 0
        self._bytes_left = bytes_max
        self._public_name = public_name
        self._model_field = b'"model":' + msgspec.json.encode(public_name) if is_renamed else None

    def hear(self, events: Iterable[bytes]) -> bytes:
        """Return the bytes that may go to the client now, also of a stream that broke after them: see `is_over`."""
        passed: list[bytes] = []
        try:
            for event in events:
                if self.is_cut:
                    break
                if said := self._hear(event):
                    passed.append(said)
        except StreamBroken as error:
            self._broken = error
        passed.append(b"")
        told = END.join(passed)
        self._bytes_left -= len(told)
        if self._bytes_left < 0 and self._broken is None:
            self._broken = StreamBroken("the stream is longer than any answer may be")
        return told

    @property
    def is_over(self) -> bool:
        """Return whether nothing more is to be heard; `check_end` says whether all is well."""
        return self.is_done or self.is_cut or self._broken is not None

    def generated(self) -> Iterator[str]:
        """Yield what the model wrote, choice by choice, to be counted where the backend did not."""
        return map("".join, self._written.values())

    def usage_event(self, usage: BilledUsage) -> bytes:
        """Return the event that tells a client who asked for it what is billed."""
        return usage_chunk(id=self.id, created=self.created, model=self._public_name, usage=usage)

    def check_end(self) -> None:
        """Raise StreamBroken if the stream ended before the model had finished."""
        if self._broken is not None:
            raise self._broken
        if not (self.is_done or self.is_cut or self._has_finish):
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

    def cut(self) -> bytes:
        """Return the event that ends a stream which ran past its tokens."""
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
        fields = {"id": self.id, "object": "chat.completion.chunk", "created": self.created}
        chunk = {**fields, "model": self._public_name, "choices": [choice]}
        return b"data: " + msgspec.json.encode(chunk)

    def _take(self, chunk: Chunk, event: bytes, data: bytes) -> bytes:
        if self.heard_at is None:
            self.heard_at = datetime.now(UTC)
            self.id, self.created = chunk.id, chunk.created
        for choice in chunk.choices:
            if choice.finish_reason:
                self._has_finish = True
                self.stops += choice.finish_reason == "stop"
            self._note(choice.index, choice.delta)
        if self.is_cut:
            return self.cut()
        if chunk.usage != NULL:
            self.usage = read_usage(chunk.usage) or self.usage
            if not chunk.choices:
                return b""
            fields = _object.decode(data)
            event = b"data: " + msgspec.json.encode({**fields, "usage": None})
        if self._model_field is not None:
            event = MODEL_FIELD.sub(lambda _: self._model_field or b"", event, count=1)
        return event

    def _note(self, index: Any, delta: Delta) -> None:
        # What is no number is one choice more, whatever it is: nothing goes uncounted.
        choice = index if type(index) is int else None
        written = self._written.get(choice)
        if written is None:
            written = self._written[choice] = []
        chars = 0
        for text in (delta.content, delta.reasoning_content, delta.refusal):
            if text:
                written.append(text)
                chars += len(text)
        if delta.tool_calls:
            written.append(bytes(delta.tool_calls).decode())
        if chars and self._meter.is_over(self.generated, chars):
            self.is_cut = True
