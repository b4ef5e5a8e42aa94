"""A month of an organization, from rollups only: by day, team, key and model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from typing import Any, Self
from zoneinfo import ZoneInfo

from django.db.models import Count, Func, QuerySet, Sum, Window
from django.db.models.functions import TruncDate

from billing.models import Rollup, RollupMark
from billing.periods import Period
from tenants.models import Organization

ROWS_MAX = 50  # of teams, keys and models: those that cost most


@dataclass(frozen=True, slots=True)
class Sums:
    """What was used, and its amount at base prices."""

    requests: int = 0
    images: int = 0
    tokens_in_text: int = 0
    tokens_in_image: int = 0
    tokens_in_cached: int = 0
    tokens_out: int = 0
    amount_pico: int = 0

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        return cls(**{name: int(row[f"{name}_sum"]) for name in NAMES})

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) + getattr(other, name) for name in NAMES))

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) - getattr(other, name) for name in NAMES))

    @property
    def tokens(self) -> int:
        return self.tokens_in_text + self.tokens_in_image + self.tokens_in_cached + self.tokens_out


NAMES = tuple(field.name for field in fields(Sums))
KINDS = ("tokens_in_text", "tokens_in_image", "tokens_in_cached", "tokens_out")


@dataclass(frozen=True, slots=True)
class Share:
    """What one team, key or model had of the month; `value` is what the usage records are filtered by."""

    value: str
    name: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class Group:
    """The month by team, key or model: those that cost most, of so many as there are."""

    by: str
    shares: Sequence[Share]
    count: int
    total: Sums

    def others(self, shown: int) -> tuple[int, Sums]:
        """Return how many come after the first `shown`, and what they had together."""
        sums = (share.sums for share in self.shares[:shown])
        return max(0, self.count - shown), self.total - sum(sums, Sums())

    @property
    def unlisted(self) -> tuple[int, Sums]:
        return self.others(len(self.shares))


@dataclass(frozen=True, slots=True)
class Overview:
    total: Sums
    days: Sequence[tuple[date, Sums]]
    groups: Sequence[Group]
    recorded_until: datetime | None

    @property
    def is_empty(self) -> bool:
        return self.total == Sums()


class SumOfSums(Func):
    """The sum over all groups, for a Window; Django's own Sum refuses to be one of sums."""

    function = "SUM"
    window_compatible = True


def of_month(organization: Organization, period: Period) -> Overview:
    """Read the month. Five queries, however much there is of it."""
    rollups = Rollup.objects.filter(
        organization=organization, bucket__gte=period.start, bucket__lt=period.end
    )
    days = _days(rollups, period, ZoneInfo(organization.timezone))
    mark = RollupMark.objects.first()
    return Overview(
        total=sum((sums for _, sums in days), Sums()),
        days=days,
        groups=[
            _group(rollups, "team", "team__slug", "team__name"),
            _group(rollups, "key", "key__public_id", "key__name"),
            _group(rollups, "model", "model_name", "model_name"),
        ],
        recorded_until=mark.recorded_until if mark else None,
    )


def first_bucket(organization: Organization) -> datetime:
    """Return when its figures begin: with its first usage, or when it was made."""
    rows = Rollup.objects.filter(organization=organization).order_by("bucket")
    first = rows.values_list("bucket", flat=True).first()
    return min(first, organization.created_at) if first else organization.created_at


def _days(rollups: QuerySet[Rollup], period: Period, zone: ZoneInfo) -> list[tuple[date, Sums]]:
    rows = (
        rollups.annotate(day=TruncDate("bucket", tzinfo=zone))
        .values("day")
        .annotate(**_sums())
        .order_by("day")
    )
    found = {row["day"]: Sums.of(dict(row)) for row in rows}
    first, last = period.start.astimezone(zone).date(), period.end.astimezone(zone).date()
    days = (first + timedelta(days=count) for count in range((last - first).days))
    return [(day, found.get(day, Sums())) for day in days]


def _group(rollups: QuerySet[Rollup], by: str, value: str, name: str) -> Group:
    """Read a group and its total in one statement, so that what is left for the others is never of another moment."""
    rows = (
        rollups.values(*{value, name})
        .annotate(**_sums(), group_count=Window(Count("*")))
        .annotate(**{f"{each}_all": Window(SumOfSums(f"{each}_sum")) for each in NAMES})
        .order_by("-amount_pico_sum", "-requests_sum", value)
    )
    found: list[dict[str, Any]] = list(rows[:ROWS_MAX])
    shares = [Share(row[value], row[name], Sums.of(row)) for row in found]
    first = found[0] if found else {}
    total = Sums(**{each: int(first.get(f"{each}_all", 0)) for each in NAMES})
    return Group(by, shares, first.get("group_count", 0), total)


def _sums() -> dict[str, Sum]:
    return {f"{name}_sum": Sum(name) for name in NAMES}
