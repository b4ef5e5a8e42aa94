"""The main colours of a picture, by the names that people use for them."""

from dataclasses import dataclass
from enum import Enum

from PIL import Image

SIDE_PX = 96  # enough for shares in whole per cent, and the same work for every picture
SHARE_PERCENT_MIN = 5
COLOURS_MAX = 4


class Colour(Enum):
    """A colour, named in English and in Chinese."""

    BLACK = ("black", "黑色")
    DARK_GREY = ("dark grey", "深灰色")
    GREY = ("grey", "灰色")
    LIGHT_GREY = ("light grey", "淺灰色")
    WHITE = ("white", "白色")
    RED = ("red", "紅色")
    DARK_RED = ("dark red", "深紅色")
    PINK = ("pink", "粉紅色")
    ORANGE = ("orange", "橘色")
    BROWN = ("brown", "棕色")
    BEIGE = ("beige", "米色")
    YELLOW = ("yellow", "黃色")
    GREEN = ("green", "綠色")
    DARK_GREEN = ("dark green", "深綠色")
    LIGHT_GREEN = ("light green", "淺綠色")
    CYAN = ("cyan", "青色")
    LIGHT_BLUE = ("light blue", "淺藍色")
    BLUE = ("blue", "藍色")
    DARK_BLUE = ("dark blue", "深藍色")
    PURPLE = ("purple", "紫色")

    @property
    def english(self) -> str:
        return self.value[0]

    @property
    def chinese(self) -> str:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class ColourShare:
    """A colour, and the part of the picture that has it."""

    colour: Colour
    percent: int


# Several points for one name: distances in RGB are not distances to the eye.
POINTS: tuple[tuple[Colour, tuple[int, int, int]], ...] = (
    (Colour.BLACK, (0, 0, 0)),
    (Colour.BLACK, (28, 28, 28)),
    (Colour.DARK_GREY, (72, 72, 72)),
    (Colour.GREY, (128, 128, 128)),
    (Colour.GREY, (160, 160, 160)),
    (Colour.LIGHT_GREY, (196, 196, 196)),
    (Colour.LIGHT_GREY, (222, 224, 228)),
    (Colour.WHITE, (255, 255, 255)),
    (Colour.WHITE, (244, 244, 242)),
    (Colour.RED, (255, 0, 0)),
    (Colour.RED, (214, 30, 40)),
    (Colour.RED, (240, 70, 60)),
    (Colour.DARK_RED, (140, 10, 20)),
    (Colour.DARK_RED, (90, 10, 16)),
    (Colour.PINK, (255, 182, 200)),
    (Colour.PINK, (245, 110, 165)),
    (Colour.ORANGE, (255, 140, 0)),
    (Colour.ORANGE, (240, 110, 40)),
    (Colour.BROWN, (139, 84, 40)),
    (Colour.BROWN, (92, 58, 34)),
    (Colour.BROWN, (170, 120, 80)),
    (Colour.BEIGE, (245, 235, 210)),
    (Colour.BEIGE, (222, 200, 165)),
    (Colour.YELLOW, (255, 255, 0)),
    (Colour.YELLOW, (255, 200, 20)),
    (Colour.YELLOW, (250, 230, 110)),
    (Colour.GREEN, (0, 200, 0)),
    (Colour.GREEN, (50, 150, 60)),
    (Colour.GREEN, (110, 160, 60)),
    (Colour.DARK_GREEN, (10, 80, 30)),
    (Colour.DARK_GREEN, (50, 75, 40)),
    (Colour.LIGHT_GREEN, (150, 230, 150)),
    (Colour.LIGHT_GREEN, (195, 235, 180)),
    (Colour.CYAN, (0, 255, 255)),
    (Colour.CYAN, (20, 160, 165)),
    (Colour.LIGHT_BLUE, (135, 200, 240)),
    (Colour.LIGHT_BLUE, (180, 215, 240)),
    (Colour.BLUE, (0, 0, 255)),
    (Colour.BLUE, (40, 105, 210)),
    (Colour.BLUE, (70, 130, 180)),
    (Colour.DARK_BLUE, (0, 0, 110)),
    (Colour.DARK_BLUE, (20, 50, 110)),
    (Colour.DARK_BLUE, (25, 35, 65)),
    (Colour.PURPLE, (128, 0, 128)),
    (Colour.PURPLE, (150, 100, 200)),
    (Colour.PURPLE, (80, 40, 120)),
)


def main_colours(image: Image.Image) -> tuple[ColourShare, ...]:
    """Name the colours that fill most of an RGB picture, largest first.

    At most COLOURS_MAX of them, each at least SHARE_PERCENT_MIN of the picture; rounded down.
    """
    # Nearest, not averaged: a mean of two colours at an edge is a colour that is not there.
    small = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.NEAREST)
    named = small.quantize(palette=_palette(), dither=Image.Dither.NONE)
    pixels: dict[Colour, int] = {}
    for index, count in enumerate(named.histogram()):
        colour = POINTS[index % len(POINTS)][0]
        pixels[colour] = pixels.get(colour, 0) + count
    shares = [ColourShare(colour, 100 * n // SIDE_PX**2) for colour, n in pixels.items()]
    large = [share for share in shares if share.percent >= SHARE_PERCENT_MIN]
    large.sort(key=lambda share: -share.percent)
    return tuple(large[:COLOURS_MAX])


def _palette() -> Image.Image:
    """Return an image that carries our points as its 256 colours, repeated to fill it."""
    palette = Image.new("P", (1, 1))
    palette.putpalette([band for index in range(256) for band in POINTS[index % len(POINTS)][1]])
    return palette
