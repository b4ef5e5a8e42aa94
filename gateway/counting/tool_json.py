"""Tools and tool calls as chat templates write them: parsed, and dumped the way `tojson` does."""

import json
from collections.abc import Iterator
from typing import Any, Final

from gateway.errors import InvalidRequest

# Indenting can blow nested JSON up a hundredfold; no context window holds a prompt near this.
RENDERED_CHARS_MAX: Final = 1_000_000

_indented = json.JSONEncoder(ensure_ascii=False, indent=4)
_indented_ascii = json.JSONEncoder(ensure_ascii=True, indent=4)


def rendered_tools(tools: bytes | None, *, is_ascii: bool = False) -> list[str]:
    """Return each tool as JSON indented by four; no tools, and an empty list of them, give [].

    `is_ascii` escapes all other characters, which is never shorter. Raises InvalidRequest for what
    is not a list, and beyond RENDERED_CHARS_MAX characters.
    """
    if tools is None:
        return []
    encoder = _indented_ascii if is_ascii else _indented
    rendered, chars_left = [], RENDERED_CHARS_MAX
    for tool in _list(tools, "tools"):
        rendered.append(_bounded(encoder, tool, chars_left))
        chars_left -= len(rendered[-1])
    return rendered


def rendered_calls(tool_calls_json: str) -> Iterator[str]:
    """Yield each tool call as Llama's templates write it: its name, and its arguments as an object.

    Arguments that are no JSON are written as the string they are.
    """
    for call in _list(tool_calls_json, "messages"):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest("A tool call needs function.name.", param="messages")
        arguments = json.dumps(_arguments(function.get("arguments")), ensure_ascii=False)
        yield f'{{"name": "{function["name"]}", "parameters": {arguments}}}'


def quoted(text: str) -> str:
    """Return the text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def _list(raw: str | bytes, param: str) -> list[Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{param} holds JSON that cannot be read.", param=param) from None
    if not isinstance(value, list):
        raise InvalidRequest(f"{param} must hold a list.", code="invalid_type", param=param)
    return value


def _bounded(encoder: json.JSONEncoder, tool: Any, chars_max: int) -> str:
    pieces, chars = [], 0
    try:
        for piece in encoder.iterencode(tool):
            pieces.append(piece)
            chars += len(piece)
            if chars > chars_max:
                raise InvalidRequest("tools are too large.", param="tools")
    except RecursionError:
        raise InvalidRequest("tools are nested too deeply.", param="tools") from None
    return "".join(pieces)


def _arguments(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given) if given else {}
    except (ValueError, RecursionError):
        return given
