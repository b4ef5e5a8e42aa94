"""What a client is told when a budget refuses its request."""

from billing.holds import Refusal
from billing.money import format_pico
from gateway.errors import InsufficientQuota

WINDOWS = {"day": "today", "month": "this month", "life": "in its life"}


def insufficient_quota(refusal: Refusal, currency: str) -> InsufficientQuota:
    """Say which budget of whom refuses, how much of it is spent, held and left, and when it resets.

    The code is OpenAI's name for it: key_, team_ or organization_spend_limit_exceeded, or …_token_limit_exceeded.
    """
    kind = "spend" if refusal.unit == "money" else "token"
    left = max(0, refusal.limit - refusal.spent - refusal.held)
    name = f" {refusal.name!r}" if refusal.name else ""
    resets = f" It resets at {refusal.resets_at.isoformat()}." if refusal.resets_at else ""
    return InsufficientQuota(
        f"The budget{name} of this {refusal.level} {WINDOWS[refusal.period]} has no room for the request: "
        f"limit {_amount(refusal.limit, refusal.unit, currency)}, "
        f"spent {_amount(refusal.spent, refusal.unit, currency)}, "
        f"held by running requests {_amount(refusal.held, refusal.unit, currency)}, "
        f"left {_amount(left, refusal.unit, currency)}; "
        f"this request may need {_amount(refusal.needed, refusal.unit, currency)}.{resets}",
        code=f"{refusal.level}_{kind}_limit_exceeded",
    )


def _amount(value: int, unit: str, currency: str) -> str:
    return f"{currency} {format_pico(value)}" if unit == "money" else f"{value:,} tokens"
