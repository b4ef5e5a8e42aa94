"""An answer that is known in full, told the way a language model tells it: in tokens, counted."""

import codecs
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from demo.chat import Chat
from gateway.counting import llama3

Json = dict[str, Any]
TOKENS_OUT_MAX = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """What one or more tokens add to the text; `tokens` is how many there are up to its end."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Telling:
    """The part of an answer that is told, its tokens, and why it ends: "stop" or "length"."""

    pieces: tuple[Piece, ...]
    tokens: int
    finish_reason: str

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def tell(text: str, *, tokens_max: int | None = None, stops: Sequence[str] = ()) -> Telling:
    """Cut the text before the first stop, then to the tokens allowed.

    What ends the telling was told too, and counts: the stop's own tokens, or the token that ends a
    turn (AFS counts 52 for its example's answer, which has 51 without it). A character that is cut
    through is left out, though its tokens count.
    """
    before, stop = _cut_at_first(text, stops)
    tokens = _encode(before)
    needed = len(_encode(before + stop)) if stop else len(tokens) + 1
    allowed = min(tokens_max or TOKENS_OUT_MAX, TOKENS_OUT_MAX)
    reason = "length" if needed > allowed else "stop"
    return Telling(tuple(_pieces(tokens[:allowed])), min(needed, allowed), reason)


def _cut_at_first(text: str, stops: Sequence[str]) -> tuple[str, str]:
    """Return the text before the stop that comes first, and that stop; no stop is ""."""
    found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    place, stop = min(found, default=(len(text), ""))
    return text[:place], stop


def _encode(text: str) -> list[int]:
    return llama3.encoding().encode_ordinary(text)


def _pieces(tokens: Sequence[int]) -> Iterator[Piece]:
    """Yield text as it becomes whole: a Chinese character may be up to three tokens."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    encoding = llama3.encoding()
    for count, token in enumerate(tokens, start=1):
        if text := decoder.decode(encoding.decode_single_token_bytes(token)):
            yield Piece(text, count)


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one chat: the same telling for each choice, for the reader is deterministic."""

    chat: Chat
    telling: Telling
    tokens_in: int
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_urlsafe(18)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self) -> Json:
        """Return the answer in one piece."""
        message = {"role": "assistant", "content": self.telling.text, "tool_calls": None}
        choices = [
            _choice(index, "message", message, self.telling.finish_reason)
            for index in range(self.chat.choices)
        ]
        usage = self._usage(self.telling.tokens * self.chat.choices)
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def chunks(self) -> Iterator[Json]:
        """Yield the roles, the pieces, the ends, and the usage if it is asked for."""
        told = [0] * self.chat.choices
        for index in range(self.chat.choices):
            yield self._chunk(index, {"role": "assistant", "content": ""}, 0)
        for piece in self.telling.pieces:
            for index in range(self.chat.choices):
                told[index] = piece.tokens
                yield self._chunk(index, {"content": piece.text}, sum(told))
        for index in range(self.chat.choices):
            told[index] = self.telling.tokens
            yield self._chunk(index, {}, sum(told), self.telling.finish_reason)
        if self.chat.options.include_usage:
            yield {**self._chunk_head(), "choices": [], "usage": self._usage(sum(told))}

    def _chunk(self, index: int, delta: Json, told: int, reason: str | None = None) -> Json:
        choices = [_choice(index, "delta", delta, reason)]
        return {**self._chunk_head(), "choices": choices, **self._running_usage(told)}

    def _running_usage(self, told: int) -> Json:
        if self.chat.options.continuous_usage_stats:
            return {"usage": self._usage(told)}
        return {"usage": None} if self.chat.options.include_usage else {}

    def _usage(self, tokens_out: int) -> Json:
        return {
            "prompt_tokens": self.tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": self.tokens_in + tokens_out,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        }

    def _chunk_head(self) -> Json:
        return self._head("chat.completion.chunk")

    def _head(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.chat.model,
            "system_fingerprint": None,
        }


def _choice(index: int, key: str, content: Json, reason: str | None) -> Json:
    return {"index": index, key: content, "logprobs": None, "finish_reason": reason}
