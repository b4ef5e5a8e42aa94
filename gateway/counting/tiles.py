"""How many tiles, and so how many tokens, an image costs a Llama 3.2 vision model.

The model looks at an image through a canvas of at most four tiles of 560 × 560 px. The image is
scaled, never cropped, to the canvas that suits it best:

- where it fits some canvas at its own size or larger, the canvas that enlarges it least;
- otherwise the canvas that shrinks it least;
- where two canvases give the same scale, the one with fewer tiles.

Each tile costs 1601 tokens: (560 / 14)² patches and one for the class.

Source: AFS's vision API, "圖片轉換為 Token 的計算方式". It equals `get_optimal_tiled_canvas` of the
Mllama image processor in transformers, and not ceil(width / 560) · ceil(height / 560), which
overcharges 15 % of sizes.
"""

from dataclasses import dataclass
from typing import Final

TILE_PX: Final = 560
TILES_MAX: Final = 4
TOKENS_PER_TILE: Final = 1601


@dataclass(frozen=True, slots=True)
class Canvas:
    """The area an image is fitted into: whole tiles, `tiles` of them, worth `tokens`."""

    width_px: int
    height_px: int
    tiles: int
    tokens: int


def _canvases() -> tuple[Canvas, ...]:
    """Return every canvas of up to TILES_MAX tiles, fewest tiles first: the order decides ties."""
    shapes = [
        (across, down)
        for across in range(1, TILES_MAX + 1)
        for down in range(1, TILES_MAX // across + 1)
    ]
    return tuple(
        Canvas(across * TILE_PX, down * TILE_PX, across * down, across * down * TOKENS_PER_TILE)
        for across, down in sorted(shapes, key=lambda shape: shape[0] * shape[1])
    )


CANVASES: Final = _canvases()
_SIDES_PX: Final = tuple((canvas.width_px, canvas.height_px) for canvas in CANVASES)


def fit(width_px: int, height_px: int) -> Canvas:
    """Return the canvas for an image of this size; ValueError for a side under one pixel.

    Scales are integers over one denominator, width_px · height_px, so nothing is rounded. Swapping
    the sides swaps the canvas and keeps the tokens: a rotation in EXIF costs nothing.

    >>> fit(840, 1400)
    Canvas(width_px=1120, height_px=1120, tiles=4, tokens=6404)
    >>> fit(570, 1180).tiles
    3
    """
    if width_px < 1 or height_px < 1:
        raise ValueError(f"an image of {width_px} × {height_px} px has no tiles")
    unscaled = width_px * height_px
    scales = [
        across if (across := wide_px * height_px) < (down := high_px * width_px) else down
        for wide_px, high_px in _SIDES_PX
    ]
    enlarging = [scale for scale in scales if scale >= unscaled]
    best = min(enlarging) if enlarging else max(scales)
    return CANVASES[scales.index(best)]
