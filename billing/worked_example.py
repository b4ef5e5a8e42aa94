"""What a price means, in amounts that a person can judge before it costs anybody something. Pure.

The classic slip is a price per token where one per million tokens is asked for, or the reverse.
Nobody sees it in the price; everybody sees whether an image costs a cent or ten thousand.
"""

from billing.money import format_micro, format_pico
from billing.rating import Kind, Rates, Tokens, amount_pico

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
    image = _money(rates.currency, IMAGE_TOKENS * rates.image_in_micro)
    text = _money(rates.currency, 1000 * rates.text_in_micro)
    out = _money(rates.currency, 1000 * rates.out_micro)
    request = _money(rates.currency, amount_pico(rates, REQUEST))
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
        if is_suspicious(new, old):
            found.append(f"{kind} goes from {format_micro(old)} to {format_micro(new)}")
    return found


def is_suspicious(one_micro: int, other_micro: int) -> bool:
    """Say whether one is a thousand times the other, or more."""
    low, high = sorted((one_micro, other_micro))
    return 0 < low * SUSPICIOUS_FACTOR <= high


def tier(currency: str, kind: Kind, from_tokens: int, micro: int) -> str:
    """Return what a tier means: what an image costs in it, or a thousand tokens."""
    if kind is Kind.IMAGE_IN:
        image = _money(currency, IMAGE_TOKENS * micro)
        return f"from {from_tokens} {kind} tokens a month on such an image costs {image}"
    thousand = _money(currency, 1000 * micro)
    return f"from {from_tokens} {kind} tokens a month on 1000 tokens cost {thousand}"


def allowance(kind: Kind, tokens: int) -> str:
    """Return what an allowance means in images, or in texts of a thousand tokens."""
    if kind is Kind.IMAGE_IN:
        images = tokens // IMAGE_TOKENS
        return f"{tokens} free tokens are {images} images of {IMAGE_SIDE_PX}×{IMAGE_SIDE_PX}"
    return f"{tokens} free tokens are {tokens // 1000} texts of 1000 tokens"


def _money(currency: str, amount: int) -> str:
    return f"{currency} {format_pico(amount, decimals_min=DECIMALS_MIN)}"
