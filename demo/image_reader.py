"""image-reader: answers a chat with what its images are. Deterministic; it sees nothing else.

It stands in for Llama 3.2 Vision and counts as it does: the same tokenizer, template and tiles.
"""

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pybase64

from demo.chat import Chat
from demo.completion import Completion, tell
from demo.reading import Reading, read
from demo.refusals import BadImage, Unavailable
from demo.wording import describe, language_of
from gateway.counting import counters

if TYPE_CHECKING:
    from demo.ocr import Ocr

NAME = "image-reader"
IMAGE_BYTES_MAX = 20 * 2**20
READINGS_KEPT_MAX = 256
WAITING_MAX = 32
SIGN = Path(__file__).parent / "assets" / "sign.png"

COUNTER = counters.get("llama-3.2-vision")


class ImageReader:
    """Reads one image at a time, in a thread of its own; others wait, up to WAITING_MAX."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=NAME)
        self._waiting = 0
        self._warm_up: Future[None] | None = None
        # Only the thread touches these two, so they need no lock.
        self._ocr: Ocr | None = None
        self._kept: OrderedDict[bytes, Reading] = OrderedDict()

    def warm_up(self) -> None:
        """Begin to load what reading needs, in the background."""
        self._warm_up = self._thread.submit(self._load)

    @property
    def is_warming(self) -> bool:
        return self._warm_up is not None and not self._warm_up.done()

    @property
    def skipped(self) -> str | None:
        """Why it cannot read here, in one line; None while it can or is warming up."""
        if self._warm_up is None or not self._warm_up.done() or self._warm_up.cancelled():
            return None
        error = self._warm_up.exception()
        return f"{type(error).__name__}: {error}".partition("\n")[0] if error else None

    async def answer(self, chat: Chat) -> Completion:
        """Read every image of the chat, count, and word the answer. Raise BadImage, Unavailable."""
        readings = [await self._read_in_thread(url) for url in chat.image_urls]
        return await asyncio.to_thread(_complete, chat, readings)

    def close(self) -> None:
        """Forget those who wait. The image that is being read now is not interrupted."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read_in_thread(self, url: str) -> Reading:
        if self.skipped:
            raise Unavailable(f"{NAME} does not run here: {self.skipped}")
        if self._waiting >= WAITING_MAX:
            raise Unavailable("Too many images are waiting to be read. Come back in some seconds.")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._thread.submit(self._read_url, url))
        finally:
            self._waiting -= 1

    def _load(self) -> None:
        """Load all, and read the sample: it proves the engine, and is what most ask about first."""
        from demo.ocr import Ocr  # here, for it imports OpenCV and more: half a second

        COUNTER.load()
        self._ocr = Ocr()
        self._read(SIGN.read_bytes())

    def _read_url(self, url: str) -> Reading:
        return self._read(_content(url))

    def _read(self, content: bytes) -> Reading:
        digest = hashlib.sha256(content).digest()
        if digest not in self._kept:
            assert self._ocr is not None, "nothing is read before all is loaded"
            self._kept[digest] = read(content, self._ocr)
        self._kept.move_to_end(digest)
        if len(self._kept) > READINGS_KEPT_MAX:
            self._kept.popitem(last=False)
        return self._kept[digest]


def _complete(chat: Chat, readings: list[Reading]) -> Completion:
    language = language_of(chat.question)
    text = describe(readings, language, is_follow_up=chat.is_follow_up)
    telling = tell(text, tokens_max=chat.tokens_out_max, stops=chat.stops)
    return Completion(chat, telling, tokens_in=_tokens_in(chat, readings))


def _tokens_in(chat: Chat, readings: list[Reading]) -> int:
    messages = [message.for_counting() for message in chat.messages]
    in_text = COUNTER.count_prompt(messages, tools=chat.tools_json)
    return in_text + sum(COUNTER.count_image(*one.size_px).tokens for one in readings)


def _content(url: str) -> bytes:
    """Return the bytes of a data URL. Its declared type is not looked at: the content decides."""
    head, comma, encoded = url.partition(",")
    if not (comma and head.lower().startswith("data:")):
        message = "Only images in data: URLs are read here; this backend fetches nothing."
        raise BadImage(message, code="invalid_image_url", param="messages")
    if not head.lower().endswith(";base64"):
        raise BadImage("The data: URL is not base64.", code="invalid_base64_image")
    if len(encoded) * 3 // 4 > IMAGE_BYTES_MAX:
        message = f"An image may have at most {IMAGE_BYTES_MAX:,} bytes."
        raise BadImage(message, code="image_file_too_large")
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise BadImage("The image's base64 is broken.", code="invalid_base64_image") from error
