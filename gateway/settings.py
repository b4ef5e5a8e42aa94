"""The one settings file. Everything that differs between installations comes from the environment.

`.env.example` lists every variable; a test keeps it complete.
"""

import re
from pathlib import Path

from gateway.env import (
    celery_broker,
    database,
    email,
    env_bool,
    env_int,
    env_list,
    env_secret,
    env_str,
)

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = re.search(r"^## \[?(\d+\.\d+\.\d+)", (BASE_DIR / "CHANGELOG.md").read_text(), re.M)[1]  # type: ignore[index]

DEBUG = env_bool("TESSERA_DEBUG", False)
SECRET_CHARS_MIN = 0 if DEBUG else 32
SECRET_KEY = env_secret(
    "TESSERA_SECRET_KEY",
    default="insecure-development-key" if DEBUG else None,
    chars_min=SECRET_CHARS_MIN,
)
KEY_PEPPER = env_secret(
    "TESSERA_KEY_PEPPER", default="insecure" if DEBUG else None, chars_min=SECRET_CHARS_MIN
).encode()
CREDENTIAL_KEYS = [
    key.strip()
    for key in env_secret("TESSERA_CREDENTIAL_KEYS", default="" if DEBUG else None).split(",")
    if key.strip()
]
ALLOWED_HOSTS = env_list("TESSERA_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = env_list("TESSERA_TRUSTED_ORIGINS")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "tenants",
    "billing",
    "gateway.apps.GatewayConfig",
    "dashboard",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "gateway.urls"
ASGI_APPLICATION = "gateway.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# Stores. One PostgreSQL holds all money; Redis or Valkey holds the task queue and the counts of limits.
DATABASE_URL = env_secret("DATABASE_URL")
DATABASES = {"default": {**database(DATABASE_URL), "CONN_HEALTH_CHECKS": True, "CONN_MAX_AGE": 60}}
REDIS_URL = env_secret("REDIS_URL")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Celery: schedule in code, tasks take ids, a lost broker loses nothing.
CELERY_BROKER_URL = celery_broker(REDIS_URL)
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_TIME_LIMIT = env_int("TESSERA_TASK_TIME_LIMIT_S", 900, minimum=1)
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# Past the time limit, so that no task that still runs is taken by another worker.
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": max(3600, 2 * CELERY_TASK_TIME_LIMIT)}
CELERY_TIMEZONE = "UTC"
TASKS_APPLICATION = "gateway.celery.app"  # by name: whoever sends nothing does not load it

# Monitoring: GET /metrics is there for whoever has this token, and for nobody without one.
METRICS_TOKEN = env_secret("TESSERA_METRICS_TOKEN", default="", chars_min=16)

# What is sent to organizations: mail, and webhooks.
_EMAIL = email(env_secret("TESSERA_EMAIL_URL", default="console://"))
EMAIL_BACKEND = _EMAIL.backend
EMAIL_HOST, EMAIL_PORT = _EMAIL.host, _EMAIL.port
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _EMAIL.user, _EMAIL.password
EMAIL_USE_TLS, EMAIL_USE_SSL = _EMAIL.starttls, _EMAIL.tls
EMAIL_TIMEOUT = env_int("TESSERA_EMAIL_TIMEOUT_S", 10, minimum=1)
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env_str("TESSERA_EMAIL_FROM", "tessera@localhost")
WEBHOOK_ALLOW_PRIVATE = env_bool("TESSERA_WEBHOOK_ALLOW_PRIVATE", False)

# Invoices
INVOICE_GRACE_S = env_int("TESSERA_INVOICE_GRACE_S", 24 * 3600, minimum=0)
CLOSE_MARGIN_S = env_int("TESSERA_CLOSE_MARGIN_S", 60, minimum=0)

# People
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hant", "繁體中文")]
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = env_str("TESSERA_STATIC_ROOT", str(BASE_DIR / "var" / "static"))
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL, LOGIN_REDIRECT_URL, LOGOUT_REDIRECT_URL = (
    "dashboard:sign-in",
    "dashboard:home",
    "dashboard:sign-in",
)
PAGE_READ_TIMEOUT_MS = env_int("TESSERA_PAGE_READ_TIMEOUT_MS", 5000, minimum=10)
SESSION_COOKIE_HTTPONLY = True
SECURE_COOKIES = env_bool("TESSERA_SECURE_COOKIES", False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_COOKIES
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SECURE_COOKIES else None

# The data plane. Every queue, body, image, cache and wait has its maximum here.
BODY_BYTES_MAX = env_int("TESSERA_BODY_BYTES_MAX", 32 * 2**20, minimum=1024)
BODY_READ_TIMEOUT_S = env_int("TESSERA_BODY_READ_TIMEOUT_S", 60, minimum=1)
HEADER_READ_TIMEOUT_S = env_int("TESSERA_HEADER_READ_TIMEOUT_S", 10, minimum=1)
CLIENT_WRITE_TIMEOUT_S = env_int("TESSERA_CLIENT_WRITE_TIMEOUT_S", 30, minimum=1)
SHUTDOWN_TIMEOUT_S = env_int("TESSERA_SHUTDOWN_TIMEOUT_S", 30, minimum=1)
MESSAGES_MAX = env_int("TESSERA_MESSAGES_MAX", 1024, minimum=1)
IMAGES_MAX = env_int("TESSERA_IMAGES_MAX", 32, minimum=1)
IMAGE_FILE_BYTES_MAX = env_int("TESSERA_IMAGE_FILE_BYTES_MAX", 20 * 2**20, minimum=1024)
IMAGE_PIXELS_MAX = env_int("TESSERA_IMAGE_PIXELS_MAX", 64_000_000, minimum=1)
IMAGE_SIDE_PX_MAX = env_int("TESSERA_IMAGE_SIDE_PX_MAX", 16_384, minimum=1)
IMAGE_FETCH_TIMEOUT_S = env_int("TESSERA_IMAGE_FETCH_TIMEOUT_S", 8, minimum=1)
IMAGE_FETCHES_AT_ONCE_MAX = env_int("TESSERA_IMAGE_FETCHES_AT_ONCE_MAX", 64, minimum=1)
IMAGE_ALLOW_LOOPBACK = env_bool("TESSERA_IMAGE_ALLOW_LOOPBACK", False)  # demo and tests only
BACKEND_CONNECTIONS_MAX = env_int("TESSERA_BACKEND_CONNECTIONS_MAX", 2000, minimum=1)
STREAM_EVENT_BYTES_MAX = env_int("TESSERA_STREAM_EVENT_BYTES_MAX", 2**20, minimum=1024)
STREAM_HEARTBEAT_S = env_int("TESSERA_STREAM_HEARTBEAT_S", 15, minimum=1)
ANSWER_BYTES_MAX = env_int("TESSERA_ANSWER_BYTES_MAX", 32 * 2**20, minimum=1024)
IDEMPOTENT_ANSWER_BYTES_MAX = env_int("TESSERA_IDEMPOTENT_ANSWER_BYTES_MAX", 2**20, minimum=1024)
PRINCIPALS_MAX = env_int("TESSERA_PRINCIPALS_MAX", 100_000, minimum=1)
REFUSALS_MAX = env_int("TESSERA_REFUSALS_MAX", 10_000, minimum=1)
REFUSAL_TTL_S = env_int("TESSERA_REFUSAL_TTL_S", 10, minimum=1, maximum=3600)
UNCONFIRMED_S_MAX = env_int("TESSERA_UNCONFIRMED_S_MAX", 5, minimum=1, maximum=60)
SNAPSHOT_POLL_MS = env_int("TESSERA_SNAPSHOT_POLL_MS", 500, minimum=10)
READS_WAITING_MAX = env_int("TESSERA_READS_WAITING_MAX", 64, minimum=1)
READ_TIMEOUT_MS = env_int("TESSERA_READ_TIMEOUT_MS", 3000, minimum=10)
BATCH_ROWS_MAX = env_int("TESSERA_BATCH_ROWS_MAX", 256, minimum=1)
BATCH_QUEUE_MAX = env_int("TESSERA_BATCH_QUEUE_MAX", 5000, minimum=1)
RESERVE_TIMEOUT_MS = env_int("TESSERA_RESERVE_TIMEOUT_MS", 250, minimum=10)
SETTLE_TIMEOUT_MS = env_int("TESSERA_SETTLE_TIMEOUT_MS", 2000, minimum=10)
DATABASE_SILENCE_MS = env_int("TESSERA_DATABASE_SILENCE_MS", 5000, minimum=100)
SPOOL_DIR = Path(env_str("TESSERA_SPOOL_DIR", str(BASE_DIR / "var" / "spool")))
SPOOL_BYTES_MAX = env_int("TESSERA_SPOOL_BYTES_MAX", 256 * 2**20, minimum=2**20)
REAP_AFTER_S = env_int("TESSERA_REAP_AFTER_S", 60, minimum=6)
# Limits. The processes are those of the whole installation: they share the limits while Redis is away.
PROCESSES = env_int("TESSERA_PROCESSES", 1, minimum=1)
REDIS_TIMEOUT_MS = env_int("TESSERA_REDIS_TIMEOUT_MS", 50, minimum=1)
REDIS_QUEUE_MAX = env_int("TESSERA_REDIS_QUEUE_MAX", 10_000, minimum=1)
LOCAL_WINDOWS_MAX = env_int("TESSERA_LOCAL_WINDOWS_MAX", 100_000, minimum=1)

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    # It would log every webhook's address, and some of these are secrets.
    # The others tell of each glyph that they embed, or lack.
    "loggers": {
        "httpx": {"level": "WARNING"},
        "fontTools": {"level": "WARNING"},
        "fpdf": {"level": "ERROR"},
    },
    "root": {"handlers": ["stderr"], "level": env_str("TESSERA_LOG_LEVEL", "INFO")},
}

REST_FRAMEWORK = {
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
}
