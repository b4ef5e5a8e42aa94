"""The work that is measured: what is asked, what the backend answers, and what it must cost."""

import base64
import functools
import io
import json
import random
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

TEXT_IN_MICRO, IMAGE_IN_MICRO, OUT_MICRO = 10_000_000, 12_000_000, 30_000_000  # TWD per million
UPSTREAM_NAME = "the-backends-own-name"
CREATED = 1_736_486_977

CHAT_TOKENS_OUT = 24
BURST_CHUNKS = 200
SLOW_CHUNKS = 20
CHUNK_INTERVAL_S = 0.2
SLOW_STREAM_S = (SLOW_CHUNKS - 1) * CHUNK_INTERVAL_S
IMAGE_SIZE_PX = (1500, 1000)  # on the canvas of 2 by 2 tiles
IMAGE_TOKENS = 4 * 1601
JPEG_QUALITY = 80  # makes noise of that size 1.0 MB


@dataclass(frozen=True)
class Work:
    """One kind of request. The text token counts are written down, not asked of the gateway."""

    name: str
    model: str  # one for each kind; its backend is told apart by its address
    body: bytes
    tokens_in_text: int
    tokens_in_image: int
    tokens_out: int
    chunks: int = 0  # that carry text; 0 if it is not streamed
    interval_s: float = 0.0  # between the chunks; 0: all at once
    is_renamed: bool = False
    is_raw: bool = False  # asked of the backend itself, which tells the usage unasked

    @property
    def amount_pico(self) -> int:
        return (
            self.tokens_in_text * TEXT_IN_MICRO
            + self.tokens_in_image * IMAGE_IN_MICRO
            + self.tokens_out * OUT_MICRO
        )

    @property
    def mark(self) -> tuple[bytes, int]:
        """Return what a whole answer holds, and how often: nothing less counts as answered."""
        # A stream has an event that finishes it and [DONE] besides; its usage was not asked for.
        if not self.chunks:
            return b'"total_tokens":', 1
        return b"data: ", self.chunks + (3 if self.is_raw else 2)


def small_chat() -> Work:
    messages = [
        {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."},
        {"role": "user", "content": "What is the tallest mountain of Taiwan, and how high is it?"},
    ]
    body = _body("bench-chat", messages, temperature=0.7)
    return Work("small chat", "bench-chat", body, 60, 0, CHAT_TOKENS_OUT)


def image_chat() -> Work:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    content = [
        {"type": "text", "text": "What is in this image?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    body = _body("bench-image", [{"role": "user", "content": content}])
    return Work("1 MB image", "bench-image", body, 17, IMAGE_TOKENS, CHAT_TOKENS_OUT)


def burst() -> Work:
    return _stream(f"{BURST_CHUNKS} chunks at once", "bench-burst", BURST_CHUNKS)


def renamed_burst() -> Work:
    """A burst whose every event must be rewritten: the backend calls the model by another name."""
    stream = _stream("the same, renamed", "bench-renamed", BURST_CHUNKS)
    return replace(stream, is_renamed=True)


def slow_stream() -> Work:
    return replace(_stream("slow stream", "bench-slow", SLOW_CHUNKS), interval_s=CHUNK_INTERVAL_S)


def everything() -> list[Work]:
    return [small_chat(), image_chat(), burst(), renamed_burst(), slow_stream()]


@functools.cache
def jpeg() -> bytes:
    """Return a JPEG of about a million bytes: noise, the same in every run."""
    width, height = IMAGE_SIZE_PX
    noise = random.Random(0).randbytes(width * height * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", IMAGE_SIZE_PX, noise).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def completion(work: Work) -> bytes:
    """Return the backend's whole answer, in the shape that vLLM gives it."""
    message = {"role": "assistant", "content": "Yushan, 3,952 metres above the sea. " * 2}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _json(_answer(work, "chat.completion", [choice], _usage(work)))


def events(work: Work) -> list[bytes]:
    """Return the backend's stream, event by event: the text, the end, the usage, [DONE]."""
    said = [_event(work, [_delta({"content": " word"})]) for _ in range(work.chunks)]
    end = _event(work, [_delta({"content": ""}, "stop")])
    return [*said, end, _event(work, [], _usage(work)), b"data: [DONE]\n\n"]


def _stream(name: str, model: str, chunks: int) -> Work:
    question = [{"role": "user", "content": "Tell me a story."}]
    body = _body(model, question, stream=True)
    return Work(name, model, body, 40, 0, chunks, chunks=chunks)


def _body(model: str, messages: list[dict[str, Any]], **fields: Any) -> bytes:
    return _json({"model": model, "messages": messages, "max_tokens": 256, **fields})


def _event(work: Work, choices: list[dict[str, Any]], usage: Any = None) -> bytes:
    return b"data: " + _json(_answer(work, "chat.completion.chunk", choices, usage)) + b"\n\n"


def _delta(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _answer(work: Work, kind: str, choices: list[dict[str, Any]], usage: Any) -> dict[str, Any]:
    model = UPSTREAM_NAME if work.is_renamed else work.model
    answer = {"id": "chatcmpl-0123456789abcdef", "object": kind, "created": CREATED, "model": model}
    return {**answer, "choices": choices} | ({"usage": usage} if usage else {})


def _usage(work: Work) -> dict[str, int]:
    prompt = work.tokens_in_text + work.tokens_in_image
    return {
        "prompt_tokens": prompt,
        "completion_tokens": work.tokens_out,
        "total_tokens": prompt + work.tokens_out,
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
