"""Channels: where an organization is told of what happens: a webhook, e-mail addresses, or both."""

import base64
import secrets

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from billing.notifications import webhooks
from tenants import credentials
from tenants.models import Organization

EMAILS_MAX = 20
SECRET_BYTES = 32


class Medium(models.TextChoices):
    WEBHOOK = "webhook"
    EMAIL = "email"


def validate_webhook_url(url: str) -> None:
    try:
        webhooks.check_url(url, allow_private=settings.WEBHOOK_ALLOW_PRIVATE)
    except webhooks.WebhookFailed as error:
        raise ValidationError(f"{error}.") from error


class Channel(models.Model):
    """Where an organization is told: a webhook, e-mail addresses, or both."""

    organization = models.OneToOneField(
        Organization, on_delete=models.PROTECT, related_name="channel"
    )
    webhook_url = models.CharField(
        max_length=webhooks.URL_LENGTH_MAX, blank=True, validators=[validate_webhook_url]
    )
    webhook_secret_encrypted = models.BinaryField(default=b"", blank=True, editable=False)
    emails = ArrayField(models.EmailField(), default=list, blank=True, size=EMAILS_MAX)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["organization"]

    def __str__(self) -> str:
        return f"channel of {self.organization}"

    @property
    def webhook_secret(self) -> str:
        return credentials.decrypt(bytes(self.webhook_secret_encrypted))

    @property
    def lacks_secret(self) -> bool:
        return bool(self.webhook_url) and not self.webhook_secret_encrypted

    @property
    def media(self) -> list[Medium]:
        """Return the ways in which it can be reached now."""
        reachable = {Medium.WEBHOOK: self.webhook_url, Medium.EMAIL: self.emails}
        return [medium for medium, address in reachable.items() if address]

    def renew_secret(self) -> str:
        """Give the webhook another secret, and return it to be shown this once. The caller saves it."""
        random = base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        secret = f"{webhooks.SECRET_PREFIX}{random}"
        self.webhook_secret_encrypted = credentials.encrypt(secret)
        return secret
