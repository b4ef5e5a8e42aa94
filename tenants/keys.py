"""API keys as text: minting one, telling one from junk offline, and digesting one for storage.

    tsr_<8 public id>_<43 secret>_<6 checksum>        every part in base62, 63 characters in all

The prefix lets secret scanners find a leaked key; the checksum (CRC32 of all before it) lets us
refuse junk without asking any store. The secret is 256 random bits, so a fast keyed hash is enough
to keep it: slow ones protect passwords, which people choose.
"""

import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PAIRS = [high + low for high in ALPHABET for low in ALPHABET]  # two digits a step: half the time
PREFIX = "tsr"
PUBLIC_ID_LENGTH = 8
SECRET_BITS = 256
SECRET_LENGTH = 43  # 62**43 > 2**256
CHECKSUM_LENGTH = 6  # 62**6 > 2**32
LENGTH = len(PREFIX) + PUBLIC_ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH + 3

# Groups: what is checked (with the public id), the checksum. No \w, no \d: they match beyond ASCII.
SHAPE = re.compile(
    rf"({PREFIX}_([0-9A-Za-z]{{{PUBLIC_ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}})"
    rf"_([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)


@dataclass(frozen=True, slots=True)
class RawKey:
    """A well-formed key in plain text. Its repr shows the public id only: logs may have it."""

    public_id: str
    secret: str = field(repr=False)  # the whole of it, as a caller sends it

    @property
    def last4(self) -> str:
        return self.secret[-4:]


def mint() -> RawKey:
    public_id = "".join(secrets.choice(ALPHABET) for _ in range(PUBLIC_ID_LENGTH))
    secret = _base62(secrets.randbits(SECRET_BITS), SECRET_LENGTH)
    body = f"{PREFIX}_{public_id}_{secret}"
    return RawKey(public_id, f"{body}_{_checksum(body)}")


def parse(raw: str | bytes) -> RawKey | None:
    """Return the key, or None for what cannot be one. Asks no store and never raises."""
    if len(raw) != LENGTH:
        return None
    text = raw if isinstance(raw, str) else raw.decode("latin-1")
    match = SHAPE.fullmatch(text)
    if match is None:
        return None
    body, public_id, checksum = match.groups()
    return RawKey(public_id, text) if _checksum(body) == checksum else None


def digest(key: RawKey, pepper: bytes) -> bytes:
    """Return the 32 bytes the key is stored under: HMAC-SHA256, useless without the pepper."""
    return hmac.digest(pepper, key.secret.encode("ascii"), "sha256")


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    pairs = []
    for _ in range((length + 1) // 2):
        number, pair = divmod(number, len(PAIRS))
        pairs.append(PAIRS[pair])
    assert number == 0, "the number does not fit"
    return "".join(reversed(pairs))[-length:]
