"""The books in Django's admin, a module for each noun: Django looks for them here."""

from billing import booking_admin as booking_admin
from billing import budget_admin as budget_admin
from billing import event_admin as event_admin
from billing import invoice_admin as invoice_admin
from billing import price_admin as price_admin
