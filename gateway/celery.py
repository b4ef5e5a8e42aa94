"""The Celery application: `celery -A gateway worker -B`.

Only the worker loads it. Nothing is enqueued by the door, the pages or a command: what is due is found in the
database (`billing.sweeping`), so a gateway process goes without Celery's memory.
"""

import os

from celery import Celery
from celery.signals import worker_ready

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

app = Celery("tessera")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["billing"])
app.conf.beat_schedule = {
    "create-partitions": {"task": "billing.tasks.create_partitions", "schedule": 3600.0},
    "purge-idempotent-requests": {
        "task": "billing.tasks.purge_idempotent_requests",
        "schedule": 600.0,
    },
    "recompute-rollups": {"task": "billing.tasks.recompute_rollups", "schedule": 60.0},
    "reap-holds": {"task": "billing.tasks.reap_holds", "schedule": 10.0},
    "reconcile": {"task": "billing.tasks.reconcile", "schedule": 600.0},
    "sweep-invoices": {"task": "billing.tasks.sweep_invoices", "schedule": 60.0},
    "raise-alerts": {"task": "billing.tasks.raise_alerts", "schedule": 15.0},
}


@worker_ready.connect
def reconcile_at_start(**_: object) -> None:
    """What a crash left behind is put right as soon as someone is there to do it."""
    app.send_task("billing.tasks.reconcile")
