"""The figures as a page in markdown, each beside its budget."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Budget:
    """The most that is allowed with everything switched on, and what we would like."""

    limit: float
    stretch: float | None = None
    is_scaled: bool = True  # memory is not

    def verdict(self, value: float, scale: float) -> str:
        if value > self.limit * (scale if self.is_scaled else 1):
            return "over"
        if value > self.limit:
            return "scaled"
        return "stretch" if self.stretch is not None and value <= self.stretch else "ok"


# What a bare relay (benchmarks.relay) cost on the machine that the budgets were set for; where it costs more, so may
# the door.
RELAY_US = 124

# Of a gateway process; "added" is latency. Where they come from: docs/benchmarks.md.
CHAT_US = Budget(600, 400)
CHAT_PER_S = 1500
IMAGE_US = Budget(2500, 1200)
BURST_CHUNK_US = Budget(10, 6)
SLOW_CHUNK_US = Budget(80, 45)
ADDED_MS = Budget(4, 2)
RSS_IDLE_MB = Budget(150, is_scaled=False)
RSS_STREAM_KB = Budget(60, is_scaled=False)
POSTGRES_US = Budget(300, 150)


@dataclass(frozen=True)
class Figure:
    """What was measured, once in each round, in the unit that its name says."""

    name: str
    values: Sequence[float]
    budget: Budget | None = None

    @property
    def middle(self) -> float:
        return median(self.values)


def figures_table(figures: Iterable[Figure], scale: float) -> str:
    """Return the figures, each beside its budget and beside what that is on this machine: `scale` times as much."""
    rows = [("figure", "median", "lowest", "highest", "budget", "stretch", "scaled", "")]
    return table(rows + [_row(figure, scale) for figure in figures])


def table(rows: Rows) -> str:
    """Write rows as a markdown table; the first is its head, the first column is text."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in (rows[0], tuple(rule), *rows[1:]))


def number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(figure: Figure, scale: float) -> tuple[str, ...]:
    budget = figure.budget
    stretch = budget.stretch if budget else None
    return (
        figure.name,
        number(figure.middle),
        number(min(figure.values)),
        number(max(figure.values)),
        f"≤ {budget.limit:g}" if budget else "",
        f"≤ {stretch:g}" if stretch is not None else "",
        f"≤ {number(budget.limit * scale)}" if budget and budget.is_scaled else "",
        budget.verdict(figure.middle, scale) if budget else "",
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if not index else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "| " + " | ".join([first, *others]) + " |"
