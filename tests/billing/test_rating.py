"""The rating of a period: tiers, teams, allowances, versions, discount and tax; whatever way usage comes in."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import rating
from billing.money import round_half_even, to_minor
from billing.rating import Credit, Kind, Line, Quantity, Rated, Rates, Tokens, Version, rate
from billing.tiers import Tier, TierMode, apportion, pieces, shares

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
MODELS = ("vlm", "other")
TEN, FIVE, TWO = 10_000_000, 5_000_000, 2_000_000
TIERED = (Tier(0, TEN), Tier(1000, FIVE), Tier(3000, TWO))
BASE = {
    Kind.TEXT_IN: 10_000_001,
    Kind.IMAGE_IN: 12_345_678,
    Kind.CACHED_IN: 5_000_000,
    Kind.OUT: 30_000_000,
    Kind.REQUEST: 7,
}


def version(price_id: int = 1, tiers: Sequence[Tier] | None = None, **fields: Any) -> Version:
    by_kind = {kind: tiers or (Tier(0, micro),) for kind, micro in BASE.items()}
    defaults: dict[str, Any] = {
        "model_name": "vlm",
        "currency": "TWD",
        "effective_from": SINCE,
        "mode": TierMode.GRADUATED if tiers else TierMode.FLAT,
        "tiers": by_kind,
    }
    return Version(price_id, **(defaults | fields))


def text(units: int, team_id: int = 1, price_id: int = 1, **fields: Any) -> Quantity:
    return Quantity(team_id, price_id, Kind.TEXT_IN, units, **fields)


def steps(row: Line | Credit) -> list[tuple[int, int, int | None, int]]:
    return [(step.quantity, step.from_units, step.to_units, step.micro) for step in row.steps]


def only(rated: Rated) -> Line:
    (line,) = rated.lines
    return line


def test_a_line_is_what_was_used_and_says_why() -> None:
    line = only(rate([text(4000)], [version(tiers=TIERED)], currency="TWD"))

    assert steps(line) == [(1000, 0, 1000, TEN), (2000, 1000, 3000, FIVE), (1000, 3000, None, TWO)]
    assert line.amount_pico == 1000 * TEN + 2000 * FIVE + 1000 * TWO


def test_volume_bills_all_at_the_tier_that_is_reached() -> None:
    volume = version(tiers=TIERED, mode=TierMode.VOLUME)

    assert only(rate([text(999)], [volume], currency="TWD")).amount_pico == 999 * TEN
    assert only(rate([text(1000)], [volume], currency="TWD")).amount_pico == 1000 * FIVE
    assert steps(only(rate([text(9000)], [volume], currency="TWD"))) == [(9000, 3000, None, TWO)]


def test_a_later_version_goes_on_where_the_one_before_stopped() -> None:
    later = version(2, tiers=(Tier(0, 9), Tier(1000, 4)), effective_from=SINCE + timedelta(days=9))

    line = only(
        rate([text(600, price_id=2), text(700)], [later, version(tiers=TIERED)], currency="TWD")
    )

    assert steps(line) == [(700, 0, 1000, TEN), (300, 0, 1000, 9), (300, 1000, None, 4)]


def test_teams_share_the_tiers_of_their_organization() -> None:
    rated = rate([text(3000, 1), text(1000, 2)], [version(tiers=TIERED)], currency="TWD")

    first, second = rated.lines
    assert [quantity for quantity, *_ in steps(first)] == [750, 1500, 750]
    assert [quantity for quantity, *_ in steps(second)] == [250, 500, 250]


def test_models_and_kinds_have_tiers_of_their_own() -> None:
    other = version(2, tiers=TIERED, model_name="other")
    usage = [text(1000), text(1000, price_id=2), Quantity(1, 1, Kind.OUT, 1000)]

    rated = rate(usage, [version(tiers=TIERED), other], currency="TWD")

    assert [steps(line) for line in rated.lines] == [[(1000, 0, 1000, TEN)]] * 3


def test_requests_are_billed_by_the_piece_and_only_if_they_cost_something() -> None:
    free = version(tiers=(Tier(0, 0),))
    usage = [Quantity(1, 1, Kind.REQUEST, 3)]

    assert rate(usage, [free], currency="TWD").lines == ()
    assert only(rate(usage, [version()], currency="TWD")).amount_pico == 3 * 7 * 10**6


def test_late_units_and_images_are_told_apart() -> None:
    images = Quantity(1, 1, Kind.IMAGE_IN, 6404, images=1)
    late = replace(images, units=12_808, images=2, late_units=12_808)

    line = only(rate([images, late], [version()], currency="TWD"))

    assert (line.quantity, line.late_quantity, line.images) == (19_212, 12_808, 3)


class TestAnAllowance:
    def test_the_first_units_are_free_at_the_rates_they_have(self) -> None:
        free = {("vlm", Kind.TEXT_IN): 1500}
        rated = rate([text(4000)], [version(tiers=TIERED)], currency="TWD", allowances=free)

        (credit,) = rated.credits
        assert steps(credit) == [(1000, 0, 1000, TEN), (500, 1000, 3000, FIVE)]
        assert credit.amount_pico == -(1000 * TEN + 500 * FIVE)

    def test_no_more_is_free_than_was_used(self) -> None:
        rated = rate(
            [text(700, 1), text(300, 2)],
            [version()],
            currency="TWD",
            allowances={("vlm", Kind.TEXT_IN): 5000},
        )

        assert [credit.quantity for credit in rated.credits] == [700, 300]
        assert rated.total_minor == 0

    def test_of_another_model_or_kind_is_nothing(self) -> None:
        free = {("vlm", Kind.OUT): 1500, ("other", Kind.TEXT_IN): 1500}

        assert rate([text(10)], [version()], currency="TWD", allowances=free).credits == ()

    def test_that_covers_all_leaves_nothing_to_pay_whatever_is_rounded(self) -> None:
        half = version(tiers=(Tier(0, 1_500_000_000_000),))  # each token NT$ 1.5
        usage = [text(1, team_id) for team_id in range(1, 8)]

        rated = rate(usage, [half], currency="TWD", allowances={("vlm", Kind.TEXT_IN): 7})

        assert [line.amount_minor for line in rated.lines] == [2] * 7
        assert rated.total_minor == 0


class TestWhatIsTakenBack:
    """Adjustments may take back more than a period has."""

    def test_a_negative_quantity_is_credited_at_the_first_tier(self) -> None:
        line = only(rate([text(-500)], [version(tiers=TIERED)], currency="TWD"))

        assert (line.quantity, line.amount_pico) == (-500, -500 * TEN)

    def test_what_one_team_took_back_is_in_its_own_line(self) -> None:
        usage = [text(-500, 1), text(2000, 2)]
        rated = rate(usage, [version(tiers=TIERED)], currency="TWD")

        first, second = rated.lines
        assert steps(first) == [(-500, 0, 1000, TEN)]
        assert steps(second) == [(1500, 0, 1000, TEN), (500, 1000, 3000, FIVE)]

    def test_quantities_that_cancel_out_cost_nothing(self) -> None:
        rated = rate([text(-500, 1), text(500, 2)], [version(tiers=TIERED)], currency="TWD")

        assert [line.amount_pico for line in rated.lines] == [-500 * TEN, 500 * TEN]


def test_discount_is_on_the_lines_less_the_allowance_and_tax_on_what_is_left() -> None:
    million = version(tiers=(Tier(0, 10**12),))  # each token costs one unit
    rated = rate(
        [text(1000)],
        [million],
        currency="TWD",
        allowances={("vlm", Kind.TEXT_IN): 100},
        discount_bp=1000,
        tax_bp=500,
    )

    assert rated.subtotal_minor == 900
    assert rated.discount_minor == -90
    assert rated.tax_minor == 40  # 40.5, half to even
    assert rated.total_minor == 850


def test_a_markup_is_a_discount_below_zero() -> None:
    million = version(tiers=(Tier(0, 10**12),))

    rated = rate([text(1000)], [million], currency="TWD", discount_bp=-250)

    assert (rated.subtotal_minor, rated.discount_minor) == (1000, 25)


def test_what_cannot_be_rated_is_refused() -> None:
    with pytest.raises(ValueError, match="price version 9 is not known"):
        rate([text(1, price_id=9)], [version()], currency="TWD")
    with pytest.raises(ValueError, match="not in USD"):
        rate([text(1)], [version()], currency="USD")


# --- Whatever way it comes in -----------------------------------------------------------------------------------

units = st.integers(0, 50_000)
tiers = st.builds(
    lambda starts, micros: tuple(
        Tier(start, micro) for start, micro in zip([0, *sorted(starts)], micros, strict=False)
    ),
    st.sets(st.integers(1, 60_000), max_size=3),
    st.lists(st.integers(0, 10**9), min_size=4, max_size=4),
)
versions = st.lists(
    st.tuples(tiers, st.sampled_from(TierMode), st.sampled_from(MODELS)), min_size=4, max_size=4
).map(
    lambda rows: [
        version(
            number,
            tiers=ladder,
            mode=mode,
            model_name=model,
            effective_from=SINCE + timedelta(days=number % 3),
        )
        for number, (ladder, mode, model) in enumerate(rows, start=1)
    ]
)
usages = st.lists(
    st.builds(
        Quantity, st.integers(1, 4), st.integers(1, 4), st.sampled_from(Kind), units, images=units
    ),
    max_size=30,
)
frees = st.dictionaries(st.tuples(st.sampled_from(MODELS), st.sampled_from(Kind)), units)


def split(usage: Sequence[Quantity], seed: int) -> list[Quantity]:
    """Return the same usage as requests of any size in any order, some with nothing in them."""
    chance = random.Random(seed)
    found = []
    for quantity in usage:
        cuts = sorted(chance.randint(0, quantity.units) for _ in range(chance.randint(0, 5)))
        ends = [0, *cuts, quantity.units]
        parts = [replace(quantity, units=end - start, images=0) for start, end in pairwise(ends)]
        found += [replace(parts[0], images=quantity.images), *parts[1:]]
    chance.shuffle(found)
    return found


@settings(max_examples=250, deadline=None)
@given(usages, versions, frees, st.integers(-10_000, 10_000), st.integers(0, 9), st.integers())
def test_any_split_of_the_same_usage_is_the_same_invoice(
    usage: list[Quantity],
    versions: list[Version],
    free: dict[tuple[str, Kind], int],
    discount_bp: int,
    tax: int,
    seed: int,
) -> None:
    terms: dict[str, Any] = {"currency": "TWD", "allowances": free, "discount_bp": discount_bp}
    terms["tax_bp"] = tax * 100

    whole = rate(usage, versions, **terms)

    assert rate(split(usage, seed), list(reversed(versions)), **terms) == whole


@settings(max_examples=250, deadline=None)
@given(usages, versions, frees)
def test_everything_adds_up(
    usage: list[Quantity], versions: list[Version], free: dict[tuple[str, Kind], int]
) -> None:
    rated = rate(usage, versions, currency="TWD", allowances=free, discount_bp=333, tax_bp=500)

    rows: list[Line | Credit] = [*rated.lines, *rated.credits]
    used: dict[tuple[int, str, Kind], int] = defaultdict(int)
    names = {version.price_id: version.model_name for version in versions}
    for quantity in usage:
        used[quantity.team_id, names[quantity.price_id], quantity.kind] += quantity.units
    for line in rated.lines:
        assert line.quantity == sum(step.quantity for step in line.steps)
        assert line.quantity == used[line.team_id, line.model_name, line.kind]
        assert all(step.quantity > 0 for step in line.steps)
    for row in rows:
        assert abs(row.amount_pico) == sum(step.amount_pico for step in row.steps)
        assert row.amount_minor == to_minor(row.amount_pico, "TWD")
    assert rated.subtotal_minor == sum(row.amount_minor for row in rows) >= 0
    assert rated.total_minor == rated.subtotal_minor + rated.discount_minor + rated.tax_minor


@settings(max_examples=250, deadline=None)
@given(usages, versions)
def test_what_teams_pay_together_is_what_their_organization_would_pay_as_one_team(
    usage: list[Quantity], versions: list[Version]
) -> None:
    apart = rate(usage, versions, currency="TWD")
    as_one = rate([replace(each, team_id=1) for each in usage], versions, currency="TWD")

    def by_step(rated: Rated) -> dict[object, int]:
        sums: dict[object, int] = defaultdict(int)
        for line in rated.lines:
            for step in line.steps:
                place = (step.price_id, line.kind, step.from_units, step.micro)
                sums[place] += step.quantity
        return sums

    assert by_step(apart) == by_step(as_one)


def test_a_team_whose_share_of_the_free_units_is_nothing_has_no_credit() -> None:
    rated = rate(
        [text(1, 1), text(1, 2)],
        [version()],
        currency="TWD",
        allowances={("vlm", Kind.TEXT_IN): 1},
    )

    assert [(credit.team_id, credit.quantity) for credit in rated.credits] == [(1, 1)]


@settings(max_examples=250, deadline=None)
@given(usages, versions, frees)
def test_no_line_pays_for_more_than_the_free_units_leave(
    usage: list[Quantity], versions: list[Version], free: dict[tuple[str, Kind], int]
) -> None:
    rated = rate(usage, versions, currency="TWD", allowances=free)

    lines = {(line.team_id, line.model_name, line.kind): line for line in rated.lines}
    freed: dict[tuple[str, Kind], int] = defaultdict(int)
    for credit in rated.credits:
        line = lines[credit.team_id, credit.model_name, credit.kind]
        assert 0 < credit.quantity <= line.quantity
        assert line.amount_minor + credit.amount_minor >= 0
        freed[credit.model_name, credit.kind] += credit.quantity
    for key, quantity in freed.items():
        used = sum(line.quantity for line in rated.lines if (line.model_name, line.kind) == key)
        assert quantity == min(free[key], used)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(units, units, units, units), max_size=20),
    st.tuples(*[st.integers(0, 10**9)] * 5),
)
def test_a_period_without_tiers_costs_what_its_requests_were_booked_at(
    requests: list[tuple[int, int, int, int]], micro: tuple[int, int, int, int, int]
) -> None:
    rates = Rates(1, "TWD", *micro, SINCE)
    booked = sum(rating.amount_pico(rates, Tokens(*tokens)) for tokens in requests)
    kinds = list(zip(Kind, [*map(sum, zip(*requests, strict=True)), len(requests)], strict=False))

    amounts = {kind: (Tier(0, amount),) for kind, amount in zip(Kind, micro, strict=True)}
    flat = replace(version(), tiers=amounts)
    usage = [Quantity(1, 1, kind, total) for kind, total in kinds] if requests else []
    rated = rate(usage, [flat], currency="TWD")

    assert sum(line.amount_pico for line in rated.lines) == booked


@settings(max_examples=250, deadline=None)
@given(tiers, st.integers(-9000, 90_000), st.integers(-9000, 90_000))
def test_pieces_cost_the_difference_between_two_positions(
    ladder: tuple[Tier, ...], position: int, units: int
) -> None:
    def cost(start: int, units: int) -> int:
        found = pieces(ladder, TierMode.GRADUATED, position=start, units=units, total=0)
        assert sum(piece.quantity for piece in found) == units
        return sum(piece.quantity * piece.micro for piece in found)

    assert cost(position, units) == cost(0, position + units) - cost(0, position)


@settings(max_examples=250, deadline=None)
@given(st.dictionaries(st.integers(1, 9), st.integers(-999, 9999)), st.data())
def test_shares_are_exact_by_piece_and_by_team(by_team: dict[int, int], data: Any) -> None:
    total = sum(by_team.values())
    cut = data.draw(st.integers(min(0, total), max(0, total)))

    found = shares([cut, total - cut], by_team)

    assert [sum(part.values()) for part in found] == [cut, total - cut]
    for team_id, units in by_team.items():
        assert sum(part.get(team_id, 0) for part in found) == units


@given(st.dictionaries(st.integers(1, 9), st.integers(0, 9999), min_size=1), st.data())
def test_a_share_is_within_one_of_its_proportion(weights: dict[int, int], data: Any) -> None:
    whole = sum(weights.values())
    amount = data.draw(st.integers(0, whole))

    for key, share in apportion(amount, weights).items():
        assert 0 <= share <= weights[key]
        if whole:
            assert abs(Fraction(amount * weights[key], whole) - share) < 1


@given(st.integers(), st.integers(1, 10**15))
def test_rounding_is_half_to_even(numerator: int, denominator: int) -> None:
    assert round_half_even(numerator, denominator) == round(Fraction(numerator, denominator))
