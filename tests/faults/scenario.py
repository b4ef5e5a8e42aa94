"""The terms of a run that everyone knows: the model, its price, and who calls."""

from dataclasses import dataclass

MODEL = "vision"
UPSTREAM_NAME = "faulty-vision"
CURRENCY = "TWD"
TOKENS_OUT_MAX = 64
# Odd figures, so that no mistake cancels another. Micro-units per million tokens, and per request.
RATES = {
    "text_in_micro": 10_000_019,
    "image_in_micro": 12_000_017,
    "cached_in_micro": 5_000_011,
    "out_micro": 30_000_001,
    "request_micro": 70_003,
}


TILE_TOKENS = 1601
TEXT_TOKENS = range(11, 41)  # of a question, chat template included
Shares = dict[str, str]


@dataclass(frozen=True, slots=True)
class Caller:
    """One key, as a client has it, and its terms: what an answer costs that did not complete, and its limits."""

    key_id: int
    secret: str
    shares: Shares  # by status
    at_once_max: int | None = None
