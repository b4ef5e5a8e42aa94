"""Secrets that must be sent or signed with, such as backends' credentials: encrypted at rest.

The first key of TESSERA_CREDENTIAL_KEYS encrypts, all of them decrypt: prepend a new key to rotate.
"""

from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


@cache
def _keyring(keys: tuple[str, ...]) -> MultiFernet:
    try:
        return MultiFernet([Fernet(key) for key in keys])
    except ValueError as error:
        raise ImproperlyConfigured(
            "TESSERA_CREDENTIAL_KEYS must be a comma-separated list of Fernet keys "
            '(python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())").'
        ) from error


def encrypt(secret: str) -> bytes:
    return _keyring(tuple(settings.CREDENTIAL_KEYS)).encrypt(secret.encode())


def decrypt(token: bytes) -> str:
    """Return the secret; ImproperlyConfigured if none of the keys opens it."""
    try:
        return _keyring(tuple(settings.CREDENTIAL_KEYS)).decrypt(bytes(token)).decode()
    except InvalidToken as error:
        raise ImproperlyConfigured(
            "A stored secret was encrypted with a key that is not in TESSERA_CREDENTIAL_KEYS."
        ) from error
