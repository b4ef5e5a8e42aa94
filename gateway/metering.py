"""From counts to what is billed. Pure.

Input tokens follow the model's documented rule where our counter knows it (`is_exact`), else what the backend
reports, else our estimate. Output tokens are what the backend reports if that can be true, else what we counted.
"""

from dataclasses import dataclass, replace

from billing.rating import Tokens, split_cached
from gateway.completions import BilledUsage, UpstreamUsage


@dataclass(frozen=True, slots=True)
class PromptCount:
    """Our own count of a request's input, and the most that it can come to (for the hold)."""

    text: int
    image: int
    text_upper_bound: int
    image_upper_bound: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Metered:
    """What a request used: `tokens` to be billed (disjoint kinds), `shown` to the client, and whose figures."""

    tokens: Tokens
    shown: BilledUsage
    source: str  # upstream | counted | estimated


def of_all_choices(
    upstream: UpstreamUsage | None, *, choices: int, kind: str
) -> UpstreamUsage | None:
    """Return the backend's figures for all choices together; llama.cpp's output is that of one, so without it."""
    if upstream is None or choices == 1 or kind != "llama_cpp":
        return upstream
    return replace(upstream, out=None, details=None)


def is_credible(upstream: UpstreamUsage | None, *, out_max: int) -> bool:
    """Return whether the backend's output figure can be true: there, and within what was asked of it."""
    return upstream is not None and upstream.out is not None and upstream.out <= out_max


def meter(
    prompt: PromptCount, upstream: UpstreamUsage | None, *, counted_out: int, out_max: int
) -> Metered:
    """Decide what is billed. Never more output than `out_max`, which the hold was made for.

    `counted_out` is our own count of what was generated; it only matters where the backend's is not credible.
    """
    text, image = _input(prompt, upstream)
    if upstream is not None and upstream.out is not None and is_credible(upstream, out_max=out_max):
        out, source = upstream.out, "upstream"
    else:
        out, source = min(counted_out, out_max), "counted" if prompt.is_exact else "estimated"
    cached = (upstream.cached or 0) if upstream else 0
    tokens = split_cached(text_in=text, image_in=image, cached=cached, out=out)
    details = upstream.details if upstream and source == "upstream" else None
    return Metered(tokens, BilledUsage(text, image, tokens.cached_in, out, details), source)


def _input(prompt: PromptCount, upstream: UpstreamUsage | None) -> tuple[int, int]:
    if prompt.is_exact or upstream is None or upstream.prompt is None:
        return prompt.text, prompt.image
    reported = min(upstream.prompt, prompt.text_upper_bound + prompt.image_upper_bound)
    if not prompt.image:
        return reported, 0
    text = min(prompt.text, reported)
    return text, reported - text
