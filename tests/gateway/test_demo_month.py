"""`manage.py demo_month`: the month that `make demo-month` shows, smaller."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from billing.invoicing.invoices import Invoice
from gateway import demo_customers
from gateway.management.commands import demo_month
from tests.console import run

pytestmark = pytest.mark.django_db


def test_a_month_of_three_organizations_is_invoiced_right(
    empty_database: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = tuple(replace(each, requests=12) for each in demo_customers.CUSTOMERS)
    monkeypatch.setattr(demo_month, "CUSTOMERS", few)
    keys = json.loads(run("demo_month", "enter")[0])
    shown, _ = run("demo_month", "close", "--output", str(tmp_path))

    assert set(keys) == {each.slug for each in few}
    assert "✗" not in shown
    assert {each.currency for each in Invoice.objects.all()} == {"TWD", "USD", "EUR"}
    notes = Invoice.objects.filter(kind="credit_note")
    assert [note.corrects is not None and note.corrects.currency for note in notes] == ["EUR"]
    assert len(list(tmp_path.glob("TSR-*.pdf"))) == 7
    late = [line.late_quantity for each in Invoice.objects.all() for line in each.lines.all()]
    assert any(late)
