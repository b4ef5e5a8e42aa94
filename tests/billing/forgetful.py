"""Our worker without `acks_late`: a message is gone once it was taken. To compare with; nobody runs it."""

from gateway.celery import app

app.conf.task_acks_late = False

__all__ = ["app"]
