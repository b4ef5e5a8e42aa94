from typing import Any

import pytest
from django.core.management import CommandError
from django.test import Client
from django.utils.timezone import now

from billing.models import Price
from billing.notifications import alerts
from billing.notifications.channels import Channel
from tenants.models import AuditEntry
from tests import booked
from tests.console import run, run_json
from tests.factories import Tenant

HOOK = "https://hooks.example.com/tessera/token-in-the-path"


def configure(tenant: Tenant, *words: str) -> tuple[str, str]:
    return run("alert", "channel", "--organization", tenant.organization.slug, *words)


def test_a_webhooks_secret_is_shown_once_and_kept_encrypted(acme: Tenant) -> None:
    secret, told = configure(acme, f"--webhook={HOOK}", "--email=a@example.com,b@example.com")

    channel = acme.organization.channel
    assert channel.webhook_secret == secret.strip()
    assert secret.strip().encode() not in bytes(channel.webhook_secret_encrypted)
    assert channel.emails == ["a@example.com", "b@example.com"]
    assert "told of alerts by: webhook, email" in told
    assert configure(acme, "--email=none")[0] == ""


def test_what_is_not_given_stays(acme: Tenant) -> None:
    configure(acme, f"--webhook={HOOK}", "--email=a@example.com")

    configure(acme, "--webhook=none")

    channel = Channel.objects.get(organization=acme.organization)
    assert (channel.webhook_url, channel.emails) == ("", ["a@example.com"])


def test_a_new_secret_replaces_the_old_one(acme: Tenant) -> None:
    first, _ = configure(acme, f"--webhook={HOOK}")
    second, _ = configure(acme, "--new-secret")

    assert first != second
    channel = Channel.objects.get(organization=acme.organization)
    assert channel.webhook_secret == second.strip()


def test_the_record_tells_which_fields_and_not_what_is_in_them(acme: Tenant) -> None:
    configure(acme, f"--webhook={HOOK}")

    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.organization) == ("channel.change", acme.organization)
    assert entry.detail == {"fields": ["webhook_url", "webhook_secret_encrypted"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--webhook=http://hooks.example.com"], "begins with https://"),
        (["--webhook=https://u:p@hooks.example.com"], "no user name"),
        (["--email=nobody"], "valid email"),
    ],
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(
    acme: Tenant, words: list[str], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        configure(acme, *words)

    assert not Channel.objects.filter(organization=acme.organization).exists()


def listed(tenant: Tenant) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run_json(
        "alert", "list", "--organization", tenant.organization.slug
    )
    return rows


def test_the_list_says_what_was_told_and_whether_it_arrived(acme: Tenant, vlm: Price) -> None:
    configure(acme, "--email=a@example.com")
    budget = booked.budget(acme, limit_micro=10_000_000)
    booked.spend(acme, vlm, 9)
    alerts.raise_due(now())

    (row,) = listed(acme)

    assert (row["budget"], row["what"]) == (budget.pk, "80 %")
    assert row["deliveries"] == ["email waits, 0 attempts"]


def test_the_admin_shows_the_secret_once_and_alerts_for_reading(
    acme: Tenant, vlm: Price, admin_client: Client
) -> None:
    form = {"organization": acme.organization.pk, "webhook_url": HOOK, "emails": "a@example.com"}
    page = admin_client.post("/admin/billing/channel/add/", form, follow=True)
    secret = acme.organization.channel.webhook_secret
    booked.budget(acme, limit_micro=10_000_000)
    booked.spend(acme, vlm, 9)
    alerts.raise_due(now())
    alert = acme.organization.alerts.get()

    assert secret in page.content.decode()
    assert secret not in admin_client.get("/admin/billing/channel/").content.decode()
    event = alert.event.pk
    assert "webhook" in admin_client.get(f"/admin/billing/event/{event}/change/").content.decode()
    assert admin_client.get("/admin/billing/alert/").status_code == 200
