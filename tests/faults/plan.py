"""What one request is to be like, drawn from its seed: clients and upstream draw the same plan on their own."""

import random
import re
from dataclasses import dataclass
from typing import Self

SEED = re.compile(rb"seed (\d+)")
WORDS_MAX = 40
ENDINGS = ("whole", "refused", "broken")
ENDING_WEIGHTS = (94, 3, 3)


@dataclass(frozen=True, slots=True)
class Plan:
    """The upstream's part of a request."""

    words: int
    ending: str  # whole, refused (an error status), broken (the connection breaks in the middle)
    first_wait_s: float
    word_wait_s: float
    reports_usage: bool
    cached: int

    @classmethod
    def of(cls, seed: int) -> Self:
        draw = random.Random(seed)
        is_slow = draw.random() < 0.05
        return cls(
            words=draw.randint(1, WORDS_MAX),
            ending=draw.choices(ENDINGS, ENDING_WEIGHTS)[0],
            first_wait_s=draw.uniform(1, 3) if is_slow else draw.uniform(0, 0.3),
            word_wait_s=draw.uniform(0, 0.05),
            reports_usage=draw.random() < 0.9,
            cached=draw.choice((0, 0, 0, 7, 1000)),
        )


def seed_in(body: bytes) -> int:
    """Return the seed that a request carries in its message. Raises ValueError if it has none."""
    found = SEED.search(body)
    if found is None:
        raise ValueError("the request has no seed")
    return int(found[1])
