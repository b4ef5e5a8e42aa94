"""Invoices in the admin: to be read and downloaded, never edited."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

from billing.invoicing import exports
from billing.invoicing.invoices import CreditGrant, Invoice, Payment
from billing.models import Price
from tests.downloads import fetch
from tests.factories import Tenant
from tests.invoiced import ISSUED, issue, use

pytestmark = pytest.mark.django_db


@pytest.fixture
def issued(acme: Tenant, vlm: Price) -> Invoice:
    use(acme, vlm)
    return issue(acme)


def test_an_invoice_is_shown_with_its_lines_and_payments(
    issued: Invoice, admin_client: Client
) -> None:
    Payment.objects.create(invoice=issued, amount_minor=1, received_at=ISSUED, reference="T-77")
    page = admin_client.get(f"/admin/billing/invoice/{issued.pk}/change/").content.decode()

    assert all(word in page for word in (str(issued.number), "text in", "T-77", "PDF"))
    assert "_save" not in page
    assert str(issued.number) in admin_client.get("/admin/billing/invoice/").content.decode()


@pytest.mark.parametrize(("format", "starts"), [("pdf", b"%PDF"), ("csv", b"\xef"), ("json", b"{")])
def test_an_invoice_is_downloaded(
    issued: Invoice, admin_user: User, format: str, starts: bytes
) -> None:
    answer = fetch(admin_user, f"/admin/billing/invoice/{issued.pk}/download/{format}/")

    assert answer.content.startswith(starts)
    assert (answer.name, answer.type) == (
        f"{issued.number}.{format}",
        exports.CONTENT_TYPES[format],
    )


def test_each_line_has_its_usage(issued: Invoice, admin_user: User, admin_client: Client) -> None:
    path = f"/admin/billing/invoice/{issued.pk}/lines/2/usage-csv/"
    page = admin_client.get(f"/admin/billing/invoice/{issued.pk}/change/").content.decode()
    answer = fetch(admin_user, path)

    assert path in page
    assert answer.name == f"{issued.number}-line-2-usage.csv"
    assert answer.content.decode() == "".join(exports.usage(issued, 2))
    assert fetch(admin_user, path.replace("/2/", "/9/")).status == 404


def test_who_is_not_signed_in_downloads_nothing(issued: Invoice, client: Client) -> None:
    for path in ("download/pdf", "lines/1/usage-csv"):
        assert client.get(f"/admin/billing/invoice/{issued.pk}/{path}/").status_code == 302


def test_nothing_is_added_changed_or_deleted(issued: Invoice, admin_client: Client) -> None:
    for verb in ("change", "delete"):
        path = f"/admin/billing/invoice/{issued.pk}/{verb}/"
        assert admin_client.post(path, {"number": "X", "post": "yes"}).status_code == 403
    assert admin_client.get("/admin/billing/invoice/add/").status_code == 403


def test_credit_is_added_and_never_changed(acme: Tenant, admin_client: Client) -> None:
    form = {
        "organization": acme.organization.pk,
        "source": "granted",
        "amount": "500",
        "priority": 0,
    }
    admin_client.post("/admin/billing/creditgrant/add/", form)
    grant = CreditGrant.objects.get(organization=acme.organization)

    path = f"/admin/billing/creditgrant/{grant.pk}/change/"
    assert (grant.currency, grant.amount_minor) == ("TWD", 500)
    assert admin_client.post(path, form | {"amount": "1"}).status_code == 403
    assert "500" in admin_client.get(path).content.decode()
    assert "500" in admin_client.get("/admin/billing/creditgrant/").content.decode()


@pytest.mark.parametrize("amount", ["12.50", "0", "-3", "much"])
def test_credit_is_an_amount_of_the_organizations_currency(
    acme: Tenant, admin_client: Client, amount: str
) -> None:
    """The New Taiwan dollar has no decimals here."""
    form = {"organization": acme.organization.pk, "source": "granted", "priority": 0}
    page = admin_client.post("/admin/billing/creditgrant/add/", form | {"amount": amount})

    assert "errorlist" in page.content.decode()
    assert not CreditGrant.objects.filter(organization=acme.organization).exists()
