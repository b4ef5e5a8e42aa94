"""The latest usage records of an organization, page by page, and the receipt of one.

Pages go by key, not by offset: the thousandth costs what the first does, and new records move none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Q, QuerySet

from billing.models import Price, UsageKind, UsageRecord, UsageStatus
from billing.periods import Period
from billing.rating import PICO_PER_MICRO, Kind
from dashboard import figures
from gateway.models import Model
from tenants.models import ApiKey, Organization, Team

PAGE_ROWS = 50
ADJUSTMENTS_MAX = 10
CHOICES_MAX = 200  # in a list to choose from
SEPARATOR = "_"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A record at the edge of a page; the next page begins beyond it."""

    at: datetime
    request_id: UUID

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read what `str` wrote; ValueError for anything else."""
        at, _, request_id = text.partition(SEPARATOR)
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise ValueError(f"{text!r} has no time zone.")
        return cls(moment, UUID(request_id))

    def __str__(self) -> str:
        return f"{self.at.isoformat()}{SEPARATOR}{self.request_id}"

    def older(self, column: str) -> Q:
        return self._beyond(column, "lt")

    def newer(self, column: str) -> Q:
        return self._beyond(column, "gt")

    def _beyond(self, column: str, way: str) -> Q:
        # The first part is what the index is entered by.
        return Q(**{f"{column}__{way}e": self.at}) & (
            Q(**{f"{column}__{way}": self.at}) | Q(**{f"request_id__{way}": self.request_id})
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are wanted; what is None or empty does not matter. A period is the one that they are billed in."""

    period: Period | None = None
    team: Team | None = None
    key: ApiKey | None = None
    model_name: str = ""
    status: str = ""

    @property
    def condition(self) -> Q:
        wanted = {
            "billed_at__gte": self.period and self.period.start,
            "billed_at__lt": self.period and self.period.end,
            "team": self.team,
            "key": self.key,
            "model_name": self.model_name,
            "status": self.status,
        }
        return Q(**{name: value for name, value in wanted.items() if value})

    @property
    def column(self) -> str:
        """What they are ordered by: each has its index, and that of a period reads no other one."""
        return "billed_at" if self.period else "recorded_at"

    @property
    def is_set(self) -> bool:
        return bool(self.condition)


@dataclass(frozen=True, slots=True)
class Page:
    records: Sequence[UsageRecord]
    newer: Cursor | None  # None: there are none
    older: Cursor | None


def page(
    organization: Organization,
    wanted: Filter,
    *,
    after: Cursor | None = None,
    before: Cursor | None = None,
) -> Page:
    """Return the latest records, or those next after or before a cursor; always the latest first.

    What is before and fills no page is the first page, so that this one has no gaps.
    """
    rows, column = _of(organization).filter(wanted.condition), wanted.column
    if before is not None:
        above = rows.filter(before.newer(column)).order_by(column, "request_id")
        found = list(above[: PAGE_ROWS + 1])
        if len(found) > PAGE_ROWS:
            return _page(found[:PAGE_ROWS][::-1], column, has_newer=True, has_older=True)
    if after is not None:
        rows = rows.filter(after.older(column))
    found = list(rows.order_by(f"-{column}", "-request_id")[: PAGE_ROWS + 1])
    has_older = len(found) > PAGE_ROWS
    return _page(found[:PAGE_ROWS], column, has_newer=after is not None, has_older=has_older)


def _page(shown: list[UsageRecord], column: str, *, has_newer: bool, has_older: bool) -> Page:
    edges = [Cursor(getattr(row, column), row.request_id) for row in (shown[:1] + shown[-1:])]
    return Page(
        shown,
        newer=edges[0] if has_newer and shown else None,
        older=edges[-1] if has_older else None,
    )


def models_of(organization: Organization, chosen: str) -> list[str]:
    """Return the names of the models that the organization may call, and the one that was asked for."""
    rows = Model.objects.all()
    if organization.allowed_models:
        rows = rows.filter(name__in=organization.allowed_models)
    names = set(rows.values_list("name", flat=True)[:CHOICES_MAX])
    return sorted(names | {chosen} - {""})


@dataclass(frozen=True, slots=True)
class Line:
    """A kind on a receipt: `micro` per million tokens, or per request."""

    kind: Kind
    quantity: int
    micro: int
    is_billed: bool

    @property
    def amount_pico(self) -> int:
        unit = PICO_PER_MICRO if self.kind is Kind.REQUEST else 1
        return self.quantity * self.micro * unit if self.is_billed else 0


@dataclass(frozen=True, slots=True)
class Receipt:
    record: UsageRecord
    lines: Sequence[Line]
    adjustments: Sequence[UsageRecord]

    @property
    def decimals(self) -> int:
        """How many decimals show every amount of it exactly."""
        amounts = [self.record.amount_pico, *(line.amount_pico for line in self.lines)]
        return max(map(figures.decimals, amounts))

    @property
    def adds_up(self) -> bool:
        """Whether the lines are the amount. Those of an adjustment are a difference, and need not be."""
        return sum(line.amount_pico for line in self.lines) == self.record.amount_pico


def receipt(organization: Organization, request_id: UUID) -> Receipt | None:
    """Return the receipt of the organization's record; None if it has none of that id."""
    record = _of(organization).filter(request_id=request_id).first()
    if record is None:
        return None
    return Receipt(record, list(_lines(record)), _adjustments(organization, record))


def _of(organization: Organization) -> QuerySet[UsageRecord]:
    rows = UsageRecord.objects.filter(organization=organization)
    return rows.select_related("team", "key", "price")


def _lines(record: UsageRecord) -> list[Line]:
    price: Price = record.price
    bills_input = record.policy != "nothing"
    bills_output = bills_input and record.policy != "prompt"
    lines = [
        Line(Kind.TEXT_IN, record.tokens_in_text, price.text_in_micro, bills_input),
        Line(Kind.IMAGE_IN, record.tokens_in_image, price.image_in_micro, bills_input),
        Line(Kind.CACHED_IN, record.tokens_in_cached, price.cached_in_micro, bills_input),
        Line(Kind.OUT, record.tokens_out, price.out_micro, bills_output),
    ]
    if price.request_micro and record.kind == UsageKind.USAGE:
        lines.append(Line(Kind.REQUEST, 1, price.request_micro, bills_input))
    return lines


def _adjustments(organization: Organization, record: UsageRecord) -> list[UsageRecord]:
    if record.status != UsageStatus.EXPIRED:
        return []  # only an estimate is ever corrected
    later = UsageRecord.objects.filter(key=record.key, recorded_at__gte=record.recorded_at)
    mine = later.filter(organization=organization, adjusts_id=record.request_id)
    return list(mine.order_by("recorded_at")[:ADJUSTMENTS_MAX])
