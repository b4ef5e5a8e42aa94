"""An estimate for models whose tokenizer and template we do not have, and a bound for them.

The estimate bills only where the backend reports nothing. The bound is what a request holds. It
takes the tokenizer to work on bytes, or to fall back on them, without rewriting the text first
(byte-level BPE, and SentencePiece as Llama, Qwen, Gemma, Mistral and InternVL use it): then no
token stands for less than a byte.
"""

import json
from collections.abc import Sequence
from typing import Final

from gateway.counting import llama3
from gateway.counting.messages import PromptMessage
from gateway.counting.tiles import TILES_MAX, TOKENS_PER_TILE
from gateway.counting.tool_json import rendered_tools

# Estimate: as in ChatML, `<|im_start|>role\n … <|im_end|>\n` and `<|im_start|>assistant\n`.
MESSAGE_TOKENS: Final = 5
PROMPT_TOKENS: Final = 3
# Bound: room for longer headers, a default system message, and a guide to the tools.
MESSAGE_TOKENS_MAX: Final = 32
PROMPT_TOKENS_MAX: Final = 1024
# Bound: a tool's result and a call may be written anew as JSON, each character escaped, and in a
# call with a blank after each comma and colon.
TOOL_ROLES: Final = frozenset({"tool", "function", "ipython"})
CALL_GROWTH_MAX: Final = 2
# Bound for an image: one token per patch, as Qwen2-VL counts, up to its limit; or four tiles.
PATCH_PX: Final = 28
PATCHES_MAX: Final = 16_384


def count_prompt(messages: Sequence[PromptMessage], tools: bytes | None = None) -> int:
    """Estimate the text tokens: Llama 3's for the texts, and a fixed number per message."""
    tools_tokens = llama3.count(tools.decode(errors="replace")) if tools else 0
    return PROMPT_TOKENS + tools_tokens + sum(map(_message_tokens, messages))


def prompt_upper_bound(messages: Sequence[PromptMessage], tools: bytes | None = None) -> int:
    """Return what the text tokens cannot exceed; InvalidRequest for unreadable tools."""
    tools_bytes = sum(map(len, rendered_tools(tools, is_ascii=True)))
    return PROMPT_TOKENS_MAX + tools_bytes + sum(map(_message_tokens_max, messages))


def image_upper_bound(width_px: int, height_px: int) -> int:
    """Return a count that this image's tokens do not exceed in the models named above."""
    patches = -(-width_px // PATCH_PX) * -(-height_px // PATCH_PX)
    return max(TILES_MAX * TOKENS_PER_TILE, min(patches, PATCHES_MAX))


def _message_tokens(message: PromptMessage) -> int:
    calls = llama3.count(message.tool_calls_json) if message.tool_calls_json else 0
    return MESSAGE_TOKENS + llama3.count(message.text) + calls


def _message_tokens_max(message: PromptMessage) -> int:
    text = message.text
    text_bytes = _escaped_bytes(text) if message.role in TOOL_ROLES else _utf8_bytes(text)
    call_bytes = _escaped_bytes(message.tool_calls_json) if message.tool_calls_json else 0
    return MESSAGE_TOKENS_MAX + text_bytes + CALL_GROWTH_MAX * call_bytes


def _utf8_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _escaped_bytes(text: str) -> int:
    return len(json.dumps(text))
