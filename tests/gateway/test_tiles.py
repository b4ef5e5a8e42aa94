"""The tile rule against AFS's document, against exact fractions, and against the rule it is not."""

import doctest
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.counting import tiles
from gateway.counting.tiles import CANVASES, Canvas, fit

# AFS's table: width, height, units, tokens.
TABLE = [
    (560, 560, 1, 1601),
    (560, 1120, 2, 3202),
    (560, 1680, 3, 4803),
    (560, 2240, 4, 6404),
    (1120, 1120, 4, 6404),
    (2240, 560, 4, 6404),
    (1680, 560, 3, 4803),
    (1120, 560, 2, 3202),
]
# AFS's five examples, and the canvas that its text gives for each.
EXAMPLES = [
    ((200, 280), (560, 560)),
    ((1792, 280), (2240, 560)),
    ((840, 1400), (1120, 1120)),
    ((570, 1180), (560, 1680)),
    ((840, 840), (1120, 1120)),
]
# Sizes that people send, with their tiles, where rounding each side up to whole tiles says more.
OVERCHARGED_BY_ROUNDING_UP = [
    ((1170, 2532), 3),
    ((1080, 2400), 3),
    ((1440, 3120), 3),
    ((3440, 1440), 3),
    ((2560, 1080), 3),
    ((800, 2400), 3),
    ((600, 1200), 2),
]

pixels = st.integers(1, 20_000)
# Where the choice turns: sides in simple ratios to a tile, and a pixel or two beside them.
near_a_boundary = st.builds(
    lambda parts, divisor, offset: max(1, tiles.TILE_PX * parts // divisor + offset),
    st.integers(1, 16),
    st.integers(1, 6),
    st.integers(-2, 2),
)
sides = pixels | near_a_boundary


def best_canvas_by_fractions(width_px: int, height_px: int) -> tuple[int, int]:
    """The rule in words: the canvas that enlarges least, else shrinks least, else is smaller."""

    def cost(shape: tuple[int, int]) -> tuple[bool, Fraction, int]:
        scale = min(Fraction(560 * shape[0], width_px), Fraction(560 * shape[1], height_px))
        return scale < 1, abs(scale - 1), shape[0] * shape[1]

    shapes = [(w, h) for w in range(1, 5) for h in range(1, 5) if w * h <= 4]
    across, down = min(shapes, key=cost)
    return 560 * across, 560 * down


def test_the_canvases_are_those_of_the_table() -> None:
    assert {(c.width_px, c.height_px, c.tiles, c.tokens) for c in CANVASES} == set(TABLE)
    assert len(CANVASES) == len(TABLE)


@pytest.mark.parametrize("row", TABLE)
def test_an_image_as_large_as_a_canvas_costs_that_canvas(row: tuple[int, int, int, int]) -> None:
    assert fit(row[0], row[1]) == Canvas(*row)


@pytest.mark.parametrize(("size", "canvas"), EXAMPLES)
def test_the_documents_examples_come_out(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    fitted = fit(*size)
    assert (fitted.width_px, fitted.height_px) == canvas
    assert fitted.tokens == {(w, h): tokens for w, h, _, tokens in TABLE}[canvas]


@settings(max_examples=400)
@given(sides, sides)
def test_the_rule_equals_exact_fractions(width_px: int, height_px: int) -> None:
    fitted = fit(width_px, height_px)
    expected = best_canvas_by_fractions(width_px, height_px)
    assert (fitted.width_px, fitted.height_px) == expected


def test_small_sizes_all_equal_exact_fractions() -> None:
    for width_px in range(1, 1300, 53):
        for height_px in range(1, 2600, 53):
            fitted = fit(width_px, height_px)
            expected = best_canvas_by_fractions(width_px, height_px)
            assert (fitted.width_px, fitted.height_px) == expected


@given(sides, sides)
def test_turning_an_image_does_not_change_its_tokens(width_px: int, height_px: int) -> None:
    upright, turned = fit(width_px, height_px), fit(height_px, width_px)
    assert upright.tokens == turned.tokens
    assert (upright.width_px, upright.height_px) == (turned.height_px, turned.width_px)


def test_equal_scales_go_to_the_fewest_tiles() -> None:
    """560 × 1120 fits 1×2, 1×3, 1×4 and 2×2 tiles, each at its own size."""
    assert fit(560, 1120).tiles == 2


@pytest.mark.parametrize(("size", "tiles_expected"), OVERCHARGED_BY_ROUNDING_UP)
def test_it_is_not_each_side_rounded_up(size: tuple[int, int], tiles_expected: int) -> None:
    rounded_up = min(4, ceil(size[0] / 560) * ceil(size[1] / 560))
    assert fit(*size).tiles == tiles_expected < rounded_up


@pytest.mark.parametrize("size", [(0, 1), (1, 0), (-1, 560), (0, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="has no tiles"):
        fit(*size)


@pytest.mark.parametrize(
    ("size", "tiles_expected"), [((1, 1), 1), ((1, 10**9), 4), ((10**9, 1), 4)]
)
def test_extreme_sizes_have_a_canvas(size: tuple[int, int], tiles_expected: int) -> None:
    assert fit(*size).tiles == tiles_expected


def test_the_examples_in_the_documentation_run() -> None:
    results = doctest.testmod(tiles)
    assert results.attempted
    assert not results.failed
