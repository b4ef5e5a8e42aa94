"""Three organizations for demonstrations, each with another currency, time zone, tax, language and way to pay."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from django.utils.timezone import now

from billing import prices
from billing.accounts import Account
from billing.invoicing.invoices import CreditGrant, Issuer
from billing.models import Allowance, Price, PriceList
from billing.money import parse_micro, parse_minor
from billing.price_lists import PriceTier
from billing.tiers import TierMode
from gateway.demo_usage import Habit
from tenants.models import ApiKey, Organization, Team

SINCE = datetime(2020, 1, 1, tzinfo=UTC)
ACTOR = "demo"
MODEL, READER = "llama3.2-ffm-11b-v-32k-chat", "image-reader"
KINDS = ("text_in_micro", "image_in_micro", "cached_in_micro", "out_micro", "request_micro")


@dataclass(frozen=True, slots=True)
class Customer:
    """Who pays, and how; prices are per million tokens of text, images, cached input, output, and per request."""

    slug: str
    name: str
    currency: str
    timezone: str
    teams: dict[str, str]
    prices: dict[str, tuple[str, str, str, str, str]]
    account: dict[str, object]
    tiers: tuple[str, ...] = ()
    allowance: int = 0
    credit: tuple[tuple[str, str], ...] = ()
    requests: int = 4000
    list_slug: str = field(default="")


CUSTOMERS = (
    Customer(
        slug="formosa-insurance",
        name="Formosa Insurance",
        currency="TWD",
        timezone="Asia/Taipei",
        teams={"claims": "理賠部", "underwriting": "核保部"},
        prices={MODEL: ("12.5", "15", "6", "40", "0"), READER: ("5", "6", "2.5", "15", "0.02")},
        account={
            "legal_name": "福爾摩沙產物保險股份有限公司",
            "tax_id": "24681357",
            "address": "台北市信義區松仁路 100 號 12 樓",
            "invoice_language": "zh-hant",
            "discount_bp": 500,
        },
        allowance=1_000_000,
    ),
    Customer(
        slug="pacific-archive",
        name="Pacific Archive",
        currency="USD",
        timezone="America/Los_Angeles",
        teams={"digitization": "Digitization", "search": "Search"},
        prices={
            MODEL: ("0.40", "0.48", "0.20", "1.25", "0"),
            READER: ("0.16", "0.20", "0.08", "0.5", "0"),
        },
        account={
            "legal_name": "Pacific Archive Foundation",
            "address": "1200 Harbor Drive\nLong Beach, CA 90802",
            "tax_exempt": True,
        },
        tiers=("image_in:20_000_000:0.36", "image_in:60_000_000:0.24"),
        credit=(("granted", "15"), ("purchased", "250")),
        list_slug="archive-usd",
        requests=6000,
    ),
    Customer(
        slug="spree-logistik",
        name="Spree Logistik",
        currency="EUR",
        timezone="Europe/Berlin",
        teams={"depot": "Depot", "customs": "Zoll & Papiere", "lab": "Lab"},
        prices={
            MODEL: ("0.38", "0.45", "0.19", "1.15", "0"),
            READER: ("0.15", "0.19", "0.07", "0.5", "0"),
        },
        account={
            "legal_name": "Spree Logistik GmbH",
            "tax_id": "DE 123 456 789",
            "address": "Köpenicker Straße 8\n10997 Berlin",
            "tax_bp": 1900,
            "discount_bp": -300,
            "payment_terms_days": 14,
        },
        requests=5000,
    ),
)


def enter(customer: Customer) -> dict[str, str]:
    """Enter the customer with teams, prices and credit; return a key for each team, by its slug."""
    organization = Organization.objects.create(
        slug=customer.slug,
        name=customer.name,
        currency=customer.currency,
        timezone=customer.timezone,
    )
    price_list = _price_list(customer)
    account = Account.of(organization)
    own = {} if price_list.is_default else {"price_list": price_list}
    account.change(by=ACTOR, at=now(), **customer.account, **own)
    for source, amount in customer.credit:
        minor = parse_minor(amount, customer.currency)
        CreditGrant.objects.create(
            organization=organization,
            source=source,
            currency=customer.currency,
            amount_minor=minor,
            created_at=SINCE,
        )
    return {slug: _team(organization, slug, name) for slug, name in customer.teams.items()}


def enter_issuer() -> None:
    """Say who bills."""
    Issuer.objects.filter(pk=Issuer.standard().pk).update(
        name="Tessera 示範股份有限公司",
        tax_id="12345678",
        address="台北市中正區重慶南路一段 122 號",
    )


def habits(customer: Customer) -> list[Habit]:
    """Return how the customer's teams use their keys."""
    keys = ApiKey.objects.filter(organization__slug=customer.slug).order_by("team__slug")
    found = []
    for number, key in enumerate(keys.select_related("organization", "team")):
        for model in (MODEL, READER):
            account = Account.of(key.organization)
            price = prices.in_force(model, customer.currency, now(), price_list=account.rating_list)
            assert price is not None, f"{model} has a price in {customer.currency}"
            requests = customer.requests // (1 + number) // (1 if model == MODEL else 4)
            found.append(Habit(key, price, requests, 4 if model == MODEL else 1, 1500, 700))
    return found


def _price_list(customer: Customer) -> PriceList:
    standard = PriceList.standard(customer.currency)
    chosen = standard
    if customer.list_slug:
        chosen = PriceList.objects.create(
            slug=customer.list_slug, name=customer.list_slug, currency=customer.currency
        )
    for model, amounts in customer.prices.items():
        for each in {standard, chosen}:
            if not each.prices.filter(model_name=model).exists():
                _price(
                    each,
                    model,
                    amounts,
                    customer.tiers if each == chosen and model == MODEL else (),
                )
    if customer.allowance:
        Allowance.objects.create(
            price_list=chosen,
            model_name=MODEL,
            kind="text_in",
            tokens_per_month=customer.allowance,
            effective_from=SINCE,
        )
    return chosen


def _price(
    price_list: PriceList, model: str, amounts: tuple[str, ...], tiers: tuple[str, ...]
) -> None:
    row = Price(
        price_list=price_list,
        model_name=model,
        currency=price_list.currency,
        effective_from=SINCE,
        tier_mode=TierMode.GRADUATED if tiers else TierMode.FLAT,
        **{kind: parse_micro(amount) for kind, amount in zip(KINDS, amounts, strict=True)},
    )
    made: list[PriceTier] = [prices.parse_tier(tier) for tier in tiers]
    prices.add(row, made, by=ACTOR)


def _team(organization: Organization, slug: str, name: str) -> str:
    team = Team.objects.create(organization=organization, slug=slug, name=name)
    _, raw = ApiKey.mint(team=team, name=slug, by=ACTOR, at=now())
    return raw.secret
