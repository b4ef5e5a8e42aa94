"""What an alert says: to a program as JSON, to people as a mail."""

import json
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from billing.money import format_micro, format_pico
from billing.notifications.alerts import Alert, AlertKind

PERIODS = {"day": "today", "month": "this month", "life": "in its life"}


def payload(alert: Alert) -> bytes:
    """Return the webhook's body. Amounts are exact decimal strings in units of the currency."""
    budget, window = alert.budget, alert.window
    body = {
        "type": f"budget.{alert.kind}",
        "timestamp": _moment(alert.raised_at),
        "data": {
            "alert_id": alert.pk,
            "organization": alert.organization.slug,
            "budget": {
                "id": budget.pk,
                "name": budget.name,
                "level": budget.level,
                "team": budget.team.slug if budget.team else None,
                "key": budget.key.public_id if budget.key else None,
                "period": budget.period,
            },
            "threshold_percent": alert.threshold_percent,
            "currency": alert.organization.currency,
            "spent": format_pico(int(alert.spent_pico)),
            "limit": None if alert.limit_micro is None else format_micro(alert.limit_micro),
            "spent_tokens": alert.spent_tokens,
            "limit_tokens": alert.limit_tokens,
            "request_id": str(alert.request_id) if alert.request_id else None,
            "overage": None if alert.overage_pico is None else format_pico(alert.overage_pico),
            "resets_at": _moment(window.ends_at) if window.ends_at else None,
        },
    }
    return json.dumps(body, ensure_ascii=False).encode()


def subject(alert: Alert) -> str:
    if alert.kind == AlertKind.OVERAGE:
        return f"[Tessera] {alert.budget}: a request cost more than was held for it"
    return f"[Tessera] {alert.budget}: {alert.threshold_percent} % spent {_period(alert)}"


def text(alert: Alert) -> str:
    """Return the mail's text: what happened, the figures, and what follows from them."""
    lines = [f"{_what(alert)}", ""]
    currency = alert.organization.currency
    if alert.limit_micro is not None:
        spent, limit = format_pico(int(alert.spent_pico)), format_micro(alert.limit_micro)
        lines.append(f"Spent: {currency} {spent} of {currency} {limit}")
    if alert.limit_tokens is not None:
        lines.append(f"Spent: {alert.spent_tokens:,} of {alert.limit_tokens:,} tokens")
    lines += [_reset(alert), "", _advice(alert)]
    return "\n".join(lines)


def _what(alert: Alert) -> str:
    owner = f"The budget {alert.budget.pk} of {alert.budget.level} {alert.budget.owner}"
    if alert.kind == AlertKind.THRESHOLD:
        return f"{owner} has passed {alert.threshold_percent} % {_period(alert)}."
    over = f"{alert.organization.currency} {format_pico(alert.overage_pico or 0)}"
    return f"{owner} was charged {over} more by request {alert.request_id} than had been held."


def _advice(alert: Alert) -> str:
    if alert.kind == AlertKind.OVERAGE:
        return "A backend wrote more than it was asked for. This is told once; usage records show the others."
    return "Requests that could pass the limit are refused. What running requests hold is not counted here."


def _reset(alert: Alert) -> str:
    ends_at, zone = alert.window.ends_at, alert.organization.timezone
    if ends_at is None:
        return "It does not reset."
    return f"It resets at {ends_at.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}."


def _period(alert: Alert) -> str:
    return PERIODS[alert.budget.period]


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
