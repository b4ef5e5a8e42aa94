"""A chat as a counter sees it: roles, texts, and the places of images. No pixels, no options."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias


class ImagePart(enum.Enum):
    """The place of an image in a message. What the image costs is counted apart, from its size."""

    IMAGE = enum.auto()


IMAGE: Final = ImagePart.IMAGE
Part: TypeAlias = str | ImagePart


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message of a request, content parts in the order they were sent.

    `tool_calls_json` is the request's `tool_calls` as it was sent, None where there was none.
    """

    role: str
    parts: tuple[Part, ...] = ()
    tool_calls_json: str | None = None

    @property
    def text(self) -> str:
        """Its texts as one, which is how a template writes them: with nothing in between."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


def text_chars(messages: Sequence[PromptMessage], tools: bytes | None = None) -> int:
    """Return how much there is to count: characters, and bytes for tools. Images are nothing."""
    return len(tools or b"") + sum(
        len(message.text) + len(message.tool_calls_json or "") for message in messages
    )
