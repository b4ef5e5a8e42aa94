"""Price versions: their amounts as people read them, which one is in force, and what a new one means."""

from datetime import datetime

from billing import worked_example
from billing.models import MICRO_MAX, Price
from billing.money import format_micro, parse_micro
from billing.rating import Rates
from billing.worked_example import KINDS
from tenants.models import Organization


def parse_amount(text: str) -> int:
    """Return the micro-units of a price as a person types it; ValueError with what is wrong."""
    try:
        amount = parse_micro(text)
    except ValueError as error:
        raise ValueError(f"{error} Prices are per million tokens.") from error
    if amount > MICRO_MAX:
        most = format_micro(MICRO_MAX, decimals_min=0)
        raise ValueError(f"{text} is more than {most} per million tokens.")
    return amount


def amounts(price: Price) -> dict[str, str]:
    """Return each kind's amount in currency units, per million tokens or per request."""
    return {kind: format_micro(getattr(price, field)) for kind, field in KINDS.items()}


def in_force(model_name: str, currency: str, at: datetime) -> Price | None:
    """Return the version that a request of that moment is booked at."""
    versions = Price.objects.filter(
        model_name=model_name, price_list__currency=currency, price_list__is_default=True
    )
    return versions.filter(effective_from__lte=at).order_by("-effective_from").first()


def meaning(price: Price) -> list[str]:
    """Return what the price, which is not saved yet, comes to for a request."""
    return worked_example.lines(_rates(price))


def doubts(price: Price) -> list[str]:
    """Say what about the price, which is not saved yet, looks like a slip."""
    found = []
    before = in_force(price.model_name, price.currency, price.effective_from)
    if before is None:
        found.append("It is the model's first price in this currency: is the name right?")
    else:
        for suspicion in worked_example.suspicions(_rates(price), _rates(before)):
            found.append(f"{suspicion}: is that per million tokens?")
    if not Organization.objects.filter(currency=price.currency).exists():
        found.append(f"No organization pays in {price.currency} yet.")
    return found


def _rates(price: Price) -> Rates:
    return Rates(
        price_id=price.pk or 0,
        currency=price.currency,
        text_in_micro=price.text_in_micro,
        image_in_micro=price.image_in_micro,
        cached_in_micro=price.cached_in_micro,
        out_micro=price.out_micro,
        request_micro=price.request_micro,
        effective_from=price.effective_from,
    )
