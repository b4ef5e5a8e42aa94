"""The chat template of Llama 3.2 Vision Instruct: which tokens a chat is, images apart from tiles.

It follows the template published with the model (`chat_template` in tokenizer_config.json), with a
generation prompt:

- every message is a header with its role, its content, and the end of a turn; texts are neither
  trimmed nor separated, and an image is one `<|image|>` where it stands;
- a chat without any image begins with a system message that gives two dates; with one, it does not;
- tools stand, as indented JSON, in front of the first message after the system message, trimmed;
- a tool call is written as JSON instead of its message's content, a tool's result as a JSON string.

The template refuses a system message beside an image, and several tool calls in one message.
Backends that serve such chats nevertheless write them as ordinary messages, and so they are
counted. An empty list of tools is none.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from gateway.counting import llama3
from gateway.counting.messages import IMAGE, ImagePart, Part, PromptMessage
from gateway.counting.tool_json import quoted, rendered_calls, rendered_tools

# The template writes the day of the request; any date is as many tokens as its fallback, this one.
DATES: Final = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
BLANK_LINE: Final = "\n\n"
TOOLS_ENVIRONMENT: Final = "Environment: ipython\n"
TOOLS_GUIDE: Final = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": '
    "dictionary of argument name and its value}.Do not use variables.\n\n"
)

# The role in a turn's header, and what is written after it.
Turn: TypeAlias = tuple[str, tuple[Part, ...]]
_TURN_SPECIALS: Final = 3  # the header's start and end, and the end of the turn


def count(messages: Sequence[PromptMessage], tools: bytes | None = None) -> int:
    """Return the prompt's tokens, one per image included; InvalidRequest for unreadable tools.

    Special tokens split the prompt before it is tokenized, so the counts of the texts between them
    add up. The token that begins the prompt makes up for the assistant's turn, which has no end.
    """
    return sum(
        _TURN_SPECIALS + _role_tokens(role) + _content_tokens(parts)
        for role, parts in turns(messages, tools)
    )


def turns(messages: Sequence[PromptMessage], tools: bytes | None = None) -> list[Turn]:
    """Return what the template writes, turn by turn; the last, the assistant's, is left open."""
    rendered = rendered_tools(tools)
    system, chat = _without_system(messages)
    written: list[Turn] = []
    if not any(IMAGE in message.parts for message in chat):
        environment = TOOLS_ENVIRONMENT if rendered else ""
        written.append(("system", (environment + DATES + system,)))
    elif system:
        written.append(("system", (system,)))
    if rendered:
        written.append(("user", _with_tools(rendered, chat[:1])))
        chat = chat[1:]
    for message in chat:
        written.extend(_written(message))
    written.append(("assistant", ()))
    return written


def _without_system(
    messages: Sequence[PromptMessage],
) -> tuple[str, Sequence[PromptMessage]]:
    """Return the text of a leading system message, trimmed, and the messages that follow it."""
    if messages and messages[0].role == "system" and IMAGE not in messages[0].parts:
        return messages[0].text.strip(), messages[1:]
    return "", messages


def _with_tools(rendered: list[str], first: Sequence[PromptMessage]) -> tuple[Part, ...]:
    guide = TOOLS_GUIDE + "".join(f"{tool}\n\n" for tool in rendered)
    parts = first[0].parts if first else ()
    if IMAGE in parts:
        return (guide, *parts)
    return (guide + "".join(part for part in parts if isinstance(part, str)).strip(),)


def _written(message: PromptMessage) -> Iterator[Turn]:
    calls = list(rendered_calls(message.tool_calls_json)) if message.tool_calls_json else []
    if calls:
        yield from (("assistant", (call,)) for call in calls)
    elif message.role in {"tool", "ipython"}:
        yield "ipython", (*message.images, quoted(message.text))
    else:
        yield message.role, message.parts


@functools.lru_cache(maxsize=32)
def _role_tokens(role: str) -> int:
    return llama3.count(role)


@functools.cache
def _blank_line_tokens() -> int:
    return llama3.count(BLANK_LINE)


def _content_tokens(parts: tuple[Part, ...]) -> int:
    """Count what follows a header; texts that touch are one, the blank line after it included."""
    if not parts:
        return _blank_line_tokens()
    tokens, text = 0, BLANK_LINE
    for part in parts:
        if isinstance(part, ImagePart):
            tokens += llama3.count(text) + 1
            text = ""
        else:
            text += part
    return tokens + llama3.count(text)
