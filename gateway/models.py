"""The catalog as it is edited: which models there are, and which backend answers for each.

The data plane never reads these rows while it serves; it reads `gateway.catalog.Catalog`, an immutable
snapshot of them.
"""

from django.core.exceptions import ValidationError
from django.core.validators import (
    MaxValueValidator,
    MinValueValidator,
    RegexValidator,
)
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from gateway.base_url import normalise
from gateway.counting import counters
from tenants import credentials

MODEL_NAME = RegexValidator(
    r"\A[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}\Z",
    "A model's name has letters, digits and . _ : / @ - only, at most 200 of them.",
)


def validate_counter(name: str) -> None:
    if name not in counters.names():
        raise ValidationError(
            f"There is no counter {name!r}; there are: {', '.join(counters.names())}."
        )


def validate_base_url(url: str) -> None:
    normalise(url)


class BackendKind(models.TextChoices):
    """What dialect the backend speaks beyond OpenAI's, so that it can be asked for running usage."""

    OPENAI = "openai", "OpenAI-compatible service"
    VLLM = "vllm", "vLLM"
    LLAMA_CPP = "llama_cpp", "llama.cpp"


class Backend(models.Model):
    """One upstream server. Its credential is encrypted at rest and never shown again."""

    name = models.SlugField(max_length=64, unique=True)
    kind = models.CharField(max_length=16, choices=BackendKind, default=BackendKind.OPENAI)
    base_url = models.CharField(
        max_length=500,
        validators=[validate_base_url],
        help_text="Up to and without /chat/completions, for example http://127.0.0.1:8001/v1",
    )
    credential_encrypted = models.BinaryField(default=b"", blank=True, editable=False)
    connect_timeout_s = models.PositiveIntegerField(default=3, validators=[MinValueValidator(1)])
    first_byte_timeout_s = models.PositiveIntegerField(
        default=120,
        validators=[MinValueValidator(1)],
        help_text="How long until the answer begins; without streaming that is the whole generation.",
    )
    chunk_timeout_s = models.PositiveIntegerField(default=60, validators=[MinValueValidator(1)])
    total_timeout_s = models.PositiveIntegerField(
        default=600, validators=[MinValueValidator(1), MaxValueValidator(7200)]
    )
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=Q(base_url__startswith="http://") | Q(base_url__startswith="https://"),
                name="backend_base_url_is_http",
            ),
            models.CheckConstraint(
                condition=Q(connect_timeout_s__gte=1, first_byte_timeout_s__gte=1)
                & Q(chunk_timeout_s__gte=1, total_timeout_s__gte=1, total_timeout_s__lte=7200),
                name="backend_timeouts_are_set",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def set_credential(self, secret: str) -> None:
        """Encrypt the bearer token for this backend; an empty one sends no Authorization header."""
        self.credential_encrypted = credentials.encrypt(secret) if secret else b""

    @property
    def has_credential(self) -> bool:
        return bool(self.credential_encrypted)


class Model(models.Model):
    """A model by its public name."""

    name = models.CharField(max_length=200, unique=True, validators=[MODEL_NAME])
    counter = models.CharField(
        max_length=64,
        validators=[validate_counter],
        help_text="How image and text tokens are counted: the model's documented rule, or an estimate.",
    )
    context_tokens = models.PositiveIntegerField(default=32_768, validators=[MinValueValidator(1)])
    tokens_out_default = models.PositiveIntegerField(
        default=2048,
        validators=[MinValueValidator(1)],
        help_text="max_tokens where the client gives none: what a request holds at most.",
    )
    tokens_out_max = models.PositiveIntegerField(default=8192, validators=[MinValueValidator(1)])
    images_max = models.PositiveIntegerField(
        default=16, help_text="Images in one request; 0 for a model that reads text only."
    )
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=Q(tokens_out_default__gte=1, tokens_out_max__gte=F("tokens_out_default"))
                & Q(context_tokens__gte=F("tokens_out_default")),
                name="model_output_fits",
                violation_error_message="tokens_out_default fits neither tokens_out_max nor the context.",
            )
        ]

    def __str__(self) -> str:
        return self.name


class Route(models.Model):
    """Model → backend. The active route with the lowest priority number answers."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="routes")
    backend = models.ForeignKey(Backend, on_delete=models.PROTECT, related_name="routes")
    backend_model = models.CharField(
        max_length=200,
        blank=True,
        help_text="What the backend calls this model; empty for the same name.",
    )
    priority = models.PositiveSmallIntegerField(default=10)
    is_active = models.BooleanField(default=True)

    class Meta:
        ordering = ["model__name", "priority", "id"]
        constraints = [
            models.UniqueConstraint(fields=["model", "backend"], name="route_once_per_backend")
        ]

    def __str__(self) -> str:
        return f"{self.model} → {self.backend}"
