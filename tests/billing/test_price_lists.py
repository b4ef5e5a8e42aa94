"""Price lists, tiers, allowances and accounts, and what the database keeps of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError
from django.db import DatabaseError, connection, transaction
from django.utils.timezone import now

from billing import prices
from billing.accounts import Account
from billing.models import Allowance, PriceList, PriceTier
from billing.rating import Kind
from billing.tiers import Tier, TierMode
from gateway import catalog
from gateway.counting import counters
from tenants import revisions
from tenants.models import AuditEntry
from tests import factories
from tests.console import run, run_json
from tests.factories import Tenant

AMOUNTS = ("--text-in=12.5", "--image-in=15", "--out=40")
STARTS = datetime(2026, 3, 1, tzinfo=UTC)
ENDS = datetime(2026, 4, 1, tzinfo=UTC)


@pytest.fixture
def gold(db: None) -> PriceList:
    return PriceList.objects.create(slug=factories.unique("gold"), name="Gold", currency="TWD")


def check_constraints() -> None:
    """Run what waits for the commit now."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def allowance(price_list: PriceList, tokens: int, since: datetime, **fields: Any) -> Allowance:
    return Allowance.objects.create(
        price_list=price_list,
        effective_from=since,
        tokens_per_month=tokens,
        **({"model_name": "vlm", "kind": Kind.TEXT_IN.value} | fields),
    )


def set_gold(gold: PriceList, *words: str) -> str:
    return run("price", "set", "vlm", f"--list={gold}", *AMOUNTS, "--yes", *words)[1]


def test_there_is_one_default_list_for_each_currency(db: None) -> None:
    assert PriceList.standard("TWD") == PriceList.standard("TWD")
    assert PriceList.standard("TWD") != PriceList.standard("USD")
    with pytest.raises(DatabaseError), transaction.atomic():
        PriceList.objects.create(slug="other", name="Other", currency="TWD", is_default=True)


def test_a_price_is_in_the_currency_of_its_list(gold: PriceList) -> None:
    with pytest.raises(DatabaseError), transaction.atomic():
        factories.price("vlm", "USD", price_list=gold)


@pytest.mark.parametrize("table", ["billing_price", "billing_pricetier", "billing_allowance"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET id = id", "DELETE FROM {}", "TRUNCATE {} CASCADE"]
)
def test_what_is_priced_is_never_changed(db: None, table: str, statement: str) -> None:
    with (
        pytest.raises(DatabaseError, match="is append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement.format(table))


def test_a_price_is_saved_with_its_tiers(gold: PriceList) -> None:
    tiers = ["--tier=image_in:10_000_000:12", "--tier=image_in:1000000:14"]
    told = set_gold(gold, "--tiers=graduated", *tiers)

    price = gold.prices.get()
    assert (price.tier_mode, price.tier_count) == ("graduated", 2)
    version = prices.versions([price.pk])[0]
    assert version.mode is TierMode.GRADUATED
    assert version.tiers[Kind.IMAGE_IN] == [
        Tier(0, 15_000_000),
        Tier(1_000_000, 14_000_000),
        Tier(10_000_000, 12_000_000),
    ]
    assert "from 10000000 image_in tokens a month on such an image costs TWD 0.076848" in told
    check_constraints()


def test_a_tier_cannot_be_added_to_a_price_that_stands(gold: PriceList) -> None:
    price = factories.price("vlm", price_list=gold)
    check_constraints()

    with pytest.raises(DatabaseError, match="has 1 tiers, and says that it has 0"):
        PriceTier.objects.create(price=price, kind="out", from_tokens=1000, micro=1)


def test_a_price_cannot_lack_a_tier_that_it_says_it_has(gold: PriceList) -> None:
    factories.price("vlm", price_list=gold, tier_mode="volume", tier_count=1)

    with pytest.raises(DatabaseError, match="has 0 tiers, and says that it has 1"):
        check_constraints()
    connection.needs_rollback = True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tiers=volume"], "these need tiers"),
        (["--tier=out:1000:30"], "need to be graduated or volume"),
        (["--tiers=volume", "--tier=outs:1000:30"], "KIND is one of text_in"),
        (["--tiers=volume", "--tier=out:1e3:30"], "no number of tokens"),
        (["--tiers=volume", "--tier=out:0:30"], "greater than or equal to 1"),
        (["--tiers=volume", "--tier=out:1000:0.0000001"], "more than 6 decimals"),
        (["--tiers=volume", "--tier=out:9:1", "--tier=out:9:2"], "begin at the same number"),
    ],
)
def test_a_wrong_tier_is_one_clear_line_and_saves_nothing(
    gold: PriceList, words: list[str], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        set_gold(gold, *words)

    assert not gold.prices.exists()


def test_a_tier_a_thousandfold_off_is_pointed_out_and_a_dry_run_saves_nothing(
    gold: PriceList,
) -> None:
    told = set_gold(gold, "--tiers=volume", "--tier=out:9:0.00004", "--dry-run")

    assert "out from 9 tokens goes from 40.00 to 0.00004: is that per million tokens?" in told
    assert "Nothing was saved." in told
    assert not gold.prices.exists()


def test_a_list_shows_its_prices_and_tiers(gold: PriceList) -> None:
    set_gold(gold, "--tiers=volume", "--tier=out:1000:30")

    (row,) = run_json("price", "list", "vlm", f"--list={gold}")
    assert (row["list"], row["mode"], row["tiers"]) == (str(gold), "volume", "out:1000:30.00")


def test_a_new_list_is_one_that_an_account_can_have(db: None) -> None:
    acme = factories.tenant("acme")
    slug = factories.unique("silver")

    run("price", "new-list", slug, "--currency=TWD")
    run("account", "set", acme.organization.slug, f"--price-list={slug}")

    row = next(row for row in run_json("price", "lists") if row["slug"] == slug)
    assert row["organizations"] == [acme.organization.slug]


def test_an_allowance_is_told_in_images(gold: PriceList) -> None:
    _, told = run("price", "allow", "vlm", f"--list={gold}", "--kind=image_in", "-n", "6_404_000")

    assert "6404000 free tokens are 1000 images of 1120×1120, each month" in told
    assert gold.allowances.get().tokens_per_month == 6_404_000
    (row,) = [r for r in run_json("price", "allowances", "vlm") if r["list"] == str(gold)]
    assert (row["kind"], row["tokens"]) == ("image_in", 6_404_000)
    assert AuditEntry.objects.latest("id").action == "allowance.create"


def test_an_allowance_cannot_reach_back_where_somebody_pays_by_it(
    acme: Tenant, gold: PriceList
) -> None:
    Account.of(acme.organization).change(by=None, at=now(), price_list=gold)

    with pytest.raises(CommandError, match="has passed"):
        run(
            *("price", "allow", "vlm", f"--list={gold}", "--kind=out", "-n", "1"),
            "--from=2020-01-01",
        )


def test_the_allowance_in_force_counts_and_within_a_period_the_larger(gold: PriceList) -> None:
    allowance(gold, 9000, STARTS - timedelta(days=60))
    allowance(gold, 1000, STARTS - timedelta(days=30))
    assert prices.allowances("TWD", gold, STARTS, ENDS)["vlm", Kind.TEXT_IN] == 1000

    allowance(gold, 500, STARTS + timedelta(days=3))
    assert prices.allowances("TWD", gold, STARTS, ENDS)["vlm", Kind.TEXT_IN] == 1000
    allowance(gold, 2000, ENDS - timedelta(seconds=1))
    assert prices.allowances("TWD", gold, STARTS, ENDS)["vlm", Kind.TEXT_IN] == 2000
    allowance(gold, 7000, ENDS)
    assert prices.allowances("TWD", gold, STARTS, ENDS)["vlm", Kind.TEXT_IN] == 2000


def test_a_model_that_a_list_prices_takes_its_allowances_from_there_only(gold: PriceList) -> None:
    standard = PriceList.standard("TWD")
    for model_name in ("vlm", "other"):
        allowance(standard, 1000, STARTS, model_name=model_name)
    factories.price("vlm", price_list=gold)

    found = prices.allowances("TWD", gold, STARTS, ENDS)

    assert ("vlm", Kind.TEXT_IN) not in found
    assert found["other", Kind.TEXT_IN] == 1000


class TestTheCatalog:
    """Which version a request is booked at."""

    def rates(self, tenant: Tenant, model_name: str = "vlm") -> int:
        organization = tenant.organization
        entry = catalog.ModelEntry(
            model_name, counters.get("llama-3.2-vision"), 1, 1, 1, 1, 1, routes=()
        )
        found = catalog.load().rates_for(entry, organization.pk, organization.currency, now())
        return found.out_micro

    def test_an_organization_pays_by_its_own_list(self, acme: Tenant, gold: PriceList) -> None:
        factories.price("vlm", out_micro=1)
        factories.price("vlm", out_micro=2, price_list=gold)
        assert self.rates(acme) == 1

        Account.of(acme.organization).change(by=None, at=now(), price_list=gold)

        assert self.rates(acme) == 2

    def test_what_its_list_lacks_or_has_not_yet_is_of_the_default_list(
        self, acme: Tenant, gold: PriceList
    ) -> None:
        Account.of(acme.organization).change(by=None, at=now(), price_list=gold)
        factories.price("vlm", out_micro=1)
        assert self.rates(acme) == 1

        starts = now() + timedelta(days=1)
        factories.price("vlm", out_micro=2, price_list=gold, effective_from=starts)
        assert self.rates(acme) == 1

    def test_a_list_of_another_currency_prices_nothing(self, acme: Tenant, gold: PriceList) -> None:
        factories.price("vlm", out_micro=2, price_list=gold)
        Account.of(acme.organization).change(by=None, at=now(), price_list=gold)
        acme.organization.currency = "USD"

        with pytest.raises(catalog.ModelNotPriced):
            self.rates(acme)

    def test_a_change_of_the_list_moves_the_revision_and_closing_does_not(
        self, acme: Tenant, gold: PriceList
    ) -> None:
        account = Account.of(acme.organization)

        def moves() -> int:
            return revisions.read([catalog.REVISION])[catalog.REVISION]

        before = moves()
        account.close(now())
        assert moves() == before
        account.change(by=None, at=now(), price_list=gold)
        assert moves() == before + 1


def test_an_account_is_changed_at_the_console_and_recorded(acme: Tenant) -> None:
    slug = acme.organization.slug

    _, told = run(
        *("account", "set", slug, "--discount=2.5", "--tax=0", "--tax-exempt", "--tax-id=123"),
        *("--legal-name=Acme Ltd", "--address=1 Road\\nTaipei", "--language=zh-hant"),
    )

    (row,) = run_json("account", "show", slug)
    assert (row["discount_percent"], row["tax_percent"], row["tax_exempt"]) == ("2.5", "0", True)
    assert (row["address"], row["language"]) == ("1 Road\nTaipei", "zh-hant")
    assert "Changed: discount, tax, tax exempt, legal name" in told
    assert AuditEntry.objects.latest("id").detail["before"]["discount_bp"] == 0
    assert "2.5" in run("account", "show", slug)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say what to change"),
        (["--discount=0.001"], "two decimals at most"),
        (["--discount=101"], "from -100 to 100"),
        (["--discount=nan"], "is not a percentage"),
        (["--tax=-1"], "greater than or equal to 0"),
        (["--price-list=nowhere"], "no price list 'nowhere'"),
        (["--payment-terms=-1"], "greater than or equal to 0"),
    ],
)
def test_a_wrong_account_is_one_clear_line(acme: Tenant, words: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run("account", "set", acme.organization.slug, *words)


def test_an_account_is_billed_in_its_own_currency_only(acme: Tenant, gold: PriceList) -> None:
    account = Account.of(acme.organization)
    dollars = PriceList.standard("USD")

    with pytest.raises(ValidationError, match="pays in TWD"):
        account.change(by=None, at=now(), price_list=dollars)
    with pytest.raises(DatabaseError, match="not in the currency"):
        Account.objects.filter(pk=account.pk).update(price_list=dollars)


def test_what_is_closed_stays_closed(acme: Tenant) -> None:
    account = Account.of(acme.organization)

    assert account.close(STARTS)
    assert not account.close(STARTS)
    assert not account.close(STARTS - timedelta(days=1))
    assert account.closed_until == STARTS
    with pytest.raises(DatabaseError, match="that stays"):
        Account.objects.filter(pk=account.pk).update(closed_until=STARTS - timedelta(days=1))


def test_the_price_of_an_image_is_that_of_the_organizations_own_list(
    acme: Tenant, gold: PriceList
) -> None:
    factories.price("vlm", out_micro=1)
    own = factories.price("vlm", out_micro=2, price_list=gold)

    assert prices.in_force("vlm", "TWD", now(), price_list=gold) == own
    assert prices.in_force("vlm", "TWD", now()) != own
    assert prices.in_force("other", "TWD", now(), price_list=gold) is None
