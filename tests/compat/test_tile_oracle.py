"""The tile rule against the model's own image processor in transformers (`make compat`)."""

import random
from collections.abc import Iterator
from typing import Final

import pytest

from gateway.counting.tiles import fit

mllama = pytest.importorskip(
    "transformers.models.mllama.image_processing_pil_mllama",
    reason="transformers is not installed: `make compat` installs it",
)

RANDOM_SIZES: Final = 150_000
SIDE_PX_MAX: Final = 6_000


def grid() -> Iterator[tuple[int, int]]:
    for width_px in range(1, 2_400, 9):
        for height_px in range(1, 2_400, 9):
            yield width_px, height_px


def at_random() -> Iterator[tuple[int, int]]:
    source = random.Random(560)
    for _ in range(RANDOM_SIZES // 2):
        yield source.randint(1, SIDE_PX_MAX), source.randint(1, SIDE_PX_MAX)
        yield int(10 ** source.uniform(0, 6)), int(10 ** source.uniform(0, 6))


def near_boundaries() -> Iterator[tuple[int, int]]:
    for step in range(1, 40):
        for width, height in ((w, h) for w in range(1, 9) for h in range(1, 9)):
            for off_by in (-1, 0, 1):
                yield width * step * 35 + off_by, height * step * 35


@pytest.mark.parametrize("sizes", [grid, at_random, near_boundaries])
def test_every_size_gets_the_canvas_that_transformers_gives_it(sizes) -> None:
    wrong = [size for size in sizes() if canvas_of(*size) != reference(*size)]
    assert not wrong, f"{len(wrong)} sizes differ, such as {wrong[:5]}"


def canvas_of(width_px: int, height_px: int) -> tuple[int, int]:
    canvas = fit(width_px, height_px)
    return canvas.width_px, canvas.height_px


def reference(width_px: int, height_px: int) -> tuple[int, int]:
    height, width = mllama.get_optimal_tiled_canvas(
        image_height=height_px, image_width=width_px, max_image_tiles=4, tile_size=560
    )
    return int(width), int(height)
