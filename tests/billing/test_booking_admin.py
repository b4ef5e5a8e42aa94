"""Holds and usage records in the admin: to be read, and the late ones to be found."""

import pytest
from django.test import Client

from billing.accounts import Account
from billing.models import Price
from tests import booked
from tests.factories import Tenant
from tests.invoiced import MARCH, NOON

RECORDS = "/admin/billing/usagerecord/"

pytestmark = pytest.mark.usefixtures("empty_database")


def listed(client: Client, **query: str) -> str:
    answer = client.get(RECORDS, query)
    assert answer.status_code == 200
    return answer.content.decode()


def test_late_usage_is_shown_and_found(admin_client: Client, acme: Tenant, vlm: Price) -> None:
    booked.spend(acme, vlm, 1)
    Account.of(acme.organization).close(MARCH.end)
    late = booked.hold(acme, vlm, received_at=NOON, amount_pico=2 * booked.UNIT_PICO)
    booked.settle(late)

    page = listed(admin_client)
    assert (page.count("TWD 1.00"), page.count("TWD 2.00")) == (1, 1)
    assert "March 31, 2026, 4 p.m." in page  # midnight in Taipei
    only_late = listed(admin_client, late="yes")
    assert (only_late.count("TWD 1.00"), only_late.count("TWD 2.00")) == (0, 1)
    rest = listed(admin_client, late="no")
    assert (rest.count("TWD 1.00"), rest.count("TWD 2.00")) == (1, 0)


def test_nothing_that_is_booked_can_be_edited(
    admin_client: Client, acme: Tenant, vlm: Price
) -> None:
    held = booked.hold(acme, vlm)
    booked.settle(held)

    assert admin_client.get(f"{RECORDS}add/").status_code == 403
    assert admin_client.post(f"{RECORDS}{held.request_id}/change/").status_code == 403
    assert admin_client.post(f"{RECORDS}{held.request_id}/delete/").status_code == 403
    assert "Save" not in admin_client.get(f"{RECORDS}{held.request_id}/change/").content.decode()
