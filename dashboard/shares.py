"""What each team, key or model had of a month, as bars beneath each other: spend, tokens by kind, requests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext, gettext_lazy

from billing.money import PICO_DECIMALS
from dashboard.charts import Parts, Run, strips
from dashboard.figures import SHOWN_DECIMALS, amount, grouped, percent
from dashboard.overview import KINDS, Group, Share, Sums
from dashboard.wording import word

LINES_MAX = 10  # of a chart; what the others had is one line more


@dataclass(frozen=True, slots=True)
class Measure:
    """What bars measure: how much in all, of which parts, as a figure, and in words."""

    title: Promise
    size: Callable[[Sums], int]
    parts: Callable[[Sums], Parts]
    figure: Callable[[Sums], str]
    words: Callable[[Sums], str]


@dataclass(frozen=True, slots=True)
class Lane:
    """A bar, the figure beside it, and what is said of both."""

    title: Promise
    runs: Sequence[Run]
    figure: str
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    share: Share
    lanes: Sequence[Lane]


@dataclass(frozen=True, slots=True)
class Drawing:
    group: Group
    lines: Sequence[Line]


def drawing(group: Group, currency: str) -> Drawing:
    """Draw those that cost most, and the others as one line; each measure has a scale of its own."""
    shown = [*group.shares[:LINES_MAX], *_others(group)]
    measures = (_spend([share.sums for share in shown], currency), TOKENS, REQUESTS)
    lanes = zip(*(_lanes(shown, measure, group.total) for measure in measures), strict=True)
    return Drawing(group, [Line(*each) for each in zip(shown, lanes, strict=True)])


def _others(group: Group) -> list[Share]:
    count, sums = group.others(LINES_MAX)
    name = gettext("Others (%(count)s)") % {"count": grouped(count)}
    return [Share("", name, sums)] if count else []


def _lanes(shown: Sequence[Share], measure: Measure, whole: Sums) -> list[Lane]:
    drawn = strips([measure.parts(share.sums) for share in shown])
    return [
        Lane(measure.title, runs, measure.figure(share.sums), _label(share, measure, whole))
        for share, runs in zip(shown, drawn, strict=True)
    ]


def _label(share: Share, measure: Measure, whole: Sums) -> str:
    part = percent(measure.size(share.sums), measure.size(whole))
    said = {"name": share.name, "figure": measure.words(share.sums), "part": part}
    return gettext("%(name)s: %(figure)s (%(part)s of the month)") % said


def _spend(every: Sequence[Sums], currency: str) -> Measure:
    """Money in the same decimals on every line: fewer where there is a unit of it, so that they line up."""
    is_small = max((sums.amount_pico for sums in every), default=0) < 10**PICO_DECIMALS
    decimals = SHOWN_DECIMALS if is_small else 2
    return Measure(
        title=gettext_lazy("Spend"),
        size=lambda sums: sums.amount_pico,
        parts=lambda sums: [("amount", sums.amount_pico)],
        figure=lambda sums: amount(sums.amount_pico, decimals),
        words=lambda sums: f"{amount(sums.amount_pico)} {currency}",
    )


def _kinds(sums: Sums) -> str:
    return ", ".join(f"{word(kind, 'tokens')} {grouped(getattr(sums, kind))}" for kind in KINDS)


TOKENS = Measure(
    title=gettext_lazy("Tokens in all"),
    size=lambda sums: sums.tokens,
    parts=lambda sums: [(kind, getattr(sums, kind)) for kind in KINDS],
    figure=lambda sums: grouped(sums.tokens),
    words=_kinds,
)
REQUESTS = Measure(
    title=gettext_lazy("Requests"),
    size=lambda sums: sums.requests,
    parts=lambda sums: [("requests", sums.requests)],
    figure=lambda sums: grouped(sums.requests),
    words=lambda sums: grouped(sums.requests),
)
