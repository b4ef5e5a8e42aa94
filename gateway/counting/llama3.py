"""Llama 3's own tokenizer (3, 3.1, 3.2 and 3.2 Vision share it): how many tokens a text is.

Text is text: `<|eot_id|>` written by a user is the characters it looks like, never the token that
ends a turn.

The vocabulary is Meta's file, unmodified (vendor/llama3). It is loaded once per process, in about
0.3 s and 53 MB; `load` does so ahead of time, in a thread. Counting releases the GIL and is linear,
about 0.15 s per million characters of prose, so a long text belongs in a thread too.
"""

import base64
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import tiktoken

VOCABULARY: Final = Path(__file__).parent / "vendor" / "llama3" / "tokenizer.model"
SHA256: Final = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
# How text is split before it is merged into tokens, as published with the vocabulary.
PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEGIN: Final = "<|begin_of_text|>"
HEADER: Final = "<|start_header_id|>"
HEADER_END: Final = "<|end_header_id|>"
TURN_END: Final = "<|eot_id|>"
IMAGE_PLACE: Final = "<|image|>"
_SPECIALS: Final = {
    BEGIN: 128000,
    HEADER: 128006,
    HEADER_END: 128007,
    TURN_END: 128009,
    IMAGE_PLACE: 128011,
}

TOKEN_BYTES_MAX: Final = 128  # the vocabulary's longest token: a run of spaces
# A longer text is cut: tiktoken panics on a million spaces in a row, and slows on other long runs.
CUT_CHARS: Final = 50_000
_CUT_SEARCH_CHARS: Final = 4096


def load() -> None:
    """Load the vocabulary, unless that is done. Blocks; OSError or ValueError for a bad file."""
    encoding()


@functools.cache
def encoding() -> "tiktoken.Encoding":
    """Return the tokenizer, loaded on first use. Threads that race load it twice and keep one."""
    import tiktoken  # here, because commands that count nothing should not pay for it

    ranks = _ranks(VOCABULARY.read_bytes())
    loaded = tiktoken.Encoding(
        "llama3", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=_SPECIALS
    )
    ranks.clear()  # what counts is a copy of its own; this one is 15 MB that only decoding reads
    return loaded


def count(text: str) -> int:
    """Return how many tokens the text is, special tokens read as plain text."""
    if len(text) <= CUT_CHARS:
        return len(encoding().encode_ordinary(text))
    return sum(len(encoding().encode_ordinary(piece)) for piece in cut(text, CUT_CHARS))


def cut(text: str, chars_max: int) -> Iterator[str]:
    """Yield pieces of at most `chars_max` characters whose tokens add up to those of the text.

    It cuts after a letter and before none, where the pattern always splits. Only where there is no
    such place near (a run of thousands of spaces, say) may a cut change the count, by a few tokens.
    """
    start = 0
    while len(text) - start > chars_max:
        end = _cut_before(text, start, start + chars_max)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut_before(text: str, start: int, limit: int) -> int:
    for end in range(limit, max(start, limit - _CUT_SEARCH_CHARS), -1):
        if text[end - 1].isalpha() and not text[end].isalpha():
            return end
    return limit


def _ranks(vocabulary: bytes) -> dict[bytes, int]:
    if hashlib.sha256(vocabulary).hexdigest() != SHA256:
        raise ValueError(f"{VOCABULARY} is not the published Llama 3 vocabulary")
    lines = (line.split() for line in vocabulary.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}
