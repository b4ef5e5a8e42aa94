"""Locks of invoicing: an organization's account first, then its invoice. Everybody takes them in this order."""

from billing.accounts import Account
from billing.invoicing.invoices import Invoice
from tenants.models import Organization


def locked(invoice_id: int) -> tuple[Account, Invoice]:
    """Lock the invoice, and before it its organization's account."""
    account = locked_account(Invoice.objects.get(pk=invoice_id).organization_id)
    return account, Invoice.objects.select_for_update().get(pk=invoice_id)


def locked_account(organization_id: int) -> Account:
    organization = Organization.objects.get(pk=organization_id)
    Account.of(organization)
    locked = Account.objects.select_for_update(of=("self",))
    return locked.select_related("organization", "price_list").get(organization=organization)
