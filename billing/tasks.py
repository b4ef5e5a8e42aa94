"""Celery tasks of billing. Each is idempotent and may run twice at once."""

import logging

from celery import shared_task
from django.utils.timezone import now

from billing import alerts, deliveries, idempotency, ledger, processes, reconciliation, rollups

logger = logging.getLogger(__name__)

ALERTS_EVERY_S = 15
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
    """Raise the alerts that are due, and send what is due: these, those to be tried again, and any that got lost.

    A message that waited longer than until the next run is dropped: that run sends it anew.
    """
    raised = alerts.raise_due(now())
    for pk in deliveries.due(now()):
        deliver_alert.apply_async((pk,), expires=ALERTS_EVERY_S)
    return len(raised)


@shared_task(time_limit=DELIVERY_TIME_LIMIT_S)
def deliver_alert(delivery_id: int) -> bool:
    return deliveries.attempt(delivery_id, now())
