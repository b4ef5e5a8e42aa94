"""The account of one key: the budgets over it, what it holds, and the size of its images. Reads, and books nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from statistics import median_low

from django.db.models import Count, Q, Sum

from billing import prices, standing
from billing.budgets import Budget, BudgetWindow
from billing.models import Hold, PriceList, UsageKind, UsageRecord
from tenants.principals import Principal

BUDGETS_MAX = 100
EXPIRIES_MAX = 5
RECORDS_MAX = 2000  # how far back images are looked for, so that a key without any costs no more
RECORDS_WITH_IMAGES_MAX = 200


@dataclass(frozen=True, slots=True)
class OpenHolds:
    """What a key's running requests have set aside together, and those of them that expire first."""

    count: int
    amount_pico: int
    tokens: int
    next_to_expire: Sequence[Hold]


@dataclass(frozen=True, slots=True)
class UsualImage:
    """The size of a key's images: the median of what they were billed, over its latest requests with images."""

    tokens: int
    model_name: str  # the one that most of these requests asked
    records: int
    image_in_micro: int | None  # that model's price now, if it has one in the key's currency

    @property
    def amount_pico(self) -> int | None:
        """What it costs now, without the text and the answer that come with it."""
        return None if self.image_in_micro is None else self.tokens * self.image_in_micro


@dataclass(frozen=True, slots=True)
class Account:
    windows: Sequence[BudgetWindow]  # one for each budget over the key, the widest budget first
    holds: OpenHolds
    usual_image: UsualImage | None


def of_key(principal: Principal, at: datetime) -> Account:
    """Read the key's account. Of its organization it tells the budgets that can refuse this key, nothing else."""
    return Account(
        windows=_windows_over(principal),
        holds=_open_holds(principal.key_id),
        usual_image=_usual_image(principal, at),
    )


def _windows_over(principal: Principal) -> list[BudgetWindow]:
    budgets = (
        Budget.objects.filter(organization_id=principal.organization_id, is_active=True)
        .filter(Q(team=None) | Q(team_id=principal.team_id))
        .filter(Q(key=None) | Q(key_id=principal.key_id))
    )
    widest_first = sorted(
        budgets[:BUDGETS_MAX],
        key=lambda budget: (budget.team_id is not None, budget.key_id is not None, budget.pk),
    )
    windows = standing.open_windows(widest_first)
    return [windows[budget.pk] for budget in widest_first if budget.pk in windows]


def _open_holds(key_id: int) -> OpenHolds:
    holds = Hold.objects.filter(key_id=key_id)
    sums = holds.aggregate(count=Count("pk"), pico=Sum("amount_pico"), tokens=Sum("tokens_held"))
    return OpenHolds(
        count=sums["count"],
        amount_pico=int(sums["pico"] or 0),
        tokens=int(sums["tokens"] or 0),
        next_to_expire=list(holds.order_by("expires_at", "pk")[:EXPIRIES_MAX]),
    )


def _usual_image(principal: Principal, at: datetime) -> UsualImage | None:
    latest = (
        UsageRecord.objects.filter(key_id=principal.key_id, kind=UsageKind.USAGE)
        .order_by("-recorded_at")
        .values_list("model_name", "tokens_in_image", "canvases__len")[:RECORDS_MAX]
    )
    with_images = ((name, tokens // images) for name, tokens, images in latest if tokens and images)
    found = list(islice(with_images, RECORDS_WITH_IMAGES_MAX))
    if not found:
        return None
    ((model_name, _),) = Counter(name for name, _ in found).most_common(1)
    own = PriceList.objects.filter(accounts__organization=principal.organization_id).first()
    price = prices.in_force(model_name, principal.currency, at, price_list=own)
    return UsualImage(
        tokens=median_low(tokens for _, tokens in found),
        model_name=model_name,
        records=len(found),
        image_in_micro=price.image_in_micro if price else None,
    )
