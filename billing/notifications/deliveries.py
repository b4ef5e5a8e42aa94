"""Deliveries: an event brought to its webhook and its e-mail addresses, at least once, and tried again for two days.

A delivery is claimed by moving its next attempt into the future, so that one worker tries it at a time, and one
that dies over it is followed by another. Nothing is lost with the broker: what is due, the database knows.
"""

import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage

from billing.notifications import event_wording, webhooks
from billing.notifications.channels import Channel, Medium
from billing.notifications.events import Delivery, Event
from billing.notifications.webhooks import WebhookFailed

logger = logging.getLogger(__name__)

DUE_MAX = 500  # in one run; the next one takes the others
WAITS = tuple(
    timedelta(minutes=minutes) for minutes in (1, 2, 5, 15, 60, 3 * 60, 6 * 60, 12 * 60, 24 * 60)
)
ATTEMPTS_MAX = len(WAITS) + 1


class NoMedium(Exception):
    """The organization does not want to be told in this way any more."""


def due(at: datetime) -> list[int]:
    """Return the ids of the deliveries whose time has come, the longest due first."""
    found = Delivery.objects.filter(next_attempt_at__lte=at).order_by("next_attempt_at", "pk")
    return list(found.values_list("pk", flat=True)[:DUE_MAX])


def attempt(pk: int, at: datetime) -> bool:
    """Try the delivery if it is due and nobody else does. Returns whether it was delivered."""
    delivery = _claim(pk, at)
    if delivery is None:
        return False
    try:
        _send(delivery, at)
    except (
        WebhookFailed,
        NoMedium,
        OSError,
        ImproperlyConfigured,
    ) as error:  # SMTPException is an OSError
        Delivery.objects.filter(pk=pk).update(last_error=f"{error}"[:300])
        logger.warning("attempt %d of %s failed: %s", delivery.attempts, delivery, error)
        return False
    Delivery.objects.filter(pk=pk).update(delivered_at=at, next_attempt_at=None, last_error="")
    return True


def _claim(pk: int, at: datetime) -> Delivery | None:
    found = Delivery.objects.filter(pk=pk, next_attempt_at__lte=at)
    delivery = found.select_related(
        *("event__organization", "event__alert__budget__team", "event__alert__budget__key")
    ).first()
    if delivery is None:
        return None
    before = delivery.attempts
    delivery.attempts += 1
    delivery.next_attempt_at = at + WAITS[before] if before < len(WAITS) else None
    claimed = found.filter(attempts=before).update(
        attempts=delivery.attempts, next_attempt_at=delivery.next_attempt_at
    )
    return delivery if claimed else None


def _send(delivery: Delivery, at: datetime) -> None:
    """Send it to where the organization wants it now, which may have changed since it was raised."""
    event = delivery.event
    channel = Channel.objects.filter(organization_id=event.organization_id).first()
    if channel is None or delivery.medium not in channel.media:
        raise NoMedium(f"The organization has no {delivery.medium} now")
    if delivery.medium == Medium.EMAIL:
        _mail(event, channel)
    else:
        _post(event, channel, at)


def _mail(event: Event, channel: Channel) -> None:
    message = EmailMessage(
        subject=event_wording.subject(event),
        body=event_wording.text(event),
        to=channel.emails,
        headers={"Auto-Submitted": "auto-generated"},
    )
    message.send()


def _post(event: Event, channel: Channel, at: datetime) -> None:
    message = webhooks.Message(f"event_{event.pk}", event_wording.payload(event), at)
    webhooks.post(
        channel.webhook_url,
        message,
        secret=channel.webhook_secret,
        allow_private=settings.WEBHOOK_ALLOW_PRIVATE,
    )
