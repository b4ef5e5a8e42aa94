"""The part of a usage record that is on one line of an invoice: what is billed of its kind, and what that costs.

Record by record the rule that the rollups have in SQL (`billing.rollups.LEDGER`). Amounts are at the price itself:
tiers and free units belong to the line as a whole.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from billing.models import UsageRecord
from billing.rating import PICO_PER_MICRO, Kind

RECORDS_AT_ONCE = 2000
COLUMNS = {
    Kind.TEXT_IN: "tokens_in_text",
    Kind.IMAGE_IN: "tokens_in_image",
    Kind.CACHED_IN: "tokens_in_cached",
    Kind.OUT: "tokens_out",
}


def with_estimates(
    records: Iterable[UsageRecord],
) -> Iterator[tuple[UsageRecord, UsageRecord | None]]:
    """Yield each record with the estimate that it corrects, if it is an adjustment."""
    rest = iter(records)
    while chunk := list(islice(rest, RECORDS_AT_ONCE)):
        ids = [record.adjusts_id for record in chunk if record.adjusts_id is not None]
        estimates = UsageRecord.objects.in_bulk(ids) if ids else {}
        for record in chunk:
            yield record, estimates.get(record.adjusts_id) if record.adjusts_id else None


def quantity(kind: Kind, record: UsageRecord, estimate: UsageRecord | None) -> int:
    """Return what is billed of the kind, tokens or requests. Of an adjustment the difference: it may be negative."""
    was = _of(kind, estimate) if estimate and _bills(kind, estimate) else 0
    if not _bills(kind, record):
        return -was
    if kind is Kind.REQUEST:
        return (0 if estimate and _is_void(record, estimate) else 1) - was
    return _of(kind, record) + (_of(kind, estimate) if estimate else 0) - was


def amount_pico(kind: Kind, quantity: int, record: UsageRecord) -> int:
    """Return what so much of the kind costs at the record's price."""
    micro: int = getattr(record.price, f"{kind}_micro")
    return quantity * micro * (PICO_PER_MICRO if kind is Kind.REQUEST else 1)


def _bills(kind: Kind, record: UsageRecord) -> bool:
    return record.policy not in (("nothing", "prompt") if kind is Kind.OUT else ("nothing",))


def _of(kind: Kind, record: UsageRecord) -> int:
    if kind is Kind.REQUEST:
        return 1
    tokens: int = getattr(record, COLUMNS[kind])
    return tokens


def _is_void(record: UsageRecord, estimate: UsageRecord) -> bool:
    """Say whether the adjustment takes back all that was estimated: then there was no request."""
    names = ("amount_pico", *COLUMNS.values())
    return all(getattr(record, name) + getattr(estimate, name) == 0 for name in names)
