"""The Celery application: `celery -A gateway worker -B`."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

app = Celery("tessera")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["billing"])
app.conf.beat_schedule = {
    "expire-holds": {"task": "billing.tasks.expire_holds", "schedule": 30.0},
}
