"""The usage behind a line: its quantities and amounts add up to the line, whatever became of the requests."""

import csv
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils.timezone import now

from billing.invoicing import csv_lines, exports
from billing.invoicing.invoices import Invoice
from billing.invoicing.snapshots import items_of
from billing.models import Price
from billing.rating import Kind
from tests import booked, factories
from tests.factories import Tenant
from tests.invoiced import NOON, draft, use

pytestmark = pytest.mark.django_db


def rows(invoice: Invoice, line: int) -> list[dict[str, str]]:
    text = "".join(exports.usage(invoice, line)).removeprefix(csv_lines.BOM)
    return list(csv.DictReader(text.splitlines()))


def lost(tenant: Tenant, price: Price, **truth: Any) -> None:
    """Estimate a request whose process died, and correct that by what is true of it."""
    past = now() - timedelta(seconds=1)
    held = booked.hold(tenant, price, received_at=NOON, expires_at=past, tokens_in_text=1000)
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_reap('1 hour', 1000)")
    booked.settle(held, **truth)


@pytest.fixture
def month(acme: Tenant) -> Invoice:
    """A month of requests that completed, broke off, were estimated and corrected, or were never there."""
    price = factories.price("vlm", request_micro=70_000, cached_in_micro=1_234_567)
    canvases = ["png 560x560 1x1"] * 2
    use(acme, price, tokens_in_image=1602, canvases=canvases, tokens_in_cached=12_345)
    for policy in ("delivered", "prompt", "nothing"):
        use(acme, price, status="backend_error", policy=policy)
    lost(acme, price, tokens_out=77, tokens_in_text=5, amount_pico=5)
    nothing = dict.fromkeys(("tokens_out", "tokens_in_text", "amount_pico", "counted_prompt"), 0)
    lost(acme, price, **nothing)
    return draft(acme)


def test_the_usage_behind_each_line_adds_up_to_it(month: Invoice) -> None:
    lines = [line for _, line in items_of(month.frozen)]

    assert {line.kind for line in lines} == {"text_in", "image_in", "cached_in", "out", "request"}
    for number, line in enumerate(lines, 1):
        found = rows(month, number)
        assert sum(int(row["quantity"]) for row in found) == line.quantity
        assert sum(booked.pico(row["amount_exact"]) for row in found) == line.amount_pico


def test_a_record_that_has_nothing_of_the_kind_is_not_behind_its_line(month: Invoice) -> None:
    kinds = [line.kind for _, line in items_of(month.frozen)]
    (image,) = rows(month, kinds.index(Kind.IMAGE_IN) + 1)

    assert (image["quantity"], image["images"]) == ("1602", "2")


def test_a_download_comes_in_pieces_that_are_worth_it(month: Invoice, monkeypatch: Any) -> None:
    monkeypatch.setattr(exports, "PIECE_BYTES", 500)
    pieces = list(exports.chunks(month, "usage-csv"))

    assert 1 < len(pieces) < len(b"".join(pieces)) / 500 + 1
    assert all(len(piece) >= 500 for piece in pieces[:-1])
    assert b"".join(pieces).decode() == "".join(exports.usage(month))


def test_there_is_no_usage_behind_a_line_that_is_not_there(month: Invoice) -> None:
    for line in (0, 6):
        with pytest.raises(ValueError, match="has no line"):
            exports.response(month, "usage-csv", line)
