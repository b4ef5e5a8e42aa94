"""The Celery application: `celery -A gateway worker -B` takes both queues, `-Q deliveries` one of them.

The worker loads it, and a command that has something for the worker (`billing.errands`). The door and its pages do not:
what is due is found in the database, so a gateway process goes without Celery's memory.
"""

import os

from celery import Celery
from celery.signals import worker_ready
from kombu import Queue

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

app = Celery("tessera")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["billing"])
MONEY, DELIVERIES = "celery", "deliveries"
# Who receives a webhook may take its time, and has workers of its own to wait for it.
app.conf.task_queues = [Queue(name, routing_key=name) for name in (MONEY, DELIVERIES)]
app.conf.task_default_queue = MONEY
app.conf.task_routes = {"billing.tasks.deliver_event": {"queue": DELIVERIES}}
EVERY_S = {
    "create_partitions": 3600.0,
    "purge_idempotent_requests": 600.0,
    "recompute_rollups": 60.0,
    "reap_holds": 10.0,
    "reconcile": 600.0,
    "sweep_invoices": 60.0,
    "raise_alerts": 15.0,
}
# A message that waited until the next one comes is dropped unread: after an hour without a worker each task runs once.
app.conf.beat_schedule = {
    name.replace("_", "-"): {
        "task": f"billing.tasks.{name}",
        "schedule": every_s,
        "options": {"expires": every_s},
    }
    for name, every_s in EVERY_S.items()
}


@worker_ready.connect
def reconcile_at_start(**_: object) -> None:
    """What a crash left behind is put right as soon as someone is there to do it."""
    if MONEY in app.amqp.queues.consume_from:
        app.send_task("billing.tasks.reconcile", expires=EVERY_S["reconcile"])
