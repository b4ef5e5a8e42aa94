"""An invoice's lines, and the usage behind one, as CSV: streamed, and harmless to a spreadsheet."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from billing.invoicing.snapshots import Allowance, Line, Snapshot, items_of
from billing.money import format_minor, format_pico

# What a spreadsheet takes for the beginning of a formula, and what it skips before it looks.
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")
SKIPPED = " \u00a0\u3000\u200b\ufeff"
LINE_COLUMNS = (
    *("number", "line", "team", "model", "kind", "unit", "quantity", "images", "late_quantity"),
    *("amount_exact", "amount", "currency"),
)
BOM = "\ufeff"  # without it Excel reads UTF-8 as something else


class _Echo:
    """A file that hands back what is written to it."""

    def write(self, text: str) -> str:
        return text


def stream(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the CSV line by line; nothing is kept. Numbers stay numbers, text that could be a formula gets a quote."""
    writer = csv.writer(_Echo())
    yield BOM + writer.writerow(columns)
    for row in rows:
        yield writer.writerow([harmless(cell) for cell in row])


def harmless(cell: Any) -> Any:
    """Return the cell so that no spreadsheet runs it: text that begins like a formula begins with an apostrophe."""
    if isinstance(cell, str) and cell.lstrip(SKIPPED).startswith(FORMULA_STARTS):
        return f"'{cell}"
    return "" if cell is None else cell


def lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield the invoice's lines and free allowances as CSV, amounts exact and rounded."""
    return stream(LINE_COLUMNS, _line_rows(snapshot))


def _line_rows(snapshot: Snapshot) -> Iterator[Sequence[Any]]:
    for position, (team, item) in enumerate(items_of(snapshot), 1):
        yield (
            *(snapshot.number, position, team.slug, item.model),
            *(_line(item) if isinstance(item, Line) else _allowance(item)),
            Plain(format_pico(item.amount_pico)),
            Plain(format_minor(item.amount_minor, snapshot.currency)),
            snapshot.currency,
        )


def _line(line: Line) -> Sequence[Any]:
    return line.kind.value, line.unit, line.quantity, line.images, line.late_quantity


def _allowance(allowance: Allowance) -> Sequence[Any]:
    return f"allowance_{allowance.kind.value}", "tokens", -allowance.quantity, None, 0


class Plain:
    """A number as text that we have written ourselves: a minus sign at its beginning is one."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text
