"""The latest usage records of an organization, page by page, and the receipt of one.

Pages go by key, not by offset: the thousandth costs what the first does, and new records move none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Q, QuerySet

from billing.models import Price, UsageKind, UsageRecord, UsageStatus
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
    """The last record of a page; the next page begins after it."""

    recorded_at: datetime
    request_id: UUID

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read what `str` wrote; ValueError for anything else."""
        at, _, request_id = text.partition(SEPARATOR)
        recorded_at = datetime.fromisoformat(at)
        if recorded_at.tzinfo is None:
            raise ValueError(f"{text!r} has no time zone.")
        return cls(recorded_at, UUID(request_id))

    def __str__(self) -> str:
        return f"{self.recorded_at.isoformat()}{SEPARATOR}{self.request_id}"

    @property
    def older(self) -> Q:
        # The first part is what the index is entered by.
        return Q(recorded_at__lte=self.recorded_at) & (
            Q(recorded_at__lt=self.recorded_at) | Q(request_id__lt=self.request_id)
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are wanted; what is None or empty does not matter."""

    team: Team | None = None
    key: ApiKey | None = None
    model_name: str = ""
    status: str = ""

    @property
    def condition(self) -> Q:
        wanted = {
            "team": self.team,
            "key": self.key,
            "model_name": self.model_name,
            "status": self.status,
        }
        return Q(**{name: value for name, value in wanted.items() if value})

    @property
    def is_set(self) -> bool:
        return bool(self.condition)


@dataclass(frozen=True, slots=True)
class Page:
    records: Sequence[UsageRecord]
    after: Cursor | None  # None: there are no older ones


def page(organization: Organization, wanted: Filter, after: Cursor | None) -> Page:
    """Return the records after the cursor, the latest first; one query."""
    rows = _of(organization).filter(wanted.condition)
    if after is not None:
        rows = rows.filter(after.older)
    found = list(rows.order_by("-recorded_at", "-request_id")[: PAGE_ROWS + 1])
    shown = found[:PAGE_ROWS]
    has_more = len(found) > PAGE_ROWS
    return Page(shown, Cursor(shown[-1].recorded_at, shown[-1].request_id) if has_more else None)


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
