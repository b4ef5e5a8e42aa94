"""Bars, as percentages of the drawing: over the days of a month, or beneath each other. Pure; no script is needed.

Bars are stacked; what is below zero (a correction) is not drawn, the table has it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dashboard.figures import percent

STEPS = (1, 2, 3, 4, 5, 6, 8)
LABELLED_DAYS = 5  # every fifth day has its number


Parts = Sequence[tuple[str, int]]  # of a bar, from where it begins


@dataclass(frozen=True, slots=True)
class Segment:
    name: str
    y: str
    height: str


@dataclass(frozen=True, slots=True)
class Run:
    """A part of a bar that lies."""

    name: str
    x: str
    width: str


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    x: str
    width: str
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Mark:
    """A number on an axis."""

    at: str
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    bars: Sequence[Bar]
    days: Sequence[Mark]
    ticks: Sequence[str]  # the top one, the one in the middle, and zero

    @property
    def is_empty(self) -> bool:
        return not any(bar.segments for bar in self.bars)


@dataclass(frozen=True, slots=True)
class Column:
    """A day: its number, what is said of it, and its parts from the bottom up."""

    day: int
    label: str
    parts: Parts


def chart(columns: Sequence[Column], label: Callable[[int], str]) -> Chart:
    """Draw the days side by side; `label` words a number of the vertical axis."""
    top = ceiling(_longest([column.parts for column in columns]))
    count = len(columns)
    return Chart(
        bars=[_bar(column, place, count, top) for place, column in enumerate(columns)],
        days=[
            Mark(percent(2 * place + 1, 2 * count), str(column.day))
            for place, column in enumerate(columns)
            if column.day == 1 or column.day % LABELLED_DAYS == 0
        ],
        ticks=[label(top), label(top // 2), "0"],
    )


def strips(rows: Sequence[Parts]) -> list[list[Run]]:
    """Draw bars that lie beneath each other, the longest over the whole width."""
    top = _longest(rows)
    return [
        [Run(name, percent(at, top), percent(value, top)) for name, at, value in _placed(parts)]
        for parts in rows
    ]


def ceiling(value: int) -> int:
    """Return the next round number whose half is whole, as the top of an axis.

    >>> ceiling(0), ceiling(10), ceiling(11), ceiling(1234)
    (10, 10, 20, 2000)
    """
    size = 10
    while True:
        for step in STEPS:
            if step * size >= value:
                return step * size
        size *= 10


def _bar(column: Column, place: int, count: int, top: int) -> Bar:
    # Four fifths of a day's width, in the middle of it.
    return Bar(
        label=column.label,
        x=percent(10 * place + 1, 10 * count),
        width=percent(8, 10 * count),
        segments=_stack(column, top),
    )


def _stack(column: Column, top: int) -> list[Segment]:
    return [
        Segment(name, percent(top - at - value, top), percent(value, top))
        for name, at, value in _placed(column.parts)
    ]


def _placed(parts: Parts) -> list[tuple[str, int, int]]:
    """Return the parts that are drawn: each one's name, where it begins, and how long it is."""
    placed, at = [], 0
    for name, value in parts:
        if value > 0:
            placed.append((name, at, value))
            at += value
    return placed


def _longest(rows: Sequence[Parts]) -> int:
    return max((sum(max(0, value) for _, value in parts) for parts in rows), default=0)
