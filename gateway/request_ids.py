"""Ids of requests: UUIDv7 (RFC 9562), so that they sort by time and the ledger can be cut by month."""

import random
import time
from uuid import UUID


def new_request_id() -> UUID:
    """Return 48 bits of milliseconds since 1970, then random bits: nobody else's id, but no secret."""
    milliseconds = time.time_ns() // 1_000_000
    bits = random.getrandbits(74)
    value = (milliseconds & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76 | (bits >> 62) << 64
    value |= 0b10 << 62 | bits & ((1 << 62) - 1)
    return UUID(int=value)
