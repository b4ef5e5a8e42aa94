"""The overview: a month's figures, from rollups, in the organization's currency and time zone."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from billing import rollups
from billing.models import Price, RollupMark, UsageRecord
from dashboard import overview, shares
from dashboard.charts import Column, ceiling, chart, strips
from dashboard.overview import Group, Share, Sums
from tenants.models import ApiKey, Team
from tests import booked
from tests.dashboard.conftest import Person
from tests.factories import Tenant

LATE_ON_THE_LAST = datetime(2026, 3, 31, 15, 59, tzinfo=UTC)  # 23:59 in Taipei
MIDNIGHT = datetime(2026, 3, 31, 16, tzinfo=UTC)


def spend(tenant: Tenant, price: Price, units: int, at: datetime, **fields: Any) -> None:
    held = booked.hold(tenant, price, received_at=at, amount_pico=units * booked.UNIT_PICO)
    booked.settle(held, **fields)


def figures(page: str) -> str:
    return " ".join(page.split())


def test_the_month_has_its_spend_tokens_and_requests(alice: Person, vlm: Price) -> None:
    spend(alice.tenant, vlm, 1200, LATE_ON_THE_LAST, tokens_out=4321)
    rollups.recompute()
    page = figures(alice.read(month="2026-03"))

    assert "usage/?month=2026-03&amp;team=vision" in page
    assert "<dd>1,200.00 <small>TWD</small></dd>" in page
    assert '<td class="n">1,200.0000</td><td class="n">1</td>' in page
    assert '<td class="n">4,321</td>' in page
    assert '<th scope="row">2026-03-31</th>' in page


def test_months_are_cut_at_local_midnight(alice: Person, vlm: Price) -> None:
    spend(alice.tenant, vlm, 1, LATE_ON_THE_LAST)
    spend(alice.tenant, vlm, 2, MIDNIGHT)
    rollups.recompute()

    assert "<dd>1.00 <small>" in alice.read(month="2026-03")
    assert "<dd>2.00 <small>" in alice.read(month="2026-04")


def test_it_says_until_when_the_ledger_was_read(alice: Person, vlm: Price) -> None:
    spend(alice.tenant, vlm, 1, now())
    assert "Nothing was used in this month" in alice.read()

    rollups.recompute()
    RollupMark.objects.update(recorded_until=datetime(2026, 3, 31, 16, 0, 5, tzinfo=UTC))
    page = alice.read()
    assert "As of 2026-04-01 00:00:05" in page
    assert "<dd>1.00 <small>" in page


def test_it_reads_rollups_only_and_as_often_for_many_as_for_one(alice: Person, vlm: Price) -> None:
    spend(alice.tenant, vlm, 1, now())
    rollups.recompute()
    with CaptureQueriesContext(
        connection,
    ) as few:
        alice.read()
    for number in range(5):
        team = Team.objects.create(
            organization=alice.tenant.organization, name="T", slug=f"t{number}"
        )
        key, raw = ApiKey.mint(team, "k", by=None, at=now())
        spend(Tenant(alice.tenant.organization, team, key, raw.secret), vlm, 1, now())
    rollups.recompute()
    with CaptureQueriesContext(connection) as many:
        alice.read()

    assert (
        len(few) == len(many) == 12
    )  # session, person, organization, first quarter; mark, days, three groups
    assert not any(UsageRecord._meta.db_table in query["sql"] for query in many.captured_queries)


def test_of_many_keys_those_are_shown_that_cost_most(
    alice: Person, vlm: Price, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "ROWS_MAX", 1)
    cheap, _ = ApiKey.mint(alice.tenant.team, "cheap", by=None, at=now())
    spend(alice.tenant, vlm, 2, now())
    spend(Tenant(alice.tenant.organization, alice.tenant.team, cheap, ""), vlm, 1, now())
    rollups.recompute()
    page = figures(alice.read())

    assert cheap.public_id not in page
    assert "Only those that cost most are shown: 1." in page
    assert '<th scope="row">Others (1)</th><td class="n">1.0000</td><td class="n">1</td>' in page
    assert '<th scope="row">Whole month</th><td class="n">3.0000</td><td class="n">2</td>' in page


def test_each_team_key_and_model_has_bars_with_words(alice: Person, vlm: Price) -> None:
    spend(alice.tenant, vlm, 3, now(), tokens_in_text=40, tokens_in_image=1601, tokens_out=359)
    cheap, _ = ApiKey.mint(alice.tenant.team, "cheap", by=None, at=now())
    spend(replace(alice.tenant, key=cheap), vlm, 1, now(), tokens_in_text=0, tokens_out=200)
    rollups.recompute()
    page = figures(alice.read())

    assert page.count('<ul class="bars">') == 3
    assert "<title>cheap: 1.0000 TWD (25.00% of the month)</title>" in page
    assert '<rect class="amount" x="0.00%" width="33.33%" height="100%"/>' in page
    assert "Text tokens 40, Image tokens 1,601, Cached tokens 0, Output tokens 359" in page
    assert '<rect class="tokens_in_image" x="2.00%" width="80.05%" height="100%"/>' in page
    assert "<title>cheap: 1 (50.00% of the month)</title>" in page


def test_a_chart_draws_the_first_and_the_others_as_one() -> None:
    each = [Share(str(number), f"key {number}", Sums(requests=1)) for number in range(12)]
    group = Group("key", each, count=200, total=Sums(requests=200))
    lines = shares.drawing(group, "TWD").lines

    assert [line.share.name for line in lines[-2:]] == ["key 9", "Others (190)"]
    assert [line.lanes[2].figure for line in lines[-2:]] == ["1", "190"]
    assert [line.lanes[2].runs[0].width for line in lines[-2:]] == ["0.52%", "100.00%"]
    assert len(lines) == shares.LINES_MAX + 1


def test_amounts_beneath_each_other_have_the_same_decimals() -> None:
    pico = booked.UNIT_PICO
    for amounts, written in (((3 * pico, pico // 2), ["3.00", "0.50"]), ((5,), ["0.0000"])):
        each = [Share("", "", Sums(amount_pico=amount)) for amount in amounts]
        lines = shares.drawing(Group("team", each, len(each), Sums()), "TWD").lines
        assert [line.lanes[0].figure for line in lines] == written


@pytest.mark.parametrize("month", ["2026-13", "march", "0001-01", "9999-12", "2026-03-01"])
def test_what_is_no_month_is_not_found(alice: Person, month: str) -> None:
    assert alice.status(alice.url(), month=month) == 404


def test_every_month_since_the_first_usage_can_be_chosen(alice: Person, vlm: Price) -> None:
    spend(alice.tenant, vlm, 1, LATE_ON_THE_LAST)
    rollups.recompute()
    page = alice.read()

    assert "<option>2026-03</option>" in page
    assert "<option>2026-02</option>" not in page


def test_bars_beneath_each_other_share_a_scale() -> None:
    first, second, third = strips([[("a", 5), ("b", 15)], [("a", 10)], [("a", -3)]])

    assert [(run.x, run.width) for run in first] == [("0.00%", "25.00%"), ("25.00%", "75.00%")]
    assert [(run.x, run.width) for run in second] == [("0.00%", "50.00%")]
    assert third == []


def test_bars_stand_on_each_other_and_end_at_the_top() -> None:
    drawn = chart([Column(1, "", [("a", 5), ("b", 15)]), Column(2, "", [("a", -3)])], str)

    assert drawn.ticks == ["20", "10", "0"]
    lower, upper = drawn.bars[0].segments
    assert (lower.y, lower.height) == ("75.00%", "25.00%")
    assert (upper.y, upper.height) == ("0.00%", "75.00%")
    assert drawn.bars[1].segments == []


@pytest.mark.parametrize("value", [0, 1, 10, 11, 999, 10**15 + 1])
def test_the_top_of_an_axis_is_round_and_not_below_what_it_shows(value: int) -> None:
    top = ceiling(value)

    assert value <= top <= max(10, 2 * value)
    assert str(top).rstrip("0") in "1234568"
