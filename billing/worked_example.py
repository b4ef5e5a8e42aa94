"""What a price means, in amounts that a person can judge before it costs anybody something. Pure.

The classic slip is a price per token where one per million tokens is asked for, or the reverse.
Nobody sees it in the price; everybody sees whether an image costs a cent or ten thousand.
"""

from billing.money import format_micro, format_pico
from billing.rating import Rates, Tokens, amount_pico

# Four tiles of 1601 tokens (AFS's vision API); a test compares it with the counter's.
IMAGE_SIDE_PX = 1120
IMAGE_TOKENS = 6404
REQUEST = Tokens(text_in=20, image_in=IMAGE_TOKENS, cached_in=0, out=200)
DECIMALS_MIN = 6
SUSPICIOUS_FACTOR = 1000  # nobody changes a price a thousandfold on purpose

KINDS = {
    "text_in": "text_in_micro",
    "image_in": "image_in_micro",
    "cached_in": "cached_in_micro",
    "out": "out_micro",
    "per_request": "request_micro",
}


def lines(rates: Rates) -> list[str]:
    """Return what an image, a thousand tokens and a small request cost at this price."""
    image = _money(rates, IMAGE_TOKENS * rates.image_in_micro)
    text = _money(rates, 1000 * rates.text_in_micro)
    out = _money(rates, 1000 * rates.out_micro)
    request = _money(rates, amount_pico(rates, REQUEST))
    return [
        f"a {IMAGE_SIDE_PX}×{IMAGE_SIDE_PX} image costs {image} ({IMAGE_TOKENS} tokens)",
        f"1000 tokens of text cost {text} in and {out} out",
        f"{REQUEST.text_in} tokens about that image, answered in {REQUEST.out}, cost {request}",
    ]


def suspicions(rates: Rates, before: Rates) -> list[str]:
    """Say which amounts are a thousand times those of the price before, or more, or less."""
    found = []
    for kind, field in KINDS.items():
        new, old = getattr(rates, field), getattr(before, field)
        low, high = sorted((new, old))
        if 0 < low * SUSPICIOUS_FACTOR <= high:
            found.append(f"{kind} goes from {format_micro(old)} to {format_micro(new)}")
    return found


def _money(rates: Rates, amount: int) -> str:
    return f"{rates.currency} {format_pico(amount, decimals_min=DECIMALS_MIN)}"
