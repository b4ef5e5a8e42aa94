"""What an image says about itself in its first bytes: format, size, still or moving.

The content decides, never a name or a declared type, and no pixel is decoded. Three rules keep the
measured size the size that a backend will see:

* A file that states its size twice is refused: decoders differ in which one they believe.
* A length met on the way to the size that points past the end of the file means that the file is
  cut off. What comes after (image data, trailers) is not looked at: many decoders show a picture
  whose end is missing, and it is not for a gateway to be stricter than they are.
* EXIF orientation is not applied. The canvases that tokens are counted on are symmetric, so turning
  an image does not change its count.
"""

import re
from binascii import crc32
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct
from struct import error as StructError

from gateway.errors import InvalidImage
from gateway.images import ImageLimits

SIGNATURE_BYTES = 12  # enough to tell the formats apart
SEGMENTS_MAX = (
    4096  # PNG chunks or JPEG segments before the image data; real files have a few dozen
)
GIF_STEPS_MAX = 65_536  # jumps through a GIF's blocks; 64 equal sub-blocks are one jump


class ImageFormat(StrEnum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    GIF = "gif"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    format: ImageFormat
    width_px: int
    height_px: int
    is_animated: bool = False


def check_file_size(file_bytes: int, limits: ImageLimits) -> None:
    """Raise InvalidImage for an empty file and for one above `limits.file_bytes_max`."""
    if not file_bytes:
        raise InvalidImage("The image is empty.", code="empty_image_file")
    if file_bytes > limits.file_bytes_max:
        raise InvalidImage(
            f"The image file is larger than {limits.file_bytes_max} bytes.",
            code="image_file_too_large",
        )


def check_header(header: ImageHeader, limits: ImageLimits) -> None:
    """Raise InvalidImage for an animation, and for a size outside the limits."""
    if header.is_animated:
        raise InvalidImage(
            "Animated images are not supported: send one frame.",
            code="unsupported_image_media_type",
        )
    size = f"The image is {header.width_px} x {header.height_px} pixels"
    if max(header.width_px, header.height_px) > limits.side_px_max:
        raise InvalidImage(
            f"{size}; a side may have at most {limits.side_px_max}.", code="image_too_large"
        )
    if header.width_px * header.height_px > limits.pixels_max:
        raise InvalidImage(
            f"{size}; it may have at most {limits.pixels_max} in all.", code="image_too_large"
        )
    if min(header.width_px, header.height_px) < limits.side_px_min:
        raise InvalidImage(
            f"{size}; a side must have at least {limits.side_px_min}.", code="image_too_small"
        )


def read_header(head: bytes, *, file_bytes: int) -> ImageHeader | None:
    """Read the header from the first bytes of a file of `file_bytes` bytes; None asks for more.

    Never None when `head` is the whole file. Raises InvalidImage: `unsupported_image_media_type`
    for other formats, `image_parse_error` for a broken or cut-off header. Applies no limits.
    """
    is_whole = len(head) >= file_bytes
    if len(head) < SIGNATURE_BYTES and not is_whole:
        return None
    read = READERS[sniff_format(head)]
    try:
        header = read(head, file_bytes)
    except (IndexError, StructError):  # The reader came to the end of the head.
        if is_whole:
            raise _broken("it is cut off") from None
        return None
    if not header.width_px or not header.height_px:
        raise _broken("it has no size")
    return header


def sniff_format(head: bytes | bytearray) -> ImageFormat:
    """Tell the format by its signature, from SIGNATURE_BYTES or the whole file.

    Raises InvalidImage, code `unsupported_image_media_type`, for anything else.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return ImageFormat.JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ImageFormat.PNG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ImageFormat.WEBP
    if head.startswith((b"GIF89a", b"GIF87a")):
        return ImageFormat.GIF
    raise InvalidImage(
        "The image is not a PNG, JPEG, WebP or static GIF.", code="unsupported_image_media_type"
    )


# The readers below index the head freely: reading past its end raises, and `read_header` knows why.

U32 = Struct(">I")
PNG_CHUNK = Struct(">I4s")
PNG_IHDR = Struct(">I4sII")
PNG_IHDR_END = 33


def _read_png(head: bytes, file_bytes: int) -> ImageHeader:
    """PNG, third edition: IHDR is the first chunk, 13 bytes; acTL, if any, comes before IDAT."""
    length, kind, width_px, height_px = PNG_IHDR.unpack_from(head, 8)
    (checksum,) = U32.unpack_from(head, 29)
    if length != 13 or kind != b"IHDR" or crc32(head[12:29]) != checksum:
        raise _broken("its IHDR chunk is damaged")
    return ImageHeader(ImageFormat.PNG, width_px, height_px, _is_apng(head, file_bytes))


def _is_apng(head: bytes, file_bytes: int) -> bool:
    """Walk to the image data: an animation of more than one frame announces itself before it."""
    position, frames = PNG_IHDR_END, 1
    for _ in range(SEGMENTS_MAX):
        length, kind = PNG_CHUNK.unpack_from(head, position)
        end = position + 12 + length
        if end > file_bytes:
            raise _broken("it is cut off")
        if kind == b"IDAT":
            return frames > 1
        if kind in (b"IHDR", b"IEND"):
            raise _broken(f"a {kind.decode()} chunk is out of place")
        if kind == b"acTL":
            frames = max(frames, *U32.unpack_from(head, position + 8))
        position = end
    raise _broken("it has too many chunks before its image data")


JPEG_SEGMENT = Struct(">H")
JPEG_FRAME = Struct(">HBHH")  # length, precision, height, width
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")  # 0xFF before 0xFF is filling, before 0x00 is data
JPEG_SOS, JPEG_TEM = 0xDA, 0x01
JPEG_RST = range(0xD0, 0xD8)
# Baseline, extended, progressive and lossless, in Huffman and arithmetic coding. Not the
# hierarchical ones, which hold several frames of different sizes and which no common decoder reads.
JPEG_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB})
# DHT, DAC, DQT, DNL, DRI, APP0 to APP15, COM.
JPEG_SKIPPED = frozenset({0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE})


def _read_jpeg(head: bytes, file_bytes: int) -> ImageHeader:
    """ITU T.81, annex B: segments up to the first scan, exactly one of them a frame header."""
    header = None
    for marker, position in _jpeg_segments(head):
        (length,) = JPEG_SEGMENT.unpack_from(head, position)
        if length < 2:
            raise _broken("a segment has no length")
        if position + length > file_bytes:
            raise _broken("it is cut off")
        if marker == JPEG_SOS:
            break
        if marker in JPEG_SOF:
            if header is not None:
                raise _broken("it states its size twice")
            _, _, height_px, width_px = JPEG_FRAME.unpack_from(head, position)
            header = ImageHeader(ImageFormat.JPEG, width_px, height_px)
        elif marker not in JPEG_SKIPPED:
            raise _broken(f"marker {marker:02X} is out of place")
    if header is None:
        raise _broken("it has no frame header")
    return header


def _jpeg_segments(head: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker that has a length, and where that stands; skip junk, as libjpeg does."""
    position = 2
    for _ in range(SEGMENTS_MAX):
        found = JPEG_MARKER.search(head, position)
        if found is None:
            raise IndexError("no marker in the rest of the head")
        position = found.end()
        marker = head[position - 1]
        if marker in JPEG_RST or marker == JPEG_TEM:
            continue
        yield marker, position
        position += JPEG_SEGMENT.unpack_from(head, position)[0]
    raise _broken("it has too many segments before its image data")


WEBP_RIFF = Struct("<I4s4s")  # size, b"WEBP", the first chunk's kind
WEBP_LOSSLESS = Struct("<I")  # 14 bits each for width - 1 and height - 1, 1 of alpha, 3 of version
WEBP_LOSSY = Struct("<HH")  # 14 bits each, above them 2 bits that ask for scaling and are ignored
WEBP_ANIMATION = 0x02


def _read_webp(head: bytes, file_bytes: int) -> ImageHeader:
    """RFC 9649. The RIFF size is checked: libwebp refuses a file that is shorter than it says."""
    size, _, kind = WEBP_RIFF.unpack_from(head, 4)
    if size > file_bytes - 8:
        raise _broken("it is cut off")
    is_animated = False
    if kind == b"VP8X":
        is_animated = bool(head[20] & WEBP_ANIMATION)
        width_px = 1 + (head[24] | head[25] << 8 | head[26] << 16)
        height_px = 1 + (head[27] | head[28] << 8 | head[29] << 16)
    elif kind == b"VP8 ":
        width_px, height_px = (side & 0x3FFF for side in WEBP_LOSSY.unpack_from(head, 26))
        if head[20] & 1 or head[23:26] != b"\x9d\x01\x2a":
            raise _broken("it does not start with a key frame")
    elif kind == b"VP8L":
        (bits,) = WEBP_LOSSLESS.unpack_from(head, 21)
        width_px, height_px = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if head[20] != 0x2F or bits >> 29:
            raise _broken("its lossless signature is wrong")
    else:
        raise _broken("its first chunk is not an image")
    return ImageHeader(ImageFormat.WEBP, width_px, height_px, is_animated)


GIF_SCREEN = Struct("<HHB")  # width, height, flags
GIF_IMAGE = Struct("<HHHHB")  # left, top, width, height, flags
GIF_SCREEN_END = 13
GIF_EQUAL_BLOCKS = 64


def _read_gif(head: bytes, file_bytes: int) -> ImageHeader:
    """GIF89a. A first image that overlaps its screen enlarges it, as browsers and Pillow do."""
    steps = iter(range(GIF_STEPS_MAX))  # one allowance for the whole walk
    screen_width_px, screen_height_px, flags = GIF_SCREEN.unpack_from(head, 6)
    image = _next_gif_image(head, GIF_SCREEN_END + _color_table_bytes(flags), steps)
    if image is None:
        raise _broken("it holds no image")
    left, top, width_px, height_px, flags = GIF_IMAGE.unpack_from(head, image + 1)
    pixels = image + 11 + _color_table_bytes(flags)
    return ImageHeader(
        ImageFormat.GIF,
        max(screen_width_px, left + width_px),
        max(screen_height_px, top + height_px),
        is_animated=_has_gif_image_after(head, pixels, steps, file_bytes),
    )


def _has_gif_image_after(head: bytes, pixels: int, steps: Iterator[int], file_bytes: int) -> bool:
    try:
        return _next_gif_image(head, _end_of_sub_blocks(head, pixels, steps), steps) is not None
    except IndexError:
        if len(head) < file_bytes:
            raise
        return False  # No trailer: decoders show the one image that is there.


def _next_gif_image(head: bytes, position: int, steps: Iterator[int]) -> int | None:
    """Return where the next image descriptor starts; None at the trailer, or at what is not GIF."""
    for _ in steps:
        if head[position] == ord(","):
            return position
        if head[position] != ord("!"):
            return None
        position = _end_of_sub_blocks(head, position + 2, steps)
    raise _broken("it has too many blocks")


def _end_of_sub_blocks(head: bytes, position: int, steps: Iterator[int]) -> int:
    """Return the end of a chain of sub-blocks, jumping over runs of equally long ones."""
    for _ in steps:
        size = head[position]
        if not size:
            return position + 1
        stride = size + 1
        run = head[position : position + stride * GIF_EQUAL_BLOCKS : stride]
        position += stride * (GIF_EQUAL_BLOCKS if run.count(size) == GIF_EQUAL_BLOCKS else 1)
    raise _broken("it has too many blocks")


def _color_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _broken(detail: str) -> InvalidImage:
    return InvalidImage(f"The image cannot be read: {detail}.", code="image_parse_error")


READERS: dict[ImageFormat, Callable[[bytes, int], ImageHeader]] = {
    ImageFormat.PNG: _read_png,
    ImageFormat.JPEG: _read_jpeg,
    ImageFormat.WEBP: _read_webp,
    ImageFormat.GIF: _read_gif,
}
