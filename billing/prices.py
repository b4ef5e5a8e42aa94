"""Price versions: their amounts as people read them, which one is in force, and what a new one means."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from operator import attrgetter

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.utils.timezone import now

from billing import worked_example
from billing.models import MICRO_MAX, Allowance, Price, PriceList, PriceTier
from billing.money import format_micro, parse_micro
from billing.price_lists import TIERS_MAX, TOKEN_KINDS, TOKENS_MAX
from billing.rating import Kind, Rates, Version
from billing.tiers import Tier, TierMode
from billing.worked_example import KINDS
from tenants.models import Actor, AuditEntry, Organization

FIELDS = {
    Kind.TEXT_IN: "text_in_micro",
    Kind.IMAGE_IN: "image_in_micro",
    Kind.CACHED_IN: "cached_in_micro",
    Kind.OUT: "out_micro",
    Kind.REQUEST: "request_micro",
}


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


def parse_tokens(text: str) -> int:
    """Return how many tokens a tier or an allowance is about; ValueError with what is wrong."""
    plain = text.replace("_", "")
    if not (plain.isascii() and plain.isdigit() and int(plain) <= TOKENS_MAX):
        raise ValueError(f"{text!r} is no number of tokens such as 10_000_000.")
    return int(plain)


def parse_tier(text: str) -> PriceTier:
    """Return the tier, of no price yet, that a person means by image_in:10_000_000:12.5; ValueError."""
    kind, _, rest = text.partition(":")
    starts, _, amount = rest.partition(":")
    if kind not in TOKEN_KINDS or not amount:
        kinds = ", ".join(TOKEN_KINDS)
        raise ValueError(f"{text!r} is not KIND:FROM:AMOUNT, where KIND is one of {kinds}.")
    return PriceTier(kind=kind, from_tokens=parse_tokens(starts), micro=parse_amount(amount))


def amounts(price: Price) -> dict[str, str]:
    """Return each kind's amount in currency units, per million tokens or per request."""
    return {kind: format_micro(getattr(price, field)) for kind, field in KINDS.items()}


def tiers(price: Price) -> str:
    """Return the tiers of a saved price as they are typed."""
    return "; ".join(
        f"{tier.kind}:{tier.from_tokens}:{format_micro(tier.micro)}" for tier in price.tiers.all()
    )


def in_force(
    model_name: str, currency: str, at: datetime, *, price_list: PriceList | None = None
) -> Price | None:
    """Return the version that a request of that moment is booked at: of the list if it has one, else of the default."""
    passed = Price.objects.filter(
        model_name=model_name, currency=currency, effective_from__lte=at
    ).order_by("-effective_from")
    own = passed.filter(price_list=price_list).first() if price_list else None
    return own or passed.filter(price_list__is_default=True).first()


@transaction.atomic
def add(price: Price, tiers: Sequence[PriceTier] = (), *, by: Actor) -> None:
    """Save a new version with its tiers, and record who did it. ValidationError if anything is wrong with them."""
    check_tiers(tiers)
    if bool(tiers) != (price.tier_mode != TierMode.FLAT):
        raise ValidationError("Tiers need to be graduated or volume, and these need tiers.")
    price.tier_count = len(tiers)
    price.full_clean()
    price.save(force_insert=True)
    for tier in tiers:
        tier.price = price
        tier.full_clean()
        tier.save(force_insert=True)
    detail = {"price_list": price.price_list.slug, "tiers": list(map(str, tiers))}
    AuditEntry.record("price.create", price, by=by, at=now(), detail=detail)


def check_tiers(tiers: Sequence[PriceTier]) -> None:
    """See that these may be the tiers of a price that is not saved yet; ValidationError if not."""
    for tier in tiers:
        tier.clean_fields(exclude=["price"])
    if len(tiers) > TIERS_MAX:
        raise ValidationError(f"A price has at most {TIERS_MAX} tiers.")
    if len({(tier.kind, tier.from_tokens) for tier in tiers}) < len(tiers):
        raise ValidationError("Two tiers of a kind begin at the same number of tokens.")


def begin(price_list: PriceList, starts: datetime | None, at: datetime) -> datetime:
    """Return when a version of the list begins that is entered now, `at`: then, if nothing else is said.

    ValueError if that has passed, and somebody pays by the list.
    """
    if starts is not None and starts < at and price_list.is_in_use:
        raise ValueError("That moment has passed: a price cannot reach back to what is booked.")
    return starts or at


def versions(price_ids: Collection[int]) -> list[Version]:
    """Return the versions with their tiers, as rating takes them."""
    found = Price.objects.filter(pk__in=price_ids).prefetch_related("tiers")
    return [_version(price, price.tiers.all()) for price in found]


def allowances(
    currency: str, price_list: PriceList | None, start: datetime, end: datetime
) -> dict[tuple[str, Kind], int]:
    """Return the free tokens by model and kind of a period under the list, or under the default one.

    A model that the list has prices or allowances for takes them from it, any other from the default list. Where an
    allowance changes within the period, the larger counts.
    """
    standard = PriceList.objects.filter(currency=currency, is_default=True).first()
    found = _allowances(standard, start, end) if standard else {}
    if price_list is None or price_list == standard:
        return found
    own = _allowances(price_list, start, end)
    priced = price_list.prices.filter(effective_from__lt=end).values_list("model_name", flat=True)
    listed = {*priced.distinct(), *(model_name for model_name, _ in own)}
    return {key: tokens for key, tokens in found.items() if key[0] not in listed} | own


def meaning(price: Price, tiers: Sequence[PriceTier] = ()) -> list[str]:
    """Return what the price, which is not saved yet, comes to for a request."""
    first = worked_example.lines(rates(price))
    rising = sorted(tiers, key=attrgetter("kind", "from_tokens"))
    return first + [
        worked_example.tier(price.currency, Kind(tier.kind), tier.from_tokens, tier.micro)
        for tier in rising
    ]


def doubts(price: Price, tiers: Sequence[PriceTier] = ()) -> list[str]:
    """Say what about the price, which is not saved yet, looks like a slip."""
    found = []
    before = in_force(
        price.model_name, price.currency, price.effective_from, price_list=price.price_list
    )
    if before is None:
        found.append("It is the model's first price in this currency: is the name right?")
    else:
        for suspicion in worked_example.suspicions(rates(price), rates(before)):
            found.append(f"{suspicion}: is that per million tokens?")
    found += _doubts_about_tiers(price, tiers)
    if not Organization.objects.filter(currency=price.currency).exists():
        found.append(f"No organization pays in {price.currency} yet.")
    return found


def rates(price: Price) -> Rates:
    """Return the version's base amounts, as the data plane takes them."""
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


def _doubts_about_tiers(price: Price, tiers: Sequence[PriceTier]) -> list[str]:
    found = []
    for tier in tiers:
        base = getattr(price, FIELDS[Kind(tier.kind)])
        amounts = f"{format_micro(base)} to {format_micro(tier.micro)}"
        if worked_example.is_suspicious(base, tier.micro):
            found.append(f"{tier} goes from {amounts}: is that per million tokens?")
        elif tier.micro > base:
            found.append(f"{tier} goes up, from {amounts}.")
    return found


def _version(price: Price, tiers: models.QuerySet[PriceTier]) -> Version:
    by_kind: dict[Kind, list[Tier]] = {
        kind: [Tier(0, getattr(price, field))] for kind, field in FIELDS.items()
    }
    for tier in sorted(tiers, key=attrgetter("from_tokens")):
        by_kind[Kind(tier.kind)].append(Tier(tier.from_tokens, tier.micro))
    return Version(
        price_id=price.pk,
        model_name=price.model_name,
        currency=price.currency,
        effective_from=price.effective_from,
        mode=TierMode(price.tier_mode),
        tiers=by_kind,
    )


def _allowances(
    price_list: PriceList, start: datetime, end: datetime
) -> dict[tuple[str, Kind], int]:
    series: dict[tuple[str, Kind], list[Allowance]] = defaultdict(list)
    for row in price_list.allowances.filter(effective_from__lt=end).order_by("effective_from"):
        series[row.model_name, Kind(row.kind)].append(row)
    return {key: _largest(rows, start) for key, rows in series.items()}


def _largest(rows: Sequence[Allowance], start: datetime) -> int:
    """Return the most that is free, of the version in force at the start and those that come within the period."""
    before = [row for row in rows if row.effective_from <= start][-1:]
    within = [row for row in rows if row.effective_from > start]
    return max(row.tokens_per_month for row in before + within)
