"""Errands: tasks that somebody waits for, sent to the worker as soon as what they are about is committed.

A courtesy. What was not sent, or got lost, a sweep finds in the database: a broker that is away takes `SEND_S_MAX` of
who commits, once in `SILENT_S`, and nothing is ever undone for it.
"""

import logging
import time
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils.module_loading import import_string

logger = logging.getLogger(__name__)

SEND_S_MAX = 1.0  # for each thing that the broker is asked: to let us in, and to take a message
SILENT_S = 10.0
EXPIRES_S = 60  # by then a sweep has sent it again
# Celery's own patience is 6 s for a broker that refuses, and has no end for one that is silent.
IMPATIENT = {"socket_connect_timeout": SEND_S_MAX, "socket_timeout": SEND_S_MAX, "max_retries": 0}


class Sender:
    """Sends for this process, until it is told not to."""

    def __init__(self) -> None:
        self.is_dismissed = False
        self._silent_until = 0.0

    def send(self, task: str, pk: int) -> None:
        """Send it, unless the broker has just failed. Raises nothing."""
        if self.is_dismissed or time.monotonic() < self._silent_until:
            return
        app = import_string(settings.TASKS_APPLICATION)
        try:
            with app.connection_for_write(transport_options=IMPATIENT) as connection:
                self._send(app, connection, task, pk)
        except Exception as error:  # the broker's many; whatever it is, the work is not lost
            self._silent_until = time.monotonic() + SILENT_S
            logger.warning("%s is left to a sweep, the broker is away: %s", task, error)

    def _send(self, app: Any, connection: Any, task: str, pk: int) -> None:
        options = {"expires": EXPIRES_S, "retry": False, "ignore_result": True}
        app.send_task(f"billing.tasks.{task}", (pk,), connection=connection, **options)


_sender = Sender()


def after_commit(task: str, pk: int) -> None:
    """Have the worker run a task of `billing.tasks` right after this transaction; never if it is rolled back."""
    transaction.on_commit(partial(_sender.send, task, pk), robust=True)


def leave_to_sweeps() -> None:
    """Send nothing from this process: the door has no memory for Celery, and no second to wait for a broker."""
    _sender.is_dismissed = True
