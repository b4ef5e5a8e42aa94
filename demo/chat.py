"""A chat completion request: what is accepted, what is refused. Unknown parameters are ignored."""

from typing import Annotated, Literal, Never

import msgspec

from demo.refusals import BadImage, BadRequest
from gateway.counting.messages import IMAGE, PromptMessage

MESSAGES_MAX = 1000
PARTS_MAX = 200
IMAGES_MAX = 16
CHOICES_MAX = 8
STOPS_MAX = 4
TOOLS_MAX = 128


class ImageUrl(msgspec.Struct):
    url: str


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ImageUrlPart(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: ImageUrl


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Parts = Annotated[list[TextPart | ImageUrlPart], msgspec.Meta(max_length=PARTS_MAX)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Message(msgspec.Struct):
    role: Role
    content: str | Parts | None = None
    tool_calls: list[msgspec.Raw] | None = None

    @property
    def parts(self) -> list[TextPart | ImageUrlPart]:
        if isinstance(self.content, str):
            return [TextPart(self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        return " ".join(part.text for part in self.parts if isinstance(part, TextPart)).strip()

    @property
    def image_urls(self) -> list[str]:
        return [part.image_url.url for part in self.parts if isinstance(part, ImageUrlPart)]

    def for_counting(self) -> PromptMessage:
        parts = (part.text if isinstance(part, TextPart) else IMAGE for part in self.parts)
        calls = msgspec.json.encode(self.tool_calls).decode() if self.tool_calls else None
        return PromptMessage(self.role, tuple(parts), calls)


class StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Chat(msgspec.Struct):
    """The body of a request, checked."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=CHOICES_MAX)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=STOPS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=TOOLS_MAX)] | None = None

    @property
    def tokens_out_max(self) -> int | None:
        """The limit that is asked for; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]

    @property
    def options(self) -> StreamOptions:
        return self.stream_options or StreamOptions()

    @property
    def tools_json(self) -> bytes | None:
        return msgspec.json.encode(self.tools) if self.tools else None

    @property
    def image_urls(self) -> list[str]:
        """Every image of the conversation, in the order they were sent."""
        return [url for message in self.messages for url in message.image_urls]

    @property
    def questions(self) -> list[Message]:
        return [message for message in self.messages if message.role == "user"]

    @property
    def question(self) -> str:
        """The last thing that a user wrote; empty if nobody wrote anything."""
        return next((message.text for message in reversed(self.questions) if message.text), "")

    @property
    def is_follow_up(self) -> bool:
        """Whether the last question is about images of earlier turns."""
        asks_of_its_own = self.questions and self.questions[-1].image_urls
        return bool(self.image_urls) and not asks_of_its_own


_decoder = msgspec.json.Decoder(Chat)


def parse(body: bytes) -> Chat:
    """Check a request's body. Raise BadRequest, or BadImage for too many images."""
    try:
        chat = _decoder.decode(body)
    except msgspec.ValidationError as error:
        _refuse_value(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("The body is not JSON.", code="invalid_json") from error
    if len(chat.image_urls) > IMAGES_MAX:
        message = f"At most {IMAGES_MAX} images may be sent."
        raise BadImage(message, code="too_many_images", param="messages")
    return chat


def _refuse_value(error: msgspec.ValidationError) -> Never:
    """Say what is wrong and where: msgspec ends its message with " - at `$.messages[0].role`"."""
    message, _, place = str(error).partition(" - at `$.")
    param = place.rstrip("`") or None
    raise BadRequest(f"{param}: {message}" if param else message, param=param) from error
