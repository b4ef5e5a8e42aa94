"""Celery tasks of billing. Each is idempotent and may run twice at once."""

import logging

from celery import shared_task

from billing import ledger

logger = logging.getLogger(__name__)


@shared_task
def expire_holds() -> int:
    """Settle the holds whose process died, from what the hold itself says."""
    expired = ledger.expire_holds()
    if expired:
        logger.warning("%d holds expired and were settled as estimated", expired)
    return expired
