"""What an event says: to a program as JSON, to people as a mail, of an invoice in the invoice's language."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from billing.accounts import Account, InvoiceLanguage
from billing.money import format_minor
from billing.notifications import alert_wording
from billing.notifications.alerts import Alert
from billing.notifications.events import Event, EventType


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a mail in one language, with places for the figures of its invoice."""

    subjects: Mapping[str, str]
    end: str
    total: str
    due: str
    due_by: str
    content: str


ENGLISH = Words(
    subjects={
        EventType.INVOICE_ISSUED: "{number} of {currency} {total}",
        EventType.INVOICE_VOID: "{number} is void",
        EventType.INVOICE_OVERDUE: "{number} is overdue",
    },
    end=".",
    total="Total: {currency} {total}",
    due="Due: {currency} {due}",
    due_by="Due: {currency} {due} by {by}",
    content="Content SHA-256: {sha256}",
)
CHINESE = Words(
    subjects={
        EventType.INVOICE_ISSUED: "帳單 {number}，金額 {currency} {total}",
        EventType.INVOICE_VOID: "帳單 {number} 已作廢",
        EventType.INVOICE_OVERDUE: "帳單 {number} 已逾期",
    },
    end="。",
    total="總額：{currency} {total}",
    due="應繳金額：{currency} {due}",
    due_by="應繳金額：{currency} {due}，繳款期限 {by}",
    content="內容 SHA-256：{sha256}",
)


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
    return f"[Tessera] {_words(event).subjects[event.type].format(**_figures(event))}"


def text(event: Event) -> str:
    """Return the mail's text."""
    if event.alert_id is not None:
        return alert_wording.text(_alert(event))
    words, figures = _words(event), _figures(event)
    due = words.due_by if figures["by"] else words.due
    lines = [words.subjects[event.type] + words.end, "", words.total, due, words.content]
    return "\n".join(lines).format(**figures)


def _words(event: Event) -> Words:
    language = Account.known(event.organization).invoice_language
    return CHINESE if language == InvoiceLanguage.ZH_HANT else ENGLISH


def _figures(event: Event) -> dict[str, Any]:
    data = event.data
    return {
        "number": data["number"],
        "currency": data["currency"],
        "total": format_minor(data["total_minor"], data["currency"]),
        "due": format_minor(data["due_minor"], data["currency"]),
        "sha256": data["content_sha256"],
        "by": _day(data["due_at"], event.organization.timezone) if data["due_at"] else "",
    }


def _day(moment: str, zone: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone(ZoneInfo(zone)):%Y-%m-%d}"


def _alert(event: Event) -> Alert:
    assert event.alert is not None
    return event.alert
