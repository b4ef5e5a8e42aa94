"""What an event says: to a program as JSON, to people as a mail."""

import json
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from billing.money import format_minor
from billing.notifications import alert_wording
from billing.notifications.alerts import Alert
from billing.notifications.events import Event, EventType

SUBJECTS = {
    EventType.INVOICE_ISSUED: "{number} of {currency} {total}",
    EventType.INVOICE_VOID: "{number} is void",
    EventType.INVOICE_OVERDUE: "{number} is overdue",
}


def payload(event: Event) -> bytes:
    """Return the webhook's body: the type, when it happened, and the data."""
    if event.alert_id is not None:
        return alert_wording.payload(_alert(event))
    body = {
        "type": event.type,
        "timestamp": event.happened_at.astimezone(UTC).isoformat(timespec="seconds"),
        "data": {"organization": event.organization.slug, **event.data},
    }
    return json.dumps(body, ensure_ascii=False).encode()


def subject(event: Event) -> str:
    if event.alert_id is not None:
        return alert_wording.subject(_alert(event))
    return f"[Tessera] {SUBJECTS[EventType(event.type)].format(**_figures(event))}"


def text(event: Event) -> str:
    """Return the mail's text."""
    if event.alert_id is not None:
        return alert_wording.text(_alert(event))
    figures = _figures(event)
    lines = [
        SUBJECTS[EventType(event.type)].format(**figures) + ".",
        "",
        f"Total: {figures['currency']} {figures['total']}",
        f"Due: {figures['currency']} {figures['due']}"
        + (f" by {figures['by']}" * bool(figures["by"])),
        f"Content SHA-256: {event.data['content_sha256']}",
    ]
    return "\n".join(lines)


def _figures(event: Event) -> dict[str, Any]:
    data = event.data
    return {
        "number": data["number"],
        "currency": data["currency"],
        "total": format_minor(data["total_minor"], data["currency"]),
        "due": format_minor(data["due_minor"], data["currency"]),
        "by": _day(data["due_at"], event.organization.timezone) if data["due_at"] else "",
    }


def _day(moment: str, zone: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone(ZoneInfo(zone)):%Y-%m-%d}"


def _alert(event: Event) -> Alert:
    assert event.alert is not None
    return event.alert
