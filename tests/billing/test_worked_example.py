from dataclasses import replace
from datetime import UTC, datetime

from billing import worked_example
from billing.rating import Rates
from gateway.counting import tiles

RATES = Rates(
    price_id=1,
    currency="TWD",
    text_in_micro=12_500_000,
    image_in_micro=15_000_000,
    cached_in_micro=6_000_000,
    out_micro=40_000_000,
    request_micro=0,
    effective_from=datetime(2026, 1, 1, tzinfo=UTC),
)


def test_the_image_of_the_example_is_counted_as_the_counter_counts_it() -> None:
    side = worked_example.IMAGE_SIDE_PX

    assert tiles.fit(side, side).tokens == worked_example.IMAGE_TOKENS


def test_a_price_is_told_in_what_things_cost() -> None:
    assert worked_example.lines(RATES) == [
        "a 1120×1120 image costs TWD 0.096060 (6404 tokens)",
        "1000 tokens of text cost TWD 0.012500 in and TWD 0.040000 out",
        "20 tokens about that image, answered in 200, cost TWD 0.104310",
    ]


def test_a_fee_is_in_the_request_and_not_in_the_tokens() -> None:
    image, text, request = worked_example.lines(replace(RATES, request_micro=500_000))

    assert [image, text] == worked_example.lines(RATES)[:2]
    assert request.endswith("TWD 0.604310")


def test_a_thousandfold_change_is_suspicious_in_both_directions() -> None:
    dearer = replace(RATES, text_in_micro=12_500_000_000, out_micro=39_999_999_999)
    cheaper = replace(RATES, image_in_micro=15_000)

    assert worked_example.suspicions(dearer, RATES) == ["text_in goes from 12.50 to 12500.00"]
    assert worked_example.suspicions(cheaper, RATES) == ["image_in goes from 15.00 to 0.015"]


def test_a_price_of_nothing_is_a_choice_and_no_slip() -> None:
    free = replace(RATES, text_in_micro=0, image_in_micro=0, cached_in_micro=0, out_micro=0)

    assert worked_example.suspicions(free, RATES) == []
    assert worked_example.suspicions(RATES, free) == []
