from contextlib import nullcontext
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError
from django.utils.timezone import now

from billing.models import Price
from tenants.models import AuditEntry
from tests import factories
from tests.console import run, run_json

pytestmark = pytest.mark.usefixtures("empty_database")

AMOUNTS = ("--currency=TWD", "--text-in=12.5", "--image-in=15", "--cached-in=6", "--out=40")


def set_price(*words: str) -> str:
    """Set the price, whatever looks like a slip in it."""
    return run("price", "set", "vlm", *AMOUNTS, "--yes", *words)[1]


def answer(monkeypatch: pytest.MonkeyPatch, text: str, *, is_terminal: bool) -> None:
    """Let standard input be so."""
    stdin = StringIO(text)
    monkeypatch.setattr(stdin, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stdin", stdin)


def listed(*words: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run_json("price", "list", "vlm", *words)
    return rows


def test_a_price_per_million_is_kept_to_the_micro_unit() -> None:
    set_price("--per-request=0.000001")

    price = Price.objects.get(model_name="vlm")
    assert price.currency == "TWD"
    assert (price.text_in_micro, price.image_in_micro) == (12_500_000, 15_000_000)
    assert (price.cached_in_micro, price.out_micro) == (6_000_000, 40_000_000)
    assert price.request_micro == 1
    assert AuditEntry.objects.latest("id").action == "price.create"


def test_it_tells_what_an_image_costs_at_this_price() -> None:
    assert "a 1120×1120 image costs TWD 0.096060" in set_price()


def test_cached_tokens_cost_what_text_costs_unless_said() -> None:
    words = [word for word in AMOUNTS if not word.startswith("--cached")]
    run("price", "set", "vlm", "--yes", *words)

    assert Price.objects.get(model_name="vlm").cached_in_micro == 12_500_000


def test_a_dry_run_shows_the_meaning_and_saves_nothing() -> None:
    told = set_price("--dry-run")

    assert "TWD 0.096060" in told
    assert "Nothing was saved" in told
    assert not Price.objects.filter(model_name="vlm").exists()


def test_a_price_per_token_in_the_place_of_one_per_million_is_pointed_out() -> None:
    factories.price("vlm", out_micro=40_000_000, image_in_micro=15)

    told = set_price()

    assert "image_in goes from 0.000015 to 15.00: is that per million tokens?" in told
    assert "out goes" not in told


def test_what_looks_like_a_slip_is_not_saved_without_a_yes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer(monkeypatch, "y", is_terminal=False)

    with pytest.raises(CommandError, match="Nothing was saved: look again, and say --yes"):
        run("price", "set", "vlm", *AMOUNTS)
    assert not Price.objects.exists()


@pytest.mark.parametrize(
    ("text", "is_saved"),
    [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)],
)
def test_a_person_at_a_terminal_is_asked(
    monkeypatch: pytest.MonkeyPatch, text: str, is_saved: bool
) -> None:
    answer(monkeypatch, text, is_terminal=True)

    with nullcontext() if is_saved else pytest.raises(CommandError, match="Nothing was saved"):
        assert "[y/N]" in run("price", "set", "vlm", *AMOUNTS)[1]
    assert Price.objects.exists() == is_saved


def test_what_nobody_doubts_is_saved_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    factories.tenant(currency="TWD")
    factories.price("vlm")
    answer(monkeypatch, "", is_terminal=False)

    run("price", "set", "vlm", *AMOUNTS)

    assert Price.objects.count() == 2


def test_the_first_price_of_a_name_asks_whether_it_is_right() -> None:
    assert "first price" in set_price()
    assert "first price" not in set_price()


def test_a_currency_that_nobody_pays_in_is_pointed_out() -> None:
    factories.tenant(currency="TWD")

    assert "No organization pays in TDW" in set_price("--currency=tdw")
    assert "No organization" not in set_price("--currency=TWD")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out=0.0000400"], "more than 6 decimals. Prices are per million tokens."),
        (["--out=-1"], "not a plain number"),
        (["--out=1e3"], "not a plain number"),
        (["--out=1000000.000001"], "more than 1000000 per million"),
        (["--currency=NT$"], "three capital letters"),
        (["--from=2020-01-01"], "has passed"),
        (["--from=tomorrow"], "no date or time"),
    ],
)
def test_a_mistake_is_one_clear_line_and_saves_nothing(words: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        set_price(*words)

    assert not Price.objects.filter(model_name="vlm").exists()


def test_a_second_price_from_the_same_moment_is_refused() -> None:
    set_price("--from=2090-01-01")

    with pytest.raises(CommandError, match="already exists"):
        set_price("--from=2090-01-01T08:00+08:00", "--out=41")


def test_the_list_has_what_is_in_force_and_to_come_and_on_request_what_is_past() -> None:
    factories.price("vlm", effective_from=now() - timedelta(days=9), out_micro=1)
    factories.price("vlm", effective_from=now() - timedelta(days=1), out_micro=2)
    factories.price("vlm", currency="USD", out_micro=3)
    set_price("--from=2090-01-01")

    shown = [(row["currency"], row["status"], row["out"]) for row in listed()]
    assert shown == [
        ("TWD", "in force", "0.000002"),
        ("TWD", "to come", "40.00"),
        ("USD", "in force", "0.000003"),
    ]
    assert [row["status"] for row in listed("--all")][:2] == ["past", "in force"]


def test_a_model_with_a_future_price_only_has_none_in_force() -> None:
    set_price("--from=2090-01-01")

    assert [row["status"] for row in listed()] == ["to come"]


def test_a_model_without_a_price_is_said_to_be_refused() -> None:
    out, err = run("price", "list", "vlm")

    assert out == ""
    assert "vlm has no price: requests for it are refused" in err
