"""The books in Django's admin, a module for each noun: Django looks for them here."""

from billing.admin import bookings, budgets, events, invoices, prices

__all__ = ["bookings", "budgets", "events", "invoices", "prices"]
