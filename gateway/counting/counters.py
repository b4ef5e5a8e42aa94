"""The counters, by name: how a model's image and text tokens are counted. The catalog names one.

A counter's `version` goes on every receipt. It changes whenever a request would count differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from gateway.counting import generic, llama3, llama3_vision, tiles
from gateway.counting.messages import PromptMessage

# Beyond this many (`messages.text_chars`) count in a thread: prose of this length takes 0.8 ms,
# the worst text 1.5 ms, and both release the GIL.
INLINE_CHARS_MAX: Final = 8192


class UnknownCounter(LookupError):
    """There is no counter of this name; the message says which there are."""


@dataclass(frozen=True, slots=True)
class ImageCount:
    """What one image costs, and the canvas that says why."""

    canvas: tiles.Canvas
    tokens: int


class Counter(Protocol):
    """Counts what a model reads. Pure once loaded, safe in threads; keeps nothing it is given."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def is_exact(self) -> bool:
        """True: the model's documented rule, it bills. False: an estimate, the backend bills."""
        ...

    def load(self) -> None:
        """Load what counting needs, once per process. Blocks; without it, the first count does."""
        ...

    def count_text(self, text: str) -> int:
        """Return the tokens of a text alone, such as an answer without the token that ends it."""
        ...

    def count_prompt(self, messages: Sequence[PromptMessage], *, tools: bytes | None = None) -> int:
        """Return the text tokens, template included; InvalidRequest for unreadable tools."""
        ...

    def prompt_upper_bound(
        self, messages: Sequence[PromptMessage], *, tools: bytes | None = None
    ) -> int:
        """Return what the prompt's text tokens cannot exceed; an exact counter's is the count."""
        ...

    def count_image(self, width_px: int, height_px: int) -> ImageCount:
        """Return what an image of this size costs; ValueError for a side under one pixel."""
        ...

    def image_upper_bound(self, width_px: int, height_px: int) -> int:
        """Return what the image's tokens cannot exceed; an exact counter's is the count."""
        ...


class Llama32Vision:
    """Llama 3.2 Vision: its tile rule, its tokenizer, its chat template."""

    name: ClassVar[str] = "llama-3.2-vision"
    version: ClassVar[str] = "1"
    is_exact: ClassVar[bool] = True

    def load(self) -> None:
        llama3.load()

    def count_text(self, text: str) -> int:
        return llama3.count(text)

    def count_prompt(self, messages: Sequence[PromptMessage], *, tools: bytes | None = None) -> int:
        return llama3_vision.count(messages, tools)

    def prompt_upper_bound(
        self, messages: Sequence[PromptMessage], *, tools: bytes | None = None
    ) -> int:
        return llama3_vision.count(messages, tools)

    def count_image(self, width_px: int, height_px: int) -> ImageCount:
        canvas = tiles.fit(width_px, height_px)
        return ImageCount(canvas, canvas.tokens)

    def image_upper_bound(self, width_px: int, height_px: int) -> int:
        return tiles.fit(width_px, height_px).tokens


class Generic:
    """Any other model: an estimate by Llama 3's tokenizer and tiles, and a bound for others."""

    name: ClassVar[str] = "generic"
    version: ClassVar[str] = "1"
    is_exact: ClassVar[bool] = False

    def load(self) -> None:
        llama3.load()

    def count_text(self, text: str) -> int:
        return llama3.count(text)

    def count_prompt(self, messages: Sequence[PromptMessage], *, tools: bytes | None = None) -> int:
        return generic.count_prompt(messages, tools)

    def prompt_upper_bound(
        self, messages: Sequence[PromptMessage], *, tools: bytes | None = None
    ) -> int:
        return generic.prompt_upper_bound(messages, tools)

    def count_image(self, width_px: int, height_px: int) -> ImageCount:
        canvas = tiles.fit(width_px, height_px)
        return ImageCount(canvas, canvas.tokens)

    def image_upper_bound(self, width_px: int, height_px: int) -> int:
        return generic.image_upper_bound(width_px, height_px)


_COUNTERS: Final[dict[str, Counter]] = {
    counter.name: counter for counter in (Llama32Vision(), Generic())
}


def names() -> tuple[str, ...]:
    """Return every counter's name."""
    return tuple(_COUNTERS)


def get(name: str) -> Counter:
    """Return the counter of this name; UnknownCounter if there is none."""
    try:
        return _COUNTERS[name]
    except KeyError:
        raise UnknownCounter(
            f"There is no counter {name!r}; there are: {', '.join(names())}."
        ) from None
