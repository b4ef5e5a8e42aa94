import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import format_micro, format_pico, parse_micro


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("12.5", 12_500_000),
        ("0", 0),
        ("0.000001", 1),
        (" 40 ", 40_000_000),
        ("007.10", 7_100_000),
        ("999999999999999.999999", 999_999_999_999_999_999_999),
    ],
)
def test_an_amount_is_read_exactly(text: str, micro: int) -> None:
    assert parse_micro(text) == micro


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".5",
        "5.",
        "-1",
        "+1",
        "1e3",
        "1,000",
        "1_000",
        "NaN",
        "Infinity",
        "１２",
        "1 2",
        "1" * 16,
    ],
)
def test_what_is_no_plain_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a plain number"):
        parse_micro(text)


def test_a_seventh_decimal_is_refused_rather_than_rounded() -> None:
    with pytest.raises(ValueError, match="more than 6 decimals"):
        parse_micro("0.0000125")


@pytest.mark.parametrize(
    ("pico", "decimals_min", "text"),
    [
        (0, 2, "0.00"),
        (0, 0, "0"),
        (96_060_000_000, 2, "0.09606"),
        (96_060_000_000, 6, "0.096060"),
        (1, 2, "0.000000000001"),
        (3_000_000_000_000, 0, "3"),
        (-1_500_000_000_000, 2, "-1.50"),
        (1_234_567_000_000_000_001, 2, "1234567.000000000001"),
    ],
)
def test_an_amount_is_written_in_full(pico: int, decimals_min: int, text: str) -> None:
    assert format_pico(pico, decimals_min=decimals_min) == text


@given(st.integers(min_value=0, max_value=10**21 - 1), st.integers(min_value=0, max_value=6))
def test_what_is_written_is_read_back(micro: int, decimals_min: int) -> None:
    assert parse_micro(format_micro(micro, decimals_min=decimals_min)) == micro
