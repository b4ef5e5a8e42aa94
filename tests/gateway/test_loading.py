"""What a gateway process has loaded when its door opens: nothing that few of its requests need, or none."""

import os
import subprocess
import sys

import pytest

# As gateway.serve's workers do, and then everything that a page or the admin may ask for.
OPENED = """
import sys
import gateway.asgi, gateway.plane, gateway.urls
gateway.plane._load_counters()
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Return the modules of a process that opened its door, none of ours included that was loaded by a test."""
    opened = [sys.executable, "-c", OPENED]
    output = subprocess.run(opened, env=os.environ, capture_output=True, text=True, check=True)
    return set(output.stdout.split())


@pytest.mark.parametrize("module", ["fpdf", "fontTools", "PIL", "numpy"])
def test_no_invoice_is_drawn_at_the_door(loaded: set[str], module: str) -> None:
    assert "billing.invoicing.documents" in loaded
    assert module not in loaded


def test_no_webhook_is_sent_at_the_door(loaded: set[str]) -> None:
    assert "billing.notifications.webhooks" in loaded
    assert "httpx" not in loaded


SENT = """
import gateway.asgi
from billing import errands
errands.after_commit("deliver_event", 1)
import sys
print(*sys.modules)
"""


def test_an_errand_at_the_door_is_left_to_a_sweep() -> None:
    """On a page, for instance: no transaction is open, so whoever sends would have sent."""
    sent = [sys.executable, "-c", SENT]
    output = subprocess.run(sent, env=os.environ, capture_output=True, text=True, check=True)

    assert "billing.errands" in output.stdout
    assert "celery" not in output.stdout.split()


def test_nothing_is_enqueued_at_the_door(loaded: set[str]) -> None:
    """Without Celery's application a task would be sent to a broker that is not ours."""
    assert not {"celery", "kombu", "billing.tasks"} & loaded
