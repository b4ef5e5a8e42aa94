"""Celery tasks of billing. Each is idempotent and may run twice at once, or be killed: another run finishes it.

Each ends within `TESSERA_TASK_TIME_LIMIT_S`, if it has no limit of its own. What ran into it is not tried again at
once, but found by the next sweep.
"""

import logging

from celery import shared_task
from django.utils.timezone import now

from billing import idempotency, ledger, processes, reconciliation, rollups
from billing.invoicing import documents, lifecycle, sweeping
from billing.invoicing.invoices import Invoice
from billing.notifications import alerts, deliveries, events

logger = logging.getLogger(__name__)

ALERTS_EVERY_S = 15
INVOICES_EVERY_S = 60
DELIVERY_TIME_LIMIT_S = 60


@shared_task
def reap_holds() -> int:
    """Settle the holds of processes that died, and forget those that died long ago."""
    reaped = ledger.reap()
    processes.forget()
    if reaped:
        logger.warning("%d holds of dead processes were settled as estimated", reaped)
    return reaped


@shared_task
def reconcile() -> int:
    """Book what was left behind, and compare the budgets with the ledger; return the drift in pico-units."""
    return reconciliation.run().drift_pico


@shared_task
def recompute_rollups() -> int:
    """Make the rollups what the ledger says; return how many rows changed."""
    return rollups.recompute()


@shared_task
def create_partitions() -> int:
    """Make the months of the ledger that come next; return how many were made."""
    return ledger.create_partitions()


@shared_task
def purge_idempotent_requests() -> int:
    """Forget idempotency keys, and the answers kept for them, after a day."""
    return idempotency.purge()


@shared_task
def raise_alerts() -> int:
    """Raise alerts and events of keys, and send what is due: these, those to be tried again, and any that got lost.

    A message that waited longer than until the next run is dropped: that run sends it anew.
    """
    raised = alerts.raise_due(now())
    events.record_keys(now())
    for pk in deliveries.due(now()):
        deliver_event.apply_async((pk,), expires=ALERTS_EVERY_S)
    return len(raised)


@shared_task(time_limit=DELIVERY_TIME_LIMIT_S)
def deliver_event(delivery_id: int) -> bool:
    return deliveries.attempt(delivery_id, now())


@shared_task
def sweep_invoices() -> int:
    """Enqueue every step of invoicing that is due; return how many. What the broker lost is found here again.

    Nothing is known of what was enqueued before: a step that was taken meanwhile finds nothing to do.
    """
    at = now()
    organizations = sweeping.due_organizations(at)
    for organization_id in organizations:
        advance_invoices.apply_async((organization_id,), expires=INVOICES_EVERY_S)
    for invoice_id in documents.undrawn():
        draw_document.apply_async((invoice_id,), expires=INVOICES_EVERY_S)
    for invoice_id in sweeping.due_reminders(at):
        remind.apply_async((invoice_id,), expires=INVOICES_EVERY_S)
    return len(organizations)


@shared_task
def advance_invoices(organization_id: int) -> int:
    """Draft, refresh, close and issue what is due for the organization; return how many were issued."""
    return len(lifecycle.advance(organization_id, now()))


@shared_task
def draw_document(invoice_id: int) -> None:
    """Draw the PDF of an issued invoice, and keep it."""
    documents.document(Invoice.objects.get(pk=invoice_id))


@shared_task
def remind(invoice_id: int) -> bool:
    return sweeping.remind(invoice_id, now())
