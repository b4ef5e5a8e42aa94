"""Idempotency keys: a request that is sent again with the same key gets the same answer, and is billed once.

A claim is made in the transaction that makes the hold, and the answer is kept in the one that settles it. The answer
is content, so it is encrypted with a key that is made from the caller's own API key, which nobody stores: without it
the row is noise. Only complete answers are kept; after a failure the next request with the key runs anew.
"""

import base64
import hashlib
import hmac
import re
import zlib
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import msgspec
from cryptography.fernet import Fernet, InvalidToken
from django.db import models
from django.utils import timezone

from tenants.models import ApiKey

KEPT_FOR = timedelta(hours=24)
KEY_CHARS_MAX = 255
KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_CHARS_MAX}}}")
PURGE_ROWS_MAX = 10_000


class IdempotentRequest(models.Model):
    """A claim on an idempotency key: who runs it, and its answer once it has one."""

    key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+", db_constraint=False)
    idempotency_key = models.CharField(max_length=KEY_CHARS_MAX)
    body_sha256 = models.CharField(max_length=64)
    request_id = models.UUIDField(unique=True)
    answer = models.BinaryField(
        null=True, help_text="Compressed, then encrypted with the caller's key."
    )
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key", "idempotency_key"], name="idempotency_key_once")
        ]

    def __str__(self) -> str:
        return f"{self.key_id}/{self.idempotency_key}"


@dataclass(frozen=True, slots=True)
class Claim:
    """One request's idempotency key, with what seals and opens its answer."""

    idempotency_key: str
    body_sha256: str
    _secret: str = field(repr=False)

    @classmethod
    def of(cls, idempotency_key: str, body: bytes, secret: str) -> "Claim":
        """Make the claim of a request. Raises ValueError if the key is not 1 to 255 visible ASCII characters."""
        if not KEY.fullmatch(idempotency_key):
            raise ValueError(
                f"an idempotency key has 1 to {KEY_CHARS_MAX} visible ASCII characters"
            )
        return cls(idempotency_key, hashlib.sha256(body).hexdigest(), secret)

    def seal(self, answer: bytes) -> str:
        """Return the answer compressed and encrypted, as text."""
        return self._cipher().encrypt(zlib.compress(answer)).decode()

    def open(self, sealed: bytes) -> bytes:
        """Return the answer. Raises ValueError if another key sealed it."""
        try:
            return zlib.decompress(self._cipher().decrypt(bytes(sealed)))
        except InvalidToken as error:
            raise ValueError("this answer was sealed with another key") from error

    def _cipher(self) -> Fernet:
        key = hmac.digest(self._secret.encode(), b"tessera idempotency", "sha256")
        return Fernet(base64.urlsafe_b64encode(key))


class Claimed(msgspec.Struct, frozen=True, tag="claimed"):
    """Someone else has the key: what `billing_claim` says of them."""

    claimed_by: UUID
    is_same_body: bool
    is_answered: bool


class KeyClaimed(Exception):
    """The idempotency key belongs to another request. Nothing was held."""

    def __init__(self, claimed: Claimed) -> None:
        super().__init__(str(claimed.claimed_by))
        self.claimed = claimed


def kept_answer(request_id: UUID) -> bytes | None:
    """Return the sealed answer of a request, if it is kept."""
    row = IdempotentRequest.objects.filter(request_id=request_id).only("answer").first()
    return bytes(row.answer) if row and row.answer is not None else None


def purge() -> int:
    """Forget claims older than KEPT_FOR. Returns how many; safe to run many times at once."""
    old = IdempotentRequest.objects.filter(created_at__lt=timezone.now() - KEPT_FOR)
    ids = list(old.order_by("id").values_list("id", flat=True)[:PURGE_ROWS_MAX])
    deleted, _ = IdempotentRequest.objects.filter(id__in=ids).delete()
    return deleted
