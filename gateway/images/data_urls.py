"""Images that come inside the request, as `data:image/png;base64,…`.

The payload is checked to its last character but never decoded as a whole: the size comes from the
first kilobytes, the rest is decoded in slices that are thrown away. It is forwarded as it was sent,
so the backend decodes the very bytes that were measured.
"""

from dataclasses import dataclass

import pybase64

from gateway.errors import InvalidImage
from gateway.images import ImageLimits
from gateway.images.headers import (
    ImageFormat,
    ImageHeader,
    check_file_size,
    check_header,
    read_header,
)

PREFIX_BYTES_MAX = 256  # everything before the payload
HEAD_BYTES = (4 * 2**10, 64 * 2**10)  # nearly every header; every header but a GIF's; then all
SLICE_CHARS = 256 * 2**10  # a multiple of 4, so that each slice decodes by itself

# What may be declared. Among these the content decides: a wrong hint is corrected, not refused.
UNTYPED = frozenset({"", "application/octet-stream", "binary/octet-stream"})
NEVER_PIXELS = frozenset({"image/svg+xml"})


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """An image as it goes to the backend, and its size.

    `data_url` is the very object that was measured unless its prefix had to be corrected. It holds
    nothing that JSON would escape.
    """

    format: ImageFormat
    width_px: int
    height_px: int
    body_bytes: int  # decoded
    data_url: bytes | memoryview


def measure(url: bytes | memoryview, limits: ImageLimits) -> MeasuredImage:
    """Check a base64 data URL whole and measure its image. Decodes no pixel.

    `url` is a JSON string without its quotes and without escapes. Raises InvalidImage:
    `invalid_base64_image`, and the codes of `gateway.images.headers`. A prefix other than
    `data:image/<what it is>;base64,` is replaced, at the price of one copy (75 µs for 1 MB).
    """
    prefix = _prefix(url)
    payload = memoryview(url)[len(prefix) :]
    body_bytes = _decoded_bytes(payload)
    check_file_size(body_bytes, limits)
    header = _read_payload_header(payload, body_bytes)
    check_header(header, limits)
    _check_base64(payload, body_bytes)
    right = _right_prefix(header.format)
    return _measured(header, body_bytes, url if prefix == right else b"".join((right, payload)))


def wrap(body: bytes, limits: ImageLimits) -> MeasuredImage:
    """Measure an image file and put it into a data URL. Raises as `gateway.images.headers` does."""
    check_file_size(len(body), limits)
    header = read_header(body, file_bytes=len(body))
    assert header is not None, "the whole file was read, and more was asked for"
    check_header(header, limits)
    data_url = b"".join((_right_prefix(header.format), pybase64.b64encode(body)))
    return _measured(header, len(body), data_url)


def _prefix(url: bytes | memoryview) -> bytes:
    """Return everything up to the payload; refuse what is not base64 or declares no pixels."""
    start, comma, _ = bytes(url[:PREFIX_BYTES_MAX]).partition(b",")
    scheme, _, description = start.decode("latin-1").lower().partition(":")
    declared, semicolon, encoding = description.rpartition(";")
    if not comma or scheme != "data" or not semicolon or encoding.strip() != "base64":
        raise _invalid_base64()
    media_type = declared.partition(";")[0].strip()
    if media_type not in UNTYPED and not _may_be_pixels(media_type):
        raise InvalidImage(
            "The data URL does not declare an image type: send a PNG, JPEG, WebP or static GIF.",
            code="unsupported_image_media_type",
        )
    return start + comma


def _may_be_pixels(media_type: str) -> bool:
    return media_type.startswith("image/") and media_type not in NEVER_PIXELS


def _decoded_bytes(payload: memoryview) -> int:
    """Return how many bytes the payload stands for, if it is what its length and padding say."""
    return len(payload) // 4 * 3 - bytes(payload[-2:]).count(b"=")


def _read_payload_header(payload: memoryview, body_bytes: int) -> ImageHeader:
    for head_bytes in (*HEAD_BYTES, body_bytes):
        head = _decode(payload[: (head_bytes + 2) // 3 * 4])
        header = read_header(head, file_bytes=body_bytes)
        if header is not None:
            return header
    raise _invalid_base64()  # All of it came out shorter than its length says: padding inside.


def _check_base64(payload: memoryview, body_bytes: int) -> None:
    """Raise unless all of it is base64 and its padding stands at the very end, and nowhere else.

    Padding inside would shorten the slice that holds it, and so the sum.
    """
    slices = (payload[start : start + SLICE_CHARS] for start in range(0, len(payload), SLICE_CHARS))
    if sum(len(_decode(part)) for part in slices) != body_bytes:
        raise _invalid_base64()


def _decode(chars: memoryview) -> bytes:
    try:
        return pybase64.b64decode(chars, validate=True)
    except ValueError:
        raise _invalid_base64() from None


def _right_prefix(image_format: ImageFormat) -> bytes:
    return f"data:{image_format.media_type};base64,".encode()


def _measured(header: ImageHeader, body_bytes: int, data_url: bytes | memoryview) -> MeasuredImage:
    return MeasuredImage(header.format, header.width_px, header.height_px, body_bytes, data_url)


def _invalid_base64() -> InvalidImage:
    return InvalidImage(
        "The image must be a data URL like data:image/png;base64,… in standard base64, "
        "with its padding and without line breaks.",
        code="invalid_base64_image",
    )
