"""A period under other prices: its usage rated as it is, and as if another list had been in force. Writes nothing."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from billing.accounts import Account
from billing.invoicing import content, metered
from billing.invoicing.metered import Under
from billing.periods import Period
from billing.price_lists import PriceList
from billing.rating import Rated
from tenants.models import Team


@dataclass(frozen=True, slots=True)
class Compared:
    """A line, or a sum of the period, under the prices that count and under the others."""

    team: str
    model_name: str
    kind: str
    quantity: int
    now_minor: int
    then_minor: int


def compare(account: Account, period: Period, price_list: PriceList) -> list[Compared]:
    """Return all lines and sums of the period, under its own prices and under the list's.

    Each usage record is rated at the version that was in force in the list when it was received. ValueError if there
    was none, or the list is in another currency.
    """
    organization = account.organization
    if price_list.currency != organization.currency:
        raise ValueError(f"{price_list} is in {price_list.currency}, not {organization.currency}.")
    usage = metered.quantities(organization.pk, period)
    under = Under(price_list.pk, price_list.currency)
    moved = metered.quantities_under(organization.pk, period, under)
    now = content.rated(account, period, usage)
    then = content.rated(account, period, moved, price_list=price_list)
    return [*_lines(now, then), *_sums(now, then)]


def _lines(now: Rated, then: Rated) -> Iterable[Compared]:
    before, after = _amounts(now), _amounts(then)
    quantities = {
        (line.team_id, line.model_name, line.kind.value): line.quantity for line in now.lines
    }
    quantities = {
        (line.team_id, line.model_name, line.kind.value): line.quantity for line in then.lines
    } | quantities
    slugs = dict(
        Team.objects.filter(pk__in={key[0] for key in quantities}).values_list("pk", "slug")
    )
    for key in sorted(quantities):
        team_id, model_name, kind = key
        yield Compared(slugs[team_id], model_name, kind, quantities[key], before[key], after[key])


def _amounts(rated: Rated) -> Counter[tuple[int, str, str]]:
    """Return each line less its free allowance."""
    found: Counter[tuple[int, str, str]] = Counter()
    for line in rated.lines:
        found[line.team_id, line.model_name, line.kind.value] += line.amount_minor
    for credit in rated.credits:
        found[credit.team_id, credit.model_name, credit.kind.value] += credit.amount_minor
    return found


def _sums(now: Rated, then: Rated) -> Iterable[Compared]:
    for name in ("subtotal", "discount", "tax", "total"):
        amounts = (getattr(now, f"{name}_minor"), getattr(then, f"{name}_minor"))
        yield Compared("", "", name, 0, *amounts)
