"""Data URLs: measured by their first bytes, checked to their last, forwarded as they came."""

import base64
import os
import re
from io import BytesIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.errors import InvalidImage
from gateway.images import ImageLimits
from gateway.images.data_urls import SLICE_CHARS, measure, wrap
from gateway.images.headers import ImageFormat

LIMITS = ImageLimits()
FORMATS = list(ImageFormat)
STRICT_BASE64 = re.compile(
    rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})"
)


def picture(image_format: ImageFormat, width_px: int = 90, height_px: int = 70) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width_px, height_px), "teal").save(file, image_format.value)
    return file.getvalue()


def data_url(body: bytes, media_type: str = "image/png") -> bytes:
    return f"data:{media_type};base64,".encode() + base64.b64encode(body)


def jpeg_of(body_bytes: int) -> bytes:
    return (picture(ImageFormat.JPEG) + os.urandom(body_bytes))[:body_bytes]


def refusal(url: bytes, limits: ImageLimits = LIMITS) -> str | None:
    with pytest.raises(InvalidImage) as caught:
        measure(url, limits)
    return caught.value.code


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("wrap_url", [bytes, memoryview])
def test_every_format_is_measured_and_forwarded_as_sent(
    image_format: ImageFormat, wrap_url: type[bytes] | type[memoryview]
) -> None:
    body = picture(image_format)
    url = wrap_url(data_url(body, image_format.media_type))

    image = measure(url, LIMITS)

    assert (image.format, image.width_px, image.height_px) == (image_format, 90, 70)
    assert image.body_bytes == len(body)
    assert image.data_url is url


@pytest.mark.parametrize(
    "prefix",
    [
        "data:image/png;base64,",
        "data:image/jpg;base64,",
        "data:image/bmp;base64,",
        "data:application/octet-stream;base64,",
        "data:;base64,",
        "DATA:IMAGE/JPEG;BASE64,",
        "data:image/jpeg;charset=utf-8;base64,",
        "data:image/jpeg; base64,",
    ],
)
def test_a_wrong_prefix_is_corrected_to_what_the_content_is(prefix: str) -> None:
    payload = base64.b64encode(picture(ImageFormat.JPEG))

    image = measure(prefix.encode() + payload, LIMITS)

    assert image.format is ImageFormat.JPEG
    assert image.data_url == b"data:image/jpeg;base64," + payload


@pytest.mark.parametrize(
    "media_type",
    ["image/svg+xml", "IMAGE/SVG+XML", "text/html", "application/pdf", "video/mp4", "image"],
)
def test_a_type_that_declares_no_pixels_is_refused_whatever_the_content(media_type: str) -> None:
    url = data_url(picture(ImageFormat.PNG), media_type)

    assert refusal(url) == "unsupported_image_media_type"


@pytest.mark.parametrize(
    "url",
    [
        b"",
        b"data:",
        b"data:image/png;base64",
        b"data:image/png,AAAA",
        b"data:base64,AAAA",
        b"data:image/png;base32,AAAA",
        b"data:image/png;base64;charset=utf-8,AAAA",
        b"image/png;base64,AAAA",
        b"https://example.com/a,b",
        b"data:image/png;" + b"x" * 300 + b";base64,AAAA",
    ],
)
def test_what_is_not_a_base64_data_url_is_refused(url: bytes) -> None:
    assert refusal(url) == "invalid_base64_image"


@pytest.mark.parametrize(
    "spoil", [b"\n", b"\r\n", b" ", b"-", b"_", b"%2B", b"\x00", b"\xff", b"="]
)
@pytest.mark.parametrize("place", [3, 4000, SLICE_CHARS - 1, SLICE_CHARS, 300_003])
def test_a_foreign_character_is_found_wherever_it_is(spoil: bytes, place: int) -> None:
    payload = bytearray(base64.b64encode(jpeg_of(300_000)))
    payload[place : place + 4] = (spoil + b"AAAA")[:4]

    assert refusal(b"data:image/jpeg;base64," + bytes(payload)) == "invalid_base64_image"


def test_padding_inside_is_found_even_where_the_slices_meet() -> None:
    payload = bytearray(base64.b64encode(jpeg_of(600_000)))
    payload[SLICE_CHARS - 2 : SLICE_CHARS] = b"=="

    assert refusal(b"data:image/jpeg;base64," + bytes(payload)) == "invalid_base64_image"


@pytest.mark.parametrize("cut", [1, 2])
def test_missing_padding_is_refused(cut: int) -> None:
    url = data_url(jpeg_of(999 - cut))  # 999 is a multiple of 3, so that many signs pad

    assert refusal(url[:-cut]) == "invalid_base64_image"


@settings(max_examples=200, deadline=None)
@given(tail=st.lists(st.sampled_from([b"A", b"Q", b"+", b"/", b"=", b"-", b"\n"]), max_size=9))
@example(tail=[b"A", b"A", b"=", b"="])
@example(tail=[b"="] * 4)
@example(tail=[b"A"] + [b"="] * 3)
@example(tail=[b"A", b"A", b"=", b"A"])
def test_what_is_taken_is_strict_base64(tail: list[bytes]) -> None:
    head = base64.b64encode(jpeg_of(3000))
    payload = head + b"".join(tail)

    if STRICT_BASE64.fullmatch(payload):
        image = measure(b"data:image/jpeg;base64," + payload, LIMITS)
        assert image.body_bytes == len(base64.b64decode(payload))
    else:
        assert refusal(b"data:image/jpeg;base64," + payload) == "invalid_base64_image"


@settings(max_examples=200, deadline=None)
@given(rest=st.binary(max_size=100))
def test_junk_never_raises_anything_else(rest: bytes) -> None:
    for url in (rest, b"data:" + rest, b"data:image/png;base64," + rest, data_url(rest)):
        assert refusal(url)


def test_an_empty_payload_is_an_empty_image() -> None:
    assert refusal(b"data:image/png;base64,") == "empty_image_file"


def test_the_size_limit_counts_decoded_bytes() -> None:
    body = jpeg_of(5000)

    assert measure(data_url(body), ImageLimits(file_bytes_max=5000)).body_bytes == 5000
    assert refusal(data_url(body), ImageLimits(file_bytes_max=4999)) == "image_file_too_large"


def test_an_over_large_file_is_refused_before_its_characters_are_looked_at() -> None:
    assert refusal(b"data:image/png;base64," + b"\n" * 4000, ImageLimits(file_bytes_max=1000)) == (
        "image_file_too_large"
    )


@pytest.mark.parametrize("exif_bytes", [0, 3_000, 40_000, 65_000])
def test_the_header_is_found_however_far_back_it_starts(exif_bytes: int) -> None:
    file = BytesIO()
    block = b"Exif\x00\x00" + bytes(exif_bytes)
    Image.new("RGB", (90, 70)).save(file, "jpeg", exif=block, icc_profile=bytes(exif_bytes * 2))

    image = measure(data_url(file.getvalue()), LIMITS)

    assert (image.width_px, image.height_px) == (90, 70)


def test_an_animation_is_found_behind_a_large_first_frame() -> None:
    file = BytesIO()
    first, second = (Image.effect_noise((500, 400), sigma) for sigma in (50, 90))
    first.save(file, "gif", save_all=True, append_images=[second])

    assert file.tell() > 2 * 64 * 2**10
    assert refusal(data_url(file.getvalue())) == "unsupported_image_media_type"


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_wrapped_file_is_the_data_url_that_measures_the_same(image_format: ImageFormat) -> None:
    body = picture(image_format)

    image = wrap(body, LIMITS)

    assert image == measure(data_url(body, image_format.media_type), LIMITS)
