"""What can honestly be said about one image: its text, size, format and colours.

Synchronous and heavy: it belongs in a thread.
"""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from PIL import Image, ImageOps, UnidentifiedImageError

from demo.colours import ColourShare, main_colours
from demo.refusals import BadImage

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
PIXELS_MAX = 50_000_000  # 150 MB once decoded
SIDE_MAX_PX = 1600  # of what is read; the time and the memory grow with the area
LONE_SCORE_MIN = 0.9
LINES_MAX = 200
EXIF_ORIENTATION = 0x0112

Image.MAX_IMAGE_PIXELS = PIXELS_MAX


@dataclass(frozen=True, slots=True)
class Reading:
    """What is in an image. Its size is as it is seen, after the rotation that EXIF asks for."""

    format: str
    width_px: int
    height_px: int
    lines: tuple[str, ...]
    colours: tuple[ColourShare, ...]

    @property
    def size_px(self) -> tuple[int, int]:
        return self.width_px, self.height_px


@dataclass(frozen=True, slots=True)
class Fragment:
    """A run of text that was found: its place in pixels, and how sure that is, 0 to 1."""

    text: str
    score: float
    left: float
    top: float
    bottom: float

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


class TextFinder(Protocol):
    """What finds the text in an RGB picture."""

    def find(self, picture: Image.Image) -> list[Fragment]: ...


def read(content: bytes, finder: TextFinder) -> Reading:
    """Read one image. Of an animated one, only the first frame. Raise BadImage."""
    image, picture = _decode(content)
    width_px, height_px = _size_as_seen(image)
    return Reading(
        format=image.format or "",
        width_px=width_px,
        height_px=height_px,
        lines=lines_of(finder.find(picture)),
        colours=main_colours(picture),
    )


def lines_of(fragments: Iterable[Fragment]) -> tuple[str, ...]:
    """Put fragments that stand side by side on one line, and drop what is likely noise."""
    rows: list[list[Fragment]] = []
    for fragment in sorted(fragments, key=lambda one: (one.middle, one.left)):
        if rows and fragment.middle < rows[-1][0].bottom:
            rows[-1].append(fragment)
        else:
            rows.append([fragment])
    return tuple(_line(row) for row in rows if not _is_noise(row))[:LINES_MAX]


def _line(row: list[Fragment]) -> str:
    return "  ".join(one.text for one in sorted(row, key=lambda one: one.left))


def _is_noise(row: list[Fragment]) -> bool:
    """A lone sign on its row is mostly a circle read as 0; a Chinese word can be that short."""
    if len(row) > 1 or len(row[0].text) > 1:
        return not any(one.text for one in row)
    lone = row[0]
    return not ("\u4e00" <= lone.text <= "\u9fff" and lone.score >= LONE_SCORE_MIN)


def _decode(content: bytes) -> tuple[Image.Image, Image.Image]:
    """Return the opened image, and its picture upright, in RGB, at most SIDE_MAX_PX long."""
    if not content:
        raise BadImage("The image is empty.", code="empty_image_file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        return image, _upright(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        message = f"An image may have at most {PIXELS_MAX:,} pixels."
        raise BadImage(message, code="image_too_large") from error
    except UnidentifiedImageError as error:
        message = f"This is not an image of a format that can be read: {', '.join(FORMATS)}."
        raise BadImage(message, code="unsupported_image_media_type") from error
    # Pillow's decoders raise all of these over broken files.
    except (OSError, SyntaxError, ValueError, IndexError, TypeError, EOFError) as error:
        raise BadImage("The image is broken.", code="image_parse_error") from error


def _upright(image: Image.Image) -> Image.Image:
    picture = image.copy()
    picture.thumbnail((SIDE_MAX_PX, SIDE_MAX_PX))
    picture = ImageOps.exif_transpose(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _size_as_seen(image: Image.Image) -> tuple[int, int]:
    lies_on_its_side = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if lies_on_its_side else (image.width, image.height)
