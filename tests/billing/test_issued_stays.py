"""Whatever changes after an invoice was issued, it stays as it was, and verification still finds it right (P10)."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from django.core.exceptions import ValidationError
from django.db import DatabaseError, connection, transaction
from django.db.models import ProtectedError
from django.utils.timezone import now

from billing import rollups
from billing.accounts import Account
from billing.invoicing import credit_notes, documents, exports, lifecycle, payments, sweeping
from billing.invoicing.invoices import CreditGrant, Invoice, InvoiceDocument, Issuer
from billing.invoicing.verification import verify
from billing.models import Allowance, Price, PriceList, PriceTier
from tenants.models import ApiKey, Organization, Team
from tests import booked, factories
from tests.factories import Tenant
from tests.invoiced import ISSUED, MARCH, NOON, issue, use

pytestmark = pytest.mark.django_db

MUTATIONS = 200
VERIFIED_EVERY = 20
SEEDS = (1, 2)


class World(NamedTuple):
    """An issued invoice, with all that it was made of."""

    tenant: Tenant
    price: Price
    invoice: Invoice
    chance: random.Random

    @property
    def word(self) -> str:
        return f"x{self.chance.randrange(10**9)}"


@pytest.fixture(params=SEEDS)
def world(request: Any, acme: Tenant) -> World:
    """A month with two price versions, tiers, allowance, discount, credit, a lost request; issued and drawn."""
    price = factories.price("vlm", tier_mode="graduated", tier_count=1)
    PriceTier.objects.create(price=price, kind="text_in", from_tokens=150_000, micro=3_333_333)
    allow(price, 77_777)
    Account.of(acme.organization).change(by=None, at=NOON, discount_bp=333, legal_name="Acme Ltd.")
    CreditGrant.objects.create(
        organization=acme.organization, source="purchased", currency="TWD", amount_minor=9
    )
    later = factories.price("vlm", effective_from=NOON + timedelta(days=3), out_micro=123_456_789)
    for version in (price, price, later):
        use(acme, version, text=20_000_000, out=5_000_000)
    booked.hold(acme, price, received_at=NOON, expires_at=now() - timedelta(seconds=1))
    with connection.cursor() as cursor:
        cursor.execute("SELECT billing_reap('1 hour', 1000)")
    invoice = issue(acme)
    documents.document(invoice)
    return World(acme, price, invoice, random.Random(request.param))


def allow(price: Price, tokens: int, **fields: Any) -> None:
    Allowance.objects.create(
        price_list=price.price_list,
        model_name=price.model_name,
        kind="out",
        tokens_per_month=tokens,
        **({"effective_from": factories.LONG_AGO} | fields),
    )


def late_usage(world: World) -> None:
    use(world.tenant, world.price, at=NOON + timedelta(days=world.chance.randint(-9, 20)))


def new_price(world: World) -> None:
    at = MARCH.start + timedelta(seconds=world.chance.randint(-(10**6), 10**7))
    factories.price("vlm", effective_from=at, out_micro=world.chance.randint(0, 10**9))


def new_allowance(world: World) -> None:
    at = MARCH.start + timedelta(seconds=world.chance.randint(-(10**6), 10**7))
    allow(world.price, world.chance.randint(0, 10**9), effective_from=at)


def rename_price_list(world: World) -> None:
    PriceList.objects.filter(pk=world.price.price_list_id).update(name=world.word, slug=world.word)


def change_account(world: World) -> None:
    chance = world.chance
    changed = Account.objects.filter(organization=world.tenant.organization).update(
        discount_bp=chance.randint(-10_000, 10_000),
        tax_bp=chance.randint(0, 10_000),
        tax_exempt=chance.choice([True, False]),
        legal_name=world.word,
        tax_id=world.word,
        address=world.word,
        invoice_language=chance.choice(["en", "zh-hant"]),
        payment_terms_days=chance.randint(0, 365),
    )
    assert changed == 1


def change_price_list(world: World) -> None:
    other = PriceList.objects.create(
        slug=world.word,
        name="Other",
        currency=Organization.objects.get(pk=organization(world).pk).currency,
    )
    Account.objects.filter(organization=organization(world)).update(price_list=other)


def rename_organization(world: World) -> None:
    Organization.objects.filter(pk=organization(world).pk).update(name=world.word, slug=world.word)


def move_organization(world: World) -> None:
    zone = world.chance.choice(["America/Los_Angeles", "Asia/Kathmandu", "Pacific/Apia"])
    Organization.objects.filter(pk=organization(world).pk).update(timezone=zone)


def change_shares(world: World) -> None:
    Organization.objects.filter(pk=organization(world).pk).update(
        bills_aborted="nothing", bills_failed="prompt", bills_lost="nothing"
    )


def rename_team(world: World) -> None:
    Team.objects.filter(pk=world.tenant.team.pk).update(name=world.word, slug=world.word)


def add_team_of_the_old_name(world: World) -> None:
    if not Team.objects.filter(organization=organization(world), slug="vision").exists():
        Team.objects.create(organization=organization(world), name="Vision", slug="vision")


def revoke_key(world: World) -> None:
    key, _ = ApiKey.mint(team=world.tenant.team, name=world.word, by=None, at=now())
    key.revoke(by=None, at=now())
    ApiKey.objects.get(pk=world.tenant.key.pk).revoke(by=None, at=now())


def suspend(world: World) -> None:
    world.tenant.team.suspend(by=None, at=now())
    organization(world).suspend(by=None, at=now())


def change_issuer(world: World) -> None:
    Issuer.objects.filter(pk=world.invoice.issuer_id).update(
        name=world.word, tax_id=world.word, address=world.word, timezone="America/New_York"
    )
    Issuer.objects.filter(pk=world.invoice.issuer_id).update(prefix=world.word[:8].upper())


def pay(world: World) -> None:
    payment = payments.pay(world.invoice.pk, 1, received_at=ISSUED, by=None, at=ISSUED)
    if world.chance.random() < 0.5:
        payments.reverse(payment.pk, by=None, at=ISSUED)


def credit_a_line(world: World) -> None:
    if not world.invoice.credit_notes.exists():
        credit_notes.credit(world.invoice.pk, [1], reason="A gift", by=None, at=ISSUED)


def remind(world: World) -> None:
    sweeping.remind(world.invoice.pk, ISSUED + timedelta(days=world.chance.randint(0, 90)))


def recompute(world: World) -> None:
    rollups.recompute(everything=True)


def advance(world: World) -> None:
    lifecycle.advance(organization(world).pk, ISSUED)


def organization(world: World) -> Organization:
    return world.tenant.organization


CHANGES: list[Callable[[World], None]] = [
    *(late_usage, new_price, new_allowance, rename_price_list, change_account, change_price_list),
    *(rename_organization, move_organization, change_shares, rename_team),
    *(add_team_of_the_old_name, revoke_key, suspend, change_issuer, pay, credit_a_line, remind),
    *(recompute, advance),
]
REFUSED: list[Callable[[World], Any]] = [
    lambda world: Price.objects.filter(pk=world.price.pk).update(out_micro=1),
    lambda world: PriceTier.objects.filter(price=world.price).delete(),
    lambda world: Allowance.objects.update(tokens_per_month=1),
    lambda world: ApiKey.objects.get(pk=world.tenant.key.pk).delete(),
    lambda world: Team.objects.get(pk=world.tenant.team.pk).delete(),
    lambda world: Organization.objects.get(pk=organization(world).pk).delete(),
    lambda world: Invoice.objects.filter(pk=world.invoice.pk).update(language="zh-hant"),
    lambda world: Invoice.objects.get(pk=world.invoice.pk).delete(),
    lambda world: world.invoice.lines.all().delete(),
    lambda world: InvoiceDocument.objects.update(content=b""),
    lambda world: Organization.objects.filter(pk=organization(world).pk).update(currency="EUR"),
    lambda world: Account.objects.update(closed_until=MARCH.start),
    lambda world: lifecycle.reissue(world.invoice.pk, by=None, at=ISSUED),
]


def fingerprint(world: World) -> dict[str, Any]:
    """Return all that anybody has or may ask for of the invoice."""
    invoice = Invoice.objects.get(pk=world.invoice.pk)
    drawn = {name: b"".join(exports.chunks(invoice, name)) for name in ("pdf", "csv", "json")}
    lines = invoice.lines.order_by("position").values_list()
    return {name: hashlib.sha256(content).hexdigest() for name, content in drawn.items()} | {
        "number": invoice.number,
        "sha256": (invoice.previous_sha256, invoice.content_sha256),
        "totals": (invoice.subtotal_minor, invoice.total_minor, invoice.due_minor),
        "lines": list(lines),
        "usage": usage_of(invoice),
    }


def usage_of(invoice: Invoice) -> set[str]:
    """Return the ids of the records that the lines are made of."""
    rows = "".join(exports.usage(invoice, 1)).splitlines()[1:]
    return {row.partition(",")[0] for row in rows}


def refuses(call: Callable[[World], Any], world: World) -> None:
    with (
        pytest.raises((DatabaseError, ProtectedError, ValidationError, ValueError)),
        transaction.atomic(),
    ):
        call(world)


def test_no_later_change_reaches_an_issued_invoice(world: World) -> None:
    before = fingerprint(world)
    assert len(before["usage"]) == 4
    assert verify(world.invoice) == []
    done: Counter[str] = Counter()

    for number in range(1, MUTATIONS + 1):
        if world.chance.random() < 0.8:
            change = world.chance.choice(CHANGES)
            change(world)
            done[change.__name__] += 1
        else:
            refuses(world.chance.choice(REFUSED), world)
        assert fingerprint(world) == before, done
        if number % VERIFIED_EVERY == 0:
            assert [
                str(finding) for finding in verify(Invoice.objects.get(pk=world.invoice.pk))
            ] == []

    assert len(done) == len(CHANGES)
