"""Settings from the environment, read once at start, loudly.

A variable that is set to something we do not understand stops the process with its name; a secret may
also come from the file that NAME_FILE names, as container platforms hand them over.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off"}


def env_str(name: str, default: str | None = None) -> str:
    value = os.environ.get(name, "").strip() or default
    if value is None:
        raise ImproperlyConfigured(f"{name} is not set, and there is no default for it.")
    return value


def env_bool(name: str, default: bool) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if not value:
        return default
    if value in TRUE | FALSE:
        return value in TRUE
    raise ImproperlyConfigured(f"{name}={value!r} is not a yes or a no; use 1 or 0.")


def env_int(name: str, default: int, *, minimum: int = 0, maximum: int = 2**31) -> int:
    value = os.environ.get(name, "").strip()
    if not value:
        return default
    if value.isascii() and value.isdigit() and minimum <= int(value) <= maximum:
        return int(value)
    raise ImproperlyConfigured(f"{name}={value!r} is not a whole number in {minimum}..{maximum}.")


def env_list(name: str, default: str = "") -> list[str]:
    return [item.strip() for item in env_str(name, default).split(",") if item.strip()]


def env_secret(name: str, *, default: str | None = None, chars_min: int = 0) -> str:
    """Return the secret, from NAME or from the file that NAME_FILE names. Never logs it, and takes none too short."""
    file = os.environ.get(f"{name}_FILE", "").strip()
    if not file:
        secret = env_str(name, default)
    else:
        try:
            secret = Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ImproperlyConfigured(f"{name}_FILE={file!r} cannot be read: {error}") from error
    if len(secret) < chars_min and secret != default:
        raise ImproperlyConfigured(
            f"{name} has {len(secret)} characters, and needs {chars_min} that nobody can guess: "
            'python -c "import secrets; print(secrets.token_urlsafe(48))"'
        )
    return secret


def database(url: str) -> dict[str, object]:
    """Turn postgresql://user:password@host:port/name?host=/socket/dir into Django's settings."""
    parts = urlsplit(url)
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ImproperlyConfigured(
            "DATABASE_URL must start with postgresql://; no other database is supported."
        )
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    host = query.pop("host", parts.hostname or "")
    port = query.pop("port", str(parts.port or ""))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(query.pop("user", parts.username or "")),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": port,
        # A server that vanished without a word is noticed; on a unix socket the last two mean nothing.
        "OPTIONS": {
            "connect_timeout": "5",
            "keepalives_idle": "5",
            "tcp_user_timeout": "10000",
            **query,
        },
    }


@dataclass(frozen=True, slots=True)
class Email:
    """How mail leaves, in the words of Django's settings."""

    backend: str
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    starttls: bool = False
    tls: bool = False


def email(url: str) -> Email:
    """Read smtp://user:password@host:587 (STARTTLS, or ?tls=0), smtps://… (TLS), or console://."""
    parts = urlsplit(url)
    if parts.scheme == "console":
        return Email("django.core.mail.backends.console.EmailBackend")
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
        raise ImproperlyConfigured(
            "TESSERA_EMAIL_URL must be like smtp://user:password@host:587, smtps://… or console://."
        )
    plain = parse_qs(parts.query).get("tls") == ["0"]
    return Email(
        "django.core.mail.backends.smtp.EmailBackend",
        host=parts.hostname,
        port=parts.port or (465 if parts.scheme == "smtps" else 587),
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        starttls=parts.scheme == "smtp" and not plain,
        tls=parts.scheme == "smtps",
    )


def celery_broker(redis_url: str) -> str:
    """Turn unix:///path?db=0 into the form that Celery knows; other addresses stay."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    number = parse_qs(parts.query).get("db", ["0"])[-1]
    return f"redis+socket://{parts.path}?virtual_host={number}"
